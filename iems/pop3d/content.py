"""Content of a message on its way to a POP3 client: lines that start with a dot get another one, a lone dot ends it.

What is in the page cache is read at once, what is not in a thread, so a cold disk holds up one session and not the worker.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from iems.model import Rope

#: Read and stuffed at once; a session holds at most two of these.
CHUNK_OCTETS = 256 * 1024

END = b".\r\n"

Slice = bytes | tuple[int, int, int]


class Blobs(Protocol):
    """What is needed of `iems.blobs.Blobs`."""

    def slices(self, rope: Rope, start: int, length: int) -> list[Slice]:
        """A range as octets and (fd, offset, length)."""

    def pin(self, fd: int) -> None:
        """Keep a descriptor open."""

    def unpin(self, fd: int) -> None:
        """Undo one `pin`."""


def read_cached(slices: Sequence[Slice]) -> bytes | None:
    """The octets if all are in the page cache, else None. Raises OSError."""
    pieces: list[bytes | bytearray] = []
    for piece in slices:
        if isinstance(piece, bytes):
            pieces.append(piece)
            continue
        fd, offset, length = piece
        buffer = bytearray(length)
        try:
            if os.preadv(fd, [buffer], offset, os.RWF_NOWAIT) != length:
                return None
        except OSError:
            # Cold, or a file system without RWF_NOWAIT: the thread reads it, and meets the error if it is one.
            return None
        pieces.append(buffer)
    return b"".join(pieces)


def last_octets(slices: Sequence[Slice]) -> bytes | None:
    """The last two octets (fewer if there are no more), None if they are not in the page cache."""
    last = b""
    for piece in reversed(slices):
        if isinstance(piece, bytes):
            last = piece[-2:] + last
        else:
            fd, offset, length = piece
            count = min(length, 2)
            found = read_cached([(fd, offset + length - count, count)])
            if found is None:
                return None
            last = found + last
        if len(last) >= 2:
            break
    return last[-2:]


def read_slow(slices: Sequence[Slice]) -> bytes:
    """The octets, waiting for the disk; called in a thread. Raises OSError, EOFError if a file is too short."""
    pieces: list[bytes] = []
    for piece in slices:
        if isinstance(piece, bytes):
            pieces.append(piece)
            continue
        fd, offset, length = piece
        while length:
            data = os.pread(fd, length, offset)
            if not data:
                raise EOFError("a content ends before its length")
            pieces.append(data)
            offset += len(data)
            length -= len(data)
    return b"".join(pieces)


class Stuffer:
    """Makes a response of content handed in chunk by chunk (RFC 1939 3).

    lines: how many lines of the body to let through (TOP), or None for all. `done` says that no more content is wanted.
    """

    __slots__ = ("_in_header", "_left", "_tail", "done")

    def __init__(self, lines: int | None = None) -> None:
        self._left = lines
        self._in_header = lines is not None
        #: The last octets seen: the line goes on in the next chunk.
        self._tail = b"\r\n"
        self.done = False

    def chunk(self, data: bytes) -> bytes:
        """The next part of the response."""
        if self._left is not None:
            data = self._cut(data)
        if not data:
            return b""
        # A dot after a bare LF is stuffed too: many clients take the LF for a line end, and the dot for the last line.
        stuffed = data.replace(b"\n.", b"\n..")
        if data[0] == 0x2E and self._tail.endswith(b"\n"):
            stuffed = b"." + stuffed
        self._tail = (self._tail + data)[-3:] if len(data) < 3 else data[-3:]
        return stuffed

    def end(self) -> bytes:
        """What ends the response: the last line's CRLF if it is missing, and the dot."""
        self.done = True
        return END if self._tail.endswith(b"\r\n") else b"\r\n" + END

    def _cut(self, data: bytes) -> bytes:
        """The part of a chunk within header and wanted lines."""
        start = 0
        if self._in_header:
            start = self._header_end(data)
            if start < 0:
                return data
            self._in_header = False
        assert self._left is not None
        at = start
        while self._left:
            found = data.find(b"\n", at)
            if found < 0:
                return data
            at = found + 1
            self._left -= 1
        self.done = True
        return data[:at]

    def _header_end(self, data: bytes) -> int:
        """Where the body starts in this chunk, or -1. The empty line may lie across the chunk's edge."""
        seen = self._tail
        joined = seen + data
        best = -1
        for mark in (b"\n\r\n", b"\n\n"):
            found = joined.find(mark)
            if found >= 0 and (best < 0 or found + len(mark) < best):
                best = found + len(mark)
        return max(best - len(seen), 0) if best >= 0 else -1
