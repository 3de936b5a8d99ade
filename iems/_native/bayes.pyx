"""Features of a message, counts in flat tables, and the score made of them; `bayes_py` defines the answers.

No Python object per octet, word or feature. Names and order follow the twin, so the two can be read side by side. The
work on sections runs without the GIL.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport log, sqrt
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

cdef extern from "bayes_table.h" nogil:
    uint32_t iems_other(uint32_t home, uint32_t rest, int bits)
    int64_t iems_find(const uint32_t *table, int bits, uint32_t key)
    uint32_t iems_count(const uint32_t *table, int bits, uint32_t key)
    void iems_prefetch(const uint32_t *table, int bits, uint32_t key)
    int iems_insert(uint32_t *table, int bits, uint32_t key, uint32_t count)

HEADER = 0
PART = 1
TEXT = 2
HTML = 3
MAX_FEATURES = 1 << 15
SLOTS = 16
MIN_BITS = 7
MAX_BITS = 24
KEY_BITS = 29

cdef enum:
    S_HEADER = 0
    S_PART = 1
    S_TEXT = 2
    S_HTML = 3
    L_MIN_WORD = 2
    L_WORD = 40
    L_FEATURES = 32768
    L_LABELS = 6
    L_QUOTED = 4096
    L_HOST = 256
    B_MIN = 7
    B_MAX = 24
    AHEAD = 6  # features whose buckets are asked for before their turn

cdef double STRENGTH = 0.45
cdef double PRIOR_STRENGTH = 6.0
cdef double UNIT = 0.2
cdef double[8] WEIGHTS
WEIGHTS[:] = [1.0, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]

ctypedef const unsigned char *Text

# Classes of octets.
cdef enum:
    WORD = 1
    TRIM = 2
    HOST = 4
    SPLIT = 8
    DIGIT = 16
    LETTER = 32
    NAME = 64
    SPACE = 128

cdef unsigned char CLASS[256]
cdef unsigned char LOWER[256]

cdef uint64_t BASIS = 0xCBF29CE484222325ULL
cdef uint64_t PRIME = 0x100000001B3ULL


cdef inline uint64_t _fnv(uint64_t state, Text octets, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t at
    for at in range(length):
        state = (state ^ octets[at]) * PRIME
    return state


cdef inline uint64_t _mixed(uint64_t state) noexcept nogil:
    state ^= state >> 32
    state *= 0xD6E8FEB86659FD93ULL
    state ^= state >> 32
    state *= 0xD6E8FEB86659FD93ULL
    state ^= state >> 32
    return state & ~<uint64_t> 7


cdef uint64_t _word(bytes name):
    return _fnv(BASIS, <Text> PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))


# States of the hash behind a type's name, and hashes of names that mean something.
cdef uint64_t T_BODY, T_SUBJECT, T_HIDDEN, T_LOUD, T_URL, T_TAG, T_ATTR, T_HDR, T_PART, T_PART_HDR
cdef uint64_t N_RECEIVED, N_DATE, N_ARRIVAL, N_SUBJECT, N_TYPE, N_DISPOSITION, N_SCRIPT, N_STYLE, N_BGCOLOR, N_COLOR
cdef uint64_t T_SHAPE
cdef uint64_t[5] PARTIES
cdef int[12] KIN
KIN[:] = [0, 1, 0, 2, 0, 3, 0, 4, 1, 3, 1, 4]
cdef uint64_t[6] KINDRED  # the types of comparisons
cdef uint64_t[10] IDENTIFIERS
cdef uint64_t[9] VALUED
cdef uint64_t[4] LINKS
cdef uint64_t[12] INLINE
cdef uint64_t[9] VOID


cdef void _prepare():
    global T_SHAPE, T_BODY, T_SUBJECT, T_HIDDEN, T_LOUD, T_URL, T_TAG, T_ATTR, T_HDR, T_PART, T_PART_HDR
    global N_RECEIVED, N_DATE, N_ARRIVAL, N_SUBJECT, N_TYPE, N_DISPOSITION, N_SCRIPT, N_STYLE, N_BGCOLOR, N_COLOR
    cdef int octet
    memset(CLASS, 0, sizeof(CLASS))
    for octet in range(256):
        LOWER[octet] = <unsigned char> (octet + 32 if 65 <= octet <= 90 else octet)
        if octet >= 128:
            CLASS[octet] |= WORD
    for octet in b"abcdefghijklmnopqrstuvwxyz0123456789$%'-._!":
        CLASS[octet] |= WORD
    for octet in b"'-._":
        CLASS[octet] |= TRIM
    for octet in b"abcdefghijklmnopqrstuvwxyz0123456789-._%":
        CLASS[octet] |= HOST
    for octet in b" \t\r\n\0<>()[]{},;:\"=*":
        CLASS[octet] |= SPLIT
    for octet in b"0123456789":
        CLASS[octet] |= DIGIT
    for octet in b"abcdefghijklmnopqrstuvwxyz":
        CLASS[octet] |= LETTER
    for octet in b"abcdefghijklmnopqrstuvwxyz0123456789-_:":
        CLASS[octet] |= NAME
    for octet in b" \t\r\n\f\0":
        CLASS[octet] |= SPACE
    T_BODY, T_SUBJECT, T_HIDDEN, T_LOUD = _word(b"body:"), _word(b"subject:"), _word(b"hidden:"), _word(b"loud:")
    T_SHAPE = _word(b"shape:")
    parties = (b"from", b"to", b"reply-to", b"return-path", b"message-id")
    for octet, name in enumerate(parties):
        PARTIES[octet] = _word(name)
    for octet in range(6):
        KINDRED[octet] = _word(b"kin:" + parties[KIN[2 * octet]] + b"," + parties[KIN[2 * octet + 1]] + b"=")
    T_URL, T_TAG, T_ATTR, T_HDR = _word(b"url:"), _word(b"tag:"), _word(b"attr:"), _word(b"hdr:")
    T_PART, T_PART_HDR = _word(b"part:"), _word(b"part:hdr:")
    N_RECEIVED, N_DATE, N_SUBJECT, N_ARRIVAL = _word(b"received"), _word(b"date"), _word(b"subject"), _word(b"x-originalarrivaltime")
    N_TYPE, N_DISPOSITION = _word(b"content-type"), _word(b"content-disposition")
    N_SCRIPT, N_STYLE, N_BGCOLOR, N_COLOR = _word(b"script"), _word(b"style"), _word(b"bgcolor"), _word(b"color")
    for octet, name in enumerate((
        b"message-id", b"references", b"in-reply-to", b"thread-index", b"resent-message-id", b"content-id",
        b"dkim-signature", b"domainkey-signature", b"arc-seal", b"arc-message-signature",
    )):
        IDENTIFIERS[octet] = _word(name)
    for octet, name in enumerate((b"color", b"bgcolor", b"face", b"size", b"border", b"align", b"type", b"target", b"method")):
        VALUED[octet] = _word(name)
    for octet, name in enumerate((b"href", b"src", b"action", b"background")):
        LINKS[octet] = _word(name)
    for octet, name in enumerate((b"a", b"b", b"i", b"u", b"em", b"strong", b"font", b"span", b"big", b"small", b"tt", b"s")):
        INLINE[octet] = _word(name)
    for octet, name in enumerate((b"br", b"hr", b"img", b"input", b"meta", b"link", b"base", b"area", b"col")):
        VOID[octet] = _word(name)


_prepare()


cdef inline bint _among(uint64_t name, const uint64_t *names, int count) noexcept nogil:
    cdef int at
    for at in range(count):
        if names[at] == name:
            return True
    return False


cdef struct Octets:
    unsigned char *data
    Py_ssize_t length


cdef struct Tokens:
    uint32_t *found  # in the order of their first sight
    Py_ssize_t count
    Py_ssize_t limit
    uint32_t *table  # the same, open-addressed; 0 is free
    Py_ssize_t size
    int failed  # no memory
    uint64_t before  # the word in front, or 0
    uint64_t[5] sites  # hashes of the first domains in PARTIES; 0: no such field, 1: no domain in it
    Py_ssize_t parts, fields, received, text, html  # octets of plain text, of HTML
    Py_ssize_t small, capital, beyond, marks, money, links, quoted


cdef inline Py_ssize_t _place(uint32_t feature, Py_ssize_t size) noexcept nogil:
    return <Py_ssize_t> (feature >> 3) & (size - 1)


cdef int _enlarge(Tokens *t) noexcept nogil:
    cdef Py_ssize_t size = t.size * 2, at, slot
    cdef uint32_t *table = <uint32_t *> calloc(size, 4)
    cdef uint32_t *found = <uint32_t *> realloc(t.found, size * 2)
    if found != NULL:
        t.found = found
    if table == NULL or found == NULL:
        free(table)
        t.failed = 1
        return 0
    for at in range(t.count):
        slot = _place(found[at], size)
        while table[slot]:
            slot = (slot + 1) & (size - 1)
        table[slot] = found[at]
    free(t.table)
    t.table = table
    t.size = size
    return 1


cdef inline void _add(Tokens *t, uint64_t wide) noexcept nogil:
    cdef uint32_t feature = (<uint32_t> (wide >> 32) & ~<uint32_t> 7) | (<uint32_t> wide & 7)
    cdef Py_ssize_t slot
    if feature == 0:
        feature = 8
    slot = _place(feature, t.size)
    while t.table[slot]:
        if t.table[slot] == feature:
            return
        slot = (slot + 1) & (t.size - 1)
    if t.count >= t.limit or t.failed:
        return
    t.table[slot] = feature
    t.found[t.count] = feature
    t.count += 1
    if t.count * 2 >= t.size:
        _enlarge(t)


cdef uint64_t _token(Tokens *t, uint64_t kind, Text octets, Py_ssize_t length) noexcept nogil:
    cdef unsigned char[12] short
    cdef Py_ssize_t tens, at
    if length > L_WORD:
        memcpy(short, <const char *> b"skip:", 5)
        short[5] = octets[0]
        short[6] = 58
        tens = length // 10
        if tens > 99:
            tens = 99
        at = 7
        if tens >= 10:
            short[at] = <unsigned char> (48 + tens // 10)
            at += 1
        short[at] = <unsigned char> (48 + tens % 10)
        kind = _fnv(kind, short, at + 1)
    else:
        kind = _fnv(kind, octets, length)
    kind = _mixed(kind)
    _add(t, kind)
    return kind


cdef inline void _pair(Tokens *t, uint64_t first, uint64_t second) noexcept nogil:
    _add(t, _mixed(first * 0x9E3779B97F4A7C15ULL + second) | 1)


cdef inline void _beside(Tokens *t, uint64_t word) noexcept nogil:
    if t.before:
        _pair(t, t.before, word)
    t.before = word


cdef void _text(Tokens *t, uint64_t kind, Text text, Py_ssize_t end, bint pairs) noexcept nogil:
    cdef Py_ssize_t at = 0, start, after, length
    cdef unsigned char octet
    cdef uint64_t word
    cdef bint loud
    t.before = 0
    while at < end:
        octet = text[at]
        if not CLASS[octet] & WORD:
            at += 1
            continue
        if octet >= 0xE3:
            after = at + (4 if octet >= 0xF0 else 3)
            if after > end:
                after = end
            word = _token(t, kind, text + at, after - at)
            if pairs:
                _beside(t, word)
            at = after
            continue
        after = at + 1
        while after < end and CLASS[text[after]] & WORD and text[after] < 0xE3:
            after += 1
        start = at
        at = after
        length = after - start
        if after + 3 <= end and text[after] == 58 and text[after + 1] == 47 and text[after + 2] == 47 and (
            (length == 4 and memcmp(text + start, <const char *> b"http", 4) == 0)
            or (length == 5 and memcmp(text + start, <const char *> b"https", 5) == 0)
            or (length == 3 and memcmp(text + start, <const char *> b"ftp", 3) == 0)
        ):
            at = _host(t, text, end, after + 3, &word)
            if pairs:
                _beside(t, word)
            continue
        while start < after and CLASS[text[start]] & TRIM:
            start += 1
        loud = False
        while start < after and (CLASS[text[after - 1]] & TRIM or text[after - 1] == 33):
            after -= 1
            loud = loud or text[after] == 33
        if after - start < L_MIN_WORD:
            continue
        word = _token(t, kind, text + start, after - start)
        if loud:
            _token(t, T_LOUD, text + start, after - start)
        if pairs:
            _beside(t, word)


cdef inline int _hex(unsigned char octet) noexcept nogil:
    if 48 <= octet <= 57:
        return octet - 48
    return octet - 87 if 97 <= octet <= 102 else -1


cdef Py_ssize_t _host(Tokens *t, Text text, Py_ssize_t end, Py_ssize_t at, uint64_t *whole) noexcept nogil:
    cdef unsigned char[L_HOST] name
    cdef Py_ssize_t length = 0, start = 0
    cdef unsigned char octet
    while at < end and length < L_HOST:
        octet = text[at]
        if octet == 64:
            _token(t, T_URL, <Text> <const char *> b"@", 1)
            length = 0
        elif not CLASS[octet] & HOST:
            break
        elif octet == 37 and at + 2 < end and _hex(text[at + 1]) >= 0 and _hex(text[at + 2]) >= 0:
            name[length] = LOWER[_hex(text[at + 1]) * 16 + _hex(text[at + 2])]
            length += 1
            _token(t, T_URL, <Text> <const char *> b"%", 1)
            at += 2
        else:
            name[length] = octet
            length += 1
        at += 1
    while start < length and name[start] == 46:
        start += 1
    while length > start and name[length - 1] == 46:
        length -= 1
    _ends(t, T_URL, name + start, length - start)
    whole[0] = _mixed(_fnv(T_URL, name + start, _least(length - start, L_WORD)))
    return at


cdef inline Py_ssize_t _least(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef void _ends(Tokens *t, uint64_t kind, Text host, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t at
    cdef int count = 0
    cdef bint numeric = True
    if length <= 0:
        return
    _add(t, _mixed(_fnv(kind, host, _least(length, L_WORD))))
    for at in range(length):
        if not (CLASS[host[at]] & DIGIT or host[at] == 46):
            numeric = False
            break
    if numeric:
        at = length
        while count < 2:
            at -= 1
            while at > 0 and host[at] != 46:
                at -= 1
            if at <= 0:
                break
            count += 1
            _add(t, _mixed(_fnv(kind, host, _least(at, L_WORD))))
        return
    at = 0
    while count < L_LABELS:
        while at < length and host[at] != 46:
            at += 1
        if at >= length:
            break
        at += 1
        count += 1
        _add(t, _mixed(_fnv(kind, host + at, _least(length - at, L_WORD))))


cdef void _stripped_ends(Tokens *t, uint64_t kind, Text host, Py_ssize_t length) noexcept nogil:
    while length > 0 and host[0] == 46:
        host += 1
        length -= 1
    while length > 0 and host[length - 1] == 46:
        length -= 1
    _ends(t, kind, host, length)


cdef inline Py_ssize_t _line_end(Text text, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    cdef const void *hit = memchr(text + at, 10, end - at) if at < end else NULL
    return end if hit == NULL else <Text> hit - text


cdef bint _passed(Text name, Py_ssize_t length) noexcept nogil:
    return (
        (length >= 6 and memcmp(name, <const char *> b"x-spam", 6) == 0)
        or (length >= 6 and memcmp(name, <const char *> b"x-iems", 6) == 0)
        or (length >= 10 and memcmp(name, <const char *> b"x-bogosity", 10) == 0)
        or (length >= 6 and memcmp(name, <const char *> b"status", 6) == 0)
        or (length >= 8 and memcmp(name, <const char *> b"x-status", 8) == 0)
        or (length >= 5 and memcmp(name, <const char *> b"x-uid", 5) == 0)
        or (length >= 10 and memcmp(name, <const char *> b"x-keywords", 10) == 0)
        or (length >= 9 and memcmp(name, <const char *> b"x-mozilla", 9) == 0)
    )


cdef inline bint _dated(uint64_t hashed, Text name, Py_ssize_t length) noexcept nogil:
    return hashed == N_DATE or hashed == N_ARRIVAL or (length >= 5 and memcmp(name + length - 5, <const char *> b"-date", 5) == 0)


cdef uint64_t _site(Text value, Py_ssize_t end) noexcept nogil:
    """A hash of the last two labels of the first domain behind an "@", 1 if there is none."""
    cdef const void *hit = memchr(value, 64, end) if end > 0 else NULL
    cdef Py_ssize_t at, after, start
    cdef int dots = 0
    if hit == NULL:
        return 1
    at = <Text> hit - value + 1
    after = at
    while after < end and CLASS[value[after]] & HOST and value[after] != 37:
        after += 1
    while at < after and value[at] == 46:
        at += 1
    while after > at and value[after - 1] == 46:
        after -= 1
    if after == at:
        return 1
    start = after
    while start > at:
        if value[start - 1] == 46:
            dots += 1
            if dots == 2:
                break
        start -= 1
    return _fnv(BASIS, value + start, after - start) | 2


cdef void _measure(Tokens *t, Text text, Py_ssize_t end, bint html) noexcept nogil:
    """Take the measures of a text as it was sent."""
    cdef Py_ssize_t at, small = 0, capital = 0, beyond = 0, marks = 0, money = 0, look
    for at in range(end):
        small += <unsigned char> (text[at] - 97) < 26
        capital += <unsigned char> (text[at] - 65) < 26
        beyond += text[at] >= 128
        marks += text[at] == 33
        money += text[at] == 36
    t.small += small
    t.capital += capital
    t.beyond += beyond
    t.marks += marks
    t.money += money
    at = _search(text, 0, end, <Text> <const char *> b"://", 3)
    while at >= 0:
        t.links += 1
        at = _search(text, at + 3, end, <Text> <const char *> b"://", 3)
    if html:
        t.html += end
        return
    t.text += end
    at = 0
    while at <= end:
        look = at
        while look < end and (text[look] == 32 or text[look] == 9):
            look += 1
        if look < end and (text[look] == 62 or text[look] == 124 or text[look] == 58):
            t.quoted += 1
        at = _line_end(text, look, end) + 1


cdef inline int _bits(Py_ssize_t value) noexcept nogil:
    cdef int count = 0
    while value:
        value >>= 1
        count += 1
    return count


cdef void _shaped(Tokens *t, const char *name, Py_ssize_t value) noexcept nogil:
    """Add shape:NAME with a number below 100."""
    cdef unsigned char[2] digits
    cdef uint64_t kind = _fnv(T_SHAPE, <Text> name, strlen(name))
    digits[0] = <unsigned char> (48 + value // 10)
    digits[1] = <unsigned char> (48 + value % 10)
    if value < 10:
        _token(t, kind, digits + 1, 1)
    else:
        _token(t, kind, digits, 2)


cdef void _shape(Tokens *t) noexcept nogil:
    """Add what the whole looks like: measures, coarse, and which domains are the same."""
    cdef Py_ssize_t whole = max(t.text + t.html, 1)
    cdef uint64_t a, b
    cdef int at
    for at in range(6):
        a, b = t.sites[KIN[2 * at]], t.sites[KIN[2 * at + 1]]
        if a < 2 or b < 2:
            _token(t, KINDRED[at], <Text> <const char *> b"none", 4)
        elif a == b:
            _token(t, KINDRED[at], <Text> <const char *> b"same", 4)
        else:
            _token(t, KINDRED[at], <Text> <const char *> b"other", 5)
    _shaped(t, b"parts=", min(t.parts, 3) + 4 * (t.text > 0) + 8 * (t.html > 0))
    _shaped(t, b"text=", _bits(t.text))
    _shaped(t, b"html=", _bits(t.html))
    _shaped(t, b"links=", _bits(t.links))
    _shaped(t, b"quoted=", _bits(t.quoted))
    _shaped(t, b"fields=", _bits(t.fields))
    _shaped(t, b"received=", min(t.received, 9))
    _shaped(t, b"capitals=", 20 * t.capital // max(t.small + t.capital, 1))
    _shaped(t, b"beyond=", min(50 * t.beyond // whole, 9))
    _shaped(t, b"marks=", min(500 * t.marks // whole, 9))
    _shaped(t, b"money=", min(t.money, 4))


cdef void _header(Tokens *t, Text sent, Text low, Py_ssize_t end, bint part) noexcept nogil:
    """sent: the header; low: the same in lower case."""
    cdef Py_ssize_t at = 0, line_end, stop, colon, name_end
    cdef uint64_t above = 0, here, name
    cdef const void *hit
    cdef int party
    while at < end:
        line_end = _line_end(sent, at, end)
        stop = line_end + 1
        while stop < end and (sent[stop] == 32 or sent[stop] == 9):
            line_end = _line_end(sent, stop, end)
            stop = line_end + 1
        hit = memchr(sent + at, 58, line_end - at)
        colon = -1 if hit == NULL else <Text> hit - sent
        if colon > at and colon - at <= L_WORD:
            name_end = colon
            while name_end > at and (sent[name_end - 1] == 32 or sent[name_end - 1] == 9):
                name_end -= 1
            if not _passed(low + at, name_end - at):
                here = _token(t, T_PART_HDR if part else T_HDR, sent + at, name_end - at)
                if above:
                    _pair(t, above, here)
                above = here
                name = _fnv(BASIS, low + at, name_end - at)
                if not part:
                    t.fields += 1
                    t.received += name == N_RECEIVED
                    for party in range(5):
                        if name == PARTIES[party] and not t.sites[party]:
                            t.sites[party] = _site(low + colon + 1, line_end - colon - 1)
                if name == N_SUBJECT and not part:
                    _text(t, T_SUBJECT, low + colon + 1, line_end - colon - 1, True)
                else:
                    here = _fnv(_fnv(T_PART if part else BASIS, low + at, name_end - at), <Text> <const char *> b":", 1)
                    _field(t, here, name, _dated(name, low + at, name_end - at), low + colon + 1, line_end - colon - 1)
        at = stop


cdef void _field(Tokens *t, uint64_t kind, uint64_t name, bint date, Text value, Py_ssize_t end) noexcept nogil:
    cdef bint received = name == N_RECEIVED, dotted, letters
    cdef bint identifiers = _among(name, IDENTIFIERS, 10), typed = name == N_TYPE or name == N_DISPOSITION
    cdef Py_ssize_t at = 0, after, start, length, sign, look
    if received:
        look = end - 1
        while look >= 0 and value[look] != 59:
            look -= 1
        if look >= 0:
            end = look
    while at < end:
        if CLASS[value[at]] & SPLIT:
            at += 1
            continue
        after = at + 1
        while after < end and not CLASS[value[after]] & SPLIT:
            after += 1
        start = at
        length = after - start
        at = after
        if date:
            if value[start] == 43 or value[start] == 45:
                _token(t, kind, value + start, length)
            continue
        if typed and length == 8 and memcmp(value + start, <const char *> b"boundary", 8) == 0:
            while at < end and (value[at] == 32 or value[at] == 9 or value[at] == 13 or value[at] == 10 or value[at] == 34 or value[at] == 61):
                at += 1
            after = at
            while after < end and after - at < 20 and not CLASS[value[after]] & DIGIT and not (
                value[after] == 34 or value[after] == 59 or value[after] == 13 or value[after] == 10
            ):
                after += 1
            _token(t, _fnv(kind, <Text> <const char *> b"boundary=", 9), value + at, after - at)
            at = after
            while at < end and value[at] != 59:
                at += 1
            continue
        sign = -1
        dotted = False
        letters = True
        for look in range(start, start + length):
            if value[look] == 64 and sign < 0:
                sign = look
                dotted = False
            elif value[look] == 46:
                dotted = True
            if not CLASS[value[look]] & LETTER:
                letters = False
        if sign >= 0 and sign + 1 < start + length:
            _stripped_ends(t, kind, value + sign + 1, start + length - sign - 1)
        elif dotted:
            _stripped_ends(t, kind, value + start, length)
        if identifiers:
            continue
        if received and (sign >= 0 or dotted or not letters):
            continue
        if length >= L_MIN_WORD and not (dotted and sign < 0):
            _token(t, kind, value + start, length)


cdef Py_ssize_t _search(Text text, Py_ssize_t at, Py_ssize_t end, Text wanted, Py_ssize_t length) noexcept nogil:
    """Where `wanted` begins at or after `at`, or -1."""
    cdef const void *hit
    while at + length <= end:
        hit = memchr(text + at, wanted[0], end - length + 1 - at)
        if hit == NULL:
            return -1
        at = <Text> hit - text
        if memcmp(text + at, wanted, length) == 0:
            return at
        at += 1
    return -1


cdef uint64_t _colour(Text value, Py_ssize_t length) noexcept nogil:
    """A hash of a colour; other names of white and black are the same."""
    if (length == 5 and memcmp(value, <const char *> b"white", 5) == 0) or (length == 4 and memcmp(value, <const char *> b"#fff", 4) == 0):
        return _fnv(BASIS, <Text> <const char *> b"#ffffff", 7)
    if (length == 5 and memcmp(value, <const char *> b"black", 5) == 0) or (length == 4 and memcmp(value, <const char *> b"#000", 4) == 0):
        return _fnv(BASIS, <Text> <const char *> b"#000000", 7)
    return _fnv(BASIS, value, _least(length, L_WORD))


cdef bint _hides(Text style, Py_ssize_t length, unsigned char *scratch) noexcept nogil:
    cdef Py_ssize_t at, left = 0
    for at in range(length):
        if style[at] != 32:
            scratch[left] = style[at]
            left += 1
    return (
        _search(scratch, 0, left, <Text> <const char *> b"display:none", 12) >= 0
        or _search(scratch, 0, left, <Text> <const char *> b"visibility:hidden", 17) >= 0
        or _search(scratch, 0, left, <Text> <const char *> b"font-size:0", 11) >= 0
        or _search(scratch, 0, left, <Text> <const char *> b"font-size:1px", 13) >= 0
    )


cdef Py_ssize_t _entity(Text text, Py_ssize_t end, Py_ssize_t at, Octets *out) noexcept nogil:
    cdef Py_ssize_t after = at + 1, length, look, stop
    cdef Text name = text + at + 1
    cdef int code = 0, base = 10, digit
    cdef unsigned char stands = 0
    while after < end and after - at < 9 and (CLASS[text[after]] & (LETTER | DIGIT) or text[after] == 35):
        after += 1
    length = after - at - 1
    stop = after + 1 if after < end and text[after] == 59 else after
    if length == 4 and memcmp(name, <const char *> b"nbsp", 4) == 0:
        stands = 32
    elif length == 3 and memcmp(name, <const char *> b"amp", 3) == 0:
        stands = 38
    elif length == 2 and memcmp(name, <const char *> b"lt", 2) == 0:
        stands = 60
    elif length == 2 and memcmp(name, <const char *> b"gt", 2) == 0:
        stands = 62
    elif length == 4 and memcmp(name, <const char *> b"quot", 4) == 0:
        stands = 34
    elif length == 4 and memcmp(name, <const char *> b"apos", 4) == 0:
        stands = 39
    if stands:
        _out(out, stands)
        return stop
    if length > 1 and name[0] == 35:
        look = 1
        if name[1] == 120:
            base = 16
            look = 2
        if look < length:
            while look < length:
                digit = _hex(name[look])
                if digit < 0 or digit >= base:
                    code = -1
                    break
                code = code * base + digit
                look += 1
            if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000:
                if code == 160:
                    _out(out, 32)
                elif code < 128:
                    _out(out, LOWER[code])
                elif code < 0x800:
                    _out(out, <unsigned char> (0xC0 | code >> 6))
                    _out(out, <unsigned char> (0x80 | code & 63))
                elif code < 0x10000:
                    _out(out, <unsigned char> (0xE0 | code >> 12))
                    _out(out, <unsigned char> (0x80 | code >> 6 & 63))
                    _out(out, <unsigned char> (0x80 | code & 63))
                else:
                    _out(out, <unsigned char> (0xF0 | code >> 18))
                    _out(out, <unsigned char> (0x80 | code >> 12 & 63))
                    _out(out, <unsigned char> (0x80 | code >> 6 & 63))
                    _out(out, <unsigned char> (0x80 | code & 63))
                return stop
    _out(out, 38)
    return at + 1


cdef inline void _out(Octets *out, unsigned char octet) noexcept nogil:
    # Room is as much as the source: nothing is written longer than it was read.
    out.data[out.length] = octet
    out.length += 1


cdef void _html(Tokens *t, Text text, Py_ssize_t end, unsigned char *room) noexcept nogil:
    """room: three times the text and an octet for each of the first two."""
    cdef Octets seen, unseen
    cdef Octets *out
    cdef unsigned char *scratch = room + 2 * end + 2
    cdef uint64_t backdrop = _fnv(BASIS, <Text> <const char *> b"#ffffff", 7), hiding = 0, name, key, whole
    cdef Py_ssize_t depth = 0, at = 0, after, start, name_start, name_length, key_length, mark
    cdef unsigned char octet, following
    cdef bint closing, hidden
    cdef Text value
    cdef Py_ssize_t value_length
    cdef const void *hit
    seen.data, seen.length, unseen.data, unseen.length = room, 0, room + end + 1, 0
    while at < end:
        out = &unseen if depth else &seen
        octet = text[at]
        if octet == 38:
            at = _entity(text, end, at, out)
            continue
        if octet != 60:
            _out(out, octet)
            at += 1
            continue
        if at + 4 <= end and memcmp(text + at, <const char *> b"<!--", 4) == 0:
            _token(t, T_TAG, <Text> <const char *> b"!--", 3)
            after = _search(text, at + 4, end, <Text> <const char *> b"-->", 3)
            at = end if after < 0 else after + 3
            continue
        following = text[at + 1] if at + 1 < end else 0
        if not CLASS[following] & LETTER and following != 47 and following != 33 and following != 63:
            _out(out, octet)
            at += 1
            continue
        closing = following == 47
        at += 2 if closing else 1
        start = at
        while at < end and CLASS[text[at]] & NAME:
            at += 1
        name_start = start
        name_length = _least(at - start, L_WORD)
        name = _fnv(BASIS, text + start, name_length)
        if not _among(name, INLINE, 12):
            _out(out, 32)
        if not closing:
            _token(t, T_TAG, text + start, name_length)
        hidden = False
        while at < end and text[at] != 62:
            if not CLASS[text[at]] & NAME:
                at += 1
                continue
            start = at
            while at < end and CLASS[text[at]] & NAME:
                at += 1
            key_length = _least(at - start, L_WORD)
            key = _fnv(BASIS, text + start, key_length)
            mark = start
            while at < end and CLASS[text[at]] & SPACE:
                at += 1
            if at >= end or text[at] != 61:
                continue
            at += 1
            while at < end and CLASS[text[at]] & SPACE:
                at += 1
            start = at
            after = at
            if at < end and (text[at] == 34 or text[at] == 39):
                hit = memchr(text + at + 1, text[at], _least(L_QUOTED, end - at - 1))
                after = -1 if hit == NULL else <Text> hit - text
                start += 1
            if after > at:
                at = after + 1
            else:
                after = start
                while after < end and not CLASS[text[after]] & SPACE and text[after] != 62:
                    after += 1
                at = after
            value = text + start
            value_length = after - start
            if _among(key, LINKS, 4):
                start = _search(value, 0, value_length, <Text> <const char *> b"://", 3)
                if 0 <= start <= 6:
                    _host(t, value, value_length, start + 3, &whole)
                else:
                    hit = memchr(value, 58, _least(value_length, 12)) if value_length > 0 else NULL
                    if hit != NULL:
                        value_length = <Text> hit - value
                        _token(t, _attribute(text + mark, key_length), value, value_length)
                        value_length = after - (value - text)
                    else:
                        _token(t, _attribute(text + mark, key_length), <Text> <const char *> b"relative", 8)
            elif _among(key, VALUED, 9):
                _token(t, _attribute(text + mark, key_length), value, value_length)
            if key == N_BGCOLOR:
                backdrop = _colour(value, value_length)
            elif key == N_COLOR:
                hidden = hidden or _colour(value, value_length) == backdrop
            elif key == N_STYLE:
                hidden = hidden or _hides(value, value_length, scratch)
        at += 1
        if closing:
            if depth and name == hiding:
                depth -= 1
        elif depth:
            depth += name == hiding
        elif hidden and not _among(name, VOID, 9):
            _token(t, T_TAG, <Text> <const char *> b"hidden", 6)
            hiding = name
            depth = 1
        if not closing and (name == N_SCRIPT or name == N_STYLE):
            after = at
            while True:
                after = _search(text, after, end, <Text> <const char *> b"</", 2)
                if after < 0:
                    break
                if after + 2 + name_length <= end and memcmp(text + after + 2, text + name_start, name_length) == 0:
                    break
                after += 1
            at = end if after < 0 else after
    _text(t, T_BODY, seen.data, seen.length, True)
    _text(t, T_HIDDEN, unseen.data, unseen.length, False)





cdef inline uint64_t _attribute(Text key, Py_ssize_t length) noexcept nogil:
    return _fnv(_fnv(T_ATTR, key, length), <Text> <const char *> b"=", 1)


def features(list sections, Py_ssize_t limit=L_FEATURES):
    """The features of a message as uint32 in the machine's order, each once, at most `limit`.

    sections: (HEADER | PART | TEXT | HTML, octets); text in UTF-8, beyond ASCII already in lower case and NFKC.
    """
    cdef Tokens t
    cdef Py_ssize_t length, most = 0, at
    cdef int kind
    cdef Text octets
    cdef unsigned char *room = NULL
    cdef bytes piece
    memset(&t, 0, sizeof(t))
    t.limit = limit
    t.size = 4096
    for _, piece in sections:
        most = max(most, PyBytes_GET_SIZE(piece))
    try:
        t.table = <uint32_t *> calloc(t.size, 4)
        t.found = <uint32_t *> malloc(t.size * 2)
        room = <unsigned char *> malloc(4 * most + 8)
        if t.table == NULL or t.found == NULL or room == NULL:
            raise MemoryError()
        for kind, piece in sections:
            octets = <Text> PyBytes_AS_STRING(piece)
            length = PyBytes_GET_SIZE(piece)
            with nogil:
                for at in range(length):
                    room[at] = LOWER[octets[at]]
                if kind == S_HEADER or kind == S_PART:
                    t.parts += kind == S_PART
                    _header(&t, octets, room, length, kind == S_PART)
                elif kind == S_HTML:
                    _measure(&t, octets, length, True)
                    _html(&t, room, length, room + length)
                else:
                    _measure(&t, octets, length, False)
                    _text(&t, T_BODY, room, length, True)
        if sections:
            _shape(&t)
        if t.failed:
            raise MemoryError()
        return PyBytes_FromStringAndSize(<char *> t.found, t.count * 4)
    finally:
        free(t.table)
        free(t.found)
        free(room)


# Tables


cdef const uint32_t[::1] _table(object octets, int bits):
    if not B_MIN <= bits <= B_MAX:
        raise ValueError("bits out of range")
    view = memoryview(octets).cast("B")
    if len(view) != 64 << bits:
        raise ValueError("a table of another size")
    return view.cast("I")


cdef uint32_t[::1] _writable(object octets, int bits):
    if not B_MIN <= bits <= B_MAX:
        raise ValueError("bits out of range")
    view = memoryview(octets).cast("B")
    if len(view) != 64 << bits:
        raise ValueError("a table of another size")
    return view.cast("I")


def add(object octets, int bits, object keys, Py_ssize_t start, long change):
    """Add `change` to the counts of keys[start:]; return how far it came: before len(keys) if the table must grow.

    octets: a writable table of 2^bits buckets. keys: uint32, of which KEY_BITS count. Counts stay within 0 (the slot is
    freed) and what the table can hold; a key that is not there and is taken away from is passed over. Raises ValueError
    if the sizes don't fit.
    """
    cdef uint32_t[::1] table = _writable(octets, bits)
    cdef const uint32_t[::1] wanted = memoryview(keys).cast("B").cast("I")
    cdef long most = (1 << (bits + 2)) - 1, count
    cdef Py_ssize_t at = start, end = wanted.shape[0]
    cdef uint32_t mask = (<uint32_t> 2 << (29 - bits)) - 1, key
    cdef int64_t slot
    if start < 0:
        raise ValueError("start is negative")
    while at < end:
        key = wanted[at] & 0x1FFFFFFF
        slot = iems_find(&table[0], bits, key)
        if slot >= 0:
            count = max(0, min(most, <long> (table[slot] >> (30 - bits)) + change))
            table[slot] = (table[slot] & mask) | (<uint32_t> count << (30 - bits)) if count else 0
        elif change > 0 and not iems_insert(&table[0], bits, key, <uint32_t> min(change, most)):
            return at
        at += 1
    return max(start, end)


def grow(object old, int old_bits, object new, int bits):
    """Put all of a table into an empty, larger one; False if it does not fit there (then take a larger one still)."""
    cdef uint32_t[::1] table = _writable(new, bits)
    cdef const uint32_t[::1] listed
    cdef uint32_t most
    cdef Py_ssize_t at
    if bits < old_bits:
        raise ValueError("smaller than it was")
    most = (<uint32_t> 1 << (bits + 2)) - 1
    pairs = items(old, old_bits)
    if not pairs:
        return True
    listed = memoryview(pairs).cast("I")
    for at in range(0, listed.shape[0], 2):
        if not iems_insert(&table[0], bits, listed[at], min(listed[at + 1], most)):
            return False
    return True


def items(object octets, int bits):
    """All (key, count) of a table as uint32 pairs, in the order of its slots."""
    cdef const uint32_t[::1] table = _table(octets, bits)
    cdef Py_ssize_t slot, count = 0, at = 0
    cdef uint32_t mask = (<uint32_t> 1 << (29 - bits)) - 1, value, rest, home
    cdef uint32_t *out
    for slot in range(table.shape[0]):
        count += table[slot] >> (30 - bits) != 0
    made = PyBytes_FromStringAndSize(NULL, count * 8)
    out = <uint32_t *> PyBytes_AS_STRING(made)
    for slot in range(table.shape[0]):
        value = table[slot]
        if value >> (30 - bits):
            rest = value & mask
            home = <uint32_t> (slot // 16)
            if (value >> (29 - bits)) & 1:
                home = iems_other(home, rest, bits)
            out[at] = home << (29 - bits) | rest
            out[at + 1] = value >> (30 - bits)
            at += 2
    return made


def halve(object octets, int bits):
    """Halve all counts, so that what was seen once is forgotten; return how many keys are left."""
    cdef uint32_t[::1] table = _writable(octets, bits)
    cdef uint32_t mask = (<uint32_t> 2 << (29 - bits)) - 1, count
    cdef Py_ssize_t slot, left = 0
    for slot in range(table.shape[0]):
        count = table[slot] >> (30 - bits) >> 1
        table[slot] = (table[slot] & mask) | (count << (30 - bits)) if count else 0
        left += count > 0
    return left


# Scores

cdef struct Book:
    const uint32_t *good
    int good_bits
    double goods
    const uint32_t *spam
    int spam_bits
    double spams


cdef inline double _belief(double good, double spam, double goods, double spams, double strength, double before) noexcept nogil:
    cdef double count = good + spam, share = 0.0
    if count > 0.0:
        good = good / (goods if goods > 1.0 else 1.0)
        spam = spam / (spams if spams > 1.0 else 1.0)
        share = count * (spam / (good + spam))
    return (strength * before + share) / (strength * (1.0 - before) + (count - share))


cdef struct Value:
    double odds  # weighted; 0 for a feature that no table knows
    double linear


cdef inline Value _value(uint32_t feature, Book *mine, Book *site) noexcept nogil:
    cdef uint32_t key = feature >> 3, g, s
    cdef double strength = STRENGTH, before = 0.5, odds, weight = WEIGHTS[feature & 7], balance = 0.0
    cdef bint known = False
    cdef Value value
    value.odds = value.linear = 0.0
    if site.good != NULL:
        g = iems_count(site.good, site.good_bits, key)
        s = iems_count(site.spam, site.spam_bits, key)
        if g or s:
            known = True
            balance = <double> s - <double> g
            odds = _belief(g, s, site.goods, site.spams, STRENGTH, 0.5)
            strength = PRIOR_STRENGTH
            before = odds / (1.0 + odds)
    g = iems_count(mine.good, mine.good_bits, key)
    s = iems_count(mine.spam, mine.spam_bits, key)
    if known or g or s:
        balance += <double> s - <double> g
        value.odds = log(_belief(g, s, mine.goods, mine.spams, strength, before)) * weight
        value.linear = UNIT * weight * weight * balance
    return value


cdef _open(Book *mine, Book *site, list keep, good, good_bits, goods, spam, spam_bits, spams,
           prior_good, prior_good_bits, prior_goods, prior_spam, prior_spam_bits, prior_spams):
    cdef const uint32_t[::1] table
    memset(site, 0, sizeof(Book))
    table = _table(good, good_bits)
    keep.append(table)
    mine.good, mine.good_bits, mine.goods = &table[0], good_bits, goods
    table = _table(spam, spam_bits)
    keep.append(table)
    mine.spam, mine.spam_bits, mine.spams = &table[0], spam_bits, spams
    if prior_good is not None:
        table = _table(prior_good, prior_good_bits)
        keep.append(table)
        site.good, site.good_bits, site.goods = &table[0], prior_good_bits, prior_goods
        table = _table(prior_spam, prior_spam_bits)
        keep.append(table)
        site.spam, site.spam_bits, site.spams = &table[0], prior_spam_bits, prior_spams


def weigh(bytes found, good, good_bits, goods, spam, spam_bits, spams, prior_good=None, prior_good_bits=0, prior_goods=0,
          prior_spam=None, prior_spam_bits=0, prior_spams=0):
    """Two float64 for each feature: its weighted log odds (0 if no table knows it), and its share in the linear sum.

    found: what `features` gave. good, spam: tables; goods, spams: the weight of all lessons in each. prior_*: the same of
    the site, or None. Raises ValueError if sizes don't fit.
    """
    cdef Book mine, site
    cdef list keep = []
    cdef Py_ssize_t at, count = _whole(found)
    cdef const uint32_t *feature = <const uint32_t *> PyBytes_AS_STRING(found)
    cdef Value *out
    _open(&mine, &site, keep, good, good_bits, goods, spam, spam_bits, spams,
          prior_good, prior_good_bits, prior_goods, prior_spam, prior_spam_bits, prior_spams)
    made = PyBytes_FromStringAndSize(NULL, count * 16)
    out = <Value *> PyBytes_AS_STRING(made)
    with nogil:
        for at in range(count):
            out[at] = _value(feature[at], &mine, &site)
    return made


cdef Py_ssize_t _whole(bytes found) except -1:
    if PyBytes_GET_SIZE(found) % 4:
        raise ValueError("features of another size")
    return PyBytes_GET_SIZE(found) // 4


def score(bytes found, good, good_bits, goods, spam, spam_bits, spams, prior_good=None, prior_good_bits=0, prior_goods=0,
          prior_spam=None, prior_spam_bits=0, prior_spams=0):
    """What two ways of reading the tables say of a message, and its length (arguments as of `weigh`).

    The first: the sum of the weighted log odds over the root of the sum of the squared weights of the features that are
    known. The second: the linear sum over the length. The length: the root of the sum of all squared weights. Positive for
    spam; all 0.0 if there is nothing.
    """
    cdef Book mine, site
    cdef list keep = []
    cdef Py_ssize_t at, count = _whole(found)
    cdef const uint32_t *feature = <const uint32_t *> PyBytes_AS_STRING(found)
    cdef double total = 0.0, linear = 0.0, squares = 0.0, length = 0.0, square
    cdef Value value
    _open(&mine, &site, keep, good, good_bits, goods, spam, spam_bits, spams,
          prior_good, prior_good_bits, prior_goods, prior_spam, prior_spam_bits, prior_spams)
    with nogil:
        for at in range(count):
            if at + AHEAD < count:
                iems_prefetch(mine.good, mine.good_bits, feature[at + AHEAD] >> 3)
                iems_prefetch(mine.spam, mine.spam_bits, feature[at + AHEAD] >> 3)
            value = _value(feature[at], &mine, &site)
            square = WEIGHTS[feature[at] & 7] * WEIGHTS[feature[at] & 7]
            length += square
            if value.odds != 0.0:
                total += value.odds
                squares += square
            linear += value.linear
        length = sqrt(length)
    return total / sqrt(squares) if squares > 0.0 else 0.0, linear / length if length > 0.0 else 0.0, length
