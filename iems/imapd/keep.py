"""Content of APPEND on its way to the store: staged by the spool, summarized, made durable in this worker's own segment."""

from __future__ import annotations

import asyncio
import mmap
from typing import TYPE_CHECKING, Any

from iems.errors import SpoolError, SpoolFull
from iems.message import summarize
from iems.model import Extent, Rope
from iems.spool import Content, ContentWriter, Spool

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

#: Larger contents are summarized in a thread, and only this many of them at once.
THREAD_OCTETS = 256 * 1024
LARGE_AT_ONCE = 2


class Body:
    """One content as it arrives."""

    __slots__ = ("_length", "content")

    def __init__(self, content: Content) -> None:
        self.content: Content | None = content
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def write(self, view: memoryview) -> None:
        """Take octets. Raises SpoolFull if there is no room for them."""
        content = self.content
        if content is None:
            return
        try:
            content.buffer.append(view)
            content.check_spill()
        except SpoolFull:
            raise
        except SpoolError as fault:
            raise SpoolFull(str(fault)) from fault
        self._length += len(view)

    def abandon(self) -> None:
        """Give memory and file back, unless the content was kept."""
        content, self.content = self.content, None
        if content is not None:
            content.discard()


class Keeper:
    """What `Services.content` is in a worker."""

    def __init__(self, ctx: WorkerContext) -> None:
        self._loop = ctx.loop
        self._spool = Spool.open(ctx)
        self._writer = ContentWriter(self._spool)
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    def new(self, size: int) -> Body:
        """An empty content; `size` octets are announced."""
        return Body(self._writer.new_content())

    async def keep(self, body: Body) -> tuple[Rope, bytes, bytes, bool]:
        """(rope, ENVELOPE, BODYSTRUCTURE, whether no line starts with a dot), durable. Raises SpoolError."""
        content, body.content = body.content, None
        if content is None:
            raise SpoolError("the content was given up")
        if content.file is None:
            octets = bytes(content.buffer)
            try:
                if len(octets) <= THREAD_OCTETS:
                    envelope, structure, dot_free = _examine(octets)
                else:
                    async with self._large:
                        envelope, structure, dot_free = await self._loop.run_in_executor(
                            None, _examine, octets
                        )
            except BaseException:
                content.discard()
                raise
            del octets
            extent = await self._writer.append(content)
        else:
            extent = await self._writer.append(content)
            async with self._large:
                envelope, structure, dot_free = await self._loop.run_in_executor(
                    None, self._examine_file, extent
                )
        return [extent], envelope, structure, dot_free

    def _examine_file(self, extent: Extent) -> tuple[bytes, bytes, bool]:
        """Summarize a content from its own file; called in a thread."""
        path = self._spool.staging.folder / f"{extent.blob:016x}.blob"
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), extent.length, access=mmap.ACCESS_READ) as octets,
        ):
            return _examine(octets)

    async def close(self) -> None:
        """Seal the segment."""
        self._spool.close()


def _examine(octets: Any) -> tuple[bytes, bytes, bool]:
    envelope, structure = summarize(octets)
    dot_free = octets[:1] != b"." and octets.find(b"\n.") < 0
    return envelope, structure, dot_free
