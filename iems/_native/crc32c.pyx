"""CRC-32C (Castagnoli, RFC 3720 B.4) of octets: the checksum of spool records and index rows."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t

cdef extern from "crc32c.h" nogil:
    uint32_t crc32c_update(uint32_t crc, const void *p, size_t n)
    uint32_t crc32c_update_table(uint32_t crc, const void *p, size_t n)


def crc32c(data, uint32_t crc=0):
    """The checksum of `data`, or of what `crc` covers followed by `data`."""
    cdef Py_buffer view
    if type(data) is bytes:  # rows of the index: a view would cost more than the sum
        return crc32c_update(crc, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    crc = crc32c_update(crc, view.buf, view.len)
    PyBuffer_Release(&view)
    return crc


def crc32c_table(const unsigned char[::1] data, uint32_t crc=0):
    """The same without the processor's instruction."""
    if data.shape[0] == 0:
        return crc
    return crc32c_update_table(crc, &data[0], data.shape[0])
