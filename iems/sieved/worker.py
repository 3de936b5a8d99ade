"""Sockets and draining of sieved: everything between the loop and the sessions."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from iems.directory import Authenticator, Directory
from iems.net.reception import Reception
from iems.sieved.handlers import Services, Session

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

REFUSAL = b'BYE (TRYLATER) "Too many sessions, try again later"\r\n'


class Worker:
    """A process that serves ManageSieve."""

    def __init__(self, ctx: WorkerContext) -> None:
        config = ctx.config
        self.ctx = ctx
        self.reception: Reception[Session] = Reception(ctx, config.sieved.max_sessions, REFUSAL)
        self.directory = Directory(ctx.home / "directory", who="sieved")
        self.authenticator = Authenticator.of(self.directory, config, ctx.home, ctx.log)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="scripts")
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
            opened=self.reception.opened,
            closed=self.reception.closed,
        )

    async def start(self) -> None:
        """Begin to accept."""
        self.reception.listen("sieve", functools.partial(Session, self.services))

    async def retire(self) -> None:
        """A new generation accepts: let open sessions end by themselves."""
        await self.reception.retire()

    async def drain(self, deadline_s: float) -> None:
        """Stop accepting, let what is under way finish, end the rest."""
        await self.reception.drain(deadline_s, Session.drain)
        self.pool.shutdown(wait=True)
        self.authenticator.close()
        self.directory.close()
