"""Header fields of a message (RFC 5322 2.2): where they stand and what they say. Decoding is left to `words`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from iems._native import kernel

_mime = kernel("mime")


class Field(NamedTuple):
    """One field as offsets into the content: its lines are [start, end), its value [value, end) with line ends."""

    name: bytes  # in lower case, without white space
    start: int
    value: int
    end: int


def header_end(content: bytes, start: int = 0, stop: int | None = None) -> int:
    """The offset behind the empty line that ends the header at `start`, or `stop` (default: the end) without one."""
    stop = len(content) if stop is None else stop
    at = start
    while at < stop:
        line_end = content.find(b"\n", at, stop)
        if line_end < 0:
            return stop
        if line_end == at or (line_end == at + 1 and content[at] == 13):
            return line_end + 1
        at = line_end + 1
    return stop


def fields(content: bytes, start: int = 0, stop: int | None = None) -> Iterator[Field]:
    """The fields of the header at `start`, up to its empty line or `stop`.

    A line without a colon is given with the name b"", so that nothing of the header is lost; a line that begins with
    white space belongs to the field above it.
    """
    stop = len(content) if stop is None else stop
    at, name, first, value = start, b"", -1, 0
    while at < stop:
        line_end = content.find(b"\n", at, stop)
        after = stop if line_end < 0 else line_end + 1
        text_end = after - (line_end >= 0)
        if text_end > at and content[text_end - 1] == 13:
            text_end -= 1
        if text_end == at:
            break
        if content[at] not in b" \t" or first < 0:
            if first >= 0:
                yield Field(name, first, value, at)
            first = at
            colon = content.find(b":", at, text_end)
            name = content[at:colon].rstrip(b" \t").lower() if colon >= 0 else b""
            value = colon + 1 if colon >= 0 else at
        at = after
    if first >= 0:
        yield Field(name, first, value, min(at, stop))


def unfold(raw: bytes) -> bytes:
    """A raw value on one line (RFC 5322 2.2.3), white space at both ends taken off."""
    return raw.replace(b"\r", b"").replace(b"\n", b"").strip(b" \t")


def values(content: bytes, name: bytes, start: int = 0, stop: int | None = None) -> list[bytes]:
    """The unfolded values of every field called `name` (any case), in order."""
    name = name.lower()
    return [unfold(content[f.value : f.end]) for f in fields(content, start, stop) if f.name == name]


def header_fields(
    content: bytes | bytearray | memoryview, names: Iterable[bytes], invert: bool = False
) -> bytes:
    """The text of BODY[HEADER.FIELDS (names)] (invert: HEADER.FIELDS.NOT) of a message (RFC 3501 6.4.5).

    The empty line is always there, as CRLF of our own if the header has none.
    """
    return bytes(_mime.select(content, list(names), invert))
