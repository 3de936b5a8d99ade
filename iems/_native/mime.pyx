"""MIME structure of a message, and ENVELOPE, BODYSTRUCTURE and BODY in IMAP syntax; `mime_py` defines the answers.

Everything between the bytes that come in and those that go out is offsets in C vectors: no Python object per line, part
or token. Names and order follow the twin, so the two can be read side by side.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memchr, memcpy, memmove, memset

cdef extern from "mime_scan.h" nogil:
    size_t iems_find_delimiter(const unsigned char *text, size_t at, size_t end, size_t *lines)

PARENT = 0
DEPTH = 1
NUMBER = 2
KIND = 3
FLAGS = 4
HEADER_START = 5
BODY_START = 6
BODY_END = 7
LINES = 8
TYPE_START = 9
TYPE_END = 10
ENCODING_START = 11
ENCODING_END = 12
COLUMNS = 13
LEAF = 0
MULTIPART = 1
MESSAGE = 2
NO_HEADER_END = 1
NO_CLOSE = 2
CUT_DEPTH = 16
CUT_PARTS = 32
CUT_HEADER = 64
MAX_DEPTH = 100
MAX_PARTS = 10_000
MAX_FIELDS = 10_000
MAX_HEADER = 1 << 20
MAX_ADDRESSES = 10_000
MAX_PARAMETERS = 1_000
MAX_BOUNDARY = 1_000
MAX_SEGMENTS = 16
MAX_COMMENTS = 100
MAX_QUOTED = 1_000
MAX_STRING = 65_536

# Fields of interest. Content-* fields come last: of those the first one counts.
cdef enum:
    F_NONE = -1
    F_DATE = 0
    F_SUBJECT = 1
    F_IN_REPLY_TO = 2
    F_MESSAGE_ID = 3
    F_FROM = 4
    F_SENDER = 5
    F_REPLY_TO = 6
    F_TO = 7
    F_CC = 8
    F_BCC = 9
    F_TYPE = 10
    F_ENCODING = 11
    F_ID = 12
    F_DESCRIPTION = 13
    F_MD5 = 14
    F_DISPOSITION = 15
    F_LANGUAGE = 16
    F_LOCATION = 17

# Classes of octets.
cdef enum:
    WS = 1  # space, tab, CR, LF
    TOKEN_END = 2
    NAME_END = 4
    BARE_END = 8
    LITERAL = 16  # can't stand in a quoted string
    ESCAPE = 32  # needs a backslash in one

cdef unsigned char CLASS[256]


cdef void _classify() noexcept:
    cdef int octet
    memset(CLASS, 0, sizeof(CLASS))
    for octet in b" \t\r\n":
        CLASS[octet] |= WS
    for octet in b" \t\r\n()<>@,;:\\\"/[]?=":
        CLASS[octet] |= TOKEN_END
    for octet in b" \t\r\n;=(\"":
        CLASS[octet] |= NAME_END
    for octet in b" \t\r\n;(":
        CLASS[octet] |= BARE_END
    for octet in b"\0\r\n":
        CLASS[octet] |= LITERAL
    for octet in range(128, 256):
        CLASS[octet] |= LITERAL
    for octet in b"\\\"":
        CLASS[octet] |= ESCAPE


_classify()


# Growing vectors. All of them are freed by _drop.

cdef int _grow(void **data, Py_ssize_t *capacity, Py_ssize_t need, size_t size) except -1 nogil:
    cdef Py_ssize_t room = capacity[0] * 2
    cdef void *fresh
    if room < need:
        room = need
    if room < 16:
        room = 16
    fresh = realloc(data[0], room * size)
    if fresh == NULL:
        with gil:
            raise MemoryError()
    data[0] = fresh
    capacity[0] = room
    return 0


cdef inline int _reserve(Octets *out, Py_ssize_t extra) except -1 nogil:
    if out.length + extra > out.capacity:
        _grow(<void **> &out.data, &out.capacity, out.length + extra + 1024, 1)
    return 0


cdef inline int _put(Octets *out, const unsigned char *source, Py_ssize_t count) except -1 nogil:
    _reserve(out, count)
    memcpy(out.data + out.length, source, count)
    out.length += count
    return 0


cdef inline int _put_octet(Octets *out, unsigned char octet) except -1 nogil:
    _reserve(out, 1)
    out.data[out.length] = octet
    out.length += 1
    return 0


cdef int _put_number(Octets *out, long long number) except -1 nogil:
    cdef unsigned char digits[24]
    cdef int at = 24
    while True:
        at -= 1
        digits[at] = <unsigned char> (48 + number % 10)
        number //= 10
        if number == 0:
            break
    return _put(out, &digits[at], 24 - at)


cdef void _start(Parse *parse, const unsigned char[::1] content) noexcept:
    memset(parse, 0, sizeof(Parse))
    parse.size = content.shape[0]
    parse.text = &content[0] if parse.size else <Text> b""


cdef void _drop(Parse *parse) noexcept nogil:
    free(parse.rows)
    free(parse.fields)
    free(parse.arena.data)
    free(parse.scratch.data)


cdef void again(Parse *parse, Text text, Py_ssize_t size) noexcept nogil:
    """Begin another content; the memory of the one before is used again."""
    parse.text = text
    parse.size = size
    parse.count = parse.fields_count = parse.depth = 0
    parse.arena.length = parse.scratch.length = 0
    parse.flags = 0
    parse.current = parse.floor = parse.lines = 0


# The pass.

cdef inline Py_ssize_t _line_end(Parse *parse, Py_ssize_t start) noexcept nogil:
    cdef const void *hit
    if start >= parse.size:
        return parse.size
    hit = memchr(parse.text + start, 10, parse.size - start)
    return parse.size if hit == NULL else <Text> hit - parse.text


cdef int _run(Parse *parse) except -1 nogil:
    cdef Py_ssize_t position = _entity(parse, 0, -1)
    while position >= 0:
        position = _next_part(parse, position)
    _close_up_to(parse, -1, parse.size, parse.lines)
    parse.rows[0].cells[C_FLAGS] |= parse.flags
    return 0


cdef Py_ssize_t _next_part(Parse *parse, Py_ssize_t position) except -2 nogil:
    """As the twin's; -1 at the end, with `lines` then being those of the whole content."""
    cdef Text text = parse.text
    cdef Py_ssize_t hit = position - 1, line_end, index, end, end_lines, k, row
    cdef size_t lines = 0
    cdef bint closing
    if position > 0 and position <= parse.size and text[position - 1] == 10:
        parse.lines -= 1
    else:
        hit = position
    while parse.depth:
        lines = 0
        hit = iems_find_delimiter(text, hit, parse.size, &lines)
        parse.lines += lines
        if hit >= parse.size:
            return -1
        line_end = _line_end(parse, hit + 1)
        closing = False
        index = _match(parse, hit + 1, line_end, &closing)
        if index < 0:
            hit += 1
            parse.lines += 1
            continue
        row = parse.opened[index].row
        end = hit - 1 if hit and text[hit - 1] == 13 else hit
        end_lines = parse.lines
        if end < parse.floor:
            end = parse.floor  # behind the LF at hit
            end_lines += 1
        parse.lines += 1
        for k in range(index + 1, parse.depth):
            parse.rows[parse.opened[k].row].cells[C_FLAGS] |= 2
        if closing:
            _close_up_to(parse, row, end, end_lines)
            parse.depth = index
            parse.arena.length = parse.opened[index].offset
            parse.current = row
            hit = line_end
            parse.floor = line_end + 1 if line_end < parse.size else parse.size
            continue
        if parse.count >= L_PARTS:
            parse.flags |= CUT_PARTS_BIT
            hit = line_end
            break
        _close_up_to(parse, row, end, end_lines)
        parse.depth = index + 1
        parse.arena.length = parse.opened[index].offset + parse.opened[index].length
        if line_end < parse.size:
            parse.lines += 1
            line_end += 1
        return _entity(parse, line_end, row)
    _count_rest(parse, hit)
    return -1


