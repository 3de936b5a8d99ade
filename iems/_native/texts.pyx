"""Whether texts are in messages: parts found, transfer encodings and common charsets undone, texts folded, without a Python object for any of it.

`message.text.Searchable` defines the answer; `texts_py` says what may be answered instead. A region is a header or a text part. Most hold no octet above
127, and then the longest word of the key is looked for in the region as it lies: folding changes nothing within a word but its case. Only a region with
that word, or with more than ASCII, is folded. A character whose folding depends on its neighbours makes the region UNSURE.
"""

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport pread

from iems._native.mime cimport (
    C_BODY_END, C_BODY_START, C_ENCODING_END, C_ENCODING_START, C_HEADER_START, C_KIND, C_TYPE_END, C_TYPE_START, K_LEAF, Media, Octets, Parameter,
    Parse, Row, Text, _drop, _grow, _media, _next_parameter, _put_value, _run, _skip, again,
)

cdef extern from "texts_find.h" nogil:
    unsigned char iems_lower(unsigned char octet)
    Py_ssize_t iems_find_word(const unsigned char *text, size_t size, const unsigned char *word, size_t length)
    bint iems_wide(const unsigned char *text, size_t size)
    bint iems_odd_header(const unsigned char *text, size_t size)

cdef extern from "string.h" nogil:
    void *memmem(const void *text, size_t size, const void *word, size_t length)

NO = 0
YES = 1
UNSURE = 2
MAX_OCTETS = 4 << 20
MAX_KEYS = 16

cdef enum:
    V_NO = 0
    V_YES = 1
    V_UNSURE = 2
    L_OCTETS = 4194304
    L_KEYS = 16
    L_CHARSETS = 16
    L_NAME = 32
    L_VALUE = 65536  # octets of a value with encoded words
    FIRST = 0x80
    # Octets that are read at once where contents lie close together, and what may lie between two.
    L_STRETCH = 131072
    L_GAP = 2048
    L_FOLDS = 0x2200  # characters below it are in the table of folds
    # Charsets that are no table; -1 is an exception.
    NONE_NAMED = -5
    UTF8 = -2
    OTHER = -3
    STRANGE = -6  # no name of a charset
    SHIFTED = -4  # one whose ASCII octets may mean something else
    # Columns of a place.
    P_KNOWN = 0
    P_HEAD = 1
    P_HEAD_LENGTH = 2
    P_OFFSET = 4
    P_LENGTH = 5
    P_COLUMNS = 6

cdef struct Charset:
    char name[L_NAME]
    size_t length
    uint16_t characters[256]

cdef Charset CHARSETS[L_CHARSETS]
cdef int KNOWN_CHARSETS = 0
# Where the fold of a character begins; it ends where the next begins.
cdef uint32_t FOLD_AT[L_FOLDS - FIRST + 1]
cdef unsigned char *FOLD_TEXT = NULL
cdef unsigned char SPACE[256]
cdef unsigned char TOKEN_END[256]
cdef signed char BASE64[256]
cdef signed char HEX[256]


cdef void _classify() noexcept:
    cdef int octet, value
    memset(SPACE, 0, sizeof(SPACE))
    memset(TOKEN_END, 0, sizeof(TOKEN_END))
    memset(BASE64, -1, sizeof(BASE64))
    memset(HEX, -1, sizeof(HEX))
    memset(FOLD_AT, 0, sizeof(FOLD_AT))
    for octet in b"\t\n\v\f\r\x1c\x1d\x1e\x1f ":
        SPACE[octet] = 1
    for octet in b" \t\r\n()<>@,;:\\\"/[]?=":
        TOKEN_END[octet] = 1
    value = 0
    for octet in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/":
        BASE64[octet] = value
        value += 1
    value = 0
    for octet in b"0123456789ABCDEF":
        HEX[octet] = value
        HEX[iems_lower(octet)] = value
        value += 1


_classify()


