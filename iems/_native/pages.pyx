"""Reading many rows of one mailbox out of the leaf pages of LMDB; `pages_py.py` defines the answers.

Asking LMDB for each row of a large mailbox costs ten times as much as looking at it. So the cursor is asked for one row of a page, and the others
are read in place: a read transaction holds still every page it can see. `page_size` 0 says that the layout is not the known one (LMDB
0.9, 64 bits, little-endian); then, and wherever a page is not as expected, the cursor is asked for each row.

| octets of a page | what |
| ---------------- | ---- |
| 0-7, 8-9, 10-11  | number, padding, kind: 2 for a leaf |
| 12-13, 14-15     | end of the table of nodes, start of the nodes |
| 16-              | offset u16 of each node, in the order of keys |

A node: length of the value u32 (in two halves), flags u16, length of the key u16, key, value. Values with flags lie in pages of their own.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memchr, memcpy, memset

from iems._native.buffer cimport Buffer

cdef extern from *:
    void __builtin_prefetch(const void *place) nogil

cdef enum:
    PAGE_HEAD = 16
    NODE_HEAD = 8
    LEAF = 2
    FLAGS_ROW = 32
    ROW_HEAD = 36     # octets before the rope in a message row
    PLACE = 16
    OUTSIDE = 2
    FAR = 256         # octets of a value from which on the next row is fetched ahead
    # Rows between two wanted ones that are walked over before the cursor is asked for the next.
    GAP = 64


cdef inline uint16_t _u16(const unsigned char *p) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, p, 2)
    return value


cdef inline uint32_t _u32(const unsigned char *p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return value


cdef (const unsigned char *, Py_ssize_t) _octets(item) except *:
    """Where octets lie; they stay there as long as the item, and where it is a view as long as the transaction."""
    cdef Py_buffer view
    PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)
    PyBuffer_Release(&view)
    return <const unsigned char *>view.buf, view.len


cdef class _Walk:
    """Rows in the order of their keys: after `seek` or `step` gave 1, key and value are those of a row until the next call."""
    cdef object cursor
    cdef object item          # keeps key and value alive where they are bytes
    cdef Py_ssize_t page_size
    cdef const unsigned char *page
    cdef Py_ssize_t at, count  # of the nodes of the page; count 0: none is known
    cdef const unsigned char *key
    cdef Py_ssize_t key_length
    cdef const unsigned char *value
    cdef Py_ssize_t length

    def __cinit__(self, cursor, Py_ssize_t page_size):
        self.cursor = cursor
        self.page_size = page_size
        self.count = 0

    cdef int seek(self, bytes wanted) except -1:
        """The first row at or after a key."""
        self.count = 0
        return self.here() if self.cursor.set_range(wanted) else 0

    cdef int here(self) except -1:
        """The row the cursor stands at."""
        if self.page_size:
            self.item = self.cursor.key()
            if type(self.item) is memoryview:
                self.key, self.key_length = _octets(self.item)
                if self.enter():
                    return 1
        self.item = self.cursor.item()
        key, value = self.item
        self.key, self.key_length = _octets(key)
        self.value, self.length = _octets(value)
        return 1

    cdef bint enter(self) noexcept:
        """Know the page of the key that was found, and its value; whether it is a leaf and has them."""
        cdef const unsigned char *page = <const unsigned char *>(<uintptr_t>self.key & ~<uintptr_t>(self.page_size - 1))
        cdef Py_ssize_t lower = _u16(page + 12), upper = _u16(page + 14), i
        if _u16(page + 10) != LEAF or lower < PAGE_HEAD or lower & 1 or lower > upper or upper > self.page_size:
            return False
        for i in range((lower - PAGE_HEAD) >> 1):
            if page + _u16(page + PAGE_HEAD + 2 * i) + NODE_HEAD == self.key:
                self.page, self.at, self.count = page, i - 1, (lower - PAGE_HEAD) >> 1
                if self.following():
                    return True
                self.count = 0
                return False
        return False

    cdef bint following(self) noexcept nogil:
        """Go to the next row of the page; False if there is none, or its value is elsewhere."""
        cdef const unsigned char *node
        cdef Py_ssize_t offset, key_length, length
        if self.at + 1 >= self.count:
            return False
        offset = _u16(self.page + PAGE_HEAD + 2 * (self.at + 1))
        if offset < PAGE_HEAD + 2 * self.count or offset + NODE_HEAD > self.page_size:
            return False
        node = self.page + offset
        key_length = _u16(node + 6)
        length = _u16(node) | <Py_ssize_t>_u16(node + 2) << 16
        if _u16(node + 4) != 0 or offset + NODE_HEAD + key_length + length > self.page_size:
            return False
        self.at += 1
        self.key, self.key_length = node + NODE_HEAD, key_length
        self.value, self.length = node + NODE_HEAD + key_length, length
        if length > FAR and self.at + 1 < self.count:
            # Rows lie in any order: what will be looked at of the next one is fetched meanwhile.
            node = self.page + (_u16(self.page + PAGE_HEAD + 2 * (self.at + 1)) & (self.page_size - 1))
            __builtin_prefetch(node)
            __builtin_prefetch(node + 64)
            __builtin_prefetch(node + 128)
            __builtin_prefetch(node + 192)
        return True

    cdef int step(self) except -1:
        """The row after this one."""
        if self.following():
            return 1
        cdef bytes last = PyBytes_FromStringAndSize(<const char *>self.key, self.key_length)
        # The cursor stands in this page: the way to the next one is shorter than from the root.
        if self.count and self.cursor.set_key(last):
            self.count = 0
            return self.here() if self.cursor.next() else 0
        return self.seek(last + b"\0")

    cdef bint under(self, bytes prefix) noexcept:
        """Whether the key begins with `prefix`."""
        cdef Py_ssize_t i = PyBytes_GET_SIZE(prefix)
        cdef const unsigned char *start = <const unsigned char *>PyBytes_AS_STRING(prefix)
        if self.key_length < i:
            return False
        while i:  # neighbours differ at the end, if at all
            i -= 1
            if self.key[i] != start[i]:
                return False
        return True


def fixed(cursor, bytes prefix, Py_ssize_t length, Py_ssize_t page_size):
    cdef _Walk walk = _Walk(cursor, page_size)
    cdef Buffer out = Buffer()
    cdef int there = walk.seek(prefix)
    while there and walk.under(prefix):
        if walk.length != length:
            raise ValueError("a row of another length")
        out.put(walk.value, length)
        there = walk.following() or walk.step()
    return out


def flags(cursor, bytes prefix, Py_ssize_t page_size, Py_ssize_t expected):
    cdef _Walk walk = _Walk(cursor, page_size)
    cdef Buffer uids = Buffer(), bits = Buffer(), modseqs = Buffer()
    cdef Py_ssize_t room = max(expected, 64), known = 0
    cdef int there = walk.seek(prefix)
    uids.reserve(4 * room)
    bits.reserve(8 * room)
    modseqs.reserve(8 * room)
    while there and walk.under(prefix):
        if walk.length != FLAGS_ROW:
            raise ValueError("a row of another length")
        if known == room:
            uids.length, bits.length, modseqs.length = 4 * known, 8 * known, 8 * known
            uids.reserve(4 * room)
            bits.reserve(8 * room)
            modseqs.reserve(8 * room)
            room *= 2
        memcpy(uids.data + 4 * known, walk.value, 4)
        memcpy(bits.data + 8 * known, walk.value + 8, 8)
        memcpy(modseqs.data + 8 * known, walk.value + 16, 8)
        known += 1
        there = walk.following() or walk.step()
    uids.length, bits.length, modseqs.length = 4 * known, 8 * known, 8 * known
    return uids, bits, modseqs


def subjects(cursor, bytes prefix, const uint32_t[::1] uids, Py_ssize_t start, Py_ssize_t count, Py_ssize_t page_size):
    cdef _Walk walk = _Walk(cursor, page_size)
    cdef Buffer found = Buffer(), texts = Buffer()
    cdef list odd = []
    cdef Py_ssize_t index = start, end, known = 0, gap = 0, place
    cdef int64_t uid
    cdef int there
    cdef uint32_t wanted, rope, envelope, structure
    cdef const unsigned char *row
    if start < 0 or count < 0:
        raise ValueError("start and count are not negative")
    end = min(start + count, uids.shape[0])
    if index >= end:
        return b"", b"", odd
    there = walk.seek(prefix + int(uids[index]).to_bytes(4, "big"))
    while there and index < end and walk.under(prefix) and walk.key_length == PyBytes_GET_SIZE(prefix) + 4:
        row = walk.key + PyBytes_GET_SIZE(prefix)
        uid = <int64_t>row[0] << 24 | <int64_t>row[1] << 16 | <int64_t>row[2] << 8 | row[3]
        while index < end and uids[index] < uid:
            index += 1
        if index == end:
            break
        wanted = uids[index]
        if wanted != uid:
            gap += 1
            there = walk.step() if gap < GAP else walk.seek(prefix + int(wanted).to_bytes(4, "big"))
            gap = gap if gap < GAP else 0
            continue
        gap = 0
        index += 1
        if walk.length < ROW_HEAD:
            raise ValueError("not a message row")
        row = walk.value
        rope, envelope, structure = _u32(row + 4), _u32(row + 8), _u32(row + 12)
        if walk.length != <Py_ssize_t>ROW_HEAD + rope + (<Py_ssize_t>PLACE if row[1] & OUTSIDE else <Py_ssize_t>envelope + structure):
            raise ValueError("not a message row")
        if known:
            texts.put(b"\n", 1)
        if row[1] & OUTSIDE:
            odd.append((known, None))
        else:
            row += ROW_HEAD + rope
            texts.reserve(envelope)
            place = _subject(row, envelope, texts.data + texts.length)
            if place < 0:
                odd.append((known, PyBytes_FromStringAndSize(<const char *>row, envelope)))
            else:
                texts.length += place
        found.put(<unsigned char *>&wanted, 4)
        known += 1
        there = walk.following() or walk.step()
    return bytes(found), bytes(texts), odd


def places(cursor, bytes prefix, const uint32_t[::1] uids, Py_ssize_t start, Py_ssize_t count, Py_ssize_t page_size):
    cdef _Walk walk = _Walk(cursor, page_size)
    cdef Buffer found = Buffer(), table = Buffer(), heads = Buffer()
    cdef Py_ssize_t index = start, end, gap = 0
    cdef uint64_t place[6]
    cdef const unsigned char *row
    cdef const unsigned char *head
    cdef int there
    cdef int64_t uid
    cdef uint32_t wanted, rope
    if start < 0 or count < 0:
        raise ValueError("start and count are not negative")
    end = min(start + count, uids.shape[0])
    if index >= end:
        return b"", b"", b""
    there = walk.seek(prefix + int(uids[index]).to_bytes(4, "big"))
    while there and index < end and walk.under(prefix) and walk.key_length == PyBytes_GET_SIZE(prefix) + 4:
        row = walk.key + PyBytes_GET_SIZE(prefix)
        uid = <int64_t>row[0] << 24 | <int64_t>row[1] << 16 | <int64_t>row[2] << 8 | row[3]
        while index < end and uids[index] < uid:
            index += 1
        if index == end:
            break
        wanted = uids[index]
        if wanted != uid:
            gap += 1
            there = walk.step() if gap < GAP else walk.seek(prefix + int(wanted).to_bytes(4, "big"))
            gap = gap if gap < GAP else 0
            continue
        gap = 0
        index += 1
        row = walk.value
        rope = _checked(row, walk.length)
        memset(place, 0, sizeof(place))
        head = _place(row + ROW_HEAD, rope, place)
        if head != NULL:
            place[1] = heads.length
            heads.put(head, place[2])
        else:
            memset(place, 0, sizeof(place))
        table.put(<unsigned char *>place, sizeof(place))
        found.put(<unsigned char *>&wanted, 4)
        there = walk.following() or walk.step()
    return bytes(found), bytes(table), bytes(heads)


cdef uint32_t _checked(const unsigned char *row, Py_ssize_t length) except? 0xFFFFFFFF:
    """The length of the rope. Raises ValueError for what is no message row."""
    cdef uint32_t rope, envelope, structure
    if length < ROW_HEAD:
        raise ValueError("not a message row")
    rope, envelope, structure = _u32(row + 4), _u32(row + 8), _u32(row + 12)
    if length != <Py_ssize_t>ROW_HEAD + rope + (<Py_ssize_t>PLACE if row[1] & OUTSIDE else <Py_ssize_t>envelope + structure):
        raise ValueError("not a message row")
    return rope


cdef const unsigned char *_place(const unsigned char *rope, Py_ssize_t length, uint64_t *place) noexcept nogil:
    """Read a rope of octets, an extent or both into `place`; where the octets stand, NULL for a rope of another shape."""
    cdef const unsigned char *at = rope
    cdef const unsigned char *end = rope + length
    cdef const unsigned char *head = rope
    cdef uint64_t codec
    cdef int items
    if length < 1 or (at[0] != 0x91 and at[0] != 0x92):
        return NULL
    items = at[0] & 15
    at += 1
    place[0] = 1
    if end - at >= 2 and at[0] == 0xC4:
        place[2] = at[1]
        head = at + 2
    elif end - at >= 3 and at[0] == 0xC5:
        place[2] = at[1] << 8 | at[2]
        head = at + 3
        if place[2] < 256:
            return NULL
    else:
        items += 1
    if items > 2 or <uint64_t>(end - head) < place[2]:
        return NULL
    if head != rope:
        at = head + place[2]
    if items == 2:
        if at >= end or at[0] != 0x94:
            return NULL
        at += 1
        if not (_number(&at, end, &place[3]) and _number(&at, end, &place[4]) and _number(&at, end, &place[5]) and _number(&at, end, &codec)) or codec:
            return NULL
    return head if at == end else NULL


cdef bint _number(const unsigned char **at, const unsigned char *end, uint64_t *number) noexcept nogil:
    """A number of MessagePack in its shortest form."""
    cdef const unsigned char *from_ = at[0]
    cdef int octets, i
    if from_ >= end:
        return False
    if from_[0] < 0x80:
        number[0] = from_[0]
        at[0] = from_ + 1
        return True
    if from_[0] < 0xCC or from_[0] > 0xCF:
        return False
    octets = 1 << (from_[0] - 0xCC)
    if end - from_ < octets + 1:
        return False
    number[0] = 0
    for i in range(octets):
        number[0] = number[0] << 8 | from_[1 + i]
    at[0] = from_ + 1 + octets
    return number[0] >= 0x80 if octets == 1 else number[0] >> (4 * octets) != 0


cdef const unsigned char *_after(const unsigned char *at, const unsigned char *end) noexcept nogil:
    """Behind NIL or a quoted string, NULL if it is neither or has no end."""
    if end - at >= 3 and at[0] == 78 and at[1] == 73 and at[2] == 76:
        return at + 3
    if at == end or at[0] != 34:
        return NULL
    at += 1
    while at < end:
        if at[0] == 34:
            return at + 1
        at += 2 if at[0] == 92 else 1
    return NULL


cdef Py_ssize_t _subject(const unsigned char *text, Py_ssize_t length, unsigned char *out) noexcept nogil:
    """Put the subject of an ENVELOPE in lower case to `out`; its length, or -1 if it is an odd one."""
    cdef const unsigned char *end = text + length
    cdef const unsigned char *at
    cdef unsigned char c, before, odd = 0
    cdef Py_ssize_t i
    if length < 1 or text[0] != 40:
        return -1
    at = _after(text + 1, end)
    if at == NULL or at >= end or at[0] != 32:
        return -1
    at += 1
    if at < end and at[0] != 34:
        return 0 if _after(at, end) != NULL else -1
    at += 1
    if at >= end:
        return -1
    # An escaped quote is no end, but the backslash before it makes the subject an odd one.
    end = <const unsigned char *>memchr(at, 34, end - at)
    if end == NULL or (end > at and (at[0] == 32 or (end - 1)[0] == 32)):
        return -1
    length = end - at
    # Without branches, so that many octets are judged at once; the octet before the first is a quote.
    for i in range(length):
        c, before = at[i], at[i - 1]
        odd |= (c < 32) | (c > 126) | (c == 92) | ((c == 63) & (before == 61)) | ((c == 32) & (before == 32))
        out[i] = c + (32 if 65 <= c <= 90 else 0)
    return -1 if odd else length
