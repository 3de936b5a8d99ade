"""Makes a snapshot of a home into a backup folder, and checks one.

Content files never change once written, but for holes where dead octets were; so each is copied once, whatever the number of snapshots.
While a snapshot is made, a folder of links beside the store keeps every file that the rows may name. Mail that is still in the queue is
not part of it: it is on its way.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import msgspec
from msgspec import Struct, field

from iems._native import kernel
from iems.blobs import blob_number
from iems.durable import sync_folder, write_durably
from iems.errors import IemsError
from iems.store import keys
from iems.store.rows import message_rope, summary_place

crc32c = kernel("crc32c").crc32c

_CHUNK = 4 << 20
#: Of a record, behind its content.
_CHECKSUM_OCTETS = 4
_MAP_OCTETS = 256 << 30
FORMAT = 1


class BackupFailure(IemsError):
    """A backup that can't be made, read or believed."""


class File(Struct, array_like=True):
    """A content file: octets it had, and the CRC-32C of these."""

    size: int
    crc: int


class Manifest(Struct):
    """What a snapshot consists of. blobs: partition -> file name -> File. rows: path in the snapshot -> File. time_s: when it was taken."""

    format: int = FORMAT
    time_s: int = 0
    version: str = ""
    blobs: dict[str, dict[str, File]] = field(default_factory=dict)
    rows: dict[str, File] = field(default_factory=dict)
    accounts: int = 0
    messages: int = 0


def names(folder: Path) -> list[str]:
    """The snapshots in a backup folder, the oldest first."""
    place = folder / "snapshots"
    return sorted(entry.name for entry in place.iterdir() if (entry / "manifest.json").exists()) if place.is_dir() else []


