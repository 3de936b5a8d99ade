"""Command lines and the end of mail data, found in the receive buffer; `smtp_py` defines the answers."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memchr

from iems._native.buffer cimport Buffer

from iems._native.smtp_py import VERBS

cdef extern from "smtp_decode.h" nogil:
    enum:
        AT_BOL
        AT_CR
    ctypedef struct smtp_decoder:
        uint64_t octets
        uint64_t limit
        uint64_t longest
        uint64_t line
        int state
        int raw
        int strict
        int keep
        int eight_bit
        int bare_cr
        int bare_lf
        int nul
        int dot_line
        int too_big
        int done
        int out_bol
    size_t smtp_decode(smtp_decoder *d, const unsigned char *src, size_t end, unsigned char *to, size_t *written)
    size_t smtp_normalise(smtp_decoder *d, const unsigned char *src, size_t end, unsigned char *to, size_t *written)
    size_t smtp_emit(smtp_decoder *d, const unsigned char *src, size_t count, unsigned char *to)
    void smtp_note_line(smtp_decoder *d, long long length)

NEED, BAD, UNKNOWN = 0, 1, 2
(EHLO, HELO, LHLO, MAIL, RCPT, DATA, BDAT, RSET, NOOP, VRFY, EXPN, HELP, QUIT, STARTTLS, AUTH, XCLIENT) = range(3, 19)

cdef enum:
    CODE_NEED = 0
    CODE_BAD = 1
    CODE_UNKNOWN = 2
    VERB_ROOM = 32

# Each verb in lower case as one number, its first letter in the highest octet that it takes.
cdef uint64_t _verbs[VERB_ROOM]
cdef int _verb_count = len(VERBS)

# 4 to 8 letters in lower case as one number; 0 if there are others, so that folding can't turn controls into letters.
cdef uint64_t _folded(const unsigned char *at, Py_ssize_t length) noexcept nogil:
    cdef uint64_t key = 0
    cdef Py_ssize_t i
    cdef unsigned char c
    if length < 4 or length > 8:
        return 0
    for i in range(length):
        c = at[i] | 0x20
        if not 97 <= c <= 122:
            return 0
        key = key << 8 | c
    return key

def _fill():
    cdef int n
    cdef bytes verb
    if _verb_count > VERB_ROOM:
        raise ValueError("more verbs than room for them")
    for n in range(_verb_count):
        verb = VERBS[n]
        _verbs[n] = _folded(<const unsigned char *> PyBytes_AS_STRING(verb), PyBytes_GET_SIZE(verb))

_fill()

cdef int _verb(const unsigned char *at, Py_ssize_t length) noexcept nogil:
    cdef int n
    cdef uint64_t key = _folded(at, length)
    if key:
        for n in range(_verb_count):
            if _verbs[n] == key:
                return n + 3
    return CODE_UNKNOWN

# Where the line that begins at `at` ends: the offset of its LF, -1 without one; `bad` tells of what it may not hold.
cdef Py_ssize_t _line_end(const unsigned char *at, Py_ssize_t room, bint *bad) noexcept nogil:
    cdef const unsigned char *lf
    cdef const unsigned char *cr
    if room <= 0:
        return -1
    lf = <const unsigned char *> memchr(at, 10, room)
    if lf == NULL:
        return -1
    cr = <const unsigned char *> memchr(at, 13, lf - at)
    bad[0] = cr == NULL or cr + 1 != lf or memchr(at, 0, lf - at) != NULL
    return lf - at

cdef Py_ssize_t _span(Py_buffer *view, Py_ssize_t start, Py_ssize_t end) except -1:
    if start < 0 or end < start or end > view.len:
        PyBuffer_Release(view)
        raise ValueError("start and end must lie in the view, in this order")
    return end - start


def line(object view, Py_ssize_t start, Py_ssize_t end):
    """The line of view[start:end] without its CRLF: (UNKNOWN, offset after it, line), or NEED or BAD with None."""
    cdef Py_buffer octets
    cdef bint bad = False
    cdef Py_ssize_t stop
    PyObject_GetBuffer(view, &octets, PyBUF_SIMPLE)
    _span(&octets, start, end)
    cdef const unsigned char *at = <const unsigned char *> octets.buf + start
    try:
        stop = _line_end(at, end - start, &bad)
        if stop < 0:
            return CODE_NEED, start, None
        if bad:
            return CODE_BAD, start + stop + 1, None
        return CODE_UNKNOWN, start + stop + 1, PyBytes_FromStringAndSize(<const char *> at, stop - 1)
    finally:
        PyBuffer_Release(&octets)


def command(object view, Py_ssize_t start, Py_ssize_t end):
    """The next command of view[start:end]: (code of the verb, offset after its line, argument without outer blanks).

    NEED and BAD come with None; UNKNOWN with the line. The verb ends at a space, a tab or the end of the line.
    """
    cdef Py_buffer octets
    cdef bint bad = False
    cdef Py_ssize_t stop, first = 0, last
    cdef int code
    PyObject_GetBuffer(view, &octets, PyBUF_SIMPLE)
    _span(&octets, start, end)
    cdef const unsigned char *at = <const unsigned char *> octets.buf + start
    try:
        stop = _line_end(at, end - start, &bad)
        if stop < 0:
            return CODE_NEED, start, None
        if bad:
            return CODE_BAD, start + stop + 1, None
        last = stop - 1
        while first < last and at[first] != 32 and at[first] != 9:
            first += 1
        code = _verb(at, first)
        if code == CODE_UNKNOWN:
            return CODE_UNKNOWN, start + stop + 1, PyBytes_FromStringAndSize(<const char *> at, last)
        while first < last and (at[first] == 32 or at[first] == 9):
            first += 1
        while last > first and (at[last - 1] == 32 or at[last - 1] == 9):
            last -= 1
        return code, start + stop + 1, PyBytes_FromStringAndSize(<const char *> at + first, last - first)
    finally:
        PyBuffer_Release(&octets)


cdef unsigned char _ATEXT[256]
cdef unsigned char _LET_DIG[256]

def _fill_classes():
    cdef int n
    for n in range(256):
        _LET_DIG[n] = 48 <= n <= 57 or 65 <= n <= 90 or 97 <= n <= 122
        _ATEXT[n] = _LET_DIG[n] or (n != 0 and n < 128 and chr(n) in "!#$%&'*+/=?^_`{|}~-")

_fill_classes()


def plain_path(bytes text not None, Py_ssize_t start):
    """Whether text[start:] begins with `<dot-string@domain>` of ASCII: (offset of the @, offset after the >), or (-1, -1).

    Says nothing of other valid paths (quoted, address literals, UTF-8, source routes): grammar.py reads those.
    """
    cdef const unsigned char *at = <const unsigned char *> PyBytes_AS_STRING(text)
    cdef Py_ssize_t end = PyBytes_GET_SIZE(text)
    cdef Py_ssize_t i = start, at_sign, run
    if i < 0 or i >= end or at[i] != 60:
        return -1, -1
    i += 1
    while True:  # atoms with dots between
        run = i
        while i < end and _ATEXT[at[i]]:
            i += 1
        if i == run or i >= end:
            return -1, -1
        if at[i] == 46:
            i += 1
            continue
        break
    if at[i] != 64:
        return -1, -1
    at_sign = i
    i += 1
    while True:  # labels with dots between: no hyphen first or last
        run = i
        while i < end and (_LET_DIG[at[i]] or at[i] == 45):
            i += 1
        if i == run or i >= end or at[run] == 45 or at[i - 1] == 45:
            return -1, -1
        if at[i] == 46:
            i += 1
            continue
        break
    if at[i] != 62:
        return -1, -1
    return at_sign, i + 1


cdef class DataDecoder:
    """Content of one message, taken chunk by chunk: unstuffed, counted and examined.

    limit: octets of content kept at most (0: no limit); past it `too_big` is set and the rest is discarded.
    normalise: a bare LF becomes CRLF, a bare CR a space, a NUL nothing. raw: BDAT chunks, neither stuffed nor ended by a
    dot. binary: bare CR, LF and NUL are allowed (BINARYMIME). Without normalise or binary, content is no longer kept
    once one of them came (`refused`).
    """

    cdef smtp_decoder state
    cdef bint normalise
    cdef bint binary

    def __cinit__(self, uint64_t limit=0, bint normalise=False, bint raw=False, bint binary=False):
        self.normalise = normalise and not binary
        self.binary = binary
        self.state = smtp_decoder(
            octets=0, limit=limit, longest=0, line=0, state=AT_BOL, raw=raw,
            strict=not (self.normalise or binary), keep=True, eight_bit=0, bare_cr=0, bare_lf=0, nul=0, dot_line=0,
            too_big=0, done=0, out_bol=1,
        )

    @property
    def octets(self):
        """Octets of the content so far, those not kept included."""
        return self.state.octets

    @property
    def longest(self):
        """Octets of the longest line that ended, its CRLF not counted."""
        return self.state.longest

    @property
    def eight_bit(self):
        """Whether an octet above 127 came."""
        return self.state.eight_bit != 0

    @property
    def bare_cr(self):
        """Whether a CR without its LF came."""
        return self.state.bare_cr != 0

    @property
    def bare_lf(self):
        """Whether an LF without its CR came."""
        return self.state.bare_lf != 0

    @property
    def nul(self):
        """Whether a NUL came."""
        return self.state.nul != 0

    @property
    def dot_line(self):
        """Whether a line of the content begins with a dot."""
        return self.state.dot_line != 0

    @property
    def too_big(self):
        """Whether the content is longer than the limit."""
        return self.state.too_big != 0

    @property
    def done(self):
        """Whether the end of data was seen."""
        return self.state.done != 0

    @property
    def refused(self):
        """Whether the content has a bare CR, bare LF or NUL and may have none."""
        return bool(self.state.strict and (self.state.bare_cr or self.state.bare_lf or self.state.nul))

    @property
    def dot_free(self):
        """Whether no line of the content begins with a dot, so that POP3 may send it as it is."""
        return not self.state.dot_line and (self.normalise or not (self.state.bare_cr or self.state.bare_lf))

    def feed(self, object view, Py_ssize_t start, Py_ssize_t end, Buffer out not None):
        """Take octets of view[start:end], append content to out: (how many were taken, whether the end of data came).

        Raises BufferError while a view of `out` is exported, ValueError if start and end do not lie in the view.
        """
        cdef Py_buffer octets
        cdef const unsigned char *source
        cdef size_t taken, written = 0
        cdef Py_ssize_t count
        if self.state.done:
            return 0, True
        if out.exports:
            raise BufferError("a view of this buffer is in use")
        PyObject_GetBuffer(view, &octets, PyBUF_SIMPLE)
        count = _span(&octets, start, end)
        try:
            source = <const unsigned char *> octets.buf + start
            # Content not kept needs no room: a client that sends too much costs no memory.
            if self.state.keep:
                out.reserve((2 * count if self.normalise else count) + 2)
            if self.normalise:
                taken = smtp_normalise(&self.state, source, count, out.data + out.length, &written)
            else:
                taken = smtp_decode(&self.state, source, count, out.data + out.length, &written)
            out.length += <Py_ssize_t> written
        finally:
            PyBuffer_Release(&octets)
        return taken, self.state.done != 0

    cdef int _put(self, const unsigned char *piece, size_t count, Buffer out) except -1:
        out.reserve(<Py_ssize_t> count)
        out.length += <Py_ssize_t> smtp_emit(&self.state, piece, count, out.data + out.length)
        return 0

    def finish(self, Buffer out not None):
        """End content that came by BDAT: a last line without its CRLF gets one, unless it is binary."""
        if out.exports:
            raise BufferError("a view of this buffer is in use")
        if self.binary:
            smtp_note_line(&self.state, <long long> self.state.line)
            return
        if self.state.state == AT_CR:
            self.state.bare_cr = 1
            if self.normalise:
                self._put(b" ", 1, out)
                self.state.line += 1
                self.state.out_bol = 0
            else:
                self.state.keep = 0
        if not (self.state.out_bol if self.normalise else self.state.state == AT_BOL):
            smtp_note_line(&self.state, <long long> self.state.line)
            self._put(b"\r\n", 2, out)
            self.state.line = 0
            self.state.out_bol = 1
        self.state.state = AT_BOL
