"""Erases what is dead and gives its space back in files no one else owns, and moves what lives out of files others still own.

Once a day every file that lost octets is visited, however few: what was expunged is gone a day after the undelete time. Whole blocks go back to the
file system, the rest is overwritten with zeros.

A pass chooses up to `BLOBS` files from the blob rows and their inodes, then reads every message row once, a slice at a time between
the writer's batches. Rows that come into being meanwhile tell `note` what they name, so that nothing alive is ever
taken for dead, whichever way it moves past the reading point. A crash costs the pass, nothing else.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from typing import TYPE_CHECKING

from iems.model import Extent, Rope
from iems.store import keys
from iems.store.rows import (
    BLOB_DIED,
    BLOB_ERASED,
    BLOB_ROW,
    MESSAGE_HEAD,
    encode,
    message_rope,
    summary_place,
)

if TYPE_CHECKING:
    from iems.store.partition import Partition

#: Files of one pass; their extents are held in memory, 16 octets each.
BLOBS = 128
ROWS = 512
#: Octets copied in one slice.
COPY_OCTETS = 8 << 20
BLOCK = 4_096
#: A file of which it is not noted that octets died is worth a pass if at least this much of it, and an eighth of it, is dead.
DEAD_OCTETS = 1 << 20
#: A file that has another owner for longer than this is left.
SHARED_S = 86_400

_ZEROS = 1 << 20
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch(fd: int, offset: int, length: int) -> bool:
    """Free a range of a file; False if the file system can't."""
    return bool(_fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, offset, length) == 0)


