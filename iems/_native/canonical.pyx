"""Header fields and bodies in relaxed canonical form; `canonical_py` defines the answers."""

from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy

cdef extern from "canonical.h" nogil:
    ctypedef struct relaxed:
        uint64_t blank
        int space
        int cr
    size_t relaxed_solid(const unsigned char *src, size_t n)
    size_t relaxed_run(relaxed *s, const unsigned char *src, size_t n, size_t solid, unsigned char *to, size_t room, size_t *written)
    size_t relaxed_value(const unsigned char *src, size_t n, unsigned char *to)
    int relaxed_end(relaxed *s, unsigned char *to, size_t room, size_t *written)

cdef enum:
    # What is given at once: it stays in the processor's cache until it is hashed.
    ROOM = 32768
    LEAST = 64


def relaxed_field(bytes name not None, bytes raw not None):
    """A header field in relaxed form, without CRLF."""
    cdef const unsigned char *src = <const unsigned char *> PyBytes_AS_STRING(raw)
    cdef size_t n = PyBytes_GET_SIZE(raw), front = PyBytes_GET_SIZE(name) + 1, start = 0, length
    cdef const void *colon = memchr(src, 58, n)
    cdef unsigned char *to
    cdef unsigned char few[2048]
    if colon != NULL:
        start = <const unsigned char *> colon - src + 1
    to = &few[0]
    if n - start + front > sizeof(few):
        to = <unsigned char *> malloc(n - start + front)
        if to == NULL:
            raise MemoryError()
    memcpy(to, PyBytes_AS_STRING(name), front - 1)
    to[front - 1] = 58
    length = front + relaxed_value(src + start, n - start, to + front)
    try:
        return PyBytes_FromStringAndSize(<char *> to, length)
    finally:
        if to != &few[0]:
            free(to)


cdef class Relaxed:
    """One body; see `canonical_py.Relaxed`."""

    cdef relaxed _state
    cdef readonly uint64_t length

    def __cinit__(self):
        self._state.blank = 0
        self._state.space = 0
        self._state.cr = 0
        self.length = 0

    def feed(self, octets, add):
        """Take the next piece."""
        cdef Py_buffer view
        cdef size_t at = 0, n, solid, room, written = 0
        cdef unsigned char *to
        cdef const unsigned char *src
        PyObject_GetBuffer(octets, &view, PyBUF_SIMPLE)
        n = view.len
        src = <const unsigned char *> view.buf
        room = n + LEAST if n + LEAST < ROOM else ROOM
        to = <unsigned char *> malloc(room)
        try:
            if to == NULL:
                raise MemoryError()
            solid = relaxed_solid(src, n)
            while at < n:
                at += relaxed_run(&self._state, src + at, n - at, solid - at if solid > at else 0, to, room, &written)
                self._give(to, written, add)
        finally:
            free(to)
            PyBuffer_Release(&view)

    cdef int _give(self, unsigned char *octets, size_t count, add) except -1:
        if count:
            self.length += count
            add(PyMemoryView_FromMemory(<char *> octets, count, PyBUF_READ))
        return 0

    def finish(self, add):
        """The body has ended."""
        cdef unsigned char to[4096]
        cdef size_t written = 0
        cdef int all = 0
        while not all:
            all = relaxed_end(&self._state, to, sizeof(to), &written)
            self._give(to, written, add)
        self._state.blank = 0
        self._state.space = 0
        if self.length:
            self._give(<unsigned char *> b"\r\n", 2, add)
