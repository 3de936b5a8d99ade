"""Canonical forms of header fields and bodies (RFC 6376 3.4), and their hashes. Pure; octets in, octets out.

No Python object is made for a line: a kernel, bytes methods and one regular expression a field do the work.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Final

from iems._native import kernel

_canonical = kernel("canonical")
Relaxed = _canonical.Relaxed
#: relaxed_field(name, raw) -> bytes: a field in relaxed form (RFC 6376 3.4.2), without CRLF. name: as `split` gives it.
relaxed_field: Callable[[bytes, bytes], bytes] = _canonical.relaxed_field

#: Octets of a header that are looked at; a longer one is cut at the last whole field.
MAX_HEADER: Final = 1 << 20
#: Fields of a header that are looked at.
MAX_FIELDS: Final = 10_000

_FIELD_END = re.compile(rb"\r\n(?![ \t])")
_B_FIRST = re.compile(rb"[ \t\r\n]*b[ \t\r\n]*=")
_B_LATER = re.compile(rb";[ \t\r\n]*b[ \t\r\n]*=")
_BLANK_LINES = re.compile(rb"(?:\n\r)*")

Field = tuple[bytes, bytes]


def split(header: bytes) -> list[Field]:
    """The fields of a header (without its empty line), in order: (name in lower case, the whole field without its CRLF).

    Only CRLF ends a line here. A line without a colon has the name b"", so that it matches nothing.
    """
    fields: list[Field] = []
    for raw in _FIELD_END.split(header[:MAX_HEADER], MAX_FIELDS):
        colon = raw.find(b":")
        if raw:
            fields.append((raw[:colon].rstrip(b" \t").lower() if colon > 0 else b"", raw))
    return fields[:MAX_FIELDS]


def without_b(raw: bytes) -> bytes:
    """A signature's field with the value of its b= tag taken out (RFC 6376 3.7)."""
    start = raw.find(b":") + 1
    found = _B_FIRST.match(raw, start) or _B_LATER.search(raw, start)
    if found is None:
        return raw
    end = raw.find(b";", found.end())
    return raw[: found.end()] + raw[end:] if end >= 0 else raw[: found.end()]


class BodyHash:
    """SHA-256 of a body in canonical form, fed in pieces. Memory: one piece.

    relaxed: the form. limits: for signatures with l=, the octets of canonical body they cover.
    """

    __slots__ = ("_add", "_blank", "_hashed", "_held", "_length", "_limited", "_relaxed", "_whole")

    def __init__(self, relaxed: bool, limits: Iterable[int] = ()) -> None:
        self._relaxed = Relaxed() if relaxed else None
        self._whole = hashlib.sha256()
        self._limited = {limit: hashlib.sha256() for limit in limits}
        self._add: Callable[[bytes], object] = self._limit if self._limited else self._whole.update
        self._hashed = 0  # counted where there are limits
        # Of the simple form:
        self._blank = 0  # line ends held back: those at the end of the body do not count
        self._held = b""  # a CR at the end of a piece
        self._length = 0

    @property
    def length(self) -> int:
        """Octets of canonical body so far."""
        return self._length if self._relaxed is None else self._relaxed.length

    def update(self, octets: bytes) -> None:
        """Take the next piece."""
        if self._relaxed is not None:
            self._relaxed.feed(octets, self._add)
            return
        text = self._held + octets if self._held else octets
        self._held = b""
        if text.endswith(b"\r"):
            text, self._held = text[:-1], b"\r"
        # The line ends at the end of this piece are kept as a number.
        stripped = len(text.rstrip(b"\r\n"))
        found = _BLANK_LINES.match(text[stripped:][::-1])
        assert found is not None
        count = found.end() // 2
        core = text[: len(text) - 2 * count] if count else text
        if core:
            self._flush()
            self._give(core)
        self._blank += count

    def _flush(self) -> None:
        """Line ends that were held back turn out to be inside the body."""
        while self._blank:
            some = min(self._blank, 65_536)
            self._give(b"\r\n" * some)
            self._blank -= some

    def _give(self, octets: bytes) -> None:
        self._add(octets)
        self._length += len(octets)

    def _limit(self, octets: bytes) -> None:
        at = self._hashed
        self._hashed += len(octets)
        for limit, digest in self._limited.items():
            if at < limit:
                digest.update(octets[: limit - at])
        self._whole.update(octets)

    def finish(self) -> None:
        """The body has ended."""
        if self._relaxed is not None:
            self._relaxed.finish(self._add)
            return
        if self._held:
            self._flush()
            self._give(self._held)
        # An empty body is b"" in relaxed form and one CRLF in simple form; any other ends with one CRLF (RFC 6376 3.4.3, 3.4.4).
        self._give(b"\r\n")
        self._blank = 0
        self._held = b""

    def digest(self, limit: int | None = None) -> bytes:
        """The hash of the body, or of its first `limit` octets."""
        return (self._whole if limit is None else self._limited[limit]).digest()
