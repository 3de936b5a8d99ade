"""Joining FETCH responses without an object per item; `store_py.py` defines the answers."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from iems._native.buffer cimport Buffer

FLAGS, UID, ENVELOPE, BODYSTRUCTURE, INTERNALDATE, RFC822_SIZE, MODSEQ = range(1, 8)

cdef enum:
    SMALL = 32       # octets of a flags row
    HEAD = 36        # octets before the rope in a message row
    PLACE = 16
    OUTSIDE = 2
    I_FLAGS = 1
    I_UID = 2
    I_ENVELOPE = 3
    I_BODYSTRUCTURE = 4
    I_INTERNALDATE = 5
    I_SIZE = 6
    I_MODSEQ = 7

# C constants: as Python literals these would be objects.
cdef int64_t DATE_MIN = <int64_t>-62135596800LL  # year 1
cdef int64_t DATE_MAX = <int64_t>253402300799LL  # year 9999

cdef const char *MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"


cdef inline uint32_t _u32(const char *p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return value


cdef inline uint64_t _u64(const char *p) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, p, 8)
    return value


cdef inline char *_decimal(char *out, uint64_t value) noexcept nogil:
    cdef char digits[20]
    cdef int n = 0
    while True:
        digits[n] = <char>(48 + value % 10)
        value //= 10
        n += 1
        if value == 0:
            break
    while n:
        n -= 1
        out[0] = digits[n]
        out += 1
    return out


cdef inline char *_two(char *out, int value) noexcept nogil:
    out[0] = <char>(48 + value // 10)
    out[1] = <char>(48 + value % 10)
    return out + 2


cdef char *_date(char *out, int64_t seconds) noexcept nogil:
    """The quoted date-time; 28 octets."""
    cdef int64_t days, era, year
    cdef int left, of_era, of_year, month, day, shifted
    if seconds < DATE_MIN:
        seconds = DATE_MIN
    elif seconds > DATE_MAX:
        seconds = DATE_MAX
    # All positive from here (cdivision truncates): days since 0000-03-01.
    days = (seconds - DATE_MIN) // 86400 + 306
    left = <int>((seconds - DATE_MIN) % 86400)
    era = days // 146097
    of_era = <int>(days % 146097)
    shifted = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    year = era * 400 + shifted
    of_year = of_era - (365 * shifted + shifted // 4 - shifted // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    month = month + 2 if month < 10 else month - 10
    if month < 2:
        year += 1
    out[0] = 34
    out += 1
    _two(out, day)
    if day < 10:
        out[0] = 32
    out[2] = 45
    memcpy(out + 3, MONTHS + 3 * month, 3)
    out[6] = 45
    _two(out + 7, <int>(year // 100))
    _two(out + 9, <int>(year % 100))
    out[11] = 32
    _two(out + 12, left // 3600)
    out[14] = 58
    _two(out + 15, left % 3600 // 60)
    out[17] = 58
    _two(out + 18, left % 60)
    memcpy(out + 20, " +0000\"", 7)
    return out + 27


def internal_date(seconds):
    cdef char out[32]
    cdef int64_t clamped = min(max(seconds, DATE_MIN), DATE_MAX)
    cdef char *end = _date(out, clamped)
    return PyBytes_FromStringAndSize(out, end - out)


cdef inline int _pair(object row, char **key, Py_ssize_t *key_length, char **value, Py_ssize_t *length) except -1:
    cdef object first, second
    if type(row) is not tuple or PyTuple_GET_SIZE(row) != 2:
        raise TypeError("rows are pairs of bytes")
    first = <object>PyTuple_GET_ITEM(row, 0)
    second = <object>PyTuple_GET_ITEM(row, 1)
    if type(first) is not bytes or type(second) is not bytes:
        raise TypeError("rows are pairs of bytes")
    key[0] = PyBytes_AS_STRING(first)
    key_length[0] = PyBytes_GET_SIZE(first)
    value[0] = PyBytes_AS_STRING(second)
    length[0] = PyBytes_GET_SIZE(second)
    return 0


cdef class _Rows:
    """The row of a uid, from rows in ascending order asked for in ascending order."""
    cdef object rows
    cdef object row     # keeps `value` alive
    cdef bytes prefix
    cdef int64_t uid
    cdef char *value
    cdef Py_ssize_t length

    def __cinit__(self, rows, bytes prefix):
        self.rows = iter(rows)
        self.prefix = prefix
        self.uid = -1

    cdef int find(self, int64_t uid) except -1:
        """1 if value and length are those of `uid`, 0 if it has no row."""
        cdef char *key
        cdef Py_ssize_t key_length
        cdef Py_ssize_t prefix_length = PyBytes_GET_SIZE(self.prefix)
        cdef unsigned char *tail
        while self.uid < uid:
            self.row = next(self.rows, None)
            if self.row is None:
                self.uid = 1 << 32
                break
            _pair(self.row, &key, &key_length, &self.value, &self.length)
            if key_length != prefix_length + 4 or memcmp(key, PyBytes_AS_STRING(self.prefix), prefix_length):
                self.uid = 1 << 32  # past the last row of this mailbox
                self.rows = iter(())
                break
            tail = <unsigned char *>key + prefix_length
            self.uid = <int64_t>tail[0] << 24 | <int64_t>tail[1] << 16 | <int64_t>tail[2] << 8 | tail[3]
        return self.uid == uid


def fetch(
    bytes items, list names, const uint32_t[::1] seqs, const uint32_t[::1] uids, Py_ssize_t start,
    small, bytes small_prefix, large, bytes large_prefix, load, Py_ssize_t max_octets, int64_t recent_from,
):
    cdef _Rows small_rows = _Rows(small, small_prefix)
    cdef _Rows large_rows = _Rows(large, large_prefix)
    cdef Buffer out = Buffer()
    cdef Py_ssize_t index = start, total = uids.shape[0], item_count = len(items), i
    cdef const unsigned char *item = <const unsigned char *>PyBytes_AS_STRING(items)
    cdef bint summary = False
    cdef Py_ssize_t names_length = 0, name_count = len(names), name_length
    cdef const char *name_at[64]
    cdef Py_ssize_t name_size[64]
    cdef int64_t uid
    cdef uint32_t size, rope, envelope_length, structure_length
    cdef uint64_t bits, modseq
    cdef int64_t date
    cdef char *at
    cdef const char *both
    cdef const char *value
    cdef object outside = None
    if seqs.shape[0] != total:
        raise ValueError("as many seqs as uids, please")
    if start < 0:
        raise ValueError("start is negative")
    if item_count == 0:
        raise ValueError("no such item")
    for i in range(item_count):
        if not I_FLAGS <= item[i] <= I_MODSEQ:
            raise ValueError("no such item")
        if item[i] == I_ENVELOPE or item[i] == I_BODYSTRUCTURE:
            summary = True
    if name_count > 53:
        raise ValueError("more names than flags")
    for i in range(name_count):
        name = names[i]
        if type(name) is not bytes:
            raise TypeError("names are bytes")
        name_length = PyBytes_GET_SIZE(name)
        name_at[i] = PyBytes_AS_STRING(name)
        name_size[i] = name_length
        names_length += name_length + 1
    while index < total and out.length < max_octets:
        uid = uids[index]
        index += 1
        if not small_rows.find(uid):
            continue
        if small_rows.length != SMALL:
            raise ValueError("not a flags row")
        size = _u32(small_rows.value + 4)
        bits = _u64(small_rows.value + 8)
        modseq = _u64(small_rows.value + 16)
        date = <int64_t>_u64(small_rows.value + 24)
        envelope_length = structure_length = 0
        both = NULL
        if summary:
            if not large_rows.find(uid):
                continue
            value = large_rows.value
            if large_rows.length < HEAD:
                raise ValueError("not a message row")
            rope = _u32(value + 4)
            envelope_length = _u32(value + 8)
            structure_length = _u32(value + 12)
            if value[1] & OUTSIDE:
                if large_rows.length != <Py_ssize_t>HEAD + rope + PLACE:
                    raise ValueError("not a message row")
                value += HEAD + rope
                outside = load(_u64(value), _u64(value + 8), <Py_ssize_t>envelope_length + structure_length)
                if type(outside) is not bytes or len(outside) != <Py_ssize_t>envelope_length + structure_length:
                    raise ValueError("a summary of the wrong length")
                both = PyBytes_AS_STRING(outside)
            else:
                if large_rows.length != <Py_ssize_t>HEAD + rope + envelope_length + structure_length:
                    raise ValueError("not a message row")
                both = value + HEAD + rope
        out.reserve(
            64 + item_count * (names_length + <Py_ssize_t>envelope_length + structure_length + 64)
        )
        at = <char *>out.data + out.length
        at[0] = 42
        at[1] = 32
        at = _decimal(at + 2, seqs[index - 1])
        memcpy(at, " FETCH (", 8)
        at += 8
        for i in range(item_count):
            if i:
                at[0] = 32
                at += 1
            if item[i] == I_FLAGS:
                memcpy(at, "FLAGS (", 7)
                at = _flags(at + 7, bits, name_count, name_at, name_size, uid >= recent_from)
                at[0] = 41
                at += 1
            elif item[i] == I_UID:
                memcpy(at, "UID ", 4)
                at = _decimal(at + 4, <uint64_t>uid)
            elif item[i] == I_ENVELOPE:
                memcpy(at, "ENVELOPE ", 9)
                memcpy(at + 9, both, envelope_length)
                at += 9 + <Py_ssize_t>envelope_length
            elif item[i] == I_BODYSTRUCTURE:
                memcpy(at, "BODYSTRUCTURE ", 14)
                memcpy(at + 14, both + envelope_length, structure_length)
                at += 14 + <Py_ssize_t>structure_length
            elif item[i] == I_INTERNALDATE:
                memcpy(at, "INTERNALDATE ", 13)
                at = _date(at + 13, date)
            elif item[i] == I_SIZE:
                memcpy(at, "RFC822.SIZE ", 12)
                at = _decimal(at + 12, size)
            else:
                memcpy(at, "MODSEQ (", 8)
                at = _decimal(at + 8, modseq)
                at[0] = 41
                at += 1
        memcpy(at, ")\r\n", 3)
        out.length = (at + 3) - <char *>out.data
    return bytes(out), index


cdef inline char *_flags(
    char *at, uint64_t bits, Py_ssize_t count, const char **names, Py_ssize_t *sizes, bint recent
) noexcept nogil:
    """The names of `bits`, \\Recent after the system flags; at most all names, one octet each more, and 8."""
    cdef Py_ssize_t i
    cdef char *start = at
    for i in range(min(count, 5)):
        if bits >> i & 1:
            if at != start:
                at[0] = 32
                at += 1
            memcpy(at, names[i], sizes[i])
            at += sizes[i]
    if recent:
        if at != start:
            at[0] = 32
            at += 1
        memcpy(at, "\\Recent", 7)
        at += 7
    if bits >> 16:
        for i in range(5, count):
            if bits >> (11 + i) & 1:
                if at != start:
                    at[0] = 32
                    at += 1
                memcpy(at, names[i], sizes[i])
                at += sizes[i]
    return at
