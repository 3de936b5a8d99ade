"""What happens between two lives: whether the index can be trusted, what dead workers left, building the index again.

`prepare` and `seal` are called by the master while no worker runs; the rest by the janitor. docs/spool.md has the table of states.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import lmdb
import msgspec
from msgspec import Struct

from iems.blobs import blob_number
from iems.spool import keys, records
from iems.spool.clock import boot_ms
from iems.spool.index import MAP_OCTETS, Index
from iems.spool.segments import sync_folder

_BOOT = "boot"  # which boot and which file the index belongs to
_MARK = "clean"  # the index was synced and nothing has written since
_DISTRUST = "distrust"  # somebody met a damaged page


class Boot(Struct):
    """Where an index was last written."""

    boot_id: str
    device: int
    inode: int


class Prepared(Struct):
    """What `prepare` found. fresh: there was no spool. rebuild: the janitor must read the segments."""

    fresh: bool
    trusted: bool
    rebuild: bool


def boot_id() -> str:
    """The kernel's name for this boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def write_durably(path: Path, data: bytes) -> None:
    """Put a small file in place, wholly or not at all, on the disk when this returns."""
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(fresh, path)
    sync_folder(path.parent)


def distrust(path: Path) -> None:
    """Note that the index is damaged; the next `prepare` builds it again. path: HOME/spool."""
    try:
        write_durably(path / "index" / _DISTRUST, b"")
    except OSError:
        pass


def _boot_of(index: Path) -> Boot | None:
    try:
        return msgspec.json.decode((index / _BOOT).read_bytes(), type=Boot)
    except (OSError, msgspec.DecodeError):
        return None


def _trusted(index: Path) -> bool:
    """Whether the index is as its last writers left it: same boot and same file, or a clean stop."""
    try:
        found = os.stat(index / "data.mdb")
    except OSError:
        return False
    if (index / _DISTRUST).exists():
        return False
    if (index / _MARK).exists():
        return True
    boot = _boot_of(index)
    now = boot_id()
    return (
        boot is not None
        and now != ""
        and boot.boot_id == now
        and (boot.device, boot.inode) == (found.st_dev, found.st_ino)
    )


def _blob_files(path: Path) -> list[Path]:
    return [
        entry
        for folder in ("segments", "large")
        for entry in sorted((path / folder).iterdir())
        if blob_number(entry.name) is not None
    ]


def prepare(path: Path, *, map_octets: int = MAP_OCTETS) -> Prepared:
    """Make the spool ready before any worker opens it. path: HOME/spool; nobody else may have it open.

    Decides whether the index can be trusted; if not, it is moved aside and an empty one made, which the janitor fills. Durable
    before any later index write: the clean mark is gone. Raises OSError if the folders can't be made.
    """
    for folder in (path, path / "segments", path / "large"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sync_folder(path)
    index = path / "index"
    trusted = _trusted(index)
    if trusted:
        try:
            return _reopen(path, map_octets)
        except (lmdb.Error, msgspec.DecodeError, OSError):
            pass
    files = _blob_files(path)
    fresh = not files and not index.exists()
    if index.exists():
        for old in path.glob("index.lost-*"):
            shutil.rmtree(old, ignore_errors=True)
        os.rename(index, path / f"index.lost-{time.time_ns()}")
    index.mkdir(mode=0o700)
    sync_folder(path)
    fresh_index = Index(index, map_octets=map_octets)
    with fresh_index.env.begin(write=True) as txn:
        meta = fresh_index.db["meta"]
        txn.put(keys.META_VERSION, keys.VERSION.to_bytes(4, "big"), db=meta)
        txn.put(keys.META_RUN, (1).to_bytes(4, "big"), db=meta)
        offset = _queue_ms_of_files(files) - boot_ms()
        txn.put(keys.META_CLOCK, offset.to_bytes(8, "big", signed=True), db=meta)
        if files:
            txn.put(keys.META_REBUILD, b"1", db=meta)
            txn.put(keys.META_BLOB, max(blob_number(f.name) or 0 for f in files).to_bytes(8, "big"), db=meta)
    fresh_index.close()
    _write_boot(index)
    return Prepared(fresh, trusted=False, rebuild=bool(files))


def _reopen(path: Path, map_octets: int) -> Prepared:
    """Go on with a trusted index. Raises lmdb.Error if it can't be read after all."""
    folder = path / "index"
    boot = _boot_of(folder)
    if (folder / _MARK).exists():
        # Gone for good before the first write: after a power cut it would vouch for an index that was being written.
        os.unlink(folder / _MARK)
        sync_folder(folder)
    index = Index(folder, map_octets=map_octets)
    try:
        index.env.reader_check()
        with index.env.begin(write=True) as txn:
            meta = index.db["meta"]
            if txn.get(keys.META_VERSION, db=meta) != keys.VERSION.to_bytes(4, "big"):
                raise lmdb.VersionMismatchError("the index has another layout")
            txn.put(keys.META_RUN, (index.run + 1).to_bytes(4, "big"), db=meta)
            if boot is None or boot.boot_id != boot_id():
                saved = int.from_bytes(txn.get(keys.META_QUEUE_MS, b"\0", db=meta), "big")
                txn.put(keys.META_CLOCK, (saved - boot_ms()).to_bytes(8, "big", signed=True), db=meta)
            rebuild = txn.get(keys.META_REBUILD, db=meta) is not None
    finally:
        index.close()
    _write_boot(folder)
    return Prepared(fresh=False, trusted=True, rebuild=rebuild)


def _write_boot(index: Path) -> None:
    found = os.stat(index / "data.mdb")
    write_durably(index / _BOOT, msgspec.json.encode(Boot(boot_id(), found.st_dev, found.st_ino)))


def _queue_ms_of_files(files: list[Path]) -> int:
    """Queue time to go on with when only segments are left: the latest they show, with the time each was written."""
    latest = 0
    for file in files:
        if file.suffix != ".seg":
            continue
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            head = records.read_file_head(fd)
            if head is not None:
                # a segment is sealed after an hour; more can only be a step of the wall clock
                written_ms = (os.fstat(fd).st_mtime_ns - head.created_ns) // 1_000_000
                latest = max(latest, head.queue_ms + min(max(written_ms, 0), 7_200_000))
        finally:
            os.close(fd)
    return latest


def seal(path: Path, *, map_octets: int = MAP_OCTETS) -> None:
    """At a clean stop, after all workers are gone: sync segments and index, then mark the index clean. path: HOME/spool."""
    folder = path / "index"
    index = Index(folder, map_octets=map_octets)
    try:
        for blob, row in index.blob_rows().items():
            if not row.sealed and not row.large:
                try:
                    fd = os.open(path / "segments" / f"{blob:016x}.seg", os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
        sync_folder(path / "segments")
        sync_folder(path / "large")
        index.set_meta(keys.META_QUEUE_MS, index.clock.now_ms().to_bytes(8, "big"))
        index.sync()
    finally:
        index.close()
    write_durably(folder / _MARK, b"")
