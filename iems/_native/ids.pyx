"""How the 16 octets of a message id are shown; `ids_py` defines the answer. Every reply, Received and log line has one."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII

cdef const char *_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def id_text(message_id not None):
    """The 26 characters (Crockford base32) shown for a 16-octet id; text order is byte order. Raises ValueError."""
    cdef bytes octets = message_id if type(message_id) is bytes else bytes(message_id)
    cdef const unsigned char *at = <const unsigned char *> PyBytes_AS_STRING(octets)
    cdef char out[26]
    cdef unsigned int bits = 0, held = 2  # 130 bits are shown: two more than there are
    cdef int i, n = 0
    if PyBytes_GET_SIZE(octets) != 16:
        raise ValueError("an id has 16 octets")
    for i in range(16):
        bits = (bits << 8 | at[i]) & 0xFFFF
        held += 8
        while held >= 5:
            held -= 5
            out[n] = _ALPHABET[bits >> held & 31]
            n += 1
    return PyUnicode_DecodeASCII(out, 26, NULL)
