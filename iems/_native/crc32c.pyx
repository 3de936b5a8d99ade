"""CRC-32C (Castagnoli, RFC 3720 B.4) of octets: the checksum of spool records and index rows."""

from libc.stdint cimport uint32_t

cdef extern from "crc32c.h" nogil:
    uint32_t crc32c_update(uint32_t crc, const void *p, size_t n)
    uint32_t crc32c_update_table(uint32_t crc, const void *p, size_t n)


def crc32c(const unsigned char[::1] data, uint32_t crc=0):
    """The checksum of `data`, or of what `crc` covers followed by `data`."""
    if data.shape[0] == 0:
        return crc
    return crc32c_update(crc, &data[0], data.shape[0])


def crc32c_table(const unsigned char[::1] data, uint32_t crc=0):
    """The same without the processor's instruction."""
    if data.shape[0] == 0:
        return crc
    return crc32c_update_table(crc, &data[0], data.shape[0])