cdef void _count_rest(Parse *parse, Py_ssize_t at) noexcept nogil:
    """Add the LFs from `at` to the end."""
    cdef size_t lines = 0
    while at < parse.size:
        at = iems_find_delimiter(parse.text, at, parse.size, &lines)
        if at < parse.size:
            lines += 1
            at += 1
    parse.lines += lines


cdef Py_ssize_t _match(Parse *parse, Py_ssize_t start, Py_ssize_t line_end, bint *closing) noexcept nogil:
    cdef Text line
    cdef Py_ssize_t length, index, best = -1, size
    cdef const unsigned char *boundary
    cdef bint dashes
    closing[0] = False
    start += 2
    while line_end > start and CLASS[parse.text[line_end - 1]] & WS:
        line_end -= 1
    line = parse.text + start
    length = line_end - start if line_end > start else 0
    for index in range(parse.depth - 1, -1, -1):
        size = parse.opened[index].length
        boundary = parse.arena.data + parse.opened[index].offset
        if size > length or line[0] != boundary[0] or not _same(line, boundary, size):
            continue
        dashes = length >= size + 2 and line[size] == 45 and line[size + 1] == 45
        if length == size or (dashes and length == size + 2):
            closing[0] = length != size
            return index
        if best < 0 or size > parse.opened[best].length:
            best = index
            closing[0] = dashes
    return best


