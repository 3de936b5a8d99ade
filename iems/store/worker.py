"""Role `store`: the writers of the mailboxes. Worker i owns the partitions p with p % workers == i (design 4).

A partition has one owner at a time, held by a lock on its folder: after a reload the new owner reports ready, and takes over when the
old one has drained; clients connect again and send what has no answer.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from iems.store.partition import Partition
from iems.store.server import Server

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

_TAKEOVER_S = 0.01


class Worker:
    """See the module."""

    def __init__(self, ctx: WorkerContext) -> None:
        self._ctx = ctx
        config = ctx.config.store
        self._store = ctx.home / config.path
        workers = max(config.workers, 1)
        self._numbers = [number for number in range(config.partitions) if number % workers == ctx.index]
        self._servers: dict[int, Server] = {}
        self._locks: list[int] = []
        self._waiting: list[asyncio.Task[None]] = []
        # The loop must get a word in while the writer thread runs Python: a push waits for it.
        sys.setswitchinterval(0.0005)

    async def start(self) -> None:
        """Serve every partition that is free; wait for the others in the background."""
        for number in self._numbers:
            folder = self._store / f"p{number}"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(folder / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._locks.append(fd)
            if _lock(fd):
                await self._serve(number, folder)
            else:
                self._waiting.append(self._ctx.loop.create_task(self._take_over(number, folder, fd)))

    async def _take_over(self, number: int, folder: Path, fd: int) -> None:
        while not _lock(fd):
            await asyncio.sleep(_TAKEOVER_S)
        try:
            await self._serve(number, folder)
        except Exception as error:
            self._end(number, error)

    async def _serve(self, number: int, folder: Path) -> None:
        ctx = self._ctx
        config = ctx.config.store
        spool = ctx.home / ctx.config.spool.path
        partition = Partition(
            folder, spool, number=number, undelete_s=config.undelete_s, copy_always=config.copy == "always"
        )
        (ctx.home / "run").mkdir(exist_ok=True)
        server = Server(
            ctx.loop,
            partition,
            ctx.home / "run" / f"store-p{number}.sock",
            broken=lambda error: self._end(number, error),
            committed=lambda requests: ctx.count("store_commits_total"),
            log_error=lambda text: ctx.log.error(text, partition=number),
        )
        await server.start()
        self._servers[number] = server

    def _end(self, number: int, error: Exception) -> None:
        """The disk failed: nothing unanswered is promised. A fresh process opens the environment anew."""
        self._ctx.log.error("a partition can't be written", error, partition=number)
        self._ctx.log.close()
        os._exit(1)

    async def drain(self, deadline_s: float) -> None:
        """Finish what waits, close, hand the partitions over."""
        for task in self._waiting:
            task.cancel()
        await asyncio.gather(*(server.drain(deadline_s) for server in self._servers.values()))
        for fd in self._locks:
            os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
