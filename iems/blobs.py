"""Immutable octets by number: segments and the files of large contents, read by extent.

Numbers are unique for ever (48 bits of milliseconds since 1970, 16 random bits), so an open descriptor is good as long as it is
kept, even after the name is gone. Writers are elsewhere (`spool/segments.py`, `store/`).
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from iems.model import Extent, Rope


def segment_name(blob: int) -> str:
    """The file name of a segment."""
    return f"{blob:016x}.seg"


def large_name(blob: int) -> str:
    """The file name of one large content."""
    return f"{blob:016x}.blob"


def blob_number(name: str) -> int | None:
    """The number in a file name, or None if it is no blob's."""
    stem, _, suffix = name.partition(".")
    if len(stem) != 16 or suffix not in ("seg", "blob"):
        return None
    try:
        return int(stem, 16)
    except ValueError:
        return None


class Blobs:
    """Reads extents. folders: searched in order; max_open: descriptors kept, the longest unused is closed first.

    A descriptor given by `fd` or `slices` may be closed by later calls once `max_open` others were used: whoever keeps it longer
    (a queued sendfile) pins it with `pin` and `unpin`.
    """

    def __init__(self, folders: Sequence[Path], max_open: int = 256) -> None:
        self.folders = list(folders)
        self.max_open = max_open
        self._open: OrderedDict[int, int] = OrderedDict()
        self._pins: dict[int, int] = {}
        self._doomed: set[int] = set()

    def fd(self, blob: int) -> int:
        """An open, read-only descriptor. Raises FileNotFoundError."""
        fd = self._open.get(blob)
        if fd is not None:
            self._open.move_to_end(blob)
            return fd
        for folder in self.folders:
            for name in (segment_name(blob), large_name(blob)):
                try:
                    fd = self._opened(folder / name)
                except FileNotFoundError:
                    continue
                self._open[blob] = fd
                while len(self._open) > self.max_open:
                    self._drop(self._open.popitem(last=False)[1])
                return fd
        raise FileNotFoundError(f"blob {blob:016x} is in none of {', '.join(map(str, self.folders))}")

    def _opened(self, path: Path) -> int:
        while True:
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                # Sessions may have taken all other descriptors: the longest unused of ours makes room.
                if error.errno != errno.EMFILE or not self._open:
                    raise
                self._drop(self._open.popitem(last=False)[1])

    def _drop(self, fd: int) -> None:
        if self._pins.get(fd):
            self._doomed.add(fd)
        else:
            os.close(fd)

    def pin(self, fd: int) -> None:
        """Keep a descriptor open until `unpin` was called as often."""
        self._pins[fd] = self._pins.get(fd, 0) + 1

    def unpin(self, fd: int) -> None:
        """Undo one `pin`."""
        left = self._pins.pop(fd, 0) - 1
        if left > 0:
            self._pins[fd] = left
        elif fd in self._doomed:
            self._doomed.discard(fd)
            os.close(fd)

    def forget(self, blob: int) -> None:
        """Close a blob's descriptor, as its name is gone for good."""
        fd = self._open.pop(blob, None)
        if fd is not None:
            self._drop(fd)

    def read(self, rope: Rope) -> bytes:
        """The whole content. Raises FileNotFoundError, or EOFError if a blob is shorter than it should be."""
        if len(rope) == 1:
            piece = rope[0]
            return piece if isinstance(piece, bytes) else self._extent(piece, 0, piece.length)
        return b"".join(
            piece if isinstance(piece, bytes) else self._extent(piece, 0, piece.length) for piece in rope
        )

    def read_range(self, rope: Rope, start: int, length: int) -> bytes:
        """`length` octets from `start` on, fewer at the end of the content."""
        found = []
        for piece, at, count in _ranges(rope, start, length):
            found.append(
                piece[at : at + count] if isinstance(piece, bytes) else self._extent(piece, at, count)
            )
        return found[0] if len(found) == 1 else b"".join(found)

    def slices(self, rope: Rope, start: int, length: int) -> list[bytes | tuple[int, int, int]]:
        """The same range as octets and (fd, offset, length) to send from a file."""
        return [
            piece[at : at + count]
            if isinstance(piece, bytes)
            else (self.fd(piece.blob), piece.offset + at, count)
            for piece, at, count in _ranges(rope, start, length)
        ]

    def _extent(self, extent: Extent, start: int, length: int) -> bytes:
        fd = self.fd(extent.blob)
        data = os.pread(fd, length, extent.offset + start)
        if len(data) == length:
            return data
        pieces = [data]
        have = len(data)
        while have < length:
            data = os.pread(fd, length - have, extent.offset + start + have)
            if not data:
                raise EOFError(f"blob {extent.blob:016x} ends before octet {extent.offset + start + length}")
            pieces.append(data)
            have += len(data)
        return b"".join(pieces)

    def close(self) -> None:
        """Close all descriptors."""
        for fd in self._open.values():
            self._drop(fd)
        self._open.clear()


def _ranges(rope: Rope, start: int, length: int) -> list[tuple[Extent | bytes, int, int]]:
    """(piece, first octet in it, count) of a range of a rope."""
    found: list[tuple[Extent | bytes, int, int]] = []
    end = start + length
    at = 0
    for piece in rope:
        size = len(piece) if isinstance(piece, bytes) else piece.length
        low, high = max(start - at, 0), min(end - at, size)
        if low < high:
            found.append((piece, low, high - low))
        at += size
        if at >= end:
            break
    return found
