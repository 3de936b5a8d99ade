"""Limits of clients and senders, as handlers and worker see them: who has too much, who talks too soon, whose mail is held.

`Flow.mail` and `Session.watched` are all that the way of a message looks at while nothing limits it. Loopback is spared unless
`smtpd.limit_loopback` says otherwise, and networks that are trusted by name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

import lmdb

from iems.model import Reply, Verdict
from iems.smtp import replies
from iems.smtpd import sessions
from iems.smtpd.outbound import hold_reason
from iems.smtpd.sessions import Clients, network_of

if TYPE_CHECKING:
    from iems.config import Smtpd
    from iems.log import Log
    from iems.smtpd.flow import Flow
    from iems.smtpd.handlers import Session
    from iems.smtpd.outbound import Outbound
    from iems.smtpd.policy import Peer, Policy

EARLY = Reply(554, 5, 1, "You spoke before the greeting was sent")
UNSYNCHRONISED = Reply(554, 5, 0, "Commands came before the answer they have to wait for")
#: Faults of the counts: nobody is limited by what can't be counted.
_FAULTS = (OSError, ValueError, lmdb.Error)


class Door:
    """What limits the sessions of a worker.

    clients, outbound: make the counts when the first client, or user, that is limited comes (None: there are no such limits); both may raise
    OSError, then this worker limits none. flow: asked for `mail` and `connection`. executor: where what blocks is done.
    """

    def __init__(
        self,
        smtpd: Smtpd,
        policy: Policy,
        flow: Flow,
        log: Log,
        count: Callable[..., None],
        clients: Callable[[], Clients],
        outbound: Callable[[], Outbound] | None = None,
        executor: Executor | None = None,
    ) -> None:
        self._policy = policy
        self._log = log
        self._count = count
        self.flow = flow
        self._make_outbound = outbound
        self._outbound: Outbound | None = None
        self._executor = executor
        self._tasks: set[asyncio.Future[None]] = set()
        self._per_ip = smtpd.max_sessions_per_ip
        self._per_network = smtpd.max_sessions_per_network
        self._session_rate = smtpd.session_rate
        self._message_rate = smtpd.message_rate
        self._recipient_rate = smtpd.recipient_rate
        self._rates = bool(self._message_rate or self._recipient_rate)
        self.limits = bool(self._per_ip or self._per_network or self._session_rate or self._rates)
        self._pipelining = smtpd.early_pipelining
        self._make_clients = clients
        self._clients: Clients | None = None
        self._failed = False

    # ---------------------------------------------------------------- clients

    def strict(self, peer: Peer) -> bool:
        """Whether a client is limited: no network that is trusted, and loopback only if the settings say so."""
        return bool(peer.ip) and not peer.trusted and self._policy.limited(peer)

    def _counts(self) -> Clients | None:
        if self._clients is None and not self._failed:
            try:
                self._clients = self._make_clients()
            except OSError as fault:
                self._failed = True
                self._log.error("clients can't be counted; none is limited by this worker", fault)
        return self._clients

    def _sender_counts(self) -> Outbound | None:
        if self._outbound is None and self._make_outbound is not None:
            try:
                self._outbound = self._make_outbound()
                self._outbound.prune()
            except _FAULTS as fault:
                self._make_outbound = None
                self._log.error("senders can't be counted; none is limited by this worker", fault)
        return self._outbound

    def enter(self, peer: Peer) -> tuple[Reply | None, tuple[bytes, ...]]:
        """A client comes: the refusal, or what its session is counted under until `leave`."""
        if not self.limits or not self.strict(peer):
            return None, ()
        clients = self._counts()
        if clients is None:
            return None, ()
        ip = clients.digest(peer.ip)
        network = clients.digest(network_of(peer.ip))
        what = ""
        if self._per_ip and clients.sessions(ip) >= self._per_ip:
            what = "sessions-per-ip"
        elif self._per_network and clients.sessions(network) >= self._per_network:
            what = "sessions-per-network"
        elif self._session_rate and clients.rate(ip, sessions.SESSIONS) >= self._session_rate:
            what = "session-rate"
        if what:
            reply = replies.TOO_FAST if what == "session-rate" else replies.TOO_MANY_OF_CLIENT
            self._count("sessions_limited_total")
            self._count("sessions_refused_total")
            self._log.event("refused", client=peer.ip, reply=_shown(reply), what=what)
            return reply, ()
        clients.enter(ip)
        clients.enter(network)
        return None, (ip, network)

    def leave(self, counted: tuple[bytes, ...]) -> None:
        """A session that `enter` let in is over."""
        if self._clients is not None:
            for digest in counted:
                self._clients.leave(digest)

    def moved(self, session: Session, peer: Peer) -> Reply | None:
        """XCLIENT: the session is another client's from now on; the refusal."""
        reply, counted = self.enter(peer)
        if reply is None:
            self.leave(session.counted)
            session.counted = counted
            session.strict = self.strict(peer)
        return reply

    # ---------------------------------------------------------------- the way of a message

    def watch(self, session: Session) -> None:
        """Note whether anything limits the messages of a session; called when its client or user has changed."""
        strict = session.strict
        user = session.engine.connection.user
        session.watched = bool(
            (strict and self._pipelining != "off")
            or (session.counted and self._rates)
            or (user and self._make_outbound is not None and self._policy.limited(session.peer))
        )

    def early(self, session: Session) -> Reply | None:
        """Commands came before an answer they have to wait for (RFC 2920 3.1): the refusal, after which the session ends."""
        if not session.strict or self._pipelining == "off":
            return None
        return self._too_soon(session, "early-pipelining", UNSYNCHRONISED, self._pipelining)

    def early_talker(self, session: Session, action: str) -> Reply | None:
        """A client spoke before the greeting (RFC 5321 3.1): the refusal, after which the session ends. action: reject or tag."""
        return self._too_soon(session, "early-talker", EARLY, action)

    def _too_soon(self, session: Session, what: str, reply: Reply, action: str) -> Reply | None:
        tag = Verdict(what, session.peer.ip, "spoke too soon")
        if action != "reject":
            if tag not in session.tags:
                self._count("early_talkers_total")
                session.tags += (tag,)
            return None
        self._count("early_talkers_total")
        self._count("sessions_refused_total")
        self._log.event("refused", client=session.peer.ip, reply=_shown(reply), what=what)
        return reply

    def mail(self, session: Session) -> Reply | None:
        """MAIL of a session that is watched, or while the door is closed: the refusal."""
        if self.flow.mail is not None:
            self._count("flow_refused_total")
            return self.flow.mail
        connection = session.engine.connection
        if not connection.esmtp and session.engine.backlog and (reply := self.early(session)) is not None:
            session.engine.close(reply)
            return reply
        session.elsewhere = []
        session.room = -1
        if connection.user:
            if self._make_outbound is not None and self._policy.limited(session.peer):
                self._sender(session, connection.user)
            return None
        if self._message_rate and session.counted:
            clients = self._clients
            assert clients is not None
            ip = session.counted[0]
            if clients.rate(ip, sessions.MESSAGES) >= self._message_rate:
                return self._limited(session, "message-rate", replies.TOO_MANY_MESSAGES)
            clients.add(ip, sessions.MESSAGES)
        return None

    def _sender(self, session: Session, user: str) -> None:
        """Find out how many recipients elsewhere this message may have."""
        senders = self._sender_counts()
        if senders is None:
            return
        try:
            session.room, first = senders.room(user)
        except _FAULTS as fault:
            self._log.error("what a sender sent can't be looked up", fault)
            return
        if first:
            self._log.event("alarm", what="sender-limit", sender=user, client=session.peer.ip)

    def rcpt(self, session: Session, address: bytes, ours: bool) -> Reply | None:
        """RCPT of a session that is watched: the refusal. ours: mail for it is taken from anyone."""
        if session.counted and self._recipient_rate and not session.engine.connection.user:
            clients = self._clients
            assert clients is not None
            ip = session.counted[0]
            if clients.rate(ip, sessions.RECIPIENTS) >= self._recipient_rate:
                return self._limited(session, "recipient-rate", replies.TOO_MANY_IN_A_MINUTE)
            clients.add(ip, sessions.RECIPIENTS)
        if not ours and session.engine.connection.user:
            if 0 <= session.room <= len(session.elsewhere):
                return self._limited(session, "sender-limit", replies.SENDER_LIMIT)
            session.elsewhere.append(address)
        return None

    def _limited(self, session: Session, what: str, reply: Reply) -> Reply:
        self._count("messages_limited_total")
        self._log.event(
            "refused",
            client=session.peer.ip,
            user=session.engine.connection.user,
            reply=_shown(reply),
            what=what,
        )
        return reply

    def content(self, session: Session) -> Reply | str:
        """Content of a session that is watched has come: why the message is to be held, or "", or the refusal."""
        user = session.engine.connection.user
        if not user or self._make_outbound is None or not self._policy.limited(session.peer):
            return ""
        senders = self._sender_counts()
        if senders is None:
            return ""
        try:
            found = senders.sent(user, network_of(session.peer.ip), session.elsewhere)
        except _FAULTS as fault:
            self._log.error("what a sender sends can't be counted", fault)
            return ""
        if found.over:
            return self._limited(session, "sender-limit", replies.SENDER_LIMIT)
        why = found.held
        if found.news:
            self._log.event("alarm", what="sender-takeover", sender=user, client=session.peer.ip, why=why)
            self._count("takeovers_total")
            self._in_thread(senders, user, why)
        if why:
            self._count("messages_held_total")
            return hold_reason(user, why)
        return ""

    def _in_thread(self, senders: Outbound, user: str, why: str) -> None:
        """Put a sender on the list that survives everything."""
        work: Any = asyncio.get_running_loop().run_in_executor(
            self._executor, senders.held.change, user, why, int(time.time())
        )
        self._tasks.add(work)
        work.add_done_callback(self._listed)

    def _listed(self, work: asyncio.Future[None]) -> None:
        self._tasks.discard(work)
        if not work.cancelled() and (fault := work.exception()) is not None:
            self._log.error("a sender can't be put on the list of those on hold", fault)

    async def close(self) -> None:
        """Finish what is being written."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)
        self.flow.leave()
        if self._outbound is not None:
            self._outbound.close()


def _shown(reply: Reply) -> str:
    return f"{reply.code} {reply.status} {reply.text}"
