"""What a session's events do: look recipients up, check logins, make content durable. The only way to a 250 after content
leads through `spool.submit`: its callback answers the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from iems.directory.login import settle
from iems.directory.peers import NONE, Peers
from iems.directory.peers import Peer as Profile
from iems.errors import DirectoryUnavailable, LoginHeldBack, SpoolError, SpoolFull
from iems.model import Channel, Envelope, Reply, id_text
from iems.sasl import NOTHING, Challenge, Offer, Refused, encode
from iems.smtp import received, replies
from iems.smtp.grammar import Mail, Path, Rcpt, rcpt
from iems.smtpd.engine import (
    Atrn,
    Begin,
    Engine,
    Etrn,
    Expand,
    Hello,
    Login,
    Settings,
    StartTls,
    Transaction,
    Verify,
    Xclient,
)
from iems.smtpd.policy import SUBMISSION, Peer, Policy
from iems.smtpd.screen import Findings, Refusal, Screening
from iems.smtpd.senders import TOO_MANY, Arrival
from iems.spool.items import Message

if TYPE_CHECKING:
    import socket

    from iems.config import Config
    from iems.directory import Resolution
    from iems.directory.login import Logins
    from iems.log import Log
    from iems.model import Verdict
    from iems.smtpd.door import Door
    from iems.smtpd.etrn import QueueRuns
    from iems.smtpd.odmr import Reversals
    from iems.smtpd.relays import RelayChecks
    from iems.smtpd.screen import Screen
    from iems.smtpd.senders import Senders
    from iems.spool import Spool

#: Resolutions remembered for the time the directory does not answer (beyond.md 3.10).
KNOWN_RECIPIENTS = 16_384
#: Of a log-in name in the log.
LOGGED_CHARACTERS = 320


def settings_of(config: Config, listener: str, offer: Offer = NOTHING) -> Settings:
    """The engine's settings for a listener (a name in `worker.LISTENERS`, or "reversed": a connection of ours turned round). offer: of AUTH."""
    smtpd = config.smtpd
    return Settings(
        hostname=config.hostname.encode(),
        banner=smtpd.banner.encode("ascii", "replace") or b"IEMS",
        qualify=config.domain.encode() if smtpd.qualify else b"",
        lmtp=listener == "lmtp",
        size_limit=smtpd.size_limit,
        max_recipients=smtpd.max_recipients,
        max_errors=smtpd.max_errors,
        content_line_octets=smtpd.content_line_octets,
        normalise=smtpd.bare_lf == "normalise",
        offer=offer if listener != "reversed" else NOTHING,
        etrn=smtpd.etrn and listener not in ("lmtp", "odmr", "reversed"),
        odmr=listener == "odmr",
        max_messages=smtpd.max_messages,
        max_recipient_domains=smtpd.max_recipient_domains,
    )


