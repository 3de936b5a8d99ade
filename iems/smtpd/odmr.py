"""ATRN (RFC 2645): a site without a fixed address logs in and fetches the mail that waits for its domains, as server on its own connection.

Here the request is decided and a worker of the relay asked to be the client; `worker.py` then carries octets between the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from iems.model import Channel, Reply
from iems.net import handover
from iems.smtp import replies
from iems.spool.requeue import anything_waits

if TYPE_CHECKING:
    from iems.config import OdmrAccount
    from iems.smtpd.engine import Atrn
    from iems.smtpd.handlers import Handlers, Session
    from iems.spool import Spool


class Reversals:
    """Turns connections of one worker round. accounts: whose mail is whose. run: HOME/run."""

    def __init__(self, spool: Spool, accounts: Iterable[OdmrAccount], run: Path) -> None:
        self._spool = spool
        self._run = run
        self._domains: dict[str, tuple[str, ...]] = {}
        for entry in accounts:
            own = self._domains.get(entry.account.lower(), ())
            self._domains[entry.account.lower()] = own + tuple(domain.lower() for domain in entry.domains)

    def domains(self, account: str, asked: tuple[str, ...]) -> tuple[str, ...] | None:
        """The domains whose mail an account gets; None if it may not have that of all it asked for. asked: () for all of its own."""
        own = self._domains.get(account.lower(), ())
        if not own or not set(asked) <= set(own):
            return None
        return asked or own

    def begin(self, handlers: Handlers, session: Session, event: Atrn) -> Reply | None:
        """The reply to ATRN; None if it comes once the relay was asked."""
        account = session.engine.connection.user
        domains = self.domains(account, event.domains)
        if domains is None:
            handlers.log.event("refused", client=session.peer.ip, what="atrn", user=account, domains=",".join(event.domains))
            return replies.ATRN_REFUSED
        try:
            if not anything_waits(self._spool, int(Channel.SMTPC), domains):
                return replies.NO_MAIL_WAITS
        except lmdb.Error as fault:
            handlers.log.error("the queue can't be read", fault)
            return replies.ATRN_NOT_NOW
        handlers.later(self._reverse(handlers, session, domains))
        return None

    async def _reverse(self, handlers: Handlers, session: Session, domains: tuple[str, ...]) -> None:
        connection = session.engine.connection
        given = handover.Given(
            client=session.peer.ip, account=connection.user, domains=domains, secure=connection.secure
        )
        reply = replies.REVERSING
        try:
            session.other_end = await handover.give(self._run, "smtpc", given)
        except Exception as fault:
            handlers.log.error("no worker of the relay takes a reversed connection", fault)
            reply = replies.ATRN_NOT_NOW
        else:
            handlers.count("atrn_total")
            handlers.log.event("atrn", client=given.client, user=given.account, domains=",".join(domains))
        handlers.pending -= 1
        session.answer(reply)
        end, session.other_end = session.other_end, None
        if end is not None:  # the client left meanwhile
            end.close()


__all__ = ["Reversals"]
