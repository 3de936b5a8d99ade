"""The Python twin of `smtp`: command lines and the end of mail data, octet by octet (RFC 5321 2.3.8, 4.5.2).

Defines the answer for the native kernel. A line of commands ends at its first LF; it is well formed if that LF
follows the line's only CR. In mail data only CRLF is a line end, so only CRLF.CRLF ends it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from iems._native.buffer_py import Buffer

if TYPE_CHECKING:
    from typing_extensions import Buffer as Octets

#: What `command` answers instead of a verb: no whole line yet; a line with a bare CR, bare LF or NUL; a verb not known.
NEED, BAD, UNKNOWN = 0, 1, 2
#: The verbs of RFC 5321, 2033, 3030, 3207, 4954 and Postfix's XCLIENT; the code of a verb is its place here + 3.
VERBS = (
    b"EHLO", b"HELO", b"LHLO", b"MAIL", b"RCPT", b"DATA", b"BDAT", b"RSET", b"NOOP", b"VRFY", b"EXPN", b"HELP",
    b"QUIT", b"STARTTLS", b"AUTH", b"XCLIENT",
)  # fmt: skip
(EHLO, HELO, LHLO, MAIL, RCPT, DATA, BDAT, RSET, NOOP, VRFY, EXPN, HELP, QUIT, STARTTLS, AUTH, XCLIENT) = range(3, 19)
_CODE = {verb: code for code, verb in enumerate(VERBS, 3)}

_ATEXT = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL = rb"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_PLAIN_PATH = re.compile(rb"<(%b+(?:\.%b+)*)@(%b(?:\.%b)*)>" % (_ATEXT, _ATEXT, _LABEL, _LABEL))


def line(view: Octets, start: int, end: int) -> tuple[int, int, bytes | None]:
    """The line of view[start:end] without its CRLF: (UNKNOWN, offset after it, line), or NEED or BAD with None."""
    raw = bytes(memoryview(view)[start:end])
    lf = raw.find(b"\n")
    if lf < 0:
        return NEED, start, None
    if raw.find(b"\r") != lf - 1 or lf == 0 or 0 in raw[:lf]:
        return BAD, start + lf + 1, None
    return UNKNOWN, start + lf + 1, raw[: lf - 1]


def command(view: Octets, start: int, end: int) -> tuple[int, int, bytes | None]:
    """The next command of view[start:end]: (code of the verb, offset after its line, argument without outer blanks).

    NEED and BAD come with None; UNKNOWN with the line. The verb ends at a space, a tab or the end of the line.
    """
    code, after, text = line(view, start, end)
    if text is None:
        return code, after, None
    verb = re.split(rb"[ \t]", text, maxsplit=1)[0]
    code = _CODE.get(verb.upper(), UNKNOWN)
    if code == UNKNOWN:
        return code, after, text
    return code, after, text[len(verb) :].strip(b" \t")


def plain_path(text: bytes, start: int) -> tuple[int, int]:
    """Whether text[start:] begins with `<dot-string@domain>` of ASCII: (offset of the @, offset after the >), or (-1, -1).

    Says nothing of other valid paths (quoted, address literals, UTF-8, source routes): grammar.py reads those.
    """
    found = _PLAIN_PATH.match(text, start)
    return (found.end(1), found.end()) if found else (-1, -1)


_BOL, _DOT, _DOT_CR, _IN_LINE, _CR = range(5)
_LF_OCTET, _CR_OCTET, _DOT_OCTET = b"\n\r."


class DataDecoder:
    """Content of one message, taken chunk by chunk: unstuffed, counted and examined.

    limit: octets of content kept at most (0: no limit); past it `too_big` is set and the rest is discarded.
    normalise: a bare LF becomes CRLF, a bare CR a space, a NUL nothing. raw: BDAT chunks, neither stuffed nor ended by a
    dot. binary: bare CR, LF and NUL are allowed (BINARYMIME). Without normalise or binary, content is no longer kept
    once one of them came (`refused`).
    """

    def __init__(
        self, limit: int = 0, normalise: bool = False, raw: bool = False, binary: bool = False
    ) -> None:
        self._limit, self._normalise, self._raw, self._binary = limit, normalise and not binary, raw, binary
        self._state = _BOL
        self._line = 0
        self._out_bol = True
        self.octets = 0
        self.longest = 0
        self.eight_bit = self.bare_cr = self.bare_lf = self.nul = False
        self.dot_line = self.too_big = self.done = False

    @property
    def refused(self) -> bool:
        """Whether the content has a bare CR, bare LF or NUL and may have none."""
        return not self._normalise and not self._binary and (self.bare_cr or self.bare_lf or self.nul)

    @property
    def dot_free(self) -> bool:
        """Whether no line of the content begins with a dot, so that POP3 may send it as it is."""
        return not self.dot_line and (self._normalise or not (self.bare_cr or self.bare_lf))

    def _put(self, octet: int, out: Buffer) -> None:
        self.octets += 1
        self.too_big = self.too_big or 0 < self._limit < self.octets
        if not self.too_big and not self.refused:
            out.append(bytes((octet,)))
        if octet == _DOT_OCTET and self._out_bol:
            self.dot_line = True
        self._line += 1
        self._out_bol = False

    def _end_line(self, extra: int) -> None:
        self.longest = max(self.longest, self._line - extra)
        self._line = 0
        self._out_bol = True

    def _bare(self, octet: int, out: Buffer) -> None:
        if octet == _LF_OCTET:
            self.bare_lf = True
            if self._normalise:
                self._end_line(0)
                self._put(_CR_OCTET, out)
                self._put(_LF_OCTET, out)
                self._line = 0
                self._out_bol = True
                return
        elif octet == 0:
            self.nul = True
            if self._normalise:
                return
        self._put(octet, out)

    def feed(self, view: Octets, start: int, end: int, out: Buffer) -> tuple[int, bool]:
        """Take octets of view[start:end], append content to out: (how many were taken, whether the end of data came)."""
        consumed = 0
        for octet in bytes(memoryview(view)[start:end]):
            if self.done:
                break
            consumed += 1
            self._take(octet, out)
        return consumed, self.done

    def _take(self, octet: int, out: Buffer) -> None:
        state = self._state
        if state == _DOT_CR and octet == _LF_OCTET:
            self.done = True
            self._state = _BOL
            return
        if state == _DOT and octet == _CR_OCTET:
            self._state = _DOT_CR
            return
        if state == _BOL and octet == _DOT_OCTET and not self._raw:
            self._state = _DOT
            return
        if state in (_CR, _DOT_CR):
            if octet == _LF_OCTET:
                self._end_line(0 if self._normalise else 1)
                if self._normalise:
                    self._put(_CR_OCTET, out)
                self._put(_LF_OCTET, out)
                self._line = 0
                self._out_bol = True
                self._state = _BOL
                return
            if self._normalise:
                self.bare_cr = True
                self._put(0x20, out)
            else:
                if state == _DOT_CR:
                    self._put(_CR_OCTET, out)
                self.bare_cr = True
        self.eight_bit = self.eight_bit or octet > 127
        if octet == _CR_OCTET:
            self._state = _CR
            if not self._normalise:
                self._put(octet, out)
            return
        self._state = _IN_LINE
        self._bare(octet, out)

    def finish(self, out: Buffer) -> None:
        """End content that came by BDAT: a last line without its CRLF gets one, unless it is binary."""
        if self._binary:
            self.longest = max(self.longest, self._line)
            return
        if self._state == _CR:
            self.bare_cr = True
            if self._normalise:
                self._put(0x20, out)
        at_line_start = self._out_bol if self._normalise else self._state == _BOL
        if not at_line_start:
            self._end_line(0)
            self._put(_CR_OCTET, out)
            self._put(_LF_OCTET, out)
            self._line = 0
            self._out_bol = True
        self._state = _BOL