def learn(folds, charsets):
    global FOLD_TEXT, KNOWN_CHARSETS
    cdef Py_ssize_t k, at = 0
    cdef bytes fold
    if not charsets or len(charsets) > L_CHARSETS or any(len(name) >= L_NAME or len(table) != 512 for name, table in charsets):
        raise ValueError("too many charsets, or one that is not of 256 characters")
    joined = b"".join(folds[:L_FOLDS - FIRST])
    cdef unsigned char *text = <unsigned char *> malloc(len(joined) + 1)
    if text == NULL:
        raise MemoryError()
    memcpy(text, <const char *> joined, len(joined))
    for k in range(L_FOLDS - FIRST):
        FOLD_AT[k] = at
        if k < len(folds):
            fold = folds[k]
            at += len(fold)
    FOLD_AT[L_FOLDS - FIRST] = at
    free(FOLD_TEXT)
    FOLD_TEXT = text
    KNOWN_CHARSETS = 0
    for name, table in charsets:
        memcpy(CHARSETS[KNOWN_CHARSETS].name, <const char *> name, len(name))
        CHARSETS[KNOWN_CHARSETS].length = len(name)
        memcpy(CHARSETS[KNOWN_CHARSETS].characters, <const char *> table, 512)
        KNOWN_CHARSETS += 1


cdef struct Key:
    const unsigned char *text
    Py_ssize_t length
    const unsigned char *word  # the longest in it
    Py_ssize_t word_length
    bint wide
    bint header  # whether the message's own header counts
    int verdict

cdef struct State:
    Key keys[L_KEYS]
    int count
    Parse parse
    Octets content
    Octets decoded
    Octets folded
    Octets name
    # Of a header that is put down: a value without its line ends, octets of encoded words, the charset of the last one.
    Octets line
    Octets word
    Octets before


cdef list _begin(State *state, keys):
    """Take the keys; their octets, which are given back, have to live as long as the state."""
    cdef Key *key
    cdef Py_ssize_t at, start
    cdef bytes text
    cdef list held = []
    memset(state, 0, sizeof(State))
    if not 0 < len(keys) <= L_KEYS:
        raise ValueError("an empty key, none, or too many")
    for text, header in keys:
        if not text:
            raise ValueError("an empty key, none, or too many")
        held.append(text)
        key = &state.keys[state.count]
        key.text = <const unsigned char *> <const char *> text
        key.length = len(text)
        key.header = header
        key.wide = iems_wide(key.text, key.length)
        start = 0
        for at in range(key.length + 1):
            if at == key.length or key.text[at] == 32:
                if at - start > key.word_length:
                    key.word = key.text + start
                    key.word_length = at - start
                start = at + 1
        if key.word_length == 0:
            raise ValueError("a key of spaces")
        state.count += 1
    return held


cdef void _end(State *state) noexcept nogil:
    _drop(&state.parse)
    free(state.content.data)
    free(state.decoded.data)
    free(state.folded.data)
    free(state.name.data)
    free(state.line.data)
    free(state.word.data)
    free(state.before.data)


cdef inline int _room(Octets *out, Py_ssize_t count) except -1 nogil:
    """Make `out` empty, with room for so many octets."""
    out.length = 0
    if count > out.capacity:
        _grow(<void **> &out.data, &out.capacity, count, 1)
    return 0


# What is asked of a region.

cdef bint _wanted(State *state, bint own, bint plain, const unsigned char *text, Py_ssize_t size) noexcept nogil:
    """Whether a key may still be found here. own: it is the message's own header. plain: it is ASCII."""
    cdef int k
    cdef Key *key
    for k in range(state.count):
        key = &state.keys[k]
        if key.verdict == V_YES or (own and not key.header):
            continue
        if not plain:
            return True
        if not key.wide and iems_find_word(text, size, key.word, key.word_length) >= 0:
            return True
    return False


cdef void _unsure(State *state, bint own) noexcept nogil:
    cdef int k
    for k in range(state.count):
        if state.keys[k].verdict != V_YES and (state.keys[k].header or not own):
            state.keys[k].verdict = V_UNSURE


cdef void _compare(State *state, bint own) noexcept nogil:
    """Look for the keys in what was folded."""
    cdef int k
    cdef Key *key
    for k in range(state.count):
        key = &state.keys[k]
        if key.verdict == V_YES or (own and not key.header):
            continue
        if memmem(state.folded.data, state.folded.length, key.text, key.length) != NULL:
            key.verdict = V_YES


# Folding: letters small, runs of white space one space.

cdef int _fold_plain(State *state, const unsigned char *text, Py_ssize_t size) except -1 nogil:
    cdef Py_ssize_t i
    cdef unsigned char *to
    cdef bint gap = True
    _room(&state.folded, size + 1)
    to = state.folded.data
    for i in range(size):
        if SPACE[text[i]]:
            if not gap:
                to[0] = 32
                to += 1
                gap = True
        else:
            to[0] = iems_lower(text[i])
            to += 1
            gap = False
    state.folded.length = to - state.folded.data
    return 0


