"""Bodies in relaxed canonical form; `canonical_py` defines the answers."""

from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

cdef extern from "canonical.h" nogil:
    ctypedef struct relaxed:
        uint64_t blank
        int space
        int cr
    size_t relaxed_solid(const unsigned char *src, size_t n)
    size_t relaxed_run(relaxed *s, const unsigned char *src, size_t n, size_t solid, unsigned char *to, size_t room, size_t *written)
    int relaxed_end(relaxed *s, unsigned char *to, size_t room, size_t *written)

cdef enum:
    # What is given at once: it stays in the processor's cache until it is hashed.
    ROOM = 32768
    LEAST = 64


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
