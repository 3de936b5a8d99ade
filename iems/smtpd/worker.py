"""Sockets, timers and draining of smtpd: everything between the loop and the engine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial
from typing import TYPE_CHECKING

import lmdb

from iems.directory import Authenticator, Directory
from iems.directory.srs import forwarding
from iems.levels import DIAGNOSTIC, INFORMATIONAL, LEVEL, SESSIONS
from iems.model import INPUT, Channel, Reply
from iems.net import handover, proxy
from iems.net.callahead import Callahead
from iems.net.handover import Given, Pair, Takings
from iems.net.resolver import Resolver
from iems.net.stream import Server, Stream, last_descriptor, serve
from iems.net.tls import bindings
from iems.refusals.noise import Noise
from iems.refusals.ring import Ring
from iems.smtp import replies
from iems.smtpd import flow, handlers, pace
from iems.smtpd.door import Door
from iems.smtpd.engine import Engine, Settings, State, Transaction
from iems.smtpd.etrn import QueueRuns
from iems.smtpd.ldaplookup import lookup_of
from iems.smtpd.loud import LoudEngine
from iems.smtpd.odmr import Reversals
from iems.smtpd.outbound import Outbound
from iems.smtpd.policy import Policy
from iems.smtpd.relays import RelayChecks
from iems.smtpd.screen import Screen
from iems.smtpd.senders import HEADER_OCTETS, Senders
from iems.smtpd.sessions import Clients
from iems.spool import Spool, keys

if TYPE_CHECKING:
    from iems.config import Config
    from iems.master.child import WorkerContext

LISTENERS = ("smtp", "submission", "submissions", "lmtp", "odmr")
#: The listener that connections count for which a role of ours made and turned round.
REVERSED = "reversed"
#: Unread input of a session that waits for an answer, and output a client does not take, above which it is not read.
BACKLOG_OCTETS = 65_536
TICK_S = 1.0
NEVER = float("inf")
CLOSED, TLS, TURNED = int(State.CLOSED), int(State.TLS), int(State.REVERSED)
CONTENT = (int(State.DATA), int(State.CHUNK), int(State.CHUNKS))
LOOK_S = 30.0


class Session(pace.Session):
    """One connection: handler of its stream."""

    __slots__ = ("_paused", "content_until", "deadline", "eof", "pair", "tick", "worker")

    def __init__(
        self,
        worker: Worker,
        sock: socket.socket,
        listener: str,
        ip: str = "",
        counted: tuple[bytes, ...] = (),
    ) -> None:
        """ip: of the client, where a proxy told it. counted: what the door counts it under."""
        ctx = worker.ctx
        implicit = listener == "submissions"
        self.worker = worker
        self.eof = False
        self._paused = False
        self.pair: Pair | None = None
        self.content_until = 0.0
        stream = Stream(ctx.loop, sock, self, tls=ctx.tls if implicit else None)
        self.stream = stream
        peer = worker.policy.peer(ip or (stream.peer[0] if stream.peer else ""))
        engine = worker.engine(listener, peer.ip)
        super().__init__(worker.handlers, engine, listener, peer, ctx.tls is not None and not implicit and listener != REVERSED)
        if worker.refusals.on:
            engine.receipt = self._receipt
        self.deadline = worker.now + worker.line_timeout_s
        self.tick = 0
        self.pace = worker.pace
        self.counted = counted
        self.strict = worker.door.strict(peer)
        self.open(sock)

    def _receipt(self, reply: Reply, about: bytes, transaction: Transaction | None) -> bytes:
        """Keep a refusal; the end of its reply with the id. Of what is only noise alike ones are kept as one."""
        if reply.code == 453 or (500 <= reply.code < 505 and reply.subject != 1):
            return self.worker.noise.note(self.listener, self.peer.ip, self.engine.connection.helo, self.engine.connection.user, reply)
        check = subject = ""
        if self.cause is not None:
            check, subject = self.cause
            self.cause = None
        more = 0
        if transaction is None:
            path, recipient = about or None, b""
        else:
            path, recipient = transaction.mail.path.original, about
            if not about and transaction.recipients:
                recipient, more = transaction.recipients[0].original, len(transaction.recipients) - 1
        connection = self.engine.connection
        return self.worker.refusals.note(
            self.listener, self.peer.ip, connection.helo, path, recipient, more, connection.user, reply, check, subject
        )

    # ---------------------------------------------------------------- called by the stream

    def data_received(self, view: memoryview) -> None:
        """Octets came: let the engine work through them."""
        engine = self.engine
        if not self.greeted:
            self.spoke_early()
            if engine.closed:
                return
        engine.feed(view)
        if engine.waiting or self.late is not None:
            engine.keep()
            if engine.backlog > BACKLOG_OCTETS:
                self._pause()
        else:
            self.turned(self.turn())

    def eof_received(self) -> None:
        """The client sends no more: it still gets the answer it waits for."""
        self.eof = True
        if not self.hurry() and not self.engine.waiting:
            self.engine.end()
            self.stream.close()

    def connection_lost(self, cause: Exception | None) -> None:
        """The connection is gone; a message handed to the spool is accepted all the same."""
        self.engine.end()
        self.take_late()
        self.worker.session_over(self)

    def writable(self) -> None:
        """The client took what we sent."""
        self._resume()

    def tls_ready(self) -> None:
        """The handshake is done: greet (implicit TLS), or wait for a new EHLO."""
        engine = self.engine
        self.worker.ctx.count("tls_total")
        tls = self.stream.sslobj
        if tls is not None:
            cipher = tls.cipher()
            self.tls_text = f"{tls.version()} with cipher {cipher[0] if cipher else 'unknown'}".encode()
        engine.tls_started()
        if tls is not None and engine.settings.offer.scram:
            engine.connection.bindings = bindings(tls)
        if self.listener == "submissions" and not engine.closed:
            engine.greet()
        self.stream.send(engine.take_output())
        if engine.closed:
            self.stream.close()

    # ---------------------------------------------------------------- the engine's turn

    def stuck(self, delay_s: float) -> None:
        """Answers wait in the tarpit."""
        self.deadline = self.worker.now + delay_s + self.worker.line_timeout_s
        self.worker.ctx.count("tarpits_total")

    def send_turn(self, out: bytes) -> None:
        """Send what a turn gave, then close, start TLS or wait on."""
        engine = self.engine
        worker = self.worker
        stream = self.stream
        if out:
            stream.send(out)
            if stream.pending_out > BACKLOG_OCTETS:
                self._pause()
        state = engine.state
        if engine.waiting:
            # The answer is on its way: no deadline but the spool's own.
            self.deadline = NEVER
        elif state == CLOSED:
            self.deadline = worker.now + worker.line_timeout_s
            stream.close()
        elif state == TLS:
            assert worker.ctx.tls is not None
            stream.start_tls(worker.ctx.tls)
        elif state == TURNED:
            self._join()
        elif self.eof:
            engine.end()
            stream.close()
        else:
            # RFC 5321 4.5.3.2: commands and blocks of content each have their time; half a command does not prolong it.
            if state in CONTENT:
                if not self.content_until:
                    self.content_until = worker.now + worker.content_deadline_s
                self.deadline = min(worker.now + worker.data_timeout_s, self.content_until)
            elif out:
                self.content_until = 0.0
                self.deadline = worker.now + worker.line_timeout_s
            if self._paused:
                self._resume()

    def _join(self) -> None:
        """From here on the relay's worker is the client; its own deadlines watch over the connection."""
        if self.pair is None:
            assert self.other_end is not None
            other = Stream(self.worker.ctx.loop, self.other_end, None)
            self.other_end = None
            self.deadline = NEVER
            self.pair = Pair(self.stream, other, self._parted)
            if self._paused:
                self._paused = False
                self.stream.resume_reading()

    def _parted(self, cause: Exception | None) -> None:
        self.connection_lost(cause)

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.stream.pause_reading()

    def _resume(self) -> None:
        if self._paused and not self.engine.waiting and self.late is None and self.stream.pending_out <= BACKLOG_OCTETS:
            self._paused = False
            if not self.eof:
                self.stream.resume_reading()

    # ---------------------------------------------------------------- ends that come from the worker

    def timeout(self) -> None:
        """The deadline is past."""
        if self.pair is not None:
            self.pair.abort()
        elif self.engine.closed:
            self.stream.abort()
        else:
            self.finish(replies.TIMEOUT)

    def drain(self) -> None:
        """Finish the transaction, then 421."""
        self.engine.drain()
        if self.engine.closed:
            self._last_words()

    def finish(self, reply: Reply) -> None:
        """Say a last reply and close."""
        self.engine.close(reply)
        self._last_words()

    def _last_words(self) -> None:
        if self.pair is not None:
            self.pair.abort()  # nobody would understand them
            return
        self.deadline = self.worker.now + 10.0
        self.stream.send(self.take_late() + self.engine.take_output())
        self.stream.close()


