"""A growing run of octets that kernels append to and the committer writes from, without a Python object per piece."""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy


cdef class Buffer:
    """Octets that grow at the end. `bytes(buffer)` and `memoryview(buffer)` read it in place.

    While a view is exported the buffer refuses to grow or shrink (BufferError), as a bytearray does.
    """

    def __cinit__(self):
        self.data = NULL
        self.length = 0
        self.capacity = 0
        self.exports = 0

    def __dealloc__(self):
        free(self.data)

    cdef int reserve(self, Py_ssize_t extra) except -1:
        cdef Py_ssize_t need = self.length + extra
        cdef Py_ssize_t room = self.capacity
        cdef unsigned char *fresh
        if need <= room:
            return 0
        if self.exports:
            raise BufferError("a view of this buffer is in use")
        room = room * 2 if room else 8192
        if room < need:
            room = need
        fresh = <unsigned char *> realloc(self.data, room)
        if fresh == NULL:
            raise MemoryError()
        self.data = fresh
        self.capacity = room
        return 0

    cdef int put(self, const unsigned char *source, Py_ssize_t count) except -1:
        if self.exports:
            raise BufferError("a view of this buffer is in use")
        self.reserve(count)
        memcpy(self.data + self.length, source, count)
        self.length += count
        return 0

    def append(self, const unsigned char[::1] piece):
        """Add the octets of `piece` at the end."""
        if piece.shape[0]:
            self.put(&piece[0], piece.shape[0])

    def clear(self):
        """Drop the content and give its memory back."""
        if self.exports:
            raise BufferError("a view of this buffer is in use")
        free(self.data)
        self.data = NULL
        self.length = 0
        self.capacity = 0

    def truncate(self, Py_ssize_t length):
        """Keep the first `length` octets; the memory stays for the next content. Raises ValueError if there are fewer."""
        if self.exports:
            raise BufferError("a view of this buffer is in use")
        if length < 0 or length > self.length:
            raise ValueError("can't truncate to more than there is")
        self.length = length

    def __len__(self):
        return self.length

    def __getbuffer__(self, Py_buffer *view, int flags):
        # An empty buffer still needs an address that is not NULL.
        cdef unsigned char *start = self.data if self.data != NULL else <unsigned char *> b""
        PyBuffer_FillInfo(view, self, start, self.length, 1, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1