cdef int _fold_header(State *state, const unsigned char *text, Py_ssize_t size) except -1 nogil:
    """As lines, with a space behind the colon of each field."""
    cdef Py_ssize_t i = 0, colon = -1
    cdef unsigned char *to
    cdef bint gap = True, first = True, begins = True
    _room(&state.folded, 2 * size + 1)
    to = state.folded.data
    while i < size:
        if begins:
            if text[i] == 10 or (text[i] == 13 and i + 1 < size and text[i + 1] == 10):
                break  # the empty line
            colon = -1
            if first or (text[i] != 32 and text[i] != 9):
                colon = i
                while colon < size and text[colon] != 58 and text[colon] != 10:
                    colon += 1
                if colon == size or text[colon] == 10:
                    colon = -1
            begins = first = False
        if SPACE[text[i]]:
            if not gap:
                to[0] = 32
                to += 1
                gap = True
            begins = text[i] == 10
        else:
            to[0] = iems_lower(text[i])
            to += 1
            gap = False
            if i == colon:
                to[0] = 32
                to += 1
                gap = True
        i += 1
    state.folded.length = to - state.folded.data
    return 0


cdef inline bint _alone(uint32_t c) noexcept nogil:
    """Whether a character that is not in the table is its own fold, whatever its neighbours: kana, Han, Hangul, pictures, the replacement character."""
    return (
        0x4E00 <= c <= 0x9FFF or 0xAC00 <= c <= 0xD7A3 or 0x3041 <= c <= 0x3096 or 0x30A1 <= c <= 0x30FA or 0x3400 <= c <= 0x4DBF
        or 0x1F300 <= c <= 0x1FAFF or c == 0xFFFD or c == 0xFE0F or 0x3001 <= c <= 0x3003 or 0x3008 <= c <= 0x3011
    )


cdef int _fold_wide(State *state, const unsigned char *text, Py_ssize_t size, int charset) except -1 nogil:
    """1: folded. 0: a character is not known alone. 2: not UTF-8. charset: UTF8 or the place of a table."""
    cdef Py_ssize_t i = 0, k, most
    cdef unsigned char octet
    cdef unsigned char *to
    cdef uint32_t c, start, stop
    cdef bint gap = True
    cdef int more
    _room(&state.folded, 2 * size + 64)
    to = state.folded.data
    while i < size:
        octet = text[i]
        if octet < 128:
            if SPACE[octet]:
                if not gap:
                    to[0] = 32
                    to += 1
                    gap = True
            else:
                to[0] = iems_lower(octet)
                to += 1
                gap = False
            i += 1
            continue
        if charset == UTF8:
            if octet < 0xC2 or octet > 0xF4:
                return 2
            more = 1 if octet < 0xE0 else 2 if octet < 0xF0 else 3
            if i + more >= size:
                return 2
            c = octet & (0x3F >> more)
            for k in range(1, more + 1):
                if text[i + k] & 0xC0 != 0x80:
                    return 2
                c = c << 6 | (text[i + k] & 0x3F)
            if (more == 2 and (c < 0x800 or 0xD800 <= c <= 0xDFFF)) or (more == 3 and (c < 0x10000 or c > 0x10FFFF)):
                return 2
            i += more + 1
        else:
            c = CHARSETS[charset].characters[octet]
            i += 1
        state.folded.length = to - state.folded.data
        most = state.folded.length + 40 + (size - i)
        if most > state.folded.capacity:
            _grow(<void **> &state.folded.data, &state.folded.capacity, most + 64, 1)
            to = state.folded.data + state.folded.length
        if c < FIRST:  # no charset in use puts ASCII there
            return 0
        if c < L_FOLDS:
            start, stop = FOLD_AT[c - FIRST], FOLD_AT[c - FIRST + 1]
            if start == stop or stop - start > 32:
                return 0
            for k in range(start, stop):
                octet = FOLD_TEXT[k]
                if octet == 32:
                    if not gap:
                        to[0] = 32
                        to += 1
                        gap = True
                else:
                    to[0] = octet
                    to += 1
                    gap = False
            continue
        if not _alone(c):
            return 0
        gap = False
        if c < 0x10000:
            to[0] = 0xE0 | c >> 12
        else:
            to[0] = 0xF0 | c >> 18
            to += 1
            to[0] = 0x80 | (c >> 12 & 0x3F)
        to[1] = 0x80 | (c >> 6 & 0x3F)
        to[2] = 0x80 | (c & 0x3F)
        to += 3
    state.folded.length = to - state.folded.data
    return 1


