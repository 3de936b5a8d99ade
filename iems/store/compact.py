"""A partition's rows written anew, without what is left of deleted ones; the server must be stopped.

LMDB never clears a page: rows that were deleted stay in pages that are free, and in the gaps of pages that are not, until something is written
there. A copy that LMDB compacts has neither: it holds live rows alone. It takes the place of the file in one step, so a process killed at any point
leaves the one or the other, whole.

Why not while it is used: zeros written over a row before it is deleted go into a copy of its page (copy on write), while older copies of the page, and what page
splits left in gaps, keep it; rows filled in to use up free pages reach no gap; and the readers of other processes, who must see a commit at their next
call, have the old file open.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
from msgspec import Struct

from iems.durable import sync_folder
from iems.errors import IemsError
from iems.store import keys
from iems.store.partition import FRESH, MAP_OCTETS, Partition

if TYPE_CHECKING:
    from collections.abc import Iterator


class CompactRefusal(IemsError):
    """The partition is in use, or the copy is not what it was made from; the file of rows stays."""


class Compacted(Struct):
    """Octets of a partition's file of rows before and after."""

    name: str
    before: int
    after: int


def compact(folder: Path, spool: Path, undelete_s: float, step: Callable[[str], None] = lambda name: None) -> Compacted:
    """Let go of what is due, erase its octets, and write the rows anew. folder: HOME/store/pN. step: told of each step, for tests.

    Raises CompactRefusal, IemsError, OSError (no room for the copy: the file of rows stays), lmdb.Error.
    """
    index = folder / "index"
    data, fresh = index / "data.mdb", index / FRESH
    with _alone(folder):
        fresh.unlink(missing_ok=True)
        partition = Partition(folder, spool, number=int(folder.name[1:]), undelete_s=undelete_s)
        try:
            _housekeep(partition)
            entries = partition.env.stat()["entries"]
            step("housekept")
            with open(fresh, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                partition.env.copyfd(file.fileno(), compact=True)
                os.fsync(file.fileno())
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        finally:
            partition.close()
        step("copied")
        _check(fresh, entries)
        found = Compacted(folder.name, data.stat().st_size, fresh.stat().st_size)
        with _unused(index):
            os.replace(fresh, data)
            step("replaced")
            # It counts transactions of the old file. Nobody has it open, and who comes makes a new one.
            (index / "lock.mdb").unlink(missing_ok=True)
            sync_folder(index)
        step("done")
    return found


def _housekeep(partition: Partition) -> None:
    """All that is due: rows, then octets in files that stay, then files that the sweep has left."""
    while partition.housekeep():
        pass
    more = partition.sweep.begin()
    while more:
        more = partition.sweep.step() or (partition.sweep.more and partition.sweep.begin())
    while partition.housekeep():
        pass


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep writers out. Raises CompactRefusal."""
    fd = os.open(folder / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CompactRefusal(f"{folder.name} is in use: stop the server first") from None
        yield
    finally:
        os.close(fd)


@contextmanager
def _unused(index: Path) -> Iterator[None]:
    """Keep readers out while the file changes: each process that has it open holds LMDB's lock on the first octet. Raises CompactRefusal."""
    fd = os.open(index / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except (BlockingIOError, PermissionError):
            (index / FRESH).unlink(missing_ok=True)
            raise CompactRefusal(f"{index.parent.name} is being read by another command: try again") from None
        yield
    finally:
        os.close(fd)


def _check(fresh: Path, entries: int) -> None:
    """Refuse a copy that can't be read, or has not as many rows. Raises CompactRefusal."""
    try:
        env = lmdb.open(str(fresh), subdir=False, readonly=True, lock=False, create=False, map_size=MAP_OCTETS)
        try:
            with env.begin() as txn:
                sound = txn.get(keys.META_KEY) is not None and env.stat()["entries"] == entries
        finally:
            env.close()
    except lmdb.Error as error:
        fresh.unlink(missing_ok=True)
        raise CompactRefusal(f"the copy can't be read: {error}") from error
    if not sound:
        fresh.unlink(missing_ok=True)
        raise CompactRefusal("the copy has other rows than the file it was made from")
