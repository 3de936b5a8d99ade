"""The bytes a partition owns: its hard links to spool segments, its copies, its own segments (`HOME/store/pN/blobs`).

Only the writer thread of the partition comes here. What a row will name must be durable before the row is committed:
`adopt` syncs the folder, `sync` the own segment.
"""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from iems.blobs import large_name, segment_name
from iems.durable import sync_folder
from iems.model import Extent, Rope

SEGMENT_OCTETS = 128 << 20
_COPY_CHUNK = 1 << 20
_COPIED_KEPT = 4_096
#: A link is refused: other file system, other owner (protected_hardlinks), no more links, or no links at all.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


class Content:
    """The blob folder of one partition.

    spool: HOME/spool, with `segments/` and `large/`. copy_always: never link (`store.copy`).
    """

    def __init__(
        self,
        folder: Path,
        spool: Path,
        *,
        copy_always: bool = False,
        number: int = 0,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.folder = folder
        self._number = number
        self._sources = ((spool / "segments", segment_name), (spool / "large", large_name))
        self._copy_always = copy_always
        self._now_ms = now_ms
        self._copied: OrderedDict[Extent, Extent] = OrderedDict()
        self._fd = -1
        self._unsynced = False
        self.current = 0  # blob number of the own segment being written, 0 if none
        self._length = 0
        folder.mkdir(parents=True, exist_ok=True)

    def _places(self, also: Path | None) -> Iterator[tuple[Path, Callable[[int], str]]]:
        """Where a blob of others may be, with its name there. also: the blobs of another partition."""
        if also is not None:
            yield also, segment_name
            yield also, large_name
        yield from self._sources

    def link(self, blobs: Iterable[int], also: Path | None = None) -> tuple[set[int], set[int]]:
        """Put our name on these blobs and sync the folder: (those that must be copied, those that can't be found).

        also: a folder of blobs to look in first, beside the spool's.
        """
        copy: set[int] = set()
        missing: set[int] = set()
        linked = False
        for blob in blobs:
            for folder, name_of in self._places(also):
                name = name_of(blob)
                try:
                    if self._copy_always:
                        if (folder / name).exists():
                            copy.add(blob)
                            break
                        continue
                    os.link(folder / name, self.folder / name)
                    linked = True
                    break
                except FileExistsError:
                    # Ours since an earlier try, maybe one whose folder sync a crash cut off.
                    linked = True
                    break
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if error.errno not in _NO_LINK:
                        raise
                    copy.add(blob)
                    break
            else:
                if self.path(blob) is not None:
                    linked = True
                else:
                    missing.add(blob)
        if linked:
            sync_folder(self.folder)
        return copy, missing

    def copy(self, rope: Rope, which: set[int], also: Path | None = None) -> Rope:
        """`rope` with the octets of its extents in `which` copied to the own segment; also: as of `link`. Raises OSError, EOFError."""
        made: Rope = []
        for piece in rope:
            if isinstance(piece, bytes) or piece.blob not in which:
                made.append(piece)
                continue
            copied = self._copied.get(piece)
            if copied is None:
                copied = self._copied[piece] = self._copy(piece, also)
                if len(self._copied) > _COPIED_KEPT:
                    self._copied.popitem(last=False)
            made.append(copied)
        return made

    def _copy(self, piece: Extent, also: Path | None) -> Extent:
        # A file another partition has a name of, too, may be gone from the spool: our own name is as good.
        for folder, name_of in (*self._places(also), (self.folder, segment_name), (self.folder, large_name)):
            try:
                fd = os.open(folder / name_of(piece.blob), os.O_RDONLY | os.O_CLOEXEC)
                break
            except FileNotFoundError:
                continue
        else:
            raise FileNotFoundError(errno.ENOENT, "no such blob", f"{piece.blob:016x}")
        try:
            return self.copy_range(fd, piece)
        finally:
            os.close(fd)

    def copy_range(self, fd: int, piece: Extent) -> Extent:
        """The octets of `piece`, read from `fd`, in the own segment."""
        self._room(piece.length)
        start = self._length
        done = 0
        while done < piece.length:
            data = os.pread(fd, min(_COPY_CHUNK, piece.length - done), piece.offset + done)
            if not data:
                raise EOFError(f"blob {piece.blob:016x} ends before its extent")
            self._write(data)
            done += len(data)
        return Extent(self.current, start, piece.length, piece.codec)

    def put(self, data: bytes) -> tuple[int, int]:
        """Append octets to the own segment: (blob, offset). They count after `sync`."""
        self._room(len(data))
        start = self._length
        self._write(data)
        return self.current, start

    def _room(self, octets: int) -> None:
        if self._fd >= 0 and self._length + octets <= SEGMENT_OCTETS:
            return
        self.seal()
        while True:
            # The top bit and the partition keep our numbers apart from the spool's and from other partitions'.
            salt = int.from_bytes(os.urandom(2), "big") & 0x3FF
            number = 1 << 63 | (self._now_ms() & 0x7FFF_FFFF_FFFF) << 16 | (self._number & 0x3F) << 10 | salt
            try:
                self._fd = os.open(
                    self.folder / segment_name(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
                )
                break
            except FileExistsError:
                continue
        sync_folder(self.folder)
        self.current = number
        self._length = 0

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        self._unsynced = True
        while view:
            count = os.pwrite(self._fd, view, self._length)
            self._length += count
            view = view[count:]

    def sync(self) -> None:
        """Make what was put or copied durable. Raises OSError; the segment is given up then."""
        if not self._unsynced:
            return
        try:
            os.fdatasync(self._fd)
        except OSError:
            # After a failed flush the page cache may claim what the disk does not hold: never use this file again.
            self._abandon()
            raise
        self._unsynced = False

    def seal(self) -> None:
        """Finish the own segment."""
        if self._fd >= 0:
            self.sync()
            self._abandon()

    def _abandon(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self.current = 0
        self._unsynced = False
        self._copied.clear()

    def forget_copies(self) -> None:
        """What was copied for a transaction that was dropped may be named by no row: copy anew."""
        self._copied.clear()

    def unlink(self, blob: int) -> bool:
        """Remove our name of a blob; False if there is none."""
        path = self.path(blob)
        if path is None:
            return False
        path.unlink()
        return True

    def path(self, blob: int) -> Path | None:
        """Our file of a blob."""
        for name in (segment_name(blob), large_name(blob)):
            path = self.folder / name
            if path.exists():
                return path
        return None

    def close(self) -> None:
        """Finish."""
        self.seal()