def manifest(folder: Path, name: str) -> Manifest:
    """What a snapshot consists of. Raises BackupFailure."""
    try:
        found = msgspec.json.decode((folder / "snapshots" / name / "manifest.json").read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise BackupFailure(f"snapshot {name} can't be read: {error}") from error
    if found.format != FORMAT:
        raise BackupFailure(f"snapshot {name} is of format {found.format}; this version reads {FORMAT}")
    return found


def _checksum(path: Path, size: int | None = None) -> File:
    crc = total = 0
    with open(path, "rb") as file:
        while octets := file.read(_CHUNK if size is None else min(_CHUNK, size - total)):
            crc = crc32c(octets, crc)
            total += len(octets)
    return File(total, crc)


def _copy(source: Path, target: Path, octets: int = 1 << 62) -> File:
    """Copy the first octets of a file durably, or all if it is shorter; what the copy holds."""
    part = target.with_name(f".{target.name}.part")
    crc = total = 0
    with open(source, "rb") as old, open(part, "wb") as new:
        while piece := old.read(min(_CHUNK, octets - total)):
            new.write(piece)
            crc = crc32c(piece, crc)
            total += len(piece)
        new.flush()
        os.fsync(new.fileno())
    os.rename(part, target)
    return File(total, crc)


def _environment(path: Path) -> lmdb.Environment:
    return lmdb.open(str(path), readonly=True, create=False, max_readers=4096, max_dbs=32, map_size=_MAP_OCTETS, readahead=False)


def _copy_rows(source: Path, target: Path) -> File:
    """A consistent copy of an LMDB environment that others write meanwhile."""
    target.mkdir(parents=True)
    env = _environment(source)
    try:
        env.copy(str(target), compact=True)
    finally:
        env.close()
    data = target / "data.mdb"
    with open(data, "rb+") as file:
        os.fsync(file.fileno())
    return _checksum(data)


def needed(index: Path) -> tuple[dict[int, int], int, int]:
    """(blob -> octets of it that rows name up to, accounts, messages) of a copy of a partition's rows."""
    ends: dict[int, int] = {}
    accounts = messages = 0
    env = _environment(index)
    try:
        with env.begin() as txn:
            for key, value in txn.cursor():
                kind = key[4]
                if kind == keys.ACCOUNT and len(key) == 5:
                    accounts += 1
                elif kind == keys.MESSAGE and len(key) == keys.UID_KEY:
                    messages += 1
                    for piece in message_rope(value):
                        if not isinstance(piece, bytes):
                            ends[piece.blob] = max(ends.get(piece.blob, 0), piece.offset + piece.length)
                    place = summary_place(value)
                    if place is not None:
                        ends[place[0]] = max(ends.get(place[0], 0), place[1] + place[2])
    finally:
        env.close()
    return ends, accounts, messages


def take(home: Path, store: Path, folder: Path, version: str, now_s: float | None = None) -> tuple[str, Manifest, int]:
    """Make a snapshot of a home in a backup folder: (its name, what it consists of, octets of content copied). Raises BackupFailure, OSError.

    store: HOME/store. The server may run. A snapshot that is not finished has no manifest and is removed by the next one.
    """
    now = time.time() if now_s is None else now_s
    name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    place = folder / "snapshots" / name
    if place.exists():
        raise BackupFailure(f"there is a snapshot {name} already")
    for unfinished in (folder / "snapshots").glob("*") if (folder / "snapshots").is_dir() else ():
        if unfinished.is_dir() and not (unfinished / "manifest.json").exists():
            shutil.rmtree(unfinished)
    place.mkdir(parents=True, mode=0o700)
    found = Manifest(time_s=int(now), version=version)
    copied = 0
    # An account that moved between two of the partitions' snapshots would be in both of them, or in none.
    with no_moves(store):
        for partition in _partitions(store):
            copied += _take_partition(store / partition, folder, place, partition, found)
        found.rows["directory/data.mdb"] = _copy_rows(home / "directory", place / "directory")
        _copy_tree(store / "moves", place / "store" / "moves", place, found)
    for tree, below in ((home / "conf", place / "conf"), (store / "home", place / "store" / "home")):
        _copy_tree(tree, below, place, found)
    sync_folder(place)
    write_durably(place / "manifest.json", msgspec.json.encode(found))
    sync_folder(place.parent)
    return name, found, copied


@contextmanager
def no_moves(store: Path) -> Iterator[None]:
    """Keep accounts where they are: waits for a move that is under way, and holds up those to come."""
    folder = store / "moves"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _copy_tree(tree: Path, below: Path, place: Path, found: Manifest) -> None:
    """Copy small files that are only ever replaced whole: settings, scripts, what filters have learnt."""
    for source in sorted(tree.rglob("*")) if tree.is_dir() else ():
        if not source.is_file() or source.is_symlink() or source.name.endswith((".new", ".part", "lock")):
            continue
        target = below / source.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            found.rows[str(target.relative_to(place))] = _copy(source, target)
            os.chmod(target, source.stat().st_mode & 0o777)
        except FileNotFoundError:
            continue  # replaced or removed this moment


def _partitions(store: Path) -> Iterator[str]:
    for path in sorted(store.glob("p*")) if store.is_dir() else ():
        if path.name[1:].isdigit() and (path / "index" / "data.mdb").exists():
            yield path.name


def _take_partition(partition: Path, folder: Path, place: Path, name: str, found: Manifest) -> int:
    held = partition / f"backup-{os.getpid()}"
    for left in partition.glob("backup-*"):
        shutil.rmtree(left, ignore_errors=True)  # of a backup that was killed
    held.mkdir(mode=0o700)
    try:
        _hold(partition / "blobs", held)
        found.rows[f"store/{name}/index/data.mdb"] = _copy_rows(partition / "index", place / "store" / name / "index")
        # Those that came while the rows were copied.
        _hold(partition / "blobs", held)
        ends, accounts, messages = needed(place / "store" / name / "index")
        found.accounts += accounts
        found.messages += messages
        target = folder / "blobs" / name
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        files = found.blobs.setdefault(name, {})
        copied = 0
        for blob, end in ends.items():
            file, octets = _take_blob(blob, end, held, target, files)
            copied += octets
            if not file:
                raise BackupFailure(f"the content {blob:016x} that {name} names is not there")
        (place / "store" / name / "blobs").symlink_to(Path("../../../../blobs") / name)
        sync_folder(target)
        return copied
    finally:
        shutil.rmtree(held, ignore_errors=True)


def _hold(blobs: Path, held: Path) -> None:
    for entry in os.scandir(blobs):
        if blob_number(entry.name) is not None:
            try:
                os.link(entry.path, held / entry.name)
            except (FileExistsError, FileNotFoundError):
                continue


def _take_blob(blob: int, end: int, held: Path, target: Path, files: dict[str, File]) -> tuple[bool, int]:
    """See to it that the backup has the first `end` octets of a blob: (whether it has, octets copied)."""
    for suffix in ("seg", "blob"):
        file = f"{blob:016x}.{suffix}"
        if (target / file).exists() and (target / file).stat().st_size >= end:
            # What an earlier snapshot copied may hold octets that are a hole by now, never the other way round.
            files[file] = _known(target, file)
            return True, 0
        if (held / file).exists():
            if (held / file).stat().st_size < end:
                return False, 0
            # Of a segment of the spool no more than what is named, with its checksum: behind it there may be zeros that become records.
            most = end + _CHECKSUM_OCTETS if suffix == "seg" and not blob & keys.OWN_BLOBS else 1 << 62
            files[file] = _copy(held / file, target / file, most)
            _note(target, file, files[file])
            return True, files[file].size
    return False, 0


def _known(target: Path, file: str) -> File:
    """The checksum noted when a file was copied; made anew if there is no note."""
    try:
        return msgspec.json.decode((target / f"{file}.crc").read_bytes(), type=File)
    except (OSError, msgspec.DecodeError):
        found = _checksum(target / file)
        _note(target, file, found)
        return found


def _note(target: Path, file: str, found: File) -> None:
    (target / f"{file}.crc").write_bytes(msgspec.json.encode(found))


def verify(folder: Path, name: str) -> Iterator[str]:
    """What is wrong with a snapshot: nothing, or a line for each file that is not what it was."""
    found = manifest(folder, name)
    place = folder / "snapshots" / name
    files = [(place / path, expected) for path, expected in found.rows.items()]
    files += [
        (folder / "blobs" / partition / file, expected)
        for partition, blobs in found.blobs.items()
        for file, expected in blobs.items()
    ]
    for path, expected in files:
        try:
            if path.stat().st_size < expected.size:
                yield f"{path}: cut short"
            elif _checksum(path, expected.size) != expected:
                yield f"{path}: not the octets that were copied"
        except OSError as error:
            yield f"{path}: {error.strerror}"
    for partition in found.blobs:
        try:
            ends, _, _ = needed(place / "store" / partition / "index")
        except lmdb.Error as error:
            yield f"{place / 'store' / partition}: {error}"
            continue
        for blob, end in ends.items():
            sizes = [found.blobs[partition].get(f"{blob:016x}.{suffix}") for suffix in ("seg", "blob")]
            if not any(file is not None and file.size >= end for file in sizes):
                yield f"{partition}: the rows name octets of {blob:016x} that are not in the backup"


def prune(folder: Path, keep: int) -> tuple[int, int]:
    """Remove all but the `keep` youngest snapshots, and content none of the rest names: (snapshots, files) removed."""
    gone = names(folder)[: -keep if keep else None]
    for name in gone:
        # Without its manifest it is no snapshot any more, whatever happens next.
        (folder / "snapshots" / name / "manifest.json").unlink()
        shutil.rmtree(folder / "snapshots" / name)
    wanted: dict[str, set[str]] = {}
    for name in names(folder):
        for partition, files in manifest(folder, name).blobs.items():
            wanted.setdefault(partition, set()).update(files)
    removed = 0
    for path in (folder / "blobs").glob("p*/*"):
        file = path.name.removesuffix(".crc").removeprefix(".").removesuffix(".part")
        if file not in wanted.get(path.parent.name, set()):
            path.unlink()
            removed += not path.name.endswith(".crc")
    return len(gone), removed
