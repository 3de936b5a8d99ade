"""Role `api`: serves HOME/run/mta.sock (docs/api-mta.md). Input channels put mail into the INPUT queue, output channels take theirs.

An answer to insert and ack is sent when what it says is on the disk. Items in hand are leases of this worker: they return when the client
goes, when their time is over, and, as those of every worker, when this process dies.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from iems.api import wire
from iems.api.offers import Offers
from iems.api.outcomes import Outcomes
from iems.api.session import Session
from iems.blobs import Blobs
from iems.net.local import socket_path
from iems.spool.items import Item
from iems.spool.spool import Spool
from iems.spool.verify import ContentDamaged, Verifier, quarantine

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

T = TypeVar("T")

BACKLOG = 128


class Worker:
    """See the module."""

    def __init__(self, ctx: WorkerContext) -> None:
        self.ctx = ctx
        self.config = ctx.config.api
        self.loop = ctx.loop
        self.closing = False
        self._path = ctx.home / "run" / "mta.sock"
        self._sessions: dict[Session, asyncio.Task[None]] = {}
        self._tokens = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Open the spool and begin to serve."""
        ctx = self.ctx
        self.spool = Spool.open(ctx)
        #: Reads and checks contents in one thread, with descriptors of its own.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="api")
        self.blobs = Blobs(self.spool.blobs.folders, max_open=64)
        self.verifier = Verifier(self.blobs)
        self.outcomes = Outcomes(ctx, self.spool)
        self.offers = Offers(ctx.loop, self.spool, ctx.park, ctx.unpark, self._failed)
        ctx.on_wake(self.offers.look_everywhere)
        self._server = await asyncio.start_unix_server(self._client, sock=self._bind(), limit=wire.LINE_OCTETS)

    def _bind(self) -> socket.socket:
        """The socket, for its owner alone; one that a dead worker left is replaced."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._path.unlink(missing_ok=True)
        with socket_path(self._path) as name:
            sock.bind(name)
        os.chmod(self._path, 0o600)  # nobody can connect before it listens
        sock.listen(BACKLOG)
        return sock

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ctx = self.ctx
        ctx.count("sessions_total")
        if self.closing:
            writer.transport.abort()
            return
        if len(self._sessions) >= self.config.max_clients:
            ctx.count("sessions_refused_total")
            writer.write(wire.answer(None, {"error": "limit", "text": "too many clients, try again later"}))
            writer.close()
            return
        ctx.count("sessions_now")
        session = Session(self, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._sessions[session] = task
        try:
            await session.run()
        except Exception as error:
            ctx.log.error("a client's session failed", error)
        finally:
            del self._sessions[session]
            ctx.count("sessions_now", -1)

    def token(self) -> str:
        """A name for a lease that no other lease of this home has had."""
        self._tokens += 1
        return f"{self.ctx.generation:x}-{self._tokens:x}"

    async def in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """What `function` gives, from the thread that reads contents."""
        return await self.loop.run_in_executor(self._reading, function, *arguments)

    def put_aside(self, item: Item, error: ContentDamaged) -> None:
        """Quarantine a message whose octets are not those that were accepted; a person decides."""
        with self.spool.index.change() as change:
            quarantine(change, item, f"content damaged: {error.strerror}")
        self.ctx.log.event("quarantined", item.id, why="content damaged", cause=error.strerror)

    def _failed(self, error: BaseException) -> None:
        self.ctx.count("errors_total")
        self.ctx.log.error("the queue can't be read", error)

    async def drain(self, deadline_s: float) -> None:
        """Offer nothing more; clients with items in hand may settle them until the deadline, then the rest goes back."""
        self.closing = True
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)
        until = self.loop.time() + max(deadline_s - 1.0, 0.0)
        for session in list(self._sessions):
            if not len(session.leases):
                session.close()
        if self._sessions:  # each ends with its last item
            await asyncio.wait(set(self._sessions.values()), timeout=max(until - self.loop.time(), 0.0))
        for session in list(self._sessions):
            session.close()
        if self._sessions:
            await asyncio.wait(set(self._sessions.values()), timeout=0.5)
        self.offers.close()
        self._reading.shutdown(wait=True)
        self.blobs.close()
        self.spool.close()
