"""Content on its way in: staged in memory, or in a file of its own when it is large; and octets of IMAP APPEND made durable.

The staging budget is per worker. A content above `large_octets` goes to spool/large as it arrives, so a large message costs
neither memory nor a second copy; when half the budget is used, smaller ones go to files too. Only when threads can't keep up
and the budget is spent, SpoolFull is raised.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iems._native import kernel
from iems.blobs import large_name
from iems.durable import sync_folder
from iems.errors import SpoolError, SpoolFull
from iems.model import Extent
from iems.spool.records import Kind
from iems.spool.segments import Post, create_large, spool_error

if TYPE_CHECKING:
    from iems.spool.index import Change
    from iems.spool.spool import Spool

Buffer = kernel("buffer").Buffer
crc32c = kernel("crc32c").crc32c

LARGE_OCTETS = 1 << 20
STAGING_OCTETS = 128 << 20
#: Below this a content stays in memory even when the budget is tight: a file would cost more.
_SMALL_OCTETS = 64 << 10


class Staging:
    """The memory all contents of a worker share. large_octets: above it a content gets its own file."""

    __slots__ = ("budget", "executor", "floor", "folder", "large_octets", "loop", "used")

    def __init__(
        self,
        folder: Path,
        loop: Any,
        executor: Executor,
        *,
        budget: int = STAGING_OCTETS,
        large_octets: int = LARGE_OCTETS,
        floor: Callable[[], int] = lambda: 0,
    ) -> None:
        self.folder = folder
        self.loop = loop
        self.executor = executor
        self.budget = budget
        self.large_octets = large_octets
        self.floor = floor
        self.used = 0


class LargeFile:
    """One content in a file of its own, written by a thread in the order of `write`. crc: CRC-32C of what was written."""

    __slots__ = (
        "_busy",
        "_callback",
        "_fd",
        "_finish",
        "_queue",
        "blob",
        "crc",
        "dropped",
        "error",
        "length",
        "staging",
    )

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        self.blob = 0
        self.crc = 0
        self.length = 0
        self.error: SpoolError | None = None
        self.dropped = False
        self._fd = -1
        self._queue: list[Any] = []
        self._busy = False
        self._finish = False
        self._callback: Callable[[SpoolError | None], None] | None = None

    def write(self, octets: Any) -> None:
        """Append octets, which count as staged until they are written."""
        self.length += len(octets)
        self._queue.append(octets)
        self._go()

    def finish(self, callback: Callable[[SpoolError | None], None]) -> None:
        """Flush file and folder; then `callback` on the loop. The descriptor (and its lock) stays until `close`."""
        self._finish = True
        self._callback = callback
        self._go()

    def drop(self) -> None:
        """Remove the file: nobody wants it any more."""
        self.dropped = True
        self._go()

    def close(self) -> None:
        """Let go of the file: a durable record names it now."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _go(self) -> None:
        if self._busy:
            return
        self._busy = True
        queue, self._queue = self._queue, []
        try:
            self.staging.executor.submit(self._work, queue, self._finish, self.dropped)
        except RuntimeError as error:  # closing down
            self._done(queue, SpoolError(str(error)), self._finish)

    def _work(self, queue: list[Any], finish: bool, drop: bool) -> None:
        """In a thread."""
        failed: SpoolError | None = self.error
        folder = self.staging.folder
        try:
            if failed is None and not drop:
                if self._fd < 0:
                    self.blob, self._fd = create_large(folder, self.staging.floor())
                for octets in queue:
                    view = memoryview(octets)
                    self.crc = crc32c(view, self.crc)
                    while view:
                        view = view[os.write(self._fd, view) :]
                    view.release()
                if finish:
                    os.fsync(self._fd)
                    sync_folder(folder)
        except Exception as error:
            failed = spool_error(error, "the spool can't write a large content")
        if (failed or drop) and self._fd >= 0:
            try:
                os.unlink(folder / large_name(self.blob))
            except OSError:
                pass
            self.close()
        try:
            self.staging.loop.call_soon_threadsafe(self._done, queue, failed, finish)
        except RuntimeError:  # the loop is closed
            pass

    def _done(self, queue: list[Any], failed: SpoolError | None, finished: bool) -> None:
        """On the loop."""
        self.staging.used -= sum(len(octets) for octets in queue)
        self._busy = False
        self.error = self.error or failed
        if self._callback is not None and (finished or self.error):
            callback, self._callback = self._callback, None
            callback(self.error)
        elif self._queue or (self._finish and not finished) or (self.dropped and self._fd >= 0):
            self._go()


