"""The imapd process: listening sockets, one sweep for all timeouts, draining."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

from iems.directory import Authenticator, Directory
from iems.fulltext.finder import Finder
from iems.fulltext.index import available
from iems.imapd.engine import Limits
from iems.imapd.keep import Keeper
from iems.imapd.services import Services
from iems.imapd.session import Session
from iems.net.stream import Server, last_descriptor, serve
from iems.store.client import StoreClient
from iems.store.reader import Reader

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

#: How often sessions are looked over for timeouts; a timeout is late by at most this.
SWEEP_S = 10.0
_REFUSAL = b"* BYE [UNAVAILABLE] Too many connections, try again later\r\n"


class Worker:
    """See the module."""

    def __init__(self, ctx: WorkerContext) -> None:
        self.ctx = ctx
        config = ctx.config
        self.directory = Directory(ctx.home / "directory")
        self.authenticator = Authenticator.of(self.directory, config, ctx.home, ctx.log)
        self.reader = Reader(config.store_path(ctx.home))
        self.finder = (
            Finder(ctx.loop, config.store_path(ctx.home) / "search", self.reader, ctx.log.event, ctx.log.error)
            if config.imapd.fulltext_from and available()
            else None
        )
        self._partitions: dict[int, int] = {}
        self.store = StoreClient(ctx.loop, ctx.home / "run", partition_of=self._partition_of)
        self.keeper = Keeper(ctx)
        self.sessions: set[Session] = set()
        self.last_descriptor = last_descriptor()
        self._servers: list[Server] = []
        self._sweeping: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event = asyncio.Event()
        self._draining = False
        self.services = Services(
            loop=ctx.loop,
            reader=self.reader,
            store=self.store,
            authenticator=self.authenticator,
            content=self.keeper,
            hostname=ctx.hostname,
            tls=ctx.tls,
            plaintext=config.auth.plaintext,
            limits=Limits(content=config.imapd.append_limit),
            max_failures=config.auth.max_failures,
            log=ctx.log.event,
            error=ctx.log.error,
            count=ctx.count,
            gone=self._gone,
            know=self._know,
            directory=self.directory,
            finder=self.finder,
            fulltext_from=config.imapd.fulltext_from,
        )

    def _know(self, account: Any) -> None:
        self._partitions[account.number] = account.partition

    def _partition_of(self, number: int) -> int:
        return self._partitions[number]

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Accept connections."""
        for name, implicit_tls in (("imap", False), ("imaps", True)):
            if implicit_tls and self.ctx.tls is None:
                continue
            for sock in self.ctx.sockets.get(name, ()):
                self._servers.append(serve(self.ctx.loop, sock, self._acceptor(implicit_tls), _REFUSAL))
        self._sweeping = self.ctx.loop.call_later(SWEEP_S, self._sweep)

    def _acceptor(self, implicit_tls: bool) -> Any:
        def accept(sock: socket.socket) -> None:
            limit = self.ctx.config.imapd.max_sessions
            full = sock.fileno() >= self.last_descriptor
            if full or (limit and self.ctx.total("sessions_now") >= limit):
                self.ctx.count("sessions_refused_total")
                with sock, contextlib.suppress(OSError):
                    sock.setblocking(False)
                    if not implicit_tls:
                        sock.send(_REFUSAL)
                return
            session = Session(self.services)
            self.sessions.add(session)
            self._counted()
            self.ctx.count("sessions_total")
            session.connect(sock, implicit_tls)

        return accept

    def _gone(self, session: Session) -> None:
        self.sessions.discard(session)
        self._counted()
        if not self.sessions:
            self._empty.set()

    def _counted(self) -> None:
        self.ctx.gauge("sessions_now", len(self.sessions))

    def _sweep(self) -> None:
        """Close what was silent too long; one pass over all sessions instead of a timer for each."""
        config = self.ctx.config.imapd
        now = self.ctx.loop.time()
        for session in list(self.sessions):
            silent_s = now - session.active_s
            if session.number == 0:
                if silent_s > config.login_timeout_s:
                    session.expire("Login timed out")
            elif silent_s > config.timeout_s:
                session.expire("Autologout; idle for too long")
        self._sweeping = self.ctx.loop.call_later(SWEEP_S, self._sweep)

    def _stop_accepting(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def retire(self) -> None:
        """Stop accepting; return when the last session has ended."""
        self._stop_accepting()
        while self.sessions:
            self._empty.clear()
            await self._empty.wait()

    async def drain(self, deadline_s: float) -> None:
        """BYE to idle sessions, to the others after their command; what is left at the deadline is cut off."""
        self._stop_accepting()
        for session in list(self.sessions):
            session.bye("Server is shutting down")
        until = self.ctx.loop.time() + deadline_s
        while self.sessions and (left := until - self.ctx.loop.time()) > 0:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), left)
        for session in list(self.sessions):
            session.stream.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self.finder is not None:
            await self.finder.close()
        await self.keeper.close()
        self.store.close()
        self.authenticator.close()
        self.reader.close()