class Session:
    """One client: its engine and what is known of it. Whoever owns it says in `turned` what becomes of the output."""

    __slots__ = (
        "_prefix",
        "_prefix_of",
        "_running",
        "arrival",
        "cause",
        "counted",
        "elsewhere",
        "engine",
        "handlers",
        "listener",
        "login_failures",
        "other_end",
        "peer",
        "peers",
        "profile",
        "room",
        "screening",
        "strict",
        "tags",
        "tls_offered",
        "tls_text",
        "watched",
    )

    def __init__(
        self, handlers: Handlers, engine: Engine, listener: str, peer: Peer, tls_offered: bool
    ) -> None:
        self.handlers = handlers
        self.engine = engine
        self.listener = listener
        self.peer = peer
        self.peers = NONE
        self.profile: Profile | None = None
        self.tls_offered = tls_offered
        self.tls_text = b""
        self.login_failures = 0
        #: How far the header of this user's content was looked at; None while nobody does.
        self.arrival: Arrival | None = None
        #: To the relay's worker that will be the client on this connection, from the answer to ATRN until the octets are joined.
        self.other_end: socket.socket | None = None
        #: (check, subject) of the refusal that is about to be sent, where a check made it; whoever keeps refusals takes it.
        self.cause: tuple[str, str] | None = None
        #: What the screen knows of this client and its transaction; None while nothing is in force.
        self.screening: Screening | None = None
        #: Whether limits of clients, and of messages, are to be looked at (`Door`).
        self.strict = False
        self.watched = False
        #: What the client is counted under; what it did too soon, where that is tagged.
        self.counted: tuple[bytes, ...] = ()
        self.tags: tuple[Verdict, ...] = ()
        #: Recipients elsewhere of the transaction, and how many its user may have; -1: any number.
        self.elsewhere: list[bytes] = []
        self.room = -1
        engine.may_xclient = peer.xclient
        self._running = False
        self._prefix = b""
        self._prefix_of: tuple[Any, ...] = ()

    def turn(self) -> bytes:
        """Let the engine work through what came, event by event; the output to send."""
        engine = self.engine
        handlers = self.handlers
        actions = handlers.actions
        self._running = True
        while (event := engine.next_event()) is not None:
            try:
                reply = actions[type(event)](self, event)
            except Exception as fault:
                # Ours, not the client's: it may try again, and learns nothing of the cause.
                handlers.log.error("event failed", fault)
                handlers.count("errors_total")
                reply = replies.LOCAL_ERROR
            if reply is not None and not engine.reply(reply):
                break
        self._running = False
        engine.keep()
        transaction = engine.transaction
        if transaction is not None and transaction.sink is not None and transaction.decoder.octets:
            handlers.spill(self)
        if engine.refused is not None:
            handlers.content_refused(self, engine.refused)
            engine.refused = None
        return engine.take_output()

    def answer(self, reply: Reply) -> None:
        """The reply to an event that an action answered with None."""
        self.engine.reply(reply)
        if not self._running:
            self.turned(self.turn())

    def turned(self, out: bytes) -> None:
        """A turn brought about by `answer` is over."""
        raise NotImplementedError

    def received_prefix(self, utf8: bool) -> bytes:
        """The Received line up to the id, kept while nothing in it changes."""
        connection = self.engine.connection
        key = (connection.helo, connection.esmtp, connection.secure, connection.user, utf8, self.peer)
        if self._prefix_of != key:
            settings = self.engine.settings
            protocol = received.protocol(
                lmtp=settings.lmtp,
                esmtp=connection.esmtp,
                secure=connection.secure,
                authenticated=bool(connection.user),
                utf8=utf8,
            )
            self._prefix = received.prefix(
                helo=connection.helo,
                client_ip=self.peer.ip,
                by=settings.hostname,
                protocol=protocol,
                tls=self.tls_text,
            )
            self._prefix_of = key
        return self._prefix


class Lookup(Protocol):
    """What is asked of the directory. seen: the version its last answer belongs to."""

    @property
    def seen(self) -> int:
        """The version of the directory its last answer belongs to."""

    def resolve(self, address: bytes) -> Resolution:
        """Where mail to an address goes. Raises DirectoryUnavailable."""


