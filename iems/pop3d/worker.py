"""Sockets, timers and draining of pop3d: everything between the loop and the sessions."""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import TYPE_CHECKING

from iems.directory import Authenticator, Directory, expiry
from iems.errors import DirectoryUnavailable
from iems.net.reception import Reception
from iems.pop3d.handlers import Services, Session
from iems.pop3d.locks import MaildropLocks
from iems.pop3d.wheel import Wheel
from iems.store.client import StoreClient
from iems.store.reader import Reader

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

TICK_S = 1.0
REFUSAL = b"-ERR [SYS/TEMP] Too many sessions, try again later\r\n"


class Worker:
    """A process that serves POP3."""

    def __init__(self, ctx: WorkerContext) -> None:
        config = ctx.config
        self.ctx = ctx
        self.reception: Reception[Session] = Reception(ctx, config.pop3d.max_sessions, REFUSAL)
        self.directory = Directory(ctx.home / "directory")
        self.authenticator = Authenticator.of(self.directory, config, ctx.home, ctx.log)
        self.reader = Reader(config.store_path(ctx.home))
        self.store = StoreClient(ctx.loop, ctx.home / "run", partition_of=self._partition)
        self.locks = MaildropLocks(ctx.home / "run" / "pop3.lock")
        self.wheel = Wheel(TICK_S)
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
        self._ticking: asyncio.TimerHandle | None = None

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
        self.reception.listen("pop3", functools.partial(self._accept, False))
        self.reception.listen("pop3s", functools.partial(self._accept, True), implicit_tls=True)

    def _accept(self, implicit: bool, sock: socket.socket) -> None:
        Session(self.services, sock, implicit)

    def _opened(self, session: Session) -> None:
        self.reception.opened(session)
        self.wheel.add(session, self.ctx.loop.time())
        if self._ticking is None:
            self._ticking = self.ctx.loop.call_later(TICK_S, self._tick)

    def _closed(self, session: Session) -> None:
        self.wheel.remove(session)
        self.reception.closed(session)

    def _tick(self) -> None:
        self.wheel.turn(self.ctx.loop.time())
        # Without sessions there is nothing to time: an idle worker makes no wake-ups.
        self._ticking = self.ctx.loop.call_later(TICK_S, self._tick) if self.reception.sessions else None

    async def retire(self) -> None:
        """A new generation accepts: let open sessions end by themselves."""
        await self.reception.retire()

    async def drain(self, deadline_s: float) -> None:
        """Stop accepting, let what is under way finish, end the rest; what was marked stays in the maildrop."""
        await self.reception.drain(deadline_s, Session.drain)
        if self._ticking is not None:
            self._ticking.cancel()
        self.authenticator.close()
        self.store.close()
        self.reader.close()
        self.locks.close()
        self.directory.close()
