cdef class Buffer:
    cdef unsigned char *data
    cdef Py_ssize_t length
    cdef Py_ssize_t capacity
    cdef int exports
    cdef int reserve(self, Py_ssize_t extra) except -1
    cdef int put(self, const unsigned char *source, Py_ssize_t count) except -1