def gaps(extents: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """(offset, length) of what no extent (offset, length) of a file of `size` octets touches."""
    found = []
    at = 0
    for offset, length in [*sorted(extents), (size, 0)]:
        if offset > at:
            found.append((at, offset - at))
        at = max(at, offset + length)
    return found


def erase(fd: int, offset: int, length: int) -> None:
    """Overwrite a range with zeros, and give its whole blocks back where the file system can. Raises OSError."""
    start, end = min(-(-offset // BLOCK) * BLOCK, offset + length), (offset + length) // BLOCK * BLOCK
    if end <= start or not punch(fd, start, end - start):
        start = end = offset + length
    for at, until in ((offset, start), (end, offset + length)):
        while at < until:
            at += os.pwrite(fd, bytes(min(_ZEROS, until - at)), at)


class Sweep:
    """One pass after the other over a partition. `step` does a slice; `note` hears of every row written meanwhile."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._next_blob = 0
        self._sole: dict[int, array[int]] = {}
        self._shared: set[int] = set()
        self._at = b""
        self._running = False
        self._late: set[int] = set()  # blobs that lost octets while the pass runs

    @property
    def more(self) -> bool:
        """Whether there are files the last pass had no room for."""
        return self._next_blob != 0

    def died(self, blob: int) -> None:
        """Octets of a blob are named by nobody any more."""
        if self._running:
            self._late.add(blob)

    def begin(self) -> bool:
        """Choose files; False if none is worth it."""
        partition = self._partition
        self._sole.clear()
        self._shared.clear()
        self._late.clear()
        self._at = keys.head(1, 0)
        prefix = keys.head(0, keys.BLOB)
        with partition.env.begin() as txn:
            raw = txn.get(keys.blob(partition.content.current)) if partition.content.current else None
            if raw is not None and BLOB_ROW.unpack(raw)[3] & BLOB_DIED:
                partition.content.seal()  # a segment that is being written is never swept: the next octets begin a new one
            cursor = txn.cursor()
            more = cursor.set_range(keys.blob(self._next_blob))
            while more and bytes(cursor.key()).startswith(prefix):
                if len(self._sole) + len(self._shared) == BLOBS:
                    break
                blob = int.from_bytes(cursor.key()[-8:], "big")
                live, _, since, bits = BLOB_ROW.unpack(cursor.value())
                self._consider(blob, live, since, bits)
                self._next_blob = blob + 1
                more = cursor.next()
            else:
                self._next_blob = 0
        self._running = bool(self._sole or self._shared)
        return self._running

    def _consider(self, blob: int, live: int, since: int, bits: int) -> None:
        partition = self._partition
        path = partition.content.path(blob)
        if path is None or not live or blob == partition.content.current:
            return
        status = path.stat()
        if status.st_nlink > 1:
            if since + SHARED_S < partition.now:
                self._shared.add(blob)
        elif bits & BLOB_DIED or status.st_blocks * 512 - live > max(DEAD_OCTETS, status.st_size // 8):
            self._sole[blob] = array("Q")

    def note(self, rope: Rope, place: tuple[int, int, int] | None = None) -> None:
        """A row that names these was or is being written: they live."""
        if not self._running:
            return
        for piece in rope:
            if type(piece) is Extent and piece.blob in self._sole:
                self._sole[piece.blob].extend((piece.offset, piece.length))
        if place is not None and place[0] in self._sole:
            self._sole[place[0]].extend(place[1:])

    def step(self) -> bool:
        """One slice of the pass; True if there is more."""
        if not self._running:
            return False
        if self._read():
            return True
        # Before an octet goes: a look at checksums must know that records in this file may be cut.
        with self._partition.transaction():
            self._partition.mark_blobs(self._sole, BLOB_ERASED)
        clean = [blob for blob, extents in self._sole.items() if self._erase(blob, extents) and blob not in self._late]
        if clean:
            with self._partition.transaction():
                self._partition.mark_blobs(clean, 0, BLOB_DIED)
        self._running = False
        self._sole.clear()
        return False

    def _read(self) -> bool:
        """Read a slice of message rows, move what lives in shared files; False after the last row."""
        partition = self._partition
        moves: list[tuple[bytes, bytes]] = []
        octets = 0
        with partition.env.begin() as txn:
            cursor = txn.cursor()
            for _ in range(ROWS):
                if not cursor.set_range(self._at):
                    return self._move(moves)
                key = bytes(cursor.key())
                account, kind = int.from_bytes(key[:4], "big"), key[4]
                if kind < keys.MESSAGE:
                    self._at = keys.head(account, keys.MESSAGE)
                    continue
                if kind > keys.MESSAGE:
                    if account == 0xFFFF_FFFF:
                        return self._move(moves)
                    self._at = keys.head(account + 1, 0)
                    continue
                value = bytes(cursor.value())
                rope = message_rope(value)
                place = summary_place(value)
                self.note(rope, place)
                named = sum(p.length for p in rope if type(p) is Extent and p.blob in self._shared)
                if place is not None and place[0] in self._shared:
                    named += place[2]
                if named:
                    moves.append((key, value))
                    octets += named
                self._at = key + b"\0"
                if octets > COPY_OCTETS:
                    break
        self._move(moves)
        return True

    def _move(self, moves: list[tuple[bytes, bytes]]) -> bool:
        """Copy the octets of these rows to our own segment and name them there; always False."""
        if moves:
            partition = self._partition
            with partition.transaction() as txn:
                for key, value in moves:
                    if txn.get(key) == value:
                        self._move_one(key, value)
        return False

    def _move_one(self, key: bytes, value: bytes) -> None:
        partition = self._partition
        rope = message_rope(value)
        try:
            moved = partition.content.copy(rope, self._shared)
        except (FileNotFoundError, EOFError):
            return  # damaged: fsck names it, the row stays as it is
        packed = encode(moved)
        tail = value[MESSAGE_HEAD.size + int.from_bytes(value[4:8], "little") :]
        partition.replace_message(key, value, value[:4] + len(packed).to_bytes(4, "little") + value[8 : MESSAGE_HEAD.size] + packed + tail)

    def _erase(self, blob: int, extents: array[int]) -> bool:
        """Erase what none of the extents names; whether it is gone."""
        path = self._partition.content.path(blob)
        if path is None:
            return False
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            status = os.fstat(fd)
            if status.st_nlink > 1:
                return False  # someone else owns it after all
            pairs = list(zip(extents[::2], extents[1::2], strict=True))
            for offset, length in gaps(pairs, status.st_size):
                erase(fd, offset, length)
            os.fdatasync(fd)
        except OSError:
            return False  # the next pass tries again
        finally:
            os.close(fd)
        return True
