"""The imapd process: listening sockets, one sweep for all timeouts, draining."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from typing import TYPE_CHECKING, Any

from iems.directory import Authenticator, Directory
from iems.errors import DirectoryUnavailable
from iems.fulltext.finder import Finder
from iems.fulltext.index import available
from iems.imapd import warming
from iems.imapd.engine import Limits
from iems.imapd.keep import Keeper
from iems.imapd.services import Services
from iems.imapd.session import Session
from iems.net.reception import Reception
from iems.store.client import StoreClient
from iems.store.quota import DomainRoom
from iems.store.reader import Reader

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

#: How often sessions are looked over for timeouts; a timeout is late by at most this.
SWEEP_S = 10.0
#: Until a full-text index is begun after the search that found none.
QUIET_S = 1.0
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
            Finder(ctx.loop, config.store_path(ctx.home) / "search", self.reader, ctx.log.event, ctx.log.error, QUIET_S)
            if config.imapd.fulltext_from and available()
            else None
        )
        self._partitions: dict[int, int] = {}
        self._room = DomainRoom(lambda: self.reader, config.store.partitions)
        self.store = StoreClient(ctx.loop, ctx.home / "run", partition_of=self._partition_of)
        self.keeper = Keeper(ctx)
        self.reception: Reception[Session] = Reception(ctx, config.imapd.max_sessions, _REFUSAL)
        self._sweeping: asyncio.TimerHandle | None = None
        self._warming: asyncio.Task[None] | None = None
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
            gone=self.reception.closed,
            know=self._know,
            now_known=self._now_known,
            domain_room=self._domain_room,
            directory=self.directory,
            finder=self.finder,
            fulltext_from=config.imapd.fulltext_from,
        )

    def _know(self, account: Any) -> None:
        self._partitions[account.number] = account.partition

    def _now_known(self, account: Any) -> Any:
        """The account as the directory has it now."""
        try:
            return self.directory.account_by_number(account.number) or account
        except DirectoryUnavailable:
            return account

    def _domain_room(self, account: Any) -> int | None:
        return self._room.of(self._now_known(account))

    def _partition_of(self, number: int) -> int:
        # Asked each time: an account may be moved while its sessions go on.
        try:
            found = self.directory.account_by_number(number)
        except DirectoryUnavailable:
            found = None
        return found.partition if found is not None else self._partitions[number]

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Accept connections."""
        self.reception.listen("imap", functools.partial(self._accept, False))
        self.reception.listen("imaps", functools.partial(self._accept, True), implicit_tls=True)
        self._sweeping = self.ctx.loop.call_later(SWEEP_S, self._sweep)
        if mailboxes := warming.noted(self.ctx.home / "run"):
            self._warming = self.ctx.loop.create_task(self._warm(mailboxes))

    async def _warm(self, mailboxes: list[warming.Held]) -> None:
        try:
            await warming.warm(self.services, mailboxes)
        except Exception as fault:
            # What was not read is read when it is asked for.
            self.ctx.log.error("reading mailboxes beforehand", fault)

    def _accept(self, implicit_tls: bool, sock: socket.socket) -> None:
        session = Session(self.services)
        self.reception.opened(session)
        session.connect(sock, implicit_tls)

    def _sweep(self) -> None:
        """Close what was silent too long or may no longer read what it has selected; one pass over all sessions instead of a timer for each."""
        config = self.ctx.config.imapd
        now = self.ctx.loop.time()
        for session in list(self.reception.sessions):
            silent_s = now - session.active_s
            if session.number == 0:
                if silent_s > config.login_timeout_s:
                    session.expire("Login timed out")
            elif silent_s > config.timeout_s:
                session.expire("Autologout; idle for too long")
            elif session.running is None:
                session.may_go_on()
        self._sweeping = self.ctx.loop.call_later(SWEEP_S, self._sweep)

    async def retire(self) -> None:
        """Stop accepting; return when the last session has ended."""
        await self.reception.retire()

    async def drain(self, deadline_s: float) -> None:
        """BYE to idle sessions, to the others after their command; what is left at the deadline is cut off."""
        await self.reception.drain(deadline_s, lambda session: session.bye("Server is shutting down"))
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._warming is not None:
            self._warming.cancel()
        with contextlib.suppress(OSError):
            warming.note(self.ctx.home / "run", self.ctx.index, self.services)
        if self.finder is not None:
            await self.finder.close()
        await self.keeper.close()
        self.store.close()
        self.authenticator.close()
        self.reader.close()