class Worker:
    """A process that accepts mail."""

    def __init__(self, ctx: WorkerContext) -> None:
        config = ctx.config
        self.ctx = ctx
        self.policy = Policy(config)
        self.level = LEVEL[config.log.level]
        self.line_timeout_s = config.smtpd.line_timeout_s
        self.data_timeout_s = config.smtpd.data_timeout_s
        self.content_deadline_s = config.smtpd.content_deadline_s
        self.max_sessions = config.smtpd.max_sessions
        self.last_descriptor = last_descriptor()
        self.spool = Spool.open(ctx)
        self.directory = Directory(ctx.home / "directory")
        self.authenticator = Authenticator.of(self.directory, config, ctx.home, ctx.log)
        self.settings: dict[str, Settings] = {
            listener: handlers.settings_of(config, listener, self.authenticator.offer)
            for listener in (*LISTENERS, REVERSED)
        }
        #: Whether another role of ours fetches mail and hands its connections in here.
        self.fetches = config.bsmtp.enabled and any(profile.protocol == "odmr" for profile in config.bsmtp.pickup)
        self._takings: Takings | None = None
        resolver = Resolver.of(config.dns, ctx.answers)
        self.screen = Screen(config, self.policy, self.directory, resolver, ctx.log)
        spool_path = config.spool_path(ctx.home)
        limited = config.smtpd.sender_hour or config.smtpd.sender_day
        signs = config.smtpd.takeover_recipients or config.smtpd.takeover_networks
        self.flow = flow.Flow(
            flow.levels(config.smtpd, spool_path, self._queued), ctx.log, ctx.gauge, ctx.total
        )
        self.door = Door(
            config.smtpd,
            self.policy,
            self.flow,
            ctx.log,
            ctx.count,
            lambda: Clients(ctx.home / "run", ctx.board, ctx.role, ctx.slot, ctx.generation),
            (lambda: Outbound.of(config.smtpd, spool_path)) if limited or signs else None,
        )
        self.pace = pace.Pace(config.smtpd, self.door, ctx.loop)
        self.handlers = handlers.Handlers(
            policy=self.policy,
            spool=self.spool,
            directory=forwarding(config, ctx.home, self.directory) or self.directory,
            authenticator=self.authenticator,
            log=ctx.log,
            count=ctx.count,
            screen=self.screen,
            senders=self._senders(config),
            door=self.door,
            etrn=QueueRuns(
                self.spool, self.directory.resolve, self._relays, config.smtpd.etrn_domains
            )
            if config.smtpd.etrn
            else None,
            reversals=Reversals(self.spool, config.smtpd.odmr, ctx.home / "run") if config.smtpd.odmr else None,
            peers=self.directory.peers,
            relays=RelayChecks(
                self.directory,
                Callahead(resolver, config.hostname or "localhost", config.smtpc.port),
                lookup_of(config.ldap, ctx.home, ctx.log) if config.ldap.uris else None,
            ),
        )
        self.refusals = Ring(
            ctx.home / "log" / "refusals",
            config.log.refusals_octets,
            ctx.loop,
            lambda error: ctx.log.error("refusals can't be kept", error),
        )
        self.noise = Noise(self.refusals)
        self.sessions: set[Session] = set()
        self.now = ctx.loop.time()
        self._servers: list[Server] = []
        #: Sessions whose dialogue was logged.
        self._numbers = 0
        self._wheel: dict[int, set[Session]] = {}
        self._tick = 0
        self._ticking: asyncio.TimerHandle | None = None
        self._idle: asyncio.Event = asyncio.Event()

    def _senders(self, config: Config) -> Senders | None:
        setting = config.smtpd.sender_login
        if setting == "off":
            return None
        # Content above `large_octets` goes to a file at once: the header has to be whole by then.
        limit = min(HEADER_OCTETS, config.spool.large_octets) if config.smtpd.sender_login_from else 0
        return Senders(
            self.directory, self.directory.resolve, reject=setting == "reject", header_octets=limit
        )

    def _queued(self) -> int:
        """Length of the input queue. Raises OSError if the index can't be read now."""
        try:
            counts = self.spool.index.counts()
        except lmdb.Error as fault:
            raise OSError(str(fault)) from fault
        return sum(counts.get((INPUT, class_), 0) for class_ in (keys.FRESH, keys.RETRY, keys.LEASED))

    def _relays(self) -> set[str]:
        """Next hops that the forwarding table names. Raises DirectoryUnavailable."""
        return {
            identifier
            for _, channel, identifier in self.directory.forwards()
            if channel == Channel.SMTPC and identifier
        }

    def engine(self, listener: str, ip: str) -> Engine:
        """The engine of a new session; one whose dialogue is logged, if the level says so."""
        settings = self.settings[listener]
        log = self.ctx.log
        if self.level < SESSIONS:
            return Engine(settings)
        self._numbers += 1

        def heard(direction: str, line: bytes, number: int = self._numbers) -> None:
            log.event("smtp", None, client=ip, listener=listener, session=number, way=direction, line=line)

        return LoudEngine(settings, heard, reads=self.level >= DIAGNOSTIC)

    async def start(self) -> None:
        """Begin to accept."""
        await self.refusals.start()
        for listener in LISTENERS:
            if listener == "submissions" and self.ctx.tls is None:
                self.ctx.log.error("no certificate: submission over TLS is not served")
                continue
            for sock in self.ctx.sockets.get(listener, ()):
                self._servers.append(
                    serve(
                        self.ctx.loop,
                        sock,
                        partial(self._accepted, listener),
                        b"" if listener == "submissions" else partial(self._no_descriptor, listener),
                    )
                )
        if self.fetches:
            where = handover.place(self.ctx.home / "run", "smtpd", self.ctx.index)
            self._takings = Takings(where, self._handed, self.ctx.log.error)

    async def _handed(self, sock: socket.socket, given: Given) -> None:
        """A connection that another role made and turned round: from here on its peer is the client, with the rights of its address."""
        open_ = bool(self._servers)
        handover.answer(sock, open_)
        if not open_:
            sock.close()
            return
        if not self._room(sock, REVERSED, given.client):
            return
        session = self._begin(REVERSED, sock, given.client)
        if session is not None and given.secure:
            session.engine.connection.secure = True
            session.tls_text = given.tls.encode("ascii", "replace")

    def _room(self, sock: socket.socket, listener: str, ip: str) -> bool:
        """Count a session; if there are too many it is turned away."""
        ctx = self.ctx
        ctx.count("sessions_total")
        ctx.count("sessions_now")
        full = sock.fileno() >= self.last_descriptor
        if full or (self.max_sessions and ctx.total("sessions_now") > self.max_sessions):
            ctx.count("sessions_now", -1)
            ctx.count("sessions_refused_total")
            self._turn_away(sock, listener, ip, replies.TOO_MANY_SESSIONS)
            return False
        return True

    def _accepted(self, listener: str, sock: socket.socket) -> None:
        if not self._room(sock, listener, ""):
            return
        if self.policy.proxies and self.policy.peer(sock.getpeername()[0]).proxy:
            proxy.Reader(self.ctx.loop, sock, partial(self._proxied, listener, sock))
        else:
            self._begin(listener, sock, "")

    def _proxied(self, listener: str, sock: socket.socket, ip: str | None) -> None:
        """The header of a proxy came, or did not."""
        if ip is None or not self._servers:
            self.ctx.count("sessions_now", -1)
            sock.close()
            if ip is None:
                self.ctx.log.event("proxy-header-missing", listener=listener)
        else:
            self._begin(listener, sock, ip)

    def _begin(self, listener: str, sock: socket.socket, ip: str) -> Session | None:
        """The session of a new client; None if it was turned away. ip: of it, "" to ask the socket."""
        screen = self.screen
        screen.refresh()
        if screen.bans.clients and self._banned(listener, sock, ip):
            return None
        if not self._ticking:
            self.now = self.ctx.loop.time()
            self.flow.look(self.now)
            self._ticking = self.ctx.loop.call_later(TICK_S, self._turn)
        refusal = self.flow.connection
        if refusal is not None:
            self.ctx.count("flow_refused_total")
            self.ctx.count("sessions_refused_total")
            self._refuse(listener, sock, ip, refusal)
            return None
        counted: tuple[bytes, ...] = ()
        if self.door.limits:
            refusal, counted = self._enter(sock, ip)
            if refusal is not None:
                self._refuse(listener, sock, ip, refusal)
                return None
        try:
            session = Session(self, sock, listener, ip, counted)
        except Exception:
            self.ctx.count("sessions_now", -1)
            self.door.leave(counted)
            raise
        self.sessions.add(session)
        self._place(session)
        if self.level >= INFORMATIONAL:
            self.ctx.log.event("connected", client=session.peer.ip, listener=listener, sessions=len(self.sessions))
        return session

    def _enter(self, sock: socket.socket, ip: str) -> tuple[Reply | None, tuple[bytes, ...]]:
        try:
            return self.door.enter(self.policy.peer(ip or sock.getpeername()[0]))
        except OSError:  # gone already; the session will see it
            return None, ()

    def _refuse(self, listener: str, sock: socket.socket, ip: str, reply: Reply) -> None:
        self.ctx.count("sessions_now", -1)
        self._turn_away(sock, listener, ip, reply)

    def _banned(self, listener: str, sock: socket.socket, ip: str) -> bool:
        """Turn a banned client away (RFC 5321 3.1); whether it was one."""
        try:
            ip = ip or sock.getpeername()[0]
        except OSError:  # gone already; the session will see it
            return False
        refusal = self.screen.client(ip)
        if refusal is None:
            return False
        self.ctx.count("sessions_now", -1)
        self.handlers.client_refused(ip, refusal)
        self._turn_away(sock, listener, ip, refusal.reply, refusal.check, refusal.subject)
        return True

    def _no_descriptor(self, listener: str, ip: str) -> bytes:
        """The last line for a client that could not be taken for want of descriptors."""
        wire = replies.wire(replies.TOO_MANY_SESSIONS)
        end = self.refusals.note(listener, ip, b"", None, b"", 0, "", replies.TOO_MANY_SESSIONS) if self.refusals.on else b""
        return wire[:-2] + end if end else wire

    def _turn_away(
        self, sock: socket.socket, listener: str, ip: str, reply: Reply, check: str = "", subject: str = ""
    ) -> None:
        """Send a refusal in place of the greeting, and close. ip: "" to ask the socket."""
        with contextlib.suppress(OSError):  # gone already
            ip = ip or sock.getpeername()[0]
        end = self.refusals.note(listener, ip, b"", None, b"", 0, "", reply, check, subject) if self.refusals.on else b""
        wire = replies.wire(reply)
        with contextlib.suppress(OSError):
            sock.setblocking(False)
            if listener != "submissions":  # it would be read as TLS
                sock.send(wire[:-2] + end if end else wire)
            sock.shutdown(socket.SHUT_WR)
        sock.close()

    def session_over(self, session: Session) -> None:
        """A connection is gone."""
        if session in self.sessions:
            self.sessions.remove(session)
            slot = self._wheel.get(session.tick)
            if slot is not None:
                slot.discard(session)
            self.ctx.count("sessions_now", -1)
            if session.counted:
                self.door.leave(session.counted)
                session.counted = ()
            if self.level >= INFORMATIONAL:
                self.ctx.log.event("disconnected", client=session.peer.ip, listener=session.listener)
            if not self.sessions:
                self._idle.set()

    # ---------------------------------------------------------------- deadlines

    # A session moves its deadline by an assignment; the wheel looks at it only when its old slot comes round.

    def _place(self, session: Session) -> None:
        # A deadline may also move closer, so nobody is left alone for longer than LOOK_S.
        wait_s = min(session.deadline - self.now, LOOK_S)
        session.tick = self._tick + max(1, int(wait_s / TICK_S))
        self._wheel.setdefault(session.tick, set()).add(session)

    def _turn(self) -> None:
        self.now = self.ctx.loop.time()
        self._tick += 1
        for session in list(self._wheel.pop(self._tick, ())):
            if session.deadline <= self.now:
                session.timeout()
            if session in self.sessions:
                self._place(session)
        self.flow.look(self.now)
        if self.sessions or (self.flow.closed and self._servers):
            self._ticking = self.ctx.loop.call_later(TICK_S, self._turn)
        else:
            # Nobody is here: no wake-ups until the next client comes.
            self._ticking = None
            self._wheel.clear()

    # ---------------------------------------------------------------- the end

    def _stop_accepting(self) -> None:
        if self._takings is not None:
            self._takings.close()
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def retire(self) -> None:
        """Take no more clients; return when the last one is gone."""
        self._stop_accepting()
        while self.sessions:
            self._idle.clear()
            await self._idle.wait()

    async def drain(self, deadline_s: float) -> None:
        """Take no more clients, let transactions finish, say 421; the rest is cut off at the deadline."""
        loop = self.ctx.loop
        until = loop.time() + deadline_s
        self._stop_accepting()
        for session in list(self.sessions):
            session.drain()
        # Leave a moment for the last 421 and for what the spool holds.
        while self.sessions and (left := until - 0.5 - loop.time()) > 0:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), left)
        for session in list(self.sessions):
            session.finish(replies.SHUTTING_DOWN)
        while self.handlers.pending and loop.time() < until:
            await asyncio.sleep(0.01)
        for session in list(self.sessions):
            session.stream.abort()
        if self.handlers.relays is not None:
            self.handlers.relays.close()
        await self.door.close()
        self.authenticator.close()
        self.refusals.close()
        self.spool.close()

