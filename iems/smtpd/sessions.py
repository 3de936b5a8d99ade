"""How many sessions, messages and recipients a client has now and had in the last minute, over all workers of the pool.

Each worker counts in a file of its own, HOME/run/door-SLOT, which the others map and read: no lock, and a worker that dies takes its
counts with it, as nobody reads the file of a (slot, generation) that the board does not show alive. What is read while it is written
may be one off for a moment.

| octets | what |
| --- | --- |
| 0..63 | magic, generation of the writer u64 |
| then | `ROWS` rows of 48: digest of the client 16, sessions u32, minute u32, three counts of that minute and of the one before u32 |

A row stands at one of `PROBES` places that its digest gives. When none is free, the row without sessions that was used longest ago makes
room; if all have sessions the client is not counted.
"""

from __future__ import annotations

import ipaddress
import mmap
import os
import struct
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iems.master.board import Board

ROWS = 16_384
PROBES = 16
#: What is counted in a minute.
SESSIONS, MESSAGES, RECIPIENTS = range(3)
WINDOW_S = 60.0
#: Seconds after which the list of the other workers is made anew, if no worker was started before.
LOOK_S = 1.0

_MAGIC = b"IEMSdor1"
_HEAD = struct.Struct("<8sQ")
_ROW = struct.Struct("<16sII3I3I")
_AT = 64
_EMPTY = bytes(16)
SIZE = _AT + ROWS * _ROW.size


def network_of(ip: str) -> str:
    """The network of a client, as limits know it: /24, or /64 of IPv6. Raises ValueError."""
    address = ipaddress.ip_address(ip)
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 64), strict=False))


class Table:
    """A mapped file of counts. Its owner writes it, all others read."""

    __slots__ = ("map",)

    def __init__(self, mapped: mmap.mmap) -> None:
        self.map = mapped

    @classmethod
    def create(cls, path: Path, generation: int) -> Table:
        """An empty table in place of an older one. Raises OSError."""
        fresh = path.with_name(path.name + ".new")
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, SIZE)  # a page without room on a full disk would be SIGBUS
            mapped = mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
        _HEAD.pack_into(mapped, 0, _MAGIC, generation)
        os.replace(fresh, path)
        return cls(mapped)

    @classmethod
    def open(cls, path: Path, generation: int) -> Table | None:
        """The table of another worker, or None while it has none."""
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size != SIZE:
                    return None
                mapped = mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ)
        except OSError:
            return None
        if _HEAD.unpack_from(mapped, 0) != (_MAGIC, generation):
            mapped.close()
            return None
        return cls(mapped)

    def find(self, digest: bytes) -> int:
        """Offset of a client's row, or -1."""
        start = int.from_bytes(digest[:8], "little")
        mapped = self.map
        for step in range(PROBES):
            at = _AT + (start + step) % ROWS * _ROW.size
            found = mapped[at : at + 16]
            if found == digest:
                return at
            if found == _EMPTY:  # a row is never given back, only to another client
                return -1
        return -1

    def place(self, digest: bytes, minute: int) -> int:
        """Offset of a client's row, made if there is none; -1 if there is no room."""
        start = int.from_bytes(digest[:8], "little")
        mapped = self.map
        oldest, oldest_at = minute + 1, -1
        for step in range(PROBES):
            at = _AT + (start + step) % ROWS * _ROW.size
            found, sessions, last, *_ = _ROW.unpack_from(mapped, at)
            if found == digest:
                return at
            if found == _EMPTY:
                oldest_at = at
                break
            if not sessions and last < oldest:
                oldest, oldest_at = last, at
        if oldest_at >= 0:
            _ROW.pack_into(mapped, oldest_at, digest, 0, minute, *_NOTHING)
        return oldest_at

    def sessions(self, digest: bytes) -> int:
        """Open sessions of a client here."""
        at = self.find(digest)
        return int(_ROW.unpack_from(self.map, at)[1]) if at >= 0 else 0

    def rate(self, digest: bytes, kind: int, minute: int, left: float) -> float:
        """A client's count in the last minute. left: the part of the minute before that still counts."""
        at = self.find(digest)
        if at < 0:
            return 0.0
        row = _ROW.unpack_from(self.map, at)
        if row[2] == minute:
            return float(row[3 + kind] + row[6 + kind] * left)
        return float(row[3 + kind] * left) if row[2] == minute - 1 else 0.0

    def change(self, digest: bytes, minute: int, sessions: int = 0, kind: int = -1) -> bool:
        """Add to a client's open sessions and to its count of one kind; False if there is no room for it. The owner alone."""
        at = self.place(digest, minute)
        if at < 0:
            return False
        _, now, last, *counts = _ROW.unpack_from(self.map, at)
        if last != minute:
            before = counts[:3] if last == minute - 1 else _NOTHING[:3]
            counts = [0, 0, 0, *before]
        if kind >= 0:
            counts[kind] += 1
        _ROW.pack_into(self.map, at, digest, max(0, now + sessions), minute, *counts)
        return True