# Regions.

cdef int _header(State *state, const unsigned char *text, Py_ssize_t size, bint own) except -1 nogil:
    if iems_odd_header(text, size):
        if not _wanted(state, own, False, text, size):
            return 0
        if _plainly(state, text, size) == 1 and _fold_wide(state, state.decoded.data, state.decoded.length, UTF8) == 1:
            _compare(state, own)
        else:
            _unsure(state, own)
        return 0
    if _wanted(state, own, True, text, size):
        _fold_header(state, text, size)
        _compare(state, own)
    return 0


cdef int _body(State *state, const unsigned char *text, Py_ssize_t size, int charset) except -1 nogil:
    """A text part with its transfer encoding undone."""
    cdef int done
    if not iems_wide(text, size):
        if charset == SHIFTED or (charset == OTHER and iems_find_word(text, size, <const unsigned char *> b"\x1b", 1) >= 0):
            _unsure(state, False)
        elif _wanted(state, False, True, text, size):
            _fold_plain(state, text, size)
            _compare(state, False)
        return 0
    if not _wanted(state, False, False, text, size):
        return 0
    if charset == OTHER or charset == SHIFTED:
        _unsure(state, False)
        return 0
    done = _fold_wide(state, text, size, UTF8 if charset == NONE_NAMED else charset)
    if done == 2 and charset == NONE_NAMED:
        done = _fold_wide(state, text, size, 0)
    if done == 1:
        _compare(state, False)
    else:
        _unsure(state, False)
    return 0


# Headers that are more than ASCII in lines are put down in UTF-8, encoded words undone, before they are folded.

cdef inline int _add(Octets *out, const unsigned char *text, Py_ssize_t size) except -1 nogil:
    if out.length + size > out.capacity:
        _grow(<void **> &out.data, &out.capacity, out.length + size + 256, 1)
    if size:
        memcpy(out.data + out.length, text, size)
    out.length += size
    return 0


cdef int _plainly(State *state, const unsigned char *text, Py_ssize_t size) except -1 nogil:
    """Put a header down in `decoded`, a field a line; 0 if something in it is left to the reference."""
    cdef Py_ssize_t at = 0, after, end, first = -1, value = 0, colon
    state.decoded.length = 0
    while at < size:
        after = at
        while after < size and text[after] != 10:
            after += 1
        end = after
        after = min(after + 1, size)
        if end > at and text[end - 1] == 13:
            end -= 1
        if end == at:
            break
        if first < 0 or (text[at] != 32 and text[at] != 9):
            if first >= 0 and not _field(state, text, first, value, at):
                return 0
            first = at
            colon = at
            while colon < end and text[colon] != 58:
                colon += 1
            value = colon + 1 if colon < end else at
        at = after
    if first >= 0 and not _field(state, text, first, value, at):
        return 0
    return 1