class Handlers:
    """The effects of all sessions of a worker.

    screen: who is turned away; None for nobody. senders: whose addresses users may send from; None for anybody's.
    door: limits of clients and senders, None for none. etrn: starts queue runs, None for none. reversals: answers ATRN, None refuses it.
    peers: gives the peer-domain profiles. relays: looks at recipients of relay domains, None to take all. count: adds to a counter of the board. clock_ns: wall clock. spawn: runs a coroutine, by default as
    a task of the loop.
    `pending` counts answers that are still to come; `actions` answers an event with a reply, or None if it comes later.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        spool: Spool,
        directory: Lookup,
        authenticator: Logins,
        log: Log,
        count: Callable[..., None],
        peers: Callable[[], Peers] = lambda: NONE,
        relays: RelayChecks | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        spawn: Callable[[Coroutine[Any, Any, None]], None] | None = None,
        screen: Screen | None = None,
        senders: Senders | None = None,
        door: Door | None = None,
        etrn: QueueRuns | None = None,
        reversals: Reversals | None = None,
    ) -> None:
        self.policy = policy
        self.screen = screen
        self.senders = senders
        self.door = door
        self.etrn = etrn
        self.reversals = reversals
        self.spool = spool
        self.directory = directory
        self.authenticator = authenticator
        self.log = log
        self.count = count
        self.peers = peers
        self.relays = relays
        self._peers_known = NONE
        self.clock_ns = clock_ns
        self.pending = 0
        self._known: dict[bytes, Resolution] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawn = spawn or self._as_task
        self.actions: dict[type, Callable[[Session, Any], Reply | None]] = {
            Hello: self.hello,
            Mail: self.mail,
            Rcpt: self.rcpt,
            Begin: self.begin,
            Transaction: self.content,
            Login: self.login,
            Verify: self.verify,
            Expand: self.expand,
            Etrn: self.queue_run,
            Atrn: self.reverse,
            StartTls: self.starttls,
            Xclient: self.xclient,
        }

    def _as_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that gives an answer; `pending` counts it until it has ended."""
        self.pending += 1
        self._spawn(work)

    # ---------------------------------------------------------------- greeting, TLS, login

    def hello(self, session: Session, event: Hello) -> Reply:
        """EHLO, HELO, LHLO: what is on offer depends on TLS, on where the client is, and on its domain's profile."""
        with contextlib.suppress(DirectoryUnavailable):  # what was known last stands
            self._peers_known = self.peers()
        if (self._peers_known or session.peers) and session.listener not in SUBMISSION:
            refusal = self._profiled(session, event.name)
            if refusal is not None:
                return refusal
        connection = session.engine.connection
        door = self.door
        if door is not None:
            if connection.early and (reply := door.early(session)) is not None:
                session.engine.close(reply)
                return reply
            door.watch(session)
        connection.starttls = session.tls_offered and not connection.secure
        connection.mechanisms = self.policy.mechanisms(
            session.listener,
            session.peer,
            connection.secure,
            session.engine.settings.offer,
            connection.bindings,
        )
        return replies.OK

    def _profiled(self, session: Session, name: bytes) -> Reply | None:
        """Find the profile of a client by the name it gives itself; the refusal if it may not connect."""
        peers = session.peers = self._peers_known
        host = name.decode("ascii", "replace")
        profile = session.profile = peers.find(host)
        engine = session.engine
        default = engine.settings.size_limit
        engine.announced = max(default, peers.max_in_octets) if default else 0
        engine.size_limit = default
        if profile is None or profile.accept:
            return None
        self.count("sessions_refused_total")
        self.log.event("refused", client=session.peer.ip, what="peer", peer=profile.domain)
        session.cause = "peer", profile.domain
        return Reply(550, 7, 1, f"host {host} is not authorized to connect")

    def starttls(self, session: Session, event: StartTls) -> Reply:
        """STARTTLS: the worker begins the handshake once this is sent."""
        return replies.TLS_READY

    def xclient(self, session: Session, event: Xclient) -> Reply | None:
        """XCLIENT: from here on the session is that of the client told of, with its rights and no others."""
        address = event.attributes.get(b"ADDR")
        if address is not None:
            text = address.decode("ascii", "replace")
            peer = self.policy.peer(text[5:] if text[:5].upper() == "IPV6:" else text)
            if not peer.ip:
                return replies.SYNTAX
            refusal = self.screen.client(peer.ip) if self.screen is not None else None
            if refusal is not None:
                # Nothing more from it, in its own name or the proxy's.
                self.client_refused(peer.ip, refusal)
                session.cause = refusal.check, refusal.subject
                session.engine.close(refusal.reply)
                return None
            if self.door is not None and (reply := self.door.moved(session, peer)) is not None:
                session.engine.close(reply)
                return None
            session.peer = peer
        return replies.OK

    def login(self, session: Session, event: Login) -> None:
        """AUTH: what is asked is answered from the directory, a password is checked in a thread."""
        self.pending += 1
        self._spawn(self._login(session, event))

    async def _login(self, session: Session, event: Login) -> None:
        ip = session.peer.ip
        exchange = event.exchange
        try:
            found = await settle(self.authenticator, exchange, event.outcome, ip)
        except LoginHeldBack:
            session.login_failures += 1
            reply = replies.AUTH_HELD_BACK
            if session.login_failures >= self.policy.max_login_failures:
                reply = replies.TOO_MANY_LOGIN_FAILURES
        except DirectoryUnavailable:
            reply = replies.AUTH_UNAVAILABLE
        except Exception as fault:
            self.log.error("login failed", fault)
            reply = replies.AUTH_UNAVAILABLE
        else:
            if isinstance(found, Challenge):
                reply = Reply(334, 0, 0, encode(found.octets).decode())
            elif isinstance(found, Refused):
                session.login_failures += 1
                self.count("logins_failed_total")
                login = exchange.login[:LOGGED_CHARACTERS]
                self.log.event("login-failed", login=login, client=ip, listener=session.listener)
                reply = replies.BAD_CREDENTIALS
                if session.login_failures >= self.policy.max_login_failures:
                    reply = replies.TOO_MANY_LOGIN_FAILURES
            else:
                session.engine.connection.user = found.address
                if self.door is not None:
                    self.door.watch(session)
                self.count("logins_total")
                self.log.event("login", login=found.address, client=ip, listener=session.listener)
                reply = replies.AUTHENTICATED
        self.pending -= 1
        session.answer(reply)

    # ---------------------------------------------------------------- envelope

    def mail(self, session: Session, mail: Mail) -> Reply | None:
        """MAIL: on the submission ports only after a login; through the screen if it is on."""
        if session.listener in SUBMISSION:
            if session.listener == "odmr":
                return replies.NOT_IMPLEMENTED
            connection = session.engine.connection
            if not connection.user:
                return replies.NEED_AUTH if connection.mechanisms else replies.NEED_TLS
        if self.senders is not None and (reply := self._not_its_own(session, self.senders, mail)) is not None:
            return reply
        door = self.door
        if door is not None and (session.watched or door.flow.mail is not None):
            refusal = door.mail(session)
            if refusal is not None:
                return refusal
        if session.peers and not self._fits(session, mail):
            return replies.TOO_BIG
        screen = self.screen
        if screen is not None and screen.on:
            return self._screened(session, screen, mail)
        if session.screening is not None:
            session.screening = None
        return replies.SENDER_OK

    def _not_its_own(self, session: Session, senders: Senders, mail: Mail) -> Reply | None:
        """The refusal of a reverse-path that is not one of the user's who logged in."""
        user = session.engine.connection.user
        address = mail.path.address
        session.arrival = None
        if not user:
            return None
        if senders.header_octets:
            session.arrival = Arrival()
        try:
            if senders.owns(user, address):
                return None
        except DirectoryUnavailable:
            return replies.DIRECTORY_AWAY if senders.reject else None
        if not senders.reject:
            self.log.event("sender-mismatch", reverse_path=address, user=user, client=session.peer.ip)
            return None
        refusal = Refusal(replies.NOT_YOUR_SENDER, "sender-login", user)
        return self._screen_refused(session, refusal, address)

    def _from_another(self, session: Session, senders: Senders, complete: bool) -> Reply | None:
        """The refusal of content whose field From names an address that is not the user's, once its header is here."""
        arrival, transaction = session.arrival, session.engine.transaction
        if arrival is None or transaction is None or arrival.ended or transaction.decoder.too_big:
            return None
        content: Any = transaction.sink
        header = arrival.header(content.buffer, transaction.decoder.octets, senders.header_octets, complete)
        if header is None:
            return None
        user = session.engine.connection.user
        try:
            # No octets for a header though there is content: it could not be seen.
            foreign = senders.foreign(user, header) if header or not transaction.decoder.octets else TOO_MANY
        except DirectoryUnavailable:
            return replies.DIRECTORY_AWAY if senders.reject else None
        if not foreign:
            return None
        if not senders.reject:
            self.log.event("sender-mismatch", field="from", address=foreign, user=user, client=session.peer.ip)
            return None
        return replies.FROM_UNSEEN if foreign == TOO_MANY else replies.NOT_YOUR_FROM

    def _screened(self, session: Session, screen: Screen, mail: Mail) -> Reply | None:
        """MAIL through the screen; None if DNS is asked first."""
        screening = session.screening
        if screening is None:
            screening = session.screening = Screening()
        connection = session.engine.connection
        reverse_path = mail.path.address
        screening.begin()
        screening.spared = screen.spares(session.peer, connection.user)
        refusal = screen.sender(screening, reverse_path) or screen.path(screening, mail.path)
        if refusal is not None:
            return self._screen_refused(session, refusal, reverse_path)
        found = screen.questions(screening, session.peer, connection.helo, reverse_path)
        if isinstance(found, Findings):
            refusal = screen.noted(screening, found)
            return replies.SENDER_OK if refusal is None else self._screen_refused(session, refusal, reverse_path)
        self.pending += 1
        self._spawn(self._answer_mail(session, screen, screening, found, reverse_path))
        return None

    async def _answer_mail(
        self,
        session: Session,
        screen: Screen,
        screening: Screening,
        asked: Awaitable[Findings],
        reverse_path: bytes,
    ) -> None:
        reply = replies.SENDER_OK
        try:
            refusal = screen.noted(screening, await asked)
        except Exception as fault:
            self.log.error("sender not screened", fault)
            reply = replies.LOCAL_ERROR
        else:
            if refusal is not None:
                reply = self._screen_refused(session, refusal, reverse_path)
        self.pending -= 1
        session.answer(reply)

    def _screen_refused(self, session: Session, refusal: Refusal, reverse_path: bytes) -> Reply:
        """Leave a trace of a message that the screen did not let in."""
        self.count("messages_refused_total")
        session.cause = refusal.check, refusal.subject
        reply = refusal.reply
        self.log.event(
            "refused",
            reverse_path=reverse_path,
            client=session.peer.ip,
            reply=replies.said(reply),
            what=refusal.check,
            subject=refusal.subject,
        )
        return reply

    def client_refused(self, ip: str, refusal: Refusal) -> None:
        """Leave a trace of a client that may not connect."""
        self.count("sessions_refused_total")
        reply = refusal.reply
        self.log.event(
            "refused", client=ip, reply=replies.said(reply), what=refusal.check
        )

    def _fits(self, session: Session, mail: Mail) -> bool:
        """Set the limit of this message's size: of the client's profile, else of the sender domain's, else that of all."""
        profile = session.profile
        if profile is None:
            profile = session.peers.find(mail.path.address.rpartition(b"@")[2].decode("utf-8", "replace"))
        engine = session.engine
        own = profile.max_in_octets if profile is not None else 0
        engine.size_limit = own or engine.settings.size_limit
        return not engine.size_limit or mail.size <= engine.size_limit

    def rcpt(self, session: Session, rcpt: Rcpt) -> Reply | None:
        """RCPT: known here, or relayed for those who may."""
        path = rcpt.path
        try:
            found = self.resolve(path.address)
        except DirectoryUnavailable:
            return self.refused(session, path.original, replies.DIRECTORY_AWAY)
        if session.watched:
            assert self.door is not None
            limited = self.door.rcpt(session, path.address, found.ours)
            if limited is not None:
                self.count("recipients_refused_total")
                return limited
        screen = self.screen
        if screen is not None:
            if screen.seen != self.directory.seen:
                screen.refresh()
            if screen.on and (reply := self._screened_recipient(session, screen, path)) is not None:
                return self.refused(session, path.original, reply)
        if found.ours or self.policy.may_relay(session.peer, session.engine.connection.user):
            if found.exists:
                if self.relays is not None and found.ours and not found.local:
                    return self.relays.rcpt(self, session, path)
                return replies.RECIPIENT_OK
            return self.refused(session, path.original, found.reply or replies.NO_SUCH_USER)
        return self.refused(session, path.original, replies.RELAYING_DENIED)

    def _screened_recipient(self, session: Session, screen: Screen, path: Path) -> Reply | None:
        """What the screen has against a recipient: a ban of the sender that came after MAIL, or a missing domain."""
        transaction = session.engine.transaction
        assert transaction is not None
        screening = session.screening
        if screening is None:
            screening = session.screening = Screening()
        refusal = screen.sender(screening, transaction.mail.path.address) or screen.path(screening, path)
        if refusal is None:
            return None
        session.cause = refusal.check, refusal.subject
        return refusal.reply

    def resolve(self, address: bytes) -> Resolution:
        """The directory's answer; a remembered one while it is away. Raises DirectoryUnavailable."""
        try:
            found = self.directory.resolve(address)
        except DirectoryUnavailable:
            known = self._known.get(address)
            if known is None:
                raise
            return known
        if address not in self._known and len(self._known) >= KNOWN_RECIPIENTS:
            self._known.clear()
        self._known[address] = found
        return found

    def refused(self, session: Session, recipient: bytes, reply: Reply) -> Reply:
        """Count and log the refusal of a recipient; the reply."""
        self.count("recipients_refused_total")
        transaction = session.engine.transaction
        self.log.event(
            "refused",
            None,
            recipient,
            reverse_path=transaction.mail.path.address if transaction is not None else b"",
            client=session.peer.ip,
            reply=replies.said(reply),
        )
        return reply

    def verify(self, session: Session, event: Verify) -> Reply:
        """VRFY: 252 unless the settings open it; then only what RCPT would tell."""
        if not self.policy.vrfy:
            return replies.CANNOT_VERIFY
        argument = event.argument if event.argument[:1] == b"<" else b"<" + event.argument + b">"
        read = rcpt(b"TO:" + argument, session.engine.settings.qualify)
        if isinstance(read, Reply):
            return read
        try:
            found = self.resolve(read.path.address)
        except DirectoryUnavailable:
            return replies.DIRECTORY_AWAY
        if not found.ours or (not found.local and self.relays is not None):
            return replies.CANNOT_VERIFY
        return replies.VERIFIED if found.exists else (found.reply or replies.NO_SUCH_USER)

    def expand(self, session: Session, event: Expand) -> Reply:
        """EXPN: members of a list are nobody's business (RFC 5321 7.3)."""
        return replies.NO_EXPANSION

    def queue_run(self, session: Session, event: Etrn) -> Reply | None:
        """ETRN: try what waits for a node at once, where that is allowed."""
        if self.etrn is None:
            return replies.NODE_NOT_NOW
        return self.etrn.begin(self, session, event.node)

    def reverse(self, session: Session, event: Atrn) -> Reply | None:
        """ATRN: let the relay be the client on this connection, for who is entitled to the mail."""
        if self.reversals is None:
            return replies.ATRN_NOT_NOW
        return self.reversals.begin(self, session, event)

    # ---------------------------------------------------------------- content

    def begin(self, session: Session, event: Begin) -> Reply:
        """DATA or the first BDAT: a place for the content."""
        engine = session.engine
        transaction = engine.transaction
        assert transaction is not None
        if session.watched and not event.chunked and engine.backlog:
            assert self.door is not None
            refusal = self.door.early(session)
            if refusal is not None:
                engine.close(refusal)
                return refusal
        try:
            transaction.sink = self.spool.new_content()
        except SpoolFull:
            return replies.SYSTEM_FULL
        except SpoolError as fault:
            self.log.error("no place for content", fault)
            return replies.LOCAL_ERROR
        return replies.START_CONTENT

    def spill(self, session: Session) -> None:
        """After content came in: large content goes to a file; without room the message is refused at its end."""
        transaction = session.engine.transaction
        assert transaction is not None
        content: Any = transaction.sink
        if session.arrival is not None and self.senders is not None:
            reply = self._from_another(session, self.senders, False)
            if reply is not None:
                session.engine.refuse_content(reply)
                return
        screen = self.screen
        screening = session.screening
        if screening is not None and screen is not None and not transaction.decoder.too_big:
            refusal = screen.arriving(screening, content.buffer, transaction.decoder.octets)
            if refusal is not None:
                session.cause = refusal.check, refusal.subject
                session.engine.refuse_content(refusal.reply)
                return
        try:
            content.check_spill()
        except SpoolFull:
            session.engine.refuse_content(replies.SYSTEM_FULL)
        except SpoolError as fault:
            self.log.error("content can't be kept", fault)
            session.engine.refuse_content(replies.LOCAL_ERROR)

    def content(self, session: Session, transaction: Transaction) -> Reply | None:
        """All content is here: make it durable, then answer."""
        connection = session.engine.connection
        mail = transaction.mail
        content: Any = transaction.sink
        screening = session.screening
        if screening is not None and self.screen is not None:
            refusal = self.screen.arrived(screening, content.buffer, transaction.decoder.octets)
            if refusal is not None:
                return self._screen_refused(session, refusal, mail.path.address)
        if session.arrival is not None and self.senders is not None:
            reply = self._from_another(session, self.senders, True)
            if reply is not None:
                return self._screen_refused(
                    session, Refusal(reply, "sender-login", connection.user), mail.path.address
                )
        recipients = transaction.recipients
        now_ns = self.clock_ns()
        message_id = self.spool.new_id()
        text = id_text(message_id)
        line = received.line(
            session.received_prefix(mail.smtputf8),
            text,
            recipients[0].original if len(recipients) == 1 else b"",
            now_ns // 1_000_000_000,
        )
        decoder = transaction.decoder
        size = decoder.octets + len(line)
        # Content says what it is better than a client that gave no BODY.
        body = mail.body or int(decoder.eight_bit)
        envelope = Envelope(
            Channel.SMTPD,
            mail.path.address,
            recipients,
            now_ns,
            size,
            session.peer.ip,
            connection.helo,
            connection.user,
            body,
            mail.smtputf8,
            mail.ret,
            mail.envid,
            b"",
            decoder.dot_free,
            requiretls=mail.requiretls,
        )
        if screening is not None:
            envelope.verdicts, envelope.asked = screening.verdicts, screening.asked
        if session.watched:
            assert self.door is not None
            held = self.door.content(session)
            if isinstance(held, Reply):
                return held
            envelope.verdicts += session.tags
            envelope.held = held

        def done(fault: SpoolError | None) -> None:
            self.pending -= 1
            if fault is None:
                session.answer(replies.queued(text))
                # After the answer, which the client waits for.
                self._accepted(message_id, envelope)
            else:
                session.answer(self._not_accepted(message_id, fault))

        self.spool.submit(Message(message_id, envelope, [line, content], []), done)
        # The spool's from here on; until now the engine would have dropped it.
        transaction.sink = None
        self.pending += 1
        return None

    def _not_accepted(self, message_id: bytes, fault: SpoolError) -> Reply:
        self.count("messages_refused_total")
        self.log.error("message not accepted", fault, message_id)
        return replies.SYSTEM_FULL if isinstance(fault, SpoolFull) else replies.LOCAL_ERROR

    def _accepted(self, message_id: bytes, envelope: Envelope) -> None:
        self.count("messages_accepted_total")
        self.count("octets_in_total", envelope.size)
        recipients = envelope.recipients
        self.log.event(
            "accepted",
            message_id,
            recipients[0].address if len(recipients) == 1 else None,
            reverse_path=envelope.reverse_path.decode("utf-8", "backslashreplace"),
            recipients=len(recipients),
            size=envelope.size,
            client=envelope.client_ip,
            user=envelope.auth,
        )
        if envelope.held:
            self.log.event("held", message_id, reason=envelope.held)
        if envelope.verdicts:
            self.log.event("tagged", message_id, verdicts=[str(verdict) for verdict in envelope.verdicts])
        if envelope.asked:
            self.log.event("checked", message_id, answers=[str(verdict) for verdict in envelope.asked])

    def content_refused(self, session: Session, reply: Reply) -> None:
        """The engine refused content (size, bare line ends, no room): leave a trace."""
        self.count("messages_refused_total")
        self.log.event(
            "refused",
            client=session.peer.ip,
            reply=replies.said(reply),
            what="content",
        )