_NOTHING = (0, 0, 0, 0, 0, 0)


class Clients:
    """The counts of all workers, as one of them sees them.

    folder: HOME/run. slot, generation: of this worker. Counts nothing until the first client that is limited comes: a server that is
    used from loopback only has no such files. Raises OSError if its own file can't be made.
    """

    def __init__(
        self,
        folder: Path,
        board: Board,
        role: str,
        slot: int,
        generation: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._board = board
        self._role = role
        self._slot = slot
        self._generation = generation
        self._clock = clock
        # One machine, one start: nobody outside can choose addresses that share a place.
        self._key = board.header().started_ns.to_bytes(8, "little")
        self._own = Table.create(folder / f"door-{slot}", generation)
        self._others: dict[tuple[int, int], Table] = {}
        self._looked = -LOOK_S
        self._spawn = -1
        self._missing = False
        #: Clients that found no room.
        self.lost = 0

    def digest(self, name: str) -> bytes:
        """What an address or network is counted under."""
        return blake2b(name.encode(), digest_size=16, key=self._key).digest()

    def _tables(self, now: float) -> list[Table]:
        spawn = self._board.header().last_spawn
        if now - self._looked >= LOOK_S or spawn != self._spawn or self._missing:
            self._looked = now
            self._missing = False
            self._spawn = spawn
            found = {}
            for row in self._board.rows():
                if row.role == self._role and row.slot != self._slot:
                    place = (row.slot, row.generation)
                    table = self._others.get(place) or Table.open(
                        self._folder / f"door-{row.slot}", row.generation
                    )
                    if table is not None:
                        found[place] = table
                    else:
                        self._missing = True  # its first client may come any moment
            self._others = found
        return [self._own, *self._others.values()]

    def sessions(self, digest: bytes) -> int:
        """Open sessions of a client or network, over all workers."""
        return sum(table.sessions(digest) for table in self._tables(self._clock()))

    def rate(self, digest: bytes, kind: int) -> float:
        """What a client did in the last minute, over all workers: `SESSIONS`, `MESSAGES` or `RECIPIENTS`."""
        now = self._clock()
        minute = int(now // WINDOW_S)
        left = 1.0 - now % WINDOW_S / WINDOW_S
        return sum(table.rate(digest, kind, minute, left) for table in self._tables(now))

    def enter(self, digest: bytes) -> None:
        """A session began."""
        self._change(digest, 1, SESSIONS)

    def leave(self, digest: bytes) -> None:
        """A session that `enter` counted is over."""
        self._change(digest, -1, -1)

    def add(self, digest: bytes, kind: int) -> None:
        """A message or recipient."""
        self._change(digest, 0, kind)

    def _change(self, digest: bytes, sessions: int, kind: int) -> None:
        if not self._own.change(digest, int(self._clock() // WINDOW_S), sessions, kind):
            self.lost += 1
