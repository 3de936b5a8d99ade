"""Sockets, timers and draining of pop3d: everything between the loop and the sessions."""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import TYPE_CHECKING

from iems.directory import Authenticator, Directory, expiry
from iems.errors import DirectoryUnavailable
from iems.net.stream import Server, last_descriptor, serve
from iems.pop3d.handlers import Services, Session
from iems.pop3d.locks import MaildropLocks
from iems.pop3d.wheel import Wheel
from iems.store.client import StoreClient
from iems.store.reader import Reader

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

LISTENERS = ("pop3", "pop3s")
TICK_S = 1.0
REFUSAL = b"-ERR [SYS/TEMP] Too many sessions, try again later\r\n"


class Worker:
    """A process that serves POP3."""

    def __init__(self, ctx: WorkerContext) -> None:
        config = ctx.config
        self.ctx = ctx
        self.max_sessions = config.pop3d.max_sessions
        self.last_descriptor = last_descriptor()
        self.directory = Directory(ctx.home / "directory")
        self.authenticator = Authenticator.of(self.directory, config, ctx.home, ctx.log)
        self.reader = Reader(config.store_path(ctx.home))
        self.store = StoreClient(ctx.loop, ctx.home / "run", partition_of=self._partition)
        self.locks = MaildropLocks(ctx.home / "run" / "pop3.lock")
        self.wheel = Wheel(TICK_S)
        self.sessions: set[Session] = set()
        self.services = Services(
            loop=ctx.loop,
            hostname=ctx.hostname,
            reader=self.reader,
            store=self.store,
            authenticator=self.authenticator,
            locks=self.locks,
            tls=ctx.tls,
            plaintext=config.auth.plaintext,
            timeout_s=config.pop3d.timeout_s,
            login_timeout_s=config.pop3d.login_timeout_s,
            max_failures=config.auth.max_failures,
            count=ctx.count,
            event=ctx.log.event,
            error=ctx.log.error,
            opened=self._opened,
            closed=self._closed,
            expire=self._expire,
        )
        self._servers: list[Server] = []
        self._ticking: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    def _expire(self, address: str) -> str:
        """What CAPA says of expiry; rules that can't be read promise nothing: 0 (RFC 2449 6.7)."""
        try:
            return expiry.pop3(self.directory.expiry(), address)
        except DirectoryUnavailable:
            return "0"

    def _partition(self, account: int) -> int:
        try:
            found = self.directory.account_by_number(account)
        except DirectoryUnavailable:
            found = None
        return found.partition if found is not None else 0

    async def start(self) -> None:
        """Begin to accept."""
        for listener in LISTENERS:
            implicit = listener == "pop3s"
            if implicit and self.ctx.tls is None:
                continue
            for sock in self.ctx.sockets.get(listener, ()):
                self._servers.append(
                    serve(
                        self.ctx.loop,
                        sock,
                        functools.partial(self._accept, implicit),
                        refusal=b"" if implicit else REFUSAL,
                    )
                )

    def _accept(self, implicit: bool, sock: socket.socket) -> None:
        limit = self.max_sessions
        if sock.fileno() >= self.last_descriptor or (limit and self.ctx.total("sessions_now") >= limit):
            self.ctx.count("sessions_refused_total")
            try:
                if not implicit:
                    sock.send(REFUSAL)
            except OSError:
                pass
            sock.close()
            return
        Session(self.services, sock, implicit)

    def _opened(self, session: Session) -> None:
        self.sessions.add(session)
        self._empty.clear()
        self.ctx.count("sessions_total")
        self.ctx.count("sessions_now")
        self.wheel.add(session, self.ctx.loop.time())
        if self._ticking is None:
            self._ticking = self.ctx.loop.call_later(TICK_S, self._tick)

    def _closed(self, session: Session) -> None:
        self.wheel.remove(session)
        self.sessions.discard(session)
        self.ctx.count("sessions_now", -1)
        if not self.sessions:
            self._empty.set()

    def _tick(self) -> None:
        self.wheel.turn(self.ctx.loop.time())
        # Without sessions there is nothing to time: an idle worker makes no wake-ups.
        self._ticking = self.ctx.loop.call_later(TICK_S, self._tick) if self.sessions else None

    def _stop_accepting(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def retire(self) -> None:
        """A new generation accepts: let open sessions end by themselves."""
        self._stop_accepting()
        await self._empty.wait()

    async def drain(self, deadline_s: float) -> None:
        """Stop accepting, let what is under way finish, end the rest; what was marked stays in the maildrop."""
        self._stop_accepting()
        for session in list(self.sessions):
            session.drain()
        try:
            await asyncio.wait_for(self._empty.wait(), deadline_s)
        except TimeoutError:
            for session in list(self.sessions):
                session.stream.abort()
            await asyncio.sleep(0)
        if self._ticking is not None:
            self._ticking.cancel()
        self.authenticator.close()
        self.store.close()
        self.reader.close()
        self.locks.close()
        self.directory.close()
