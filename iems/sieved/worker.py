"""Sockets and draining of sieved: everything between the loop and the sessions."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from iems.directory import Authenticator, Directory
from iems.net.stream import Server, last_descriptor, serve
from iems.sieved.handlers import Services, Session

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

LISTENER = "sieve"
REFUSAL = b'BYE (TRYLATER) "Too many sessions, try again later"\r\n'


class Worker:
    """A process that serves ManageSieve."""

    def __init__(self, ctx: WorkerContext) -> None:
        config = ctx.config
        self.ctx = ctx
        self.max_sessions = config.sieved.max_sessions
        self.last_descriptor = last_descriptor()
        self.directory = Directory(ctx.home / "directory", who="sieved")
        self.authenticator = Authenticator.of(self.directory, config, ctx.home, ctx.log)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="scripts")
        self.sessions: set[Session] = set()
        self.services = Services(
            loop=ctx.loop,
            directory=self.directory,
            store=config.store_path(ctx.home),
            authenticator=self.authenticator,
            pool=self.pool,
            tls=ctx.tls,
            plaintext=config.auth.plaintext,
            timeout_s=config.sieved.timeout_s,
            login_timeout_s=config.sieved.login_timeout_s,
            max_failures=config.auth.max_failures,
            count=ctx.count,
            event=ctx.log.event,
            error=ctx.log.error,
            opened=self._opened,
            closed=self._closed,
        )
        self._servers: list[Server] = []
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self) -> None:
        """Begin to accept."""
        for sock in self.ctx.sockets.get(LISTENER, ()):
            self._servers.append(serve(self.ctx.loop, sock, self._accept, refusal=REFUSAL))

    def _accept(self, sock: socket.socket) -> None:
        limit = self.max_sessions
        if sock.fileno() >= self.last_descriptor or (limit and self.ctx.total("sessions_now") >= limit):
            self.ctx.count("sessions_refused_total")
            try:
                sock.send(REFUSAL)
            except OSError:
                pass
            sock.close()
            return
        Session(self.services, sock)

    def _opened(self, session: Session) -> None:
        self.sessions.add(session)
        self._empty.clear()
        self.ctx.count("sessions_total")
        self.ctx.count("sessions_now")

    def _closed(self, session: Session) -> None:
        self.sessions.discard(session)
        self.ctx.count("sessions_now", -1)
        if not self.sessions:
            self._empty.set()

    def _stop_accepting(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def retire(self) -> None:
        """A new generation accepts: let open sessions end by themselves."""
        self._stop_accepting()
        await self._empty.wait()

    async def drain(self, deadline_s: float) -> None:
        """Stop accepting, let what is under way finish, end the rest."""
        self._stop_accepting()
        for session in list(self.sessions):
            session.drain()
        try:
            await asyncio.wait_for(self._empty.wait(), deadline_s)
        except TimeoutError:
            for session in list(self.sessions):
                session.stream.abort()
            await asyncio.sleep(0)
        self.pool.shutdown(wait=True)
        self.authenticator.close()
        self.directory.close()