cdef int _field(State *state, const unsigned char *text, Py_ssize_t first, Py_ssize_t value, Py_ssize_t end) except -1 nogil:
    """One field: its name, a space, its value as `words.decode_words` reads it."""
    cdef Octets *line = &state.line
    cdef Py_ssize_t i, at, start, stop, size
    cdef int charset = NONE_NAMED, named
    cdef bint after_word = False
    if iems_wide(text + first, value - first):
        return 0
    _add(&state.decoded, text + first, value - first)
    _add(&state.decoded, <const unsigned char *> b" ", 1)
    while value < end and (text[value] == 32 or text[value] == 9 or text[value] == 13 or text[value] == 10):
        value += 1
    _room(line, end - value)
    for i in range(value, end):
        if text[i] != 13 and text[i] != 10:
            line.data[line.length] = text[i]
            line.length += 1
    size = line.length
    while size and (line.data[size - 1] == 32 or line.data[size - 1] == 9):
        size -= 1
    at = i = 0
    state.word.length = 0
    while i + 1 < size:
        if line.data[i] != 61 or line.data[i + 1] != 63:
            i += 1
            continue
        if size > L_VALUE:
            return 0
        start = stop = i + 2
        while stop < size and line.data[stop] != 63 and line.data[stop] != 61 and not _blank(line.data[stop]):
            stop += 1
        # charset, "?", B or Q, "?", text, "?="
        if (stop == start or stop - start > 75 or stop + 2 >= size or line.data[stop] != 63 or line.data[stop + 2] != 63
                or not (iems_lower(line.data[stop + 1]) == 98 or iems_lower(line.data[stop + 1]) == 113)):
            i += 1
            continue
        value = stop + 3
        while value < size and line.data[value] != 63:
            value += 1
        if value + 1 >= size or line.data[value + 1] != 61:
            i += 1
            continue
        if not (after_word and _only_blanks(line.data + at, i - at)):
            if not _put_text(&state.decoded, state.word.data, state.word.length, charset):
                return 0
            state.word.length = 0
            if not _put_text(&state.decoded, line.data + at, i - at, NONE_NAMED):
                return 0
        _room(&state.name, 80)
        while start < stop and line.data[start] != 42:  # a language follows (RFC 2231 5)
            state.name.data[state.name.length] = line.data[start]
            state.name.length += 1
            start += 1
        named = _named(&state.name)
        if named == STRANGE:
            return 0
        # Neighbours of one charset are decoded as one text.
        if state.word.length and not _same_name(state):
            if not _put_text(&state.decoded, state.word.data, state.word.length, charset):
                return 0
            state.word.length = 0
        charset = named
        _add_name(state)
        if not _word(&state.word, line.data + stop + 3, value - stop - 3, iems_lower(line.data[stop + 1]) == 98):
            return 0
        at = i = value + 2
        after_word = True
    if not _put_text(&state.decoded, state.word.data, state.word.length, charset):
        return 0
    if not _put_text(&state.decoded, line.data + at, size - at, NONE_NAMED):
        return 0
    _add(&state.decoded, <const unsigned char *> b"\n", 1)
    return 1


cdef inline bint _blank(unsigned char octet) noexcept nogil:
    return octet == 32 or 9 <= octet <= 13