cdef inline bint _same(Text a, Text b, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(count):
        if a[k] != b[k]:
            return False
    return True


cdef int _close_up_to(Parse *parse, Py_ssize_t row, Py_ssize_t end, Py_ssize_t lines) noexcept nogil:
    """As the twin's. lines: LFs of the content before `end`."""
    cdef Py_ssize_t at = parse.current, k
    cdef Row *part
    while at != row:
        part = &parse.rows[at]
        part.cells[C_BODY_END] = end
        part.cells[C_LINES] = lines - part.lines_before
        at = part.cells[C_PARENT]
    if row < 0:
        for k in range(parse.depth):
            parse.rows[parse.opened[k].row].cells[C_FLAGS] |= 2
    return 0


cdef Py_ssize_t _entity(Parse *parse, Py_ssize_t start, Py_ssize_t parent) except -2 nogil:
    cdef Py_ssize_t number, position, arena
    cdef Row *row
    cdef Row *above
    cdef Open *fresh
    cdef int kind
    cdef bint digest
    while True:
        if parse.count == parse.rows_room:
            _grow(<void **> &parse.rows, &parse.rows_room, parse.count + 1, sizeof(Row))
        number = parse.count
        parse.count += 1
        parse.current = number
        row = &parse.rows[number]
        memset(row, 0, sizeof(Row))
        row.first_child = row.last_child = row.next_row = -1
        row.cells[C_PARENT] = parent
        row.cells[C_HEADER_START] = start
        digest = False
        if parent >= 0:
            above = &parse.rows[parent]
            above.children += 1
            row.cells[C_DEPTH] = above.cells[C_DEPTH] + 1
            row.cells[C_NUMBER] = above.children
            digest = above.digest
            if above.last_child < 0:
                above.first_child = number
            else:
                parse.rows[above.last_child].next_row = number
            above.last_child = number
        position = _header(parse, start, row)
        start = row.cells[C_BODY_START]
        row.lines_before = parse.lines
        parse.floor = start
        # The boundary goes to the arena, where the next open multipart keeps it.
        arena = parse.arena.length
        kind = _kind(parse, row, digest)
        if kind != K_LEAF and row.cells[C_DEPTH] >= L_DEPTH:
            parse.flags |= CUT_DEPTH_BIT
            return position
        if kind == K_MULTIPART:
            row.cells[C_KIND] = K_MULTIPART
            fresh = &parse.opened[parse.depth]
            fresh.row = number
            fresh.offset = arena
            fresh.length = parse.arena.length - arena
            parse.depth += 1
            return position
        if kind == K_LEAF:
            return position
        if parse.count >= L_PARTS:
            parse.flags |= CUT_PARTS_BIT
            return position
        row.cells[C_KIND] = K_MESSAGE
        parent = number


cdef enum:
    CUT_DEPTH_BIT = 16
    CUT_PARTS_BIT = 32
    CUT_HEADER_BIT = 64


cdef Py_ssize_t _header(Parse *parse, Py_ssize_t start, Row *row) except -2 nogil:
    cdef Text text = parse.text
    cdef Py_ssize_t position = start, line_end, text_end, colon, name_end, count = 0
    cdef bint taken = False, closing = False
    cdef const void *hit
    cdef int name
    cdef Field *field
    row.fields_start = row.fields_end = parse.fields_count
    while True:
        if position >= parse.size:
            row.cells[C_BODY_START] = parse.size
            row.cells[C_FLAGS] = 1
            return parse.size
        line_end = _line_end(parse, position)
        text_end = line_end - 1 if line_end > position and text[line_end - 1] == 13 else line_end
        if text_end == position:
            if line_end < parse.size:
                line_end += 1
                parse.lines += 1
            row.cells[C_BODY_START] = line_end
            return line_end
        if (parse.depth and text[position] == 45 and position + 1 < parse.size and text[position + 1] == 45
                and _match(parse, position, line_end, &closing) >= 0):
            row.cells[C_BODY_START] = position
            row.cells[C_FLAGS] = 1
            return position
        if position - start >= L_HEADER:
            parse.flags |= CUT_HEADER_BIT
            taken = False
        elif text[position] == 32 or text[position] == 9:
            if taken:
                field = &parse.fields[parse.fields_count - 1]
                field.end = text_end
                _mark(row, field)
        elif count >= L_FIELDS:
            parse.flags |= CUT_HEADER_BIT
            taken = False
        else:
            count += 1
            taken = False
            hit = memchr(text + position, 58, text_end - position)
            if hit != NULL:
                colon = <Text> hit - text
                name_end = colon
                while name_end > position and (text[name_end - 1] == 32 or text[name_end - 1] == 9):
                    name_end -= 1
                name = _name(text + position, name_end - position)
                taken = name != F_NONE and not (name >= F_TYPE and row.seen & (1u << name))
                if taken:
                    row.seen |= 1u << name
                    if parse.fields_count == parse.fields_room:
                        _grow(<void **> &parse.fields, &parse.fields_room, parse.fields_count + 1, sizeof(Field))
                    field = &parse.fields[parse.fields_count]
                    parse.fields_count += 1
                    row.fields_end = parse.fields_count
                    field.name = name
                    field.start = colon + 1
                    field.end = text_end
                    _mark(row, field)
        position = line_end + 1
        if line_end < parse.size:
            parse.lines += 1


cdef inline void _mark(Row *row, Field *field) noexcept nogil:
    if field.name == F_TYPE:
        row.cells[C_TYPE_START] = field.start
        row.cells[C_TYPE_END] = field.end
    elif field.name == F_ENCODING:
        row.cells[C_ENCODING_START] = field.start
        row.cells[C_ENCODING_END] = field.end


cdef inline bint _is(Text text, Py_ssize_t length, const char *word, Py_ssize_t word_length) noexcept nogil:
    """Whether text is `word`, which is in lower case, in any case."""
    cdef Py_ssize_t k
    cdef unsigned char octet
    if length != word_length:
        return False
    for k in range(length):
        octet = text[k]
        if 65 <= octet <= 90:
            octet += 32
        if octet != <unsigned char> word[k]:
            return False
    return True


cdef int _name(Text text, Py_ssize_t length) noexcept nogil:
    """Which field of interest has this name."""
    if length == 2:
        return F_TO if _is(text, 2, b"to", 2) else F_CC if _is(text, 2, b"cc", 2) else F_NONE
    if length == 3:
        return F_BCC if _is(text, 3, b"bcc", 3) else F_NONE
    if length == 4:
        return F_FROM if _is(text, 4, b"from", 4) else F_DATE if _is(text, 4, b"date", 4) else F_NONE
    if length == 6:
        return F_SENDER if _is(text, 6, b"sender", 6) else F_NONE
    if length == 7:
        return F_SUBJECT if _is(text, 7, b"subject", 7) else F_NONE
    if length == 8:
        return F_REPLY_TO if _is(text, 8, b"reply-to", 8) else F_NONE
    if length == 10:
        return F_MESSAGE_ID if _is(text, 10, b"message-id", 10) else F_ID if _is(text, 10, b"content-id", 10) else F_NONE
    if length == 11:
        if _is(text, 11, b"in-reply-to", 11):
            return F_IN_REPLY_TO
        return F_MD5 if _is(text, 11, b"content-md5", 11) else F_NONE
    if length == 12:
        return F_TYPE if _is(text, 12, b"content-type", 12) else F_NONE
    if length == 16:
        if _is(text, 16, b"content-language", 16):
            return F_LANGUAGE
        return F_LOCATION if _is(text, 16, b"content-location", 16) else F_NONE
    if length == 19:
        if _is(text, 19, b"content-description", 19):
            return F_DESCRIPTION
        return F_DISPOSITION if _is(text, 19, b"content-disposition", 19) else F_NONE
    if length == 25:
        return F_ENCODING if _is(text, 25, b"content-transfer-encoding", 25) else F_NONE
    return F_NONE


# Values of structured fields: [at, end) of the content.

cdef Py_ssize_t _skip(Text text, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    while at < end:
        if CLASS[text[at]] & WS:
            at += 1
        elif text[at] == 40:
            at = _comment_end(text, at, end)
        else:
            break
    return at


cdef Py_ssize_t _comment_end(Text text, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    cdef int level = 0
    while at < end:
        if text[at] == 92:
            at += 1
        elif text[at] == 40:
            if level < L_COMMENTS:
                level += 1
        elif text[at] == 41:
            level -= 1
            if level == 0:
                return at + 1
        at += 1
    return end


cdef Py_ssize_t _quoted_end(Text text, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    at += 1
    while at < end:
        if text[at] == 92:
            at += 1
        elif text[at] == 34:
            return at + 1
        at += 1
    return end


cdef int _put_unquoted(Octets *out, Text text, Py_ssize_t at, Py_ssize_t end) except -1 nogil:
    """The content of the quoted string at `at`, which ends within `end`."""
    cdef unsigned char octet
    cdef unsigned char *to
    if end > at:
        _reserve(out, end - at)
    to = out.data + out.length
    at += 1
    while at < end:
        octet = text[at]
        if octet == 34:
            break
        if octet == 92:
            at += 1
            if at == end:
                break
            octet = text[at]
        if octet != 13 and octet != 10:
            to[0] = octet
            to += 1
        at += 1
    out.length = to - out.data
    return 0


cdef inline Py_ssize_t _until(Text text, Py_ssize_t at, Py_ssize_t end, unsigned char stop) noexcept nogil:
    while at < end and not CLASS[text[at]] & stop:
        at += 1
    return at


cdef Media _media(Text text, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    cdef Media media
    cdef Py_ssize_t type_end, slash
    at = _skip(text, at, end)
    media.main = media.sub = media.after = at
    media.main_length = media.sub_length = 0
    type_end = _until(text, at, end, TOKEN_END)
    slash = _skip(text, type_end, end)
    if type_end == at or slash >= end or text[slash] != 47:
        return media
    media.sub = _skip(text, slash + 1, end)
    media.after = _until(text, media.sub, end, TOKEN_END)
    media.sub_length = media.after - media.sub
    if media.sub_length == 0:
        media.after = at
        return media
    media.main_length = type_end - at
    return media


cdef Py_ssize_t _until_semicolon(Text text, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    while at < end and text[at] != 59:
        if text[at] == 34:
            at = _quoted_end(text, at, end)
        elif text[at] == 40:
            at = _comment_end(text, at, end)
        else:
            at += 1
    return at


cdef bint _next_parameter(Text text, Py_ssize_t end, Parameter *found) noexcept nogil:
    cdef Py_ssize_t at = found.at, start, stop
    if found.count == 0:
        at = _until_semicolon(text, at, end)
    while found.count < L_PARAMETERS:
        at = _skip(text, at, end)
        start = _skip(text, at + 1, end) if at < end and text[at] == 59 else at
        if start >= end:
            break
        stop = _until(text, start, end, NAME_END)
        at = _skip(text, stop, end)
        if stop == start or at >= end or text[at] != 61:
            at = _until_semicolon(text, at, end)
            continue
        found.name = start
        found.name_length = stop - start
        at = _skip(text, at + 1, end)
        found.value = at
        found.quoted = at < end and text[at] == 34
        at = _quoted_end(text, at, end) if found.quoted else _until(text, at, end, BARE_END)
        found.value_end = found.at = at
        found.count += 1
        return True
    return False


cdef int _put_value(Octets *out, Text text, Parameter *found) except -1 nogil:
    if found.quoted:
        return _put_unquoted(out, text, found.value, found.value_end)
    return _put(out, text + found.value, found.value_end - found.value)


cdef int _kind(Parse *parse, Row *row, bint digest) except -1 nogil:
    """What the part is; the boundary of a multipart is appended to the arena."""
    cdef Text text = parse.text
    cdef Py_ssize_t at = row.cells[C_TYPE_START], end = row.cells[C_TYPE_END]
    cdef Media media = _media(text, at, end)
    if media.main_length == 0:
        return K_MESSAGE if digest else K_LEAF
    if _is(text + media.main, media.main_length, b"multipart", 9):
        if not _put_boundary(parse, media.after, end):
            return K_LEAF
        row.digest = _is(text + media.sub, media.sub_length, b"digest", 6)
        return K_MULTIPART
    if (_is(text + media.main, media.main_length, b"message", 7)
            and _is(text + media.sub, media.sub_length, b"rfc822", 6)):
        return K_MESSAGE
    return K_LEAF


cdef int _put_boundary(Parse *parse, Py_ssize_t at, Py_ssize_t end) except -1 nogil:
    """Append the boundary to the arena and return its length; 0 (and nothing appended) if there is none to use."""
    cdef Text text = parse.text
    cdef Octets *out = &parse.arena
    cdef Py_ssize_t start = out.length, number, digits
    cdef Parameter found
    cdef bint any_segment = False, had
    memset(&found, 0, sizeof(found))
    found.at = at
    while _next_parameter(text, end, &found):
        if _is(text + found.name, found.name_length, b"boundary", 8):
            _put_value(out, text, &found)
            any_segment = False
            break
        if found.name_length > 9 and _is(text + found.name, 9, b"boundary*", 9):
            any_segment = True
    if any_segment:
        for number in range(L_SEGMENTS):
            digits = 1 if number < 10 else 2
            had = False
            memset(&found, 0, sizeof(found))
            found.at = at
            while not had and _next_parameter(text, end, &found):
                had = (found.name_length == 9 + digits and _is(text + found.name, 9, b"boundary*", 9)
                       and text[found.name + 8 + digits] == 48 + number % 10
                       and (digits == 1 or text[found.name + 9] == 48 + number // 10))
            if not had:
                break
            _put_value(out, text, &found)
    while out.length > start and CLASS[out.data[out.length - 1]] & WS:
        out.length -= 1
    if out.length - start > L_BOUNDARY:
        out.length = start
    return <int> (out.length - start)


# The answers.

def scan(const unsigned char[::1] content not None):
    """The parts of a message: int64[n, COLUMNS], the message itself first, then every part in order."""
    cdef Parse parse
    cdef Py_ssize_t k
    cdef bytes cells
    cdef char *to
    _start(&parse, content)
    try:
        _run(&parse)
        cells = PyBytes_FromStringAndSize(NULL, parse.count * C_COLUMNS * sizeof(long long))
        to = cells
        for k in range(parse.count):
            memcpy(to + k * C_COLUMNS * sizeof(long long), parse.rows[k].cells, C_COLUMNS * sizeof(long long))
        return memoryview(cells).cast("q", (parse.count, C_COLUMNS))
    finally:
        _drop(&parse)


def summarize(const unsigned char[::1] content not None):
    """(ENVELOPE, BODYSTRUCTURE) in IMAP syntax, without the names of the items."""
    cdef Parse parse
    cdef Octets out
    cdef Py_ssize_t middle
    memset(&out, 0, sizeof(out))
    _start(&parse, content)
    parse.extended = True
    try:
        _run(&parse)
        _envelope(&parse, &out, 0)
        middle = out.length
        _structure(&parse, &out, 0)
        return (PyBytes_FromStringAndSize(<char *> out.data, middle),
                PyBytes_FromStringAndSize(<char *> out.data + middle, out.length - middle))
    finally:
        free(out.data)
        _drop(&parse)


def body(const unsigned char[::1] content not None):
    """BODY: the structure without extension data (RFC 3501 7.4.2)."""
    cdef Parse parse
    cdef Octets out
    memset(&out, 0, sizeof(out))
    _start(&parse, content)
    try:
        _run(&parse)
        _structure(&parse, &out, 0)
        return PyBytes_FromStringAndSize(<char *> out.data, out.length)
    finally:
        free(out.data)
        _drop(&parse)


def select(const unsigned char[::1] content not None, list names not None, bint invert=False,
           Py_ssize_t start=0, Py_ssize_t stop=-1):
    """The lines of the fields with these names (invert: of all others) in the header at `start`, and its empty line."""
    cdef Text text = &content[0] if content.shape[0] else <Text> b""
    cdef Octets out
    cdef Wanted wanted
    if stop == -1:
        stop = content.shape[0]
    if not 0 <= start <= stop <= content.shape[0]:
        raise ValueError("no such range")
    for name in names:
        if not isinstance(name, bytes):
            raise TypeError("names are bytes")
    memset(&out, 0, sizeof(out))
    memset(&wanted, 0, sizeof(wanted))
    try:
        _want(&wanted, names)
        _select(&wanted, text, start, stop, invert, &out)
        return PyBytes_FromStringAndSize(<char *> out.data, out.length)
    finally:
        free(out.data)
        free(wanted.slots)


# A set of names: open addressing, so that a peer who asks for thousands of names gets no thousandfold work.

cdef struct Name:
    Text text  # NULL: free
    Py_ssize_t length


cdef struct Wanted:
    Name *slots
    Py_ssize_t mask  # their number, a power of two, minus 1


cdef inline unsigned char _lower(unsigned char octet) noexcept nogil:
    return octet + 32 if 65 <= octet <= 90 else octet


cdef Name *_slot(Wanted *wanted, Text text, Py_ssize_t length) noexcept nogil:
    """Where the name is, or where it would be."""
    cdef size_t number = 14695981039346656037ULL
    cdef Py_ssize_t k, at
    cdef Name *slot
    for k in range(length):
        number = (number ^ _lower(text[k])) * 1099511628211ULL
    at = <Py_ssize_t> (number ^ (number >> 29)) & wanted.mask
    while True:
        slot = &wanted.slots[at]
        if slot.text == NULL:
            return slot
        if slot.length == length:
            k = 0
            while k < length and _lower(slot.text[k]) == _lower(text[k]):
                k += 1
            if k == length:
                return slot
        at = (at + 1) & wanted.mask


cdef int _want(Wanted *wanted, list names) except -1:
    """Fill the set; it points into the names."""
    cdef Py_ssize_t size = 4
    cdef bytes name
    cdef Name *slot
    cdef Text text
    while size < 2 * len(names):
        size *= 2
    wanted.slots = <Name *> calloc(size, sizeof(Name))
    if wanted.slots == NULL:
        raise MemoryError()
    wanted.mask = size - 1
    for name in names:
        text = name
        slot = _slot(wanted, text, len(name))
        slot.text = text
        slot.length = len(name)
    return 0


cdef int _select(Wanted *wanted, Text text, Py_ssize_t at, Py_ssize_t stop, bint invert, Octets *out) except -1 nogil:
    cdef Py_ssize_t line_end, after, text_end, name_end
    cdef bint taken = False, first = True
    cdef const void *hit
    while at < stop:
        hit = memchr(text + at, 10, stop - at)
        line_end = stop if hit == NULL else <Text> hit - text
        after = line_end + 1 if line_end < stop else stop
        text_end = line_end - 1 if line_end > at and text[line_end - 1] == 13 else line_end
        if text_end == at:
            return _put(out, text + at, after - at)
        if first or (text[at] != 32 and text[at] != 9):
            first = False
            hit = memchr(text + at, 58, text_end - at)
            taken = False
            if hit != NULL:
                name_end = <Text> hit - text
                while name_end > at and (text[name_end - 1] == 32 or text[name_end - 1] == 9):
                    name_end -= 1
                taken = _slot(wanted, text + at, name_end - at).text != NULL
            taken = taken != invert
        if taken:
            _put(out, text + at, after - at)
        at = after
    return _put(out, b"\r\n", 2)


# Rendering.

cdef Field *_value(Parse *parse, Row *row, int name) noexcept nogil:
    """The last field of that name, NULL if there is none."""
    cdef Py_ssize_t k
    if not row.seen & (1u << name):
        return NULL
    for k in range(row.fields_end - 1, row.fields_start - 1, -1):
        if parse.fields[k].name == name:
            return &parse.fields[k]
    return NULL


cdef int _envelope(Parse *parse, Octets *out, Py_ssize_t number) except -1 nogil:
    cdef Row *row = &parse.rows[number]
    cdef Py_ssize_t from_start, from_end
    cdef int name
    _put_octet(out, 40)
    _put_text(parse, out, _value(parse, row, F_DATE))
    _put_octet(out, 32)
    _put_text(parse, out, _value(parse, row, F_SUBJECT))
    _put_octet(out, 32)
    from_start = out.length
    _put_addresses(parse, out, row, F_FROM)
    from_end = out.length
    for name in range(F_SENDER, F_BCC + 1):
        _put_octet(out, 32)
        if not _put_addresses(parse, out, row, name) and name <= F_REPLY_TO:
            out.length -= 3
            _reserve(out, from_end - from_start)
            _put(out, out.data + from_start, from_end - from_start)
    _put_octet(out, 32)
    _put_text(parse, out, _value(parse, row, F_IN_REPLY_TO))
    _put_octet(out, 32)
    _put_text(parse, out, _value(parse, row, F_MESSAGE_ID))
    return _put_octet(out, 41)


cdef int _put_addresses(Parse *parse, Octets *out, Row *row, int name) except -1 nogil:
    """The address list of all fields of that name; returns 0 if it is NIL."""
    cdef Py_ssize_t k, count = 0
    if row.seen & (1u << name):
        _put_octet(out, 40)
        for k in range(row.fields_start, row.fields_end):
            if parse.fields[k].name == name:
                _address_list(parse, out, parse.fields[k].start, parse.fields[k].end, &count)
        if count:
            _put_octet(out, 41)
            return 1
        out.length -= 1
    _put(out, b"NIL", 3)
    return 0


cdef int _structure(Parse *parse, Octets *out, Py_ssize_t number) except -1 nogil:
    cdef Row *row = &parse.rows[number]
    cdef Text text = parse.text
    cdef Field *value = _value(parse, row, F_TYPE)
    cdef Py_ssize_t at = 0, end = 0, child
    cdef int kind = <int> row.cells[C_KIND]
    cdef Media media
    cdef bint in_digest, is_text
    if value != NULL:
        at = value.start
        end = value.end
    media = _media(text, at, end)
    _put_octet(out, 40)
    if kind == K_MULTIPART:
        child = row.first_child
        if child < 0:
            # The grammar wants one part at least.
            _put(out, b'("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 0 0', 57)
            if parse.extended:
                _put(out, b" NIL NIL NIL NIL", 16)
            _put_octet(out, 41)
        while child >= 0:
            _structure(parse, out, child)
            child = parse.rows[child].next_row
        _put_octet(out, 32)
        _put_string(out, text + media.sub, media.sub_length)
        if parse.extended:
            _put_octet(out, 32)
            _put_pairs(parse, out, media.after, end, False)
            _put_rest(parse, out, row)
        return _put_octet(out, 41)
    is_text = False
    if media.main_length == 0:
        in_digest = row.cells[C_PARENT] >= 0 and parse.rows[row.cells[C_PARENT]].digest
        if in_digest and kind == K_MESSAGE:
            _put(out, b'"message" "rfc822" NIL', 22)
        else:
            _put(out, b'"text" "plain" ("charset" "us-ascii")', 37)
            is_text = True
    elif kind == K_LEAF and (
            _is(text + media.main, media.main_length, b"multipart", 9)
            or (_is(text + media.main, media.main_length, b"message", 7)
                and _is(text + media.sub, media.sub_length, b"rfc822", 6))):
        # Not taken apart: the grammar keeps these types for what is, and a reader should see the text.
        _put(out, b'"text" "plain" ("charset" "us-ascii")', 37)
        is_text = True
    else:
        is_text = _is(text + media.main, media.main_length, b"text", 4)
        _put_string(out, text + media.main, media.main_length)
        _put_octet(out, 32)
        _put_string(out, text + media.sub, media.sub_length)
        _put_octet(out, 32)
        _put_pairs(parse, out, media.after, end, is_text)
    _put_octet(out, 32)
    _put_text(parse, out, _value(parse, row, F_ID))
    _put_octet(out, 32)
    _put_text(parse, out, _value(parse, row, F_DESCRIPTION))
    _put_octet(out, 32)
    _put_encoding(parse, out, _value(parse, row, F_ENCODING))
    _put_octet(out, 32)
    _put_number(out, row.cells[C_BODY_END] - row.cells[C_BODY_START])
    if kind == K_MESSAGE:
        _put_octet(out, 32)
        _envelope(parse, out, row.first_child)
        _put_octet(out, 32)
        _structure(parse, out, row.first_child)
    if is_text or kind == K_MESSAGE:
        _put_octet(out, 32)
        _put_number(out, row.cells[C_LINES])
    if parse.extended:
        _put_octet(out, 32)
        _put_text(parse, out, _value(parse, row, F_MD5))
        _put_rest(parse, out, row)
    return _put_octet(out, 41)


cdef int _put_rest(Parse *parse, Octets *out, Row *row) except -1 nogil:
    cdef Text text = parse.text
    cdef Field *value = _value(parse, row, F_DISPOSITION)
    cdef Py_ssize_t at, end
    cdef bint had = False
    _put_octet(out, 32)
    if value != NULL:
        at = _skip(text, value.start, value.end)
        end = _until(text, at, value.end, TOKEN_END)
        had = end > at
        if had:
            _put_octet(out, 40)
            _put_string(out, text + at, end - at)
            _put_octet(out, 32)
            _put_pairs(parse, out, end, value.end, False)
            _put_octet(out, 41)
    if not had:
        _put(out, b"NIL", 3)
    _put_octet(out, 32)
    _put_languages(parse, out, _value(parse, row, F_LANGUAGE))
    _put_octet(out, 32)
    return _put_text(parse, out, _value(parse, row, F_LOCATION))


cdef int _put_encoding(Parse *parse, Octets *out, Field *value) except -1 nogil:
    cdef Py_ssize_t start, end, at
    if value != NULL:
        start = _skip(parse.text, value.start, value.end)
        end = _until(parse.text, start, value.end, TOKEN_END)
        at = _skip(parse.text, end, value.end)
        if at < value.end and parse.text[at] == 59:
            at = _skip(parse.text, at + 1, value.end)
        if at == value.end and end > start:
            return _put_string(out, parse.text + start, end - start)
    return _put(out, b'"7bit"', 6)


cdef int _put_languages(Parse *parse, Octets *out, Field *value) except -1 nogil:
    cdef Text text = parse.text
    cdef Py_ssize_t at, end, start = out.length, count = 0
    if value != NULL:
        at = value.start
        while count < L_PARAMETERS:
            at = _skip(text, at, value.end)
            if at >= value.end:
                break
            end = _until(text, at, value.end, TOKEN_END)
            if end > at:
                if count:
                    _put_octet(out, 32)
                _put_string(out, text + at, end - at)
                count += 1
                at = end
            else:
                at += 1
    if count == 0:
        return _put(out, b"NIL", 3)
    if count > 1:
        _reserve(out, 2)
        memmove(out.data + start + 1, out.data + start, out.length - start)
        out.data[start] = 40
        out.length += 1
        _put_octet(out, 41)
    return 0


cdef int _put_pairs(Parse *parse, Octets *out, Py_ssize_t at, Py_ssize_t end, bint charset) except -1 nogil:
    """The parameters behind `at`. charset: add the default one of text if there is none."""
    cdef Text text = parse.text
    cdef Parameter found
    cdef Octets *scratch = &parse.scratch
    cdef bint first = True
    memset(&found, 0, sizeof(found))
    found.at = at
    while _next_parameter(text, end, &found):
        _put_octet(out, 40 if first else 32)
        first = False
        _put_string(out, text + found.name, found.name_length)
        _put_octet(out, 32)
        if found.quoted:
            scratch.length = 0
            _put_unquoted(scratch, text, found.value, found.value_end)
            _put_string(out, scratch.data, scratch.length)
        else:
            _put_string(out, text + found.value, found.value_end - found.value)
        if charset and _is(text + found.name, found.name_length, b"charset", 7):
            charset = False
    if charset:
        _put_octet(out, 40 if first else 32)
        first = False
        _put(out, b'"charset" "us-ascii"', 20)
    if first:
        return _put(out, b"NIL", 3)
    return _put_octet(out, 41)


cdef int _put_text(Parse *parse, Octets *out, Field *value) except -1 nogil:
    cdef Text text = parse.text
    cdef Octets *scratch = &parse.scratch
    cdef Py_ssize_t at, end
    if value == NULL:
        return _put(out, b"NIL", 3)
    at = value.start
    end = value.end
    while at < end and (text[at] == 32 or text[at] == 9):
        at += 1
    if end == at or (memchr(text + at, 10, end - at) == NULL and memchr(text + at, 13, end - at) == NULL):
        return _put_string(out, text + at, end - at)
    scratch.length = 0
    _reserve(scratch, end - at)
    while at < end:
        if text[at] != 13 and text[at] != 10:
            scratch.data[scratch.length] = text[at]
            scratch.length += 1
        at += 1
    return _put_string(out, scratch.data, scratch.length)


cdef int _put_string(Octets *out, Text text, Py_ssize_t length) except -1 nogil:
    """An IMAP string: quoted if it can be, else a literal."""
    cdef Py_ssize_t k
    cdef unsigned char classes = 0
    cdef unsigned char *to
    if length > L_STRING:
        length = L_STRING
    if length <= L_QUOTED:
        for k in range(length):
            classes |= CLASS[text[k]]
    if length > L_QUOTED or classes & LITERAL:
        _put_octet(out, 123)
        _put_number(out, length)
        _put(out, b"}\r\n", 3)
        _put(out, text, length)
        to = out.data + out.length - length
        for k in range(length):
            if to[k] == 0:
                to[k] = 63
        return 0
    _reserve(out, 2 * length + 2)
    to = out.data + out.length
    to[0] = 34
    to += 1
    if classes & ESCAPE:
        for k in range(length):
            if CLASS[text[k]] & ESCAPE:
                to[0] = 92
                to += 1
            to[0] = text[k]
            to += 1
    else:
        memcpy(to, text, length)
        to += length
    to[0] = 34
    out.length = to + 1 - out.data
    return 0


# Address lists.

cdef struct Span:
    Py_ssize_t start
    Py_ssize_t end
    Py_ssize_t less
    Py_ssize_t greater
    Py_ssize_t at
    Py_ssize_t colon
    Py_ssize_t comment
    Py_ssize_t comment_end
    unsigned char stop


cdef Span _span(Text text, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    cdef Span span
    cdef unsigned char octet
    cdef bint inside, in_route
    span.start = at
    span.less = span.greater = span.at = span.colon = span.comment = span.comment_end = -1
    span.stop = 0
    while at < end:
        octet = text[at]
        if octet == 34:
            at = _quoted_end(text, at, end)
            continue
        if octet == 40:
            span.comment = at
            at = _comment_end(text, at, end)
            span.comment_end = at
            continue
        if octet == 91:
            at = _literal_end(text, at, end)
            continue
        if octet < 44 or (44 < octet < 58) or octet > 64:
            at += 1
            continue
        inside = span.less >= 0 and span.greater < 0
        in_route = inside and span.colon < 0 and text[span.less + 1] == 64
        if octet == 60 and span.less < 0:
            span.less = at
            span.at = -1
        elif octet == 62 and inside:
            span.greater = at
        elif octet == 64 and span.greater < 0:
            span.at = at
        elif octet == 58 and in_route:
            span.colon = at
            span.at = -1
        elif (octet == 58 and span.less < 0) or octet == 59 or (octet == 44 and not in_route):
            span.stop = octet
            break
        at += 1
    span.end = at
    return span


cdef Py_ssize_t _literal_end(Text text, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    cdef Py_ssize_t start = at + 1
    at = start
    while at < end:
        if text[at] in (91, 44, 59, 60, 62, 13, 10):
            break
        if text[at] == 93:
            return at + 1
        at += 2 if text[at] == 92 else 1
    return start


cdef int _address_list(Parse *parse, Octets *out, Py_ssize_t at, Py_ssize_t end, Py_ssize_t *count) except -1 nogil:
    cdef Text text = parse.text
    cdef Octets *scratch = &parse.scratch
    cdef Span span
    cdef bint group = False
    while at < end and count[0] < L_ADDRESSES:
        span = _span(text, at, end)
        if span.stop == 58 and not group:
            scratch.length = 0
            _put_joined(scratch, text, span.start, span.end, True)
            _put(out, b"(NIL NIL ", 9)
            _put_string(out, scratch.data, scratch.length)
            _put(out, b" NIL)", 5)
            count[0] += 1
            group = True
        else:
            count[0] += _address(parse, out, &span)
            if span.stop == 59 and group:
                _put(out, b"(NIL NIL NIL NIL)", 17)
                count[0] += 1
                group = False
        at = span.end + 1
    if group:
        _put(out, b"(NIL NIL NIL NIL)", 17)
        count[0] += 1
    return 0


cdef int _address(Parse *parse, Octets *out, Span *span) except -1 nogil:
    """One address in parentheses; returns 0, and writes nothing, if there is none."""
    cdef Text text = parse.text
    cdef Octets *scratch = &parse.scratch
    cdef Py_ssize_t start = span.start, end = span.end, name_end, route_end, mailbox_end
    # The scratch holds name, route, mailbox and host, one behind the other.
    scratch.length = 0
    if span.less >= 0:
        if span.greater >= 0:
            end = span.greater
        _put_joined(scratch, text, start, span.less, True)
        start = span.less + 1
    name_end = scratch.length
    if span.colon >= 0:
        _put_joined(scratch, text, start, span.colon, False)
        start = span.colon + 1
    route_end = scratch.length
    if span.at >= 0:
        _put_joined(scratch, text, start, span.at, False)
        mailbox_end = scratch.length
        _put_joined(scratch, text, span.at + 1, end, False)
    else:
        _put_joined(scratch, text, start, end, True)
        mailbox_end = scratch.length
    if name_end == 0 and scratch.length == route_end:
        return 0
    _put_octet(out, 40)
    if name_end:
        _put_string(out, scratch.data, name_end)
    elif span.comment >= 0:
        _put_comment(scratch, out, text, span.comment, span.comment_end)
    else:
        _put(out, b"NIL", 3)
    _put_octet(out, 32)
    if route_end > name_end:
        _put_string(out, scratch.data + name_end, route_end - name_end)
    else:
        _put(out, b"NIL", 3)
    _put_octet(out, 32)
    _put_string(out, scratch.data + route_end, mailbox_end - route_end)
    _put_octet(out, 32)
    _put_string(out, scratch.data + mailbox_end, scratch.length - mailbox_end)
    _put_octet(out, 41)
    return 1


cdef int _put_joined(Octets *out, Text text, Py_ssize_t at, Py_ssize_t end, bint spaced) except -1 nogil:
    """Words unquoted, comments left out, one space (spaced) or nothing where there was white space."""
    cdef Py_ssize_t start = out.length, stop
    cdef bint gap = False
    cdef unsigned char octet
    if end > at:
        _reserve(out, end - at)
    while at < end:
        octet = text[at]
        if CLASS[octet] & WS:
            gap = True
            at += 1
        elif octet == 40:
            gap = True
            at = _comment_end(text, at, end)
        else:
            if gap and spaced and out.length > start:
                _put_octet(out, 32)
            gap = False
            if octet == 34:
                stop = _quoted_end(text, at, end)
                _put_unquoted(out, text, at, stop)
                at = stop
            else:
                _put_octet(out, octet)
                at += 1
    return 0


cdef int _put_comment(Octets *scratch, Octets *out, Text text, Py_ssize_t at, Py_ssize_t end) except -1 nogil:
    """The text of the comment [at, end) as a string, or NIL if it is empty; the scratch is left as it was."""
    cdef Py_ssize_t start = scratch.length, first, last
    at += 1
    if end > at and text[end - 1] == 41:
        end -= 1
    while at < end:
        if text[at] == 92 and at + 1 < end:
            at += 1
        if text[at] != 13 and text[at] != 10:
            _put_octet(scratch, text[at])
        at += 1
    first = start
    last = scratch.length
    while first < last and (scratch.data[first] == 32 or scratch.data[first] == 9):
        first += 1
    while last > first and (scratch.data[last - 1] == 32 or scratch.data[last - 1] == 9):
        last -= 1
    if last > first:
        _put_string(out, scratch.data + first, last - first)
    else:
        _put(out, b"NIL", 3)
    scratch.length = start
    return 0
