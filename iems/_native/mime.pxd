"""The pass over a message, for kernels that look into its parts: `_run` after `again` on a zeroed `Parse`, `_drop` at the end."""

ctypedef const unsigned char *Text

cdef enum:
    C_PARENT = 0
    C_DEPTH = 1
    C_NUMBER = 2
    C_KIND = 3
    C_FLAGS = 4
    C_HEADER_START = 5
    C_BODY_START = 6
    C_BODY_END = 7
    C_LINES = 8
    C_TYPE_START = 9
    C_TYPE_END = 10
    C_ENCODING_START = 11
    C_ENCODING_END = 12
    C_COLUMNS = 13
    K_LEAF = 0
    K_MULTIPART = 1
    K_MESSAGE = 2
    L_DEPTH = 100
    L_PARTS = 10000
    L_FIELDS = 10000
    L_HEADER = 1048576
    L_ADDRESSES = 10000
    L_PARAMETERS = 1000
    L_BOUNDARY = 1000
    L_SEGMENTS = 16
    L_COMMENTS = 100
    L_QUOTED = 1000
    L_STRING = 65536

cdef struct Octets:
    unsigned char *data
    Py_ssize_t length
    Py_ssize_t capacity


cdef struct Field:
    int name
    Py_ssize_t start
    Py_ssize_t end


cdef struct Row:
    long long cells[C_COLUMNS]
    Py_ssize_t fields_start  # its fields are fields[fields_start:fields_end] of the parse
    Py_ssize_t fields_end
    Py_ssize_t children
    Py_ssize_t first_child  # -1: none
    Py_ssize_t last_child
    Py_ssize_t next_row  # within the same parent, -1: none
    Py_ssize_t lines_before  # LFs in the content before the body
    unsigned int seen  # bits of the Content-* fields had
    bint digest


cdef struct Open:
    Py_ssize_t row
    Py_ssize_t offset  # of the boundary in `arena`
    Py_ssize_t length


cdef struct Parse:
    Text text
    Py_ssize_t size
    Row *rows
    Py_ssize_t count
    Py_ssize_t rows_room
    Field *fields
    Py_ssize_t fields_count
    Py_ssize_t fields_room
    Open opened[L_DEPTH]
    Py_ssize_t depth  # how many of `opened` are
    Octets arena
    Octets scratch
    int flags
    Py_ssize_t current
    Py_ssize_t floor
    Py_ssize_t lines  # LFs before the place the pass has reached
    bint extended


cdef struct Media:
    Py_ssize_t main
    Py_ssize_t main_length  # 0: there is none to read
    Py_ssize_t sub
    Py_ssize_t sub_length
    Py_ssize_t after


cdef struct Parameter:
    Py_ssize_t at  # where the next one is looked for
    Py_ssize_t count
    Py_ssize_t name
    Py_ssize_t name_length
    Py_ssize_t value  # with its quotes
    Py_ssize_t value_end
    bint quoted


cdef Py_ssize_t _skip(Text text, Py_ssize_t at, Py_ssize_t end) noexcept nogil
cdef int _grow(void **data, Py_ssize_t *capacity, Py_ssize_t need, size_t size) except -1 nogil
cdef void _drop(Parse *parse) noexcept nogil
cdef int _run(Parse *parse) except -1 nogil
cdef Media _media(Text text, Py_ssize_t at, Py_ssize_t end) noexcept nogil
cdef bint _next_parameter(Text text, Py_ssize_t end, Parameter *found) noexcept nogil
cdef int _put_value(Octets *out, Text text, Parameter *found) except -1 nogil
cdef void again(Parse *parse, Text text, Py_ssize_t size) noexcept nogil
