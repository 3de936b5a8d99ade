"""Header fields and bodies in relaxed canonical form (RFC 6376 3.4.2, 3.4.4), bodies fed in pieces; the reference for `canonical.pyx`."""

from __future__ import annotations

import re
from collections.abc import Callable

_BLANK_LINES = re.compile(rb"(?:\n\r)*")


def squeezed(octets: bytes) -> bytes:
    """Each run of spaces and tabs as one space. Halves runs at each step, so a long run costs no more than its length."""
    if b"\t" in octets:
        octets = octets.replace(b"\t", b" ")
    while b"  " in octets:
        octets = octets.replace(b"  ", b" ")
    return octets


def relaxed_field(name: bytes, raw: bytes) -> bytes:
    """A header field in relaxed form (RFC 6376 3.4.2), without CRLF. name: in lower case; raw: the whole field, with its name."""
    value = raw[raw.find(b":") + 1 :].replace(b"\r\n", b"")
    return name + b":" + squeezed(value).strip(b" ")


class Relaxed:
    """One body. length: octets of canonical text given so far.

    feed: octets in, canonical text to `add` in pieces of any size, each good only while the call lasts; finish: the body has ended. White space before
    a CRLF and line ends at the end of the body are held back until it is known that they count. Only CRLF is a line end.
    """

    __slots__ = ("_blank", "_held", "length")

    def __init__(self) -> None:
        self._blank = 0  # line ends held back: those at the end of the body do not count
        self._held = b""  # what could be the beginning of white space at a line's end
        self.length = 0

    def feed(self, octets: bytes | memoryview, add: Callable[[bytes], object]) -> None:
        """Take the next piece."""
        text = self._held + bytes(octets)
        held = b""
        if text.endswith(b"\r"):
            text, held = text[:-1], b"\r"
        text = squeezed(text)
        if text.endswith(b" "):
            text, held = text[:-1], b" " + held
        self._held = held
        text = text.replace(b" \r\n", b"\r\n")
        stripped = len(text.rstrip(b"\r\n"))
        found = _BLANK_LINES.match(text[stripped:][::-1])
        assert found is not None
        count = found.end() // 2
        core = text[: len(text) - 2 * count] if count else text
        if core:
            self._flush(add)
            self._give(core, add)
        self._blank += count

    def finish(self, add: Callable[[bytes], object]) -> None:
        """The body has ended: a body that is not empty ends with one CRLF."""
        held = self._held
        if held and held != b" ":  # a lone CR is text
            self._flush(add)
            self._give(held, add)
        if self.length:
            self._give(b"\r\n", add)
        self._blank, self._held = 0, b""

    def _flush(self, add: Callable[[bytes], object]) -> None:
        """Line ends that were held back turn out to be inside the body."""
        while self._blank:
            some = min(self._blank, 65_536)
            self._give(b"\r\n" * some, add)
            self._blank -= some

    def _give(self, octets: bytes, add: Callable[[bytes], object]) -> None:
        self.length += len(octets)
        add(octets)