class Content:
    """The octets of one message as they arrive: append to `buffer`, then call `check_spill`.

    `buffer` is another object after octets went to a file, so ask for it each time. Ends in `Spool.submit` or `discard`.
    """

    __slots__ = ("_counted", "_staging", "buffer", "file")

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self.buffer = Buffer()
        self.file: LargeFile | None = None
        self._counted = 0

    def __len__(self) -> int:
        return len(self.buffer) + (self.file.length if self.file else 0)

    def check_spill(self) -> None:
        """Account for what was appended; send it to a file if it is much. Raises SpoolError, SpoolFull if room or memory is out."""
        staging = self._staging
        size = len(self.buffer)
        staging.used += size - self._counted
        self._counted = size
        file = self.file
        if file is not None and file.error is not None:
            raise file.error
        if size > staging.large_octets or (size > _SMALL_OCTETS and staging.used > staging.budget // 2):
            self.spill()
        if staging.used > staging.budget:
            raise SpoolFull("the memory for incoming content is used up")

    def spill(self) -> None:
        """Send what is in memory to the content's own file."""
        if self.file is None:
            self.file = LargeFile(self._staging)
        octets, self.buffer = self.buffer, Buffer()
        self._staging.used += len(octets) - self._counted
        self._counted = 0
        self.file.write(octets)  # stays counted until the thread has written it

    def release(self) -> None:
        """Its octets are in the spool: give the memory back."""
        self._staging.used -= self._counted
        self._counted = 0
        self.buffer = Buffer()
        if self.file is not None:
            self.file.close()
            self.file = None

    def discard(self) -> None:
        """Nobody wants it (RSET, a lost connection): memory and file go."""
        file, self.file = self.file, None
        self.release()
        if file is not None:
            file.drop()


class _ContentPost(Post):
    """Octets another part will refer to."""

    __slots__ = ("future",)

    def __init__(self, id: bytes, pieces: list[Any], future: asyncio.Future[Extent]) -> None:
        super().__init__(Kind.CONTENT, id, b"", pieces)
        self.future = future

    def apply(self, change: Change) -> None:
        pass  # the segment's indexed length says that it counts

    def finish(self, error: SpoolError | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(Extent(self.blob, self.content, sum(len(piece) for piece in self.pieces)))


class ContentWriter:
    """Makes octets durable in this process's own segment, without a message (IMAP APPEND). Shares the spool's group commits."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool

    def new_content(self) -> Content:
        """An empty content to fill."""
        return self.spool.new_content()

    async def append(self, content: Content | bytes) -> Extent:
        """Where the octets stand, once they are on the disk. Raises SpoolError, SpoolFull. The content is used up.

        The store must name the extent within ten minutes: later the spool may remove its name of the segment.
        """
        loop = asyncio.get_running_loop()
        if isinstance(content, bytes):
            if len(content) <= self.spool.staging.large_octets:
                return await self._record([content])
            octets, content = content, self.spool.new_content()
            content.buffer.append(octets)
            content.check_spill()
        try:
            if content.file is None:
                return await self._record([content.buffer])
            if len(content.buffer):
                content.spill()
            file = content.file
            flushed: asyncio.Future[None] = loop.create_future()

            def done(error: SpoolError | None) -> None:
                if not flushed.done():
                    flushed.set_exception(error) if error else flushed.set_result(None)

            file.finish(done)
            await flushed
            self.spool.adopt(file.blob, file.length)
            return Extent(file.blob, 0, file.length)
        finally:
            content.release()

    async def _record(self, pieces: list[Any]) -> Extent:
        future: asyncio.Future[Extent] = asyncio.get_running_loop().create_future()
        self.spool.writer.append([_ContentPost(self.spool.new_id(), pieces, future)])
        return await future
