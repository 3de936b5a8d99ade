"""What a disk may hold after the power went: every state a recording allows (record.c makes the recording).

The disk keeps what a completed fsync or fdatasync covered (writes and truncations of that file that ended before the sync
began), and writes through an O_DSYNC descriptor. Of all else up to the cut it may keep anything: nothing, all of it, or any
choice of 512-octet sectors in any order: a sector that was not kept is what it was before, zeros if the file was allocated or written ahead,
and a length that was not kept leaves the file as short as what is behind it. A name (create, link, rename, unlink, mkdir) is kept only by a sync of its folder; without
one it may be there or not, in any combination. A file whose name is lost is gone, synced or not.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
WRITE, SYNC_BEGIN, SYNC_END, CREATE, RENAME, LINK, UNLINK, TRUNCATE, MKDIR, PUNCH, ALLOCATE = range(1, 12)
_HEAD = struct.Struct("<IIQqQIIII")
_MAGIC = 0x31435250
_NAME_OPS = frozenset((CREATE, RENAME, LINK, UNLINK, MKDIR))


@dataclass(slots=True)
class Op:
    """One call of the recording; `data` is the position of its octets in the log."""

    op: int
    inode: int
    offset: int
    length: int
    data: int
    path: str
    path2: str
    durable: bool
    pid: int


@dataclass
class Snapshot:
    """A folder as it was, wholly on disk, when the recording began: names, inodes and octets."""

    root: Path
    kept: Path
    folders: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    @classmethod
    def take(cls, root: Path, kept: Path) -> Snapshot:
        """Copy `root` to `kept`; nothing may be writing to it."""
        root = root.resolve()
        shutil.copytree(root, kept, symlinks=True)
        self = cls(root, kept)
        for folder, _names, files in os.walk(root):
            self.folders[folder] = os.stat(folder).st_ino
            for name in files:
                path = os.path.join(folder, name)
                if os.path.isfile(path):
                    self.files[path] = os.stat(path).st_ino
        return self


def build(target: Path) -> Path:
    """Compile record.c to `target`/record.so."""
    library = target / "record.so"
    source = Path(__file__).with_name("record.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source, "-lpthread"], check=True)
    return library


def environment(library: Path, root: Path, log: Path) -> dict[str, str]:
    """The environment of a process to be recorded, on top of ours."""
    return os.environ | {"LD_PRELOAD": str(library), "RECORD_ROOT": str(root), "RECORD_LOG": str(log)}


class Recording:
    """The calls recorded since a snapshot. `ops[:n]` had ended at cut point n."""

    def __init__(self, snapshot: Snapshot, log: Path) -> None:
        self.snapshot = snapshot
        with open(log, "rb") as file:
            self._log = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.ops = list(self._read())
        self._covered = self._cover()

    def _read(self) -> Iterator[Op]:
        at, end = 0, len(self._log)
        while at < end:
            magic, op, inode, offset, length, path, path2, durable, pid = _HEAD.unpack_from(self._log, at)
            if magic != _MAGIC:
                raise ValueError(f"the recording is damaged at octet {at}")
            at += _HEAD.size
            names = self._log[at : at + path + path2].decode()
            at += path + path2
            yield Op(op, inode, offset, length, at, names[:path], names[path:], bool(durable), pid)
            at += length

    def _cover(self) -> list[int]:
        """For each op the index of the sync that made it durable (len(ops) + 1: none did)."""
        never = len(self.ops) + 1
        covered = [never] * len(self.ops)
        open_by_inode: dict[int, list[int]] = {}
        open_by_folder: dict[str, list[int]] = {}
        begun: dict[tuple[int, int], list[int]] = {}
        for index, op in enumerate(self.ops):
            if op.op in (WRITE, TRUNCATE, PUNCH, ALLOCATE):
                if op.durable and op.op == WRITE:
                    covered[index] = index
                else:
                    open_by_inode.setdefault(op.inode, []).append(index)
            elif op.op in _NAME_OPS:
                for path in filter(None, (op.path, op.path2)):
                    open_by_folder.setdefault(os.path.dirname(path), []).append(index)
            elif op.op == SYNC_BEGIN:
                begun.setdefault((op.pid, op.inode), []).append(index)
            elif op.op == SYNC_END:
                waiting = begun.get((op.pid, op.inode))
                start = waiting.pop(0) if waiting else index
                for table, key in ((open_by_inode, op.inode), (open_by_folder, op.path)):
                    left = []
                    for earlier in table.get(key, ()):  # type: ignore[attr-defined]
                        if earlier < start:
                            covered[earlier] = min(covered[earlier], index)
                        else:
                            left.append(earlier)
                    table[key] = left  # type: ignore[index]
        return covered

    def written(self, name: str, cut: int) -> bytes:
        """All octets written to files of that base name before the cut, in order: what a client noted as acknowledged."""
        return b"".join(
            self._log[op.data : op.data + op.length]
            for op in self.ops[:cut]
            if op.op == WRITE and os.path.basename(op.path) == name
        )

    def cut_points(self, count: int, rng: random.Random) -> list[int]:
        """`count` cut points, half of them right after a sync or a note, where promises are fresh."""
        ends = [i + 1 for i, op in enumerate(self.ops) if op.op == SYNC_END or op.path.endswith("acks")]
        chosen = rng.sample(ends, min(count // 2, len(ends)))
        return sorted(chosen + [rng.randrange(1, len(self.ops) + 1) for _ in range(count - len(chosen))])

    def restore(self, cut: int, rng: random.Random, target: Path) -> None:
        """Make `target` a folder such as the disk may hold if the power went after `ops[:cut]`."""
        mode = rng.choice(("none", "all", "sectors", "writes", "sectors"))
        names_mode = rng.choice(("none", "all", "some", "prefix"))
        snapshot = self.snapshot
        content: dict[int, bytearray] = {}
        files = dict(snapshot.files)
        folders = dict(snapshot.folders)
        last_name = rng.randrange(cut + 1)

        def data_of(inode: int) -> bytearray:
            if inode not in content:
                path = next((p for p, i in snapshot.files.items() if i == inode), None)
                kept = snapshot.kept / os.path.relpath(path, snapshot.root) if path else None
                content[inode] = bytearray(kept.read_bytes()) if kept else bytearray()
            return content[inode]

        for index, op in enumerate(self.ops[:cut]):
            durable = self._covered[index] < cut
            if op.op == WRITE:
                self._write(data_of(op.inode), op, durable, mode, rng)
            elif op.op == TRUNCATE:
                if durable or mode == "all" or (mode != "none" and rng.random() < 0.5):
                    self._resize(data_of(op.inode), op.offset)
            elif op.op == ALLOCATE:
                # Room without octets reads as zeros, and its length may be lost.
                if durable or mode == "all" or (mode != "none" and rng.random() < 0.5):
                    data = data_of(op.inode)
                    self._resize(data, max(len(data), op.offset))
            elif op.op == PUNCH:
                if durable or mode == "all" or (mode != "none" and rng.random() < 0.5):
                    data = data_of(op.inode)
                    end = min(len(data), op.offset + (op.durable << 9))
                    data[op.offset : end] = bytes(max(0, end - op.offset))
            elif op.op in _NAME_OPS:
                keep = (
                    durable
                    or names_mode == "all"
                    or (names_mode == "prefix" and index < last_name)
                    or (names_mode == "some" and rng.random() < 0.5)
                )
                if op.op == CREATE:
                    content.setdefault(op.inode, bytearray())
                if keep:
                    self._name(op, files, folders)
        self._lay_out(target, content, files, folders)

    def _write(self, data: bytearray, op: Op, durable: bool, mode: str, rng: random.Random) -> None:
        if durable or mode == "all" or (mode == "writes" and rng.random() < 0.5):
            self._put(data, op.offset, self._log[op.data : op.data + op.length])
        elif mode == "sectors":
            chance = rng.choice((0.1, 0.5, 0.9))
            at = op.offset
            end = op.offset + op.length
            while at < end:
                upto = min(end, (at // SECTOR + 1) * SECTOR)
                if rng.random() < chance:
                    start = op.data + at - op.offset
                    self._put(data, at, self._log[start : start + upto - at])
                at = upto

    @staticmethod
    def _put(data: bytearray, offset: int, piece: bytes) -> None:
        if len(data) < offset:
            data.extend(bytes(offset - len(data)))
        data[offset : offset + len(piece)] = piece

    @staticmethod
    def _resize(data: bytearray, length: int) -> None:
        if length < len(data):
            del data[length:]
        else:
            data.extend(bytes(length - len(data)))

    @staticmethod
    def _name(op: Op, files: dict[str, int], folders: dict[str, int]) -> None:
        if op.op == MKDIR:
            folders[op.path] = op.inode
        elif op.op == CREATE:
            files[op.path] = op.inode
        elif op.op == LINK:
            files[op.path2] = op.inode
        elif op.op == UNLINK:
            files.pop(op.path, None)
            folders.pop(op.path, None)
        elif op.op == RENAME:
            if op.path in folders:
                inside = op.path + "/"
                for table in (files, folders):
                    for path in [p for p in table if p == op.path or p.startswith(inside)]:
                        table[op.path2 + path[len(op.path) :]] = table.pop(path)
            else:
                files.pop(op.path, None)
                files[op.path2] = op.inode

    def _lay_out(
        self, target: Path, content: dict[int, bytearray], files: dict[str, int], folders: dict[str, int]
    ) -> None:
        root = self.snapshot.root
        target.mkdir(parents=True)
        target.chmod(0o700)
        for folder in sorted(folders):
            # a folder below one that was lost is lost with it
            if folder != str(root) and os.path.dirname(folder) in folders:
                (target / os.path.relpath(folder, root)).mkdir(mode=0o700, exist_ok=True)
        laid: dict[int, Path] = {}
        for path, inode in files.items():
            place = target / os.path.relpath(path, root)
            if not place.parent.is_dir():
                continue
            if inode in laid:
                os.link(laid[inode], place)
                continue
            if inode in content:
                _write_sparse(place, content[inode])
            else:
                kept = self.snapshot.kept / os.path.relpath(path, root)
                if not kept.is_file():
                    place.touch()
                else:
                    shutil.copy2(kept, place)
            place.chmod(0o600)
            laid[inode] = place


def _write_sparse(place: Path, data: bytearray) -> None:
    """Write `data`, leaving runs of zeros as holes."""
    step = 64 * 1024
    with open(place, "wb") as file:
        for at in range(0, len(data), step):
            piece = bytes(data[at : at + step])
            if piece.count(0) != len(piece):
                file.seek(at)
                file.write(piece)
        file.truncate(len(data))
