"""Mail that sites fetch themselves (ODMR, RFC 2645): it waits here until smtpd hands a connection over on which we are the client.

Such mail is never sent by MX: each item that falls due is put off to the next moment at which something is to be said about it, a notice of
delay or the end of its lifetime. A fetch takes what waits for its domains whether it is due or not, each item once, and ends with QUIT.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from iems.model import Channel, Reply
from iems.net import handover
from iems.net.handover import Given, Takings
from iems.smtpc.connections import Session
from iems.smtpc.mx import Host
from iems.smtpc.security import NEEDS
from iems.spool import keys

if TYPE_CHECKING:
    from iems.smtpc.worker import Destination, Worker

AWAITED: Final = Reply(450, 4, 1, "waits until its site fetches it by ATRN")
BROKEN: Final = Reply(450, 4, 2, "the connection on which its site fetched it ended early")
NEEDS_TLS: Final = Reply(450, 7, 30, "REQUIRETLS: waits until its site fetches it over TLS")
#: Longer than any lifetime: `backoff.decide` takes the next notice or the end instead.
AWAIT_S: Final = 1e12
#: Items taken at once, and how often others' leases are waited for, and how long.
TAKE: Final = 64
LOOKS: Final = 20
LOOK_S: Final = 0.1
#: Over one connection goes all there is.
MESSAGES: Final = 1 << 30


class Fetch:
    """One connection that a site turned round. destination: what goes over it."""

    def __init__(self, worker: Worker, destination: Destination, session: Session, given: Given) -> None:
        self._worker = worker
        self._destination = destination
        self._session = session
        self._given = given
        self._seen: set[bytes] = set()
        self._looks = 0

    def more(self) -> bool:
        """Take what waits; whether anything did."""
        worker = self._worker
        if worker._stopped:
            return False
        items = worker._spool.take_waiting(Channel.SMTPC, self._given.domains, TAKE, self._seen)
        for item in items:
            self._seen.add(keys.item_end(item))
            worker._fetched(item, self._destination, NEEDS_TLS if item.envelope.requiretls and not self._given.secure else None)
        return bool(items)

    def rested(self) -> None:
        """All that was taken is sent: the next, else QUIT."""
        worker, session = self._worker, self._session
        if session.spent or session.gone:
            session.quit()
            return
        try:
            if self.more():
                if self._destination.ready:
                    # Never from within the session's own turn.
                    worker._loop.call_soon(session.go_on)
                    return
                worker._loop.call_soon(self.rested)
                return
            if not self._seen and self._looks < LOOKS and not worker._stopped and worker._leased_elsewhere(self._given.domains):
                # All there is came just now, and a worker is putting it off this moment.
                self._looks += 1
                worker._loop.call_later(LOOK_S, self.rested)
                return
        except Exception as error:
            worker._ctx.log.error("the queue can't be read", error)
        session.quit()

    def drive(self) -> None:
        """Something came back to be sent: by this connection while it stands, else at the next fetch."""
        destination = self._destination
        if self._session.gone or self._session.spent:
            for work in list(destination.ready):
                self._worker._give_up(work, BROKEN, AWAIT_S)
        elif destination.ready:
            self._session.go_on()


class Fetches:
    """Takes connections over from smtpd. run: HOME/run; index: of this worker in its pool."""

    def __init__(self, worker: Worker, run: Path, index: int) -> None:
        self._worker = worker
        self._number = 0
        self._takings = Takings(handover.place(run, "smtpc", index), self._taken, worker._ctx.log.error)

    def close(self) -> None:
        """Take no more."""
        self._takings.close()

    async def _taken(self, sock: socket.socket, given: Given) -> None:
        worker = self._worker
        ctx = worker._ctx
        if worker._stopped or ctx.draining:
            handover.answer(sock, False)
            sock.close()
            return
        handover.answer(sock, True)
        self._number += 1
        host = Host(given.client or "localhost", given.client or "localhost", given.port)
        session = Session(
            worker._loop,
            sock,
            host,
            worker,
            helo=worker._helo,
            timeouts=worker._timeouts,
            blobs=worker._spool.blobs,
            max_messages=MESSAGES,
            need=NEEDS["off"],
            heard=worker._hearing(str(host)),
        )
        session.engine.secure = given.secure
        worker._sessions.add(session)
        ctx.count("sessions_total")
        try:
            reply = await session.opened
        except asyncio.CancelledError:
            session.stream.abort()
            raise
        if reply is not None or session.gone:
            worker._sessions.discard(session)
            ctx.log.event("fetch-failed", client=given.client, user=given.account, reply=f"{reply.code} {reply.text}" if reply is not None else "")
            return
        destination = worker._fetching(f"fetch {self._number}", given.account)
        destination.fetch = Fetch(worker, destination, session, given)
        destination.sessions.add(session)
        session.destination = destination
        destination.fetch.rested()