cdef bint _only_blanks(const unsigned char *text, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        if text[i] != 32 and text[i] != 9:
            return False
    return True


cdef bint _same_name(State *state) noexcept nogil:
    return state.name.length == state.before.length and memcmp(state.name.data, state.before.data, state.name.length) == 0


cdef int _add_name(State *state) except -1 nogil:
    """Remember the charset of a word for the next one."""
    state.before.length = 0
    return _add(&state.before, state.name.data, state.name.length)


cdef int _word(Octets *out, const unsigned char *text, Py_ssize_t size, bint base64) except -1 nogil:
    """Add the octets of an encoded word; 0 for base64 that is cut."""
    cdef Py_ssize_t i = 0
    cdef unsigned char octet
    cdef Octets one
    cdef int done
    if base64:
        memset(&one, 0, sizeof(one))
        done = _unbase64(&one, text, size)
        if done:
            _add(out, one.data, one.length)
        free(one.data)
        return done
    while i < size:
        octet = text[i]
        if octet == 95:
            octet = 32
        elif octet == 61 and i + 2 < size and HEX[text[i + 1]] >= 0 and HEX[text[i + 2]] >= 0:
            octet = <unsigned char> (HEX[text[i + 1]] << 4 | HEX[text[i + 2]])
            i += 2
        _add(out, &octet, 1)
        i += 1
    return 1


cdef bint _utf8(const unsigned char *text, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i = 0, k
    cdef uint32_t c
    cdef int more
    while i < size:
        if text[i] < 128:
            i += 1
            continue
        if text[i] < 0xC2 or text[i] > 0xF4:
            return False
        more = 1 if text[i] < 0xE0 else 2 if text[i] < 0xF0 else 3
        if i + more >= size:
            return False
        c = text[i] & (0x3F >> more)
        for k in range(1, more + 1):
            if text[i + k] & 0xC0 != 0x80:
                return False
            c = c << 6 | (text[i + k] & 0x3F)
        if (more == 2 and (c < 0x800 or 0xD800 <= c <= 0xDFFF)) or (more == 3 and (c < 0x10000 or c > 0x10FFFF)):
            return False
        i += more + 1
    return True


cdef int _put_text(Octets *out, const unsigned char *text, Py_ssize_t size, int charset) except -1 nogil:
    """Add octets of a charset in UTF-8; 0 where they are left to the reference."""
    cdef Py_ssize_t i
    cdef uint16_t c
    cdef unsigned char octets[3]
    cdef int count
    if size == 0:
        return 1
    if charset == SHIFTED or (charset == OTHER and (iems_wide(text, size) or iems_find_word(text, size, <const unsigned char *> b"\x1b", 1) >= 0)):
        return 0
    if charset < 0 and _utf8(text, size):
        _add(out, text, size)
        return 1
    if charset == UTF8:
        return 0
    if charset < 0:
        charset = 0
    for i in range(size):
        if text[i] < 128:
            _add(out, text + i, 1)
            continue
        c = CHARSETS[charset].characters[text[i]]
        if c < 0x80:
            return 0
        if c < 0x800:
            octets[0] = <unsigned char> (0xC0 | c >> 6)
            octets[1] = <unsigned char> (0x80 | (c & 0x3F))
            count = 2
        else:
            octets[0] = <unsigned char> (0xE0 | c >> 12)
            octets[1] = <unsigned char> (0x80 | (c >> 6 & 0x3F))
            octets[2] = <unsigned char> (0x80 | (c & 0x3F))
            count = 3
        _add(out, octets, count)
    return 1


cdef bint _is(const unsigned char *text, Py_ssize_t length, const char *word, Py_ssize_t word_length) noexcept nogil:
    cdef Py_ssize_t k
    if length != word_length:
        return False
    for k in range(length):
        if iems_lower(text[k]) != <unsigned char> word[k]:
            return False
    return True


cdef inline bint _starts(Octets *name, const char *word, Py_ssize_t length) noexcept nogil:
    return name.length >= length and memcmp(name.data, word, length) == 0


cdef int _charset(State *state, Text text, Media *media, Py_ssize_t end, int *found) except -1 nogil:
    """What the parameter says; found is 0 where it is written in a way that is left to the reference."""
    cdef Parameter parameter
    cdef Octets *name = &state.name
    cdef int charset
    memset(&parameter, 0, sizeof(parameter))
    parameter.at = media.after
    found[0] = 1
    name.length = -1
    while _next_parameter(text, end, &parameter):
        if parameter.name_length > 7 and _is(text + parameter.name, 8, b"charset*", 8):
            found[0] = 0
            return OTHER
        if name.length < 0 and _is(text + parameter.name, parameter.name_length, b"charset", 7):
            _room(name, parameter.value_end - parameter.value + 1)
            _put_value(name, text, &parameter)
    if name.length <= 0:
        return NONE_NAMED
    charset = _named(name)
    if charset == STRANGE:
        found[0] = 0
    return charset


cdef int _named(Octets *name) noexcept nogil:
    """What a name of a charset means, STRANGE for one that is no name; it is put in lower case."""
    cdef Py_ssize_t k
    cdef int i
    for k in range(name.length):
        if name.data[k] <= 32 or name.data[k] >= 127 or name.data[k] in b"?='\"":
            return STRANGE
        name.data[k] = iems_lower(name.data[k])
    if name.length == 0:
        return NONE_NAMED
    if _is(name.data, name.length, b"utf-8", 5) or _is(name.data, name.length, b"utf8", 4):
        return UTF8
    if _is(name.data, name.length, b"us-ascii", 8) or _is(name.data, name.length, b"ascii", 5):
        return NONE_NAMED
    for i in range(KNOWN_CHARSETS):
        if _is(name.data, name.length, CHARSETS[i].name, CHARSETS[i].length):
            return i
    if (_starts(name, b"utf-7", 5) or _starts(name, b"utf-16", 6) or _starts(name, b"utf-32", 6) or _starts(name, b"unicode", 7)
            or _starts(name, b"hz", 2)):
        return SHIFTED
    return OTHER


cdef int _leaf(State *state, Text text, Row *row) except -1 nogil:
    cdef Py_ssize_t at = row.cells[C_TYPE_START], end = row.cells[C_TYPE_END], stop
    cdef Py_ssize_t start = row.cells[C_BODY_START], size = row.cells[C_BODY_END] - row.cells[C_BODY_START]
    cdef Media media
    cdef int charset = NONE_NAMED, found = 1, done
    if size <= 0:
        return 0
    if at < end:
        media = _media(text, at, end)
        if media.main_length:
            if not (_is(text + media.main, media.main_length, b"text", 4) or _is(text + media.main, media.main_length, b"message", 7)
                    or _is(text + media.main, media.main_length, b"multipart", 9)):
                return 0
            charset = _charset(state, text, &media, end, &found)
            if not found:
                _unsure(state, False)
                return 0
    at, end = row.cells[C_ENCODING_START], row.cells[C_ENCODING_END]
    at = _skip(text, at, end)
    stop = at
    while stop < end and not TOKEN_END[text[stop]]:
        stop += 1
    media.after = _skip(text, stop, end)
    if media.after < end and text[media.after] == 59:
        media.after = _skip(text, media.after + 1, end)
    if media.after < end:
        stop = at  # not a single token
    if _is(text + at, stop - at, b"base64", 6):
        done = _unbase64(&state.decoded, text + start, size)
    elif _is(text + at, stop - at, b"quoted-printable", 16):
        done = _unquoted(&state.decoded, text + start, size)
    elif (_is(text + at, stop - at, b"x-uuencode", 10) or _is(text + at, stop - at, b"uuencode", 8) or _is(text + at, stop - at, b"x-uue", 5)
            or _is(text + at, stop - at, b"uue", 3)):
        done = 0
    else:
        return _body(state, text + start, size, charset)
    if not done:
        _unsure(state, False)
        return 0
    return _body(state, state.decoded.data, state.decoded.length, charset)


cdef int _unbase64(Octets *out, const unsigned char *text, Py_ssize_t size) except -1 nogil:
    """Undo base64 as binascii does; 0 where that fails."""
    cdef Py_ssize_t i
    cdef unsigned char *to
    cdef int value, left = 0, place = 0, pads = 0
    _room(out, size + 4)
    to = out.data
    for i in range(size):
        if text[i] == 61:
            if place >= 2:
                pads += 1
                if place + pads >= 4:
                    out.length = to - out.data
                    return 1
            continue
        value = BASE64[text[i]]
        if value < 0:
            continue
        pads = 0
        if place == 0:
            left = value
            place = 1
        elif place == 1:
            to[0] = <unsigned char> (left << 2 | value >> 4)
            to += 1
            left = value & 15
            place = 2
        elif place == 2:
            to[0] = <unsigned char> (left << 4 | value >> 2)
            to += 1
            left = value & 3
            place = 3
        else:
            to[0] = <unsigned char> (left << 6 | value)
            to += 1
            place = 0
    out.length = to - out.data
    return 1 if place == 0 else 0


cdef inline Py_ssize_t _trailing(const unsigned char *text, Py_ssize_t at, Py_ssize_t size) noexcept nogil:
    """Behind the white space at `at`, if a line or the text ends there; else -1."""
    while at < size and (text[at] == 32 or text[at] == 9):
        at += 1
    if at == size or text[at] == 10 or (text[at] == 13 and at + 1 < size and text[at + 1] == 10):
        return at
    return -1


cdef int _unquoted(Octets *out, const unsigned char *text, Py_ssize_t size) except -1 nogil:
    """Undo quoted-printable as binascii does, white space at the end of lines taken out before."""
    cdef Py_ssize_t i = 0, after
    cdef unsigned char *to
    _room(out, size + 1)
    to = out.data
    while i < size:
        if text[i] == 32 or text[i] == 9:
            after = _trailing(text, i, size)
            if after >= 0:
                i = after
                continue
            while text[i] == 32 or text[i] == 9:
                to[0] = text[i]
                to += 1
                i += 1
            continue
        if text[i] != 61:
            to[0] = text[i]
            to += 1
            i += 1
            continue
        i += 1
        if i < size and (text[i] == 32 or text[i] == 9):
            after = _trailing(text, i, size)
            if after >= 0:
                i = after
        if i >= size:
            break
        if text[i] == 10 or text[i] == 13:
            while i < size and text[i] != 10:
                i += 1
            i += 1
        elif text[i] == 61:
            to[0] = 61
            to += 1
            i += 1
        elif i + 1 < size and HEX[text[i]] >= 0 and HEX[text[i + 1]] >= 0:
            to[0] = <unsigned char> (HEX[text[i]] << 4 | HEX[text[i + 1]])
            to += 1
            i += 2
        else:
            to[0] = 61
            to += 1
    out.length = to - out.data
    return 1


cdef int _judge(State *state, Text text, Py_ssize_t size) except -1 nogil:
    cdef Py_ssize_t k
    cdef Row *row
    cdef int i
    for i in range(state.count):
        state.keys[i].verdict = V_NO
    again(&state.parse, text, size)
    _run(&state.parse)
    _header(state, text, state.parse.rows[0].cells[C_BODY_START], True)
    for k in range(state.parse.count):
        row = &state.parse.rows[k]
        if k:
            _header(state, text + row.cells[C_HEADER_START], row.cells[C_BODY_START] - row.cells[C_HEADER_START], False)
        if row.cells[C_KIND] == K_LEAF:
            _leaf(state, text, row)
    return 0


def judge(const unsigned char[::1] content not None, keys):
    cdef State state
    cdef int k
    cdef bytearray found = bytearray(len(keys))
    cdef list held = _begin(&state, keys)
    try:
        if content.shape[0] > L_OCTETS:
            return bytes((UNSURE,)) * len(keys)
        _judge(&state, &content[0] if content.shape[0] else <Text> b"", content.shape[0])
        for k in range(state.count):
            found[k] = state.keys[k].verdict
        return bytes(found)
    finally:
        _end(&state)


cdef struct Window:
    Octets octets
    int fd
    uint64_t offset  # of what is in `octets`


cdef const unsigned char *_stretch(Window *window, const uint64_t[:, ::1] places, const int32_t[::1] fds, Py_ssize_t at) except? NULL nogil:
    """The octets of a place out of its file, NULL if they can't be read. Those of the places that follow it closely in the file are read with it."""
    cdef uint64_t start = places[at, P_OFFSET], stop = start + places[at, P_LENGTH], offset, length, own = stop - start
    cdef int window_fd = fds[at]
    if window_fd < 0 or stop < start:
        return NULL
    if not (window_fd == window.fd and start >= window.offset and stop <= window.offset + window.octets.length):
        window.fd = -1
        window.offset = start
        while at + 1 < places.shape[0] and fds[at + 1] == window_fd and stop - start < L_STRETCH:
            at += 1
            offset, length = places[at, P_OFFSET], places[at, P_LENGTH]
            if places[at, P_KNOWN] != 1 or length > L_STRETCH or offset < stop or offset - stop > L_GAP:
                at -= 1
                break
            stop = offset + length
        length = stop - start
        _room(&window.octets, length + 1)
        if not _read(window_fd, window.octets.data, start, length):
            length = own
            if not _read(window_fd, window.octets.data, start, length):
                return NULL
        window.octets.length = length
        window.fd = window_fd
    return window.octets.data + (start - window.offset)


cdef bint _read(int fd, unsigned char *to, uint64_t offset, uint64_t length) noexcept nogil:
    cdef Py_ssize_t got
    while length:
        got = pread(fd, to, length, <long> offset)
        if got <= 0:
            return False
        to += got
        offset += got
        length -= got
    return True


def sift(const uint64_t[:, ::1] places not None, const unsigned char[::1] heads not None, const int32_t[::1] fds not None, keys,
         Py_ssize_t start, Py_ssize_t octets, unsigned char[:, ::1] out not None):
    cdef State state
    cdef Window window
    cdef const unsigned char *piece
    cdef Py_ssize_t n = places.shape[0], at = start, total
    cdef uint64_t head, head_length, length
    cdef int k
    cdef bint there
    cdef list held = _begin(&state, keys)
    memset(&window, 0, sizeof(window))
    window.fd = -1
    try:
        if (places.shape[1] != P_COLUMNS or start < 0 or start > n or fds.shape[0] != n or out.shape[0] != n or out.shape[1] != state.count):
            raise ValueError("arrays of different lengths")
        with nogil:
            while at < n and octets > 0:
                head, head_length, length = places[at, P_HEAD], places[at, P_HEAD_LENGTH], places[at, P_LENGTH]
                there = places[at, P_KNOWN] == 1 and length <= L_OCTETS and head_length <= L_OCTETS and head + head_length <= <uint64_t> heads.shape[0]
                if there:
                    total = head_length + length
                    octets -= total + 256
                    _room(&state.content, total + 1)
                    if head_length:
                        memcpy(state.content.data, &heads[head], head_length)
                    if length:
                        piece = _stretch(&window, places, fds, at)
                        there = piece != NULL
                        if there:
                            memcpy(state.content.data + head_length, piece, length)
                if there:
                    _judge(&state, state.content.data, total)
                for k in range(state.count):
                    out[at, k] = state.keys[k].verdict if there else V_UNSURE
                at += 1
        return at
    finally:
        free(window.octets.data)
        _end(&state)
