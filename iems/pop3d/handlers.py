"""A POP3 session's effects: log-in, lock, content to the socket, removal at QUIT. The protocol is in engine.py."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from iems.directory import Account
from iems.directory.login import settle
from iems.errors import DirectoryUnavailable, LoginHeldBack, StoreError
from iems.model import Rope
from iems.net.stream import Stream
from iems.net.tls import bindings
from iems.pop3d.content import CHUNK_OCTETS, END, Stuffer, last_octets, read_cached, read_slow
from iems.pop3d.engine import Engine, Login, Quit, Retrieve, Sasl, StartTls, State
from iems.pop3d.locks import MaildropLocks
from iems.pop3d.maildrop import Maildrop
from iems.sasl import MALFORMED, Challenge, Refused

#: Up to here a message is read and sent by one call; above it goes by sendfile, or chunk by chunk.
SMALL_OCTETS = 64 * 1024
#: Output not yet taken by the peer above which no further command is looked at.
HIGH_OCTETS = 256 * 1024
#: Input not yet looked at above which nothing more is read.
BACKLOG_OCTETS = 64 * 1024

INBOX = "INBOX"
SEEN = 1


class Services:
    """What sessions need; one a worker.

    reader: iems.store.reader.Reader. store: StoreClient. authenticator: `check`. tls: server context or None.
    plaintext: the setting `auth.plaintext`. count(name, n), event(name, **detail), error(text, exc): of the worker.
    opened(session), closed(session): a session begins and is gone.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        hostname: str,
        reader: Any,
        store: Any,
        authenticator: Any,
        locks: MaildropLocks,
        tls: ssl.SSLContext | None = None,
        plaintext: str = "loopback",
        timeout_s: float = 600.0,
        login_timeout_s: float = 60.0,
        max_failures: int = 5,
        count: Callable[[str, int], None] = lambda name, n: None,
        event: Callable[..., None] = lambda name, **detail: None,
        error: Callable[[str, BaseException], None] = lambda text, exc: None,
        opened: Callable[[Session], None] = lambda session: None,
        closed: Callable[[Session], None] = lambda session: None,
        expire: Callable[[str], str] = lambda address: "NEVER",
    ) -> None:
        self.loop = loop
        self.hostname = hostname
        self.reader = reader
        self.store = store
        self.authenticator = authenticator
        self.locks = locks
        self.tls = tls
        self.plaintext = plaintext
        self.timeout_s = timeout_s
        self.login_timeout_s = login_timeout_s
        self.max_failures = max_failures
        self.count = count
        self.event = event
        self.error = error
        self.opened = opened
        self.closed = closed
        self.expire = expire


def is_loopback(address: str) -> bool:
    """Whether a peer address is this machine's."""
    return address.startswith("127.") or address == "::1" or address.startswith("::ffff:127.")


class _Transfer:
    """A message on its way in chunks: one that needs stuffing, or part of one."""

    __slots__ = ("at", "rope", "size", "stuffer")

    def __init__(self, rope: Rope, size: int, lines: int | None) -> None:
        self.rope = rope
        self.size = size
        self.at = 0
        self.stuffer = Stuffer(lines)


class Session:
    """One connection: handler of its stream.

    services: shared by the worker's sessions. sock: accepted socket. implicit_tls: whether TLS comes first ("pop3s").
    """

    __slots__ = (
        "_active",
        "_busy",
        "_eof",
        "_held",
        "_lost",
        "_out_seen",
        "_paused",
        "_pumping",
        "_started",
        "_task",
        "_transfer",
        "draining",
        "engine",
        "peer_ip",
        "services",
        "stream",
        "user",
    )

    def __init__(self, services: Services, sock: socket.socket, implicit_tls: bool) -> None:
        self.services = services
        now = services.loop.time()
        self._started = now
        self._active = now
        self._out_seen = 0
        self._held = 0
        self._transfer: _Transfer | None = None
        self._task: asyncio.Task[None] | None = None
        self._busy = False
        self._pumping = False
        self._paused = False
        self._eof = False
        self._lost = False
        self.draining = False
        self.user = ""
        self.stream = Stream(services.loop, sock, self, tls=services.tls if implicit_tls else None)
        self.peer_ip = str(self.stream.peer[0]) if self.stream.peer else ""
        plaintext = services.plaintext == "always" or (
            services.plaintext == "loopback" and is_loopback(self.peer_ip)
        )
        self.engine = Engine(
            hostname=services.hostname,
            secure=implicit_tls,
            tls_offered=services.tls is not None,
            plaintext=plaintext,
            offer=services.authenticator.offer,
            max_failures=services.max_failures,
        )
        self.engine.expire = self._expire
        services.opened(self)
        if not implicit_tls:
            self.engine.greet()
            self.stream.send(self.engine.take_output())

    def _expire(self) -> str:
        return self.services.expire(self.user)

    # Timers (wheel.Timed).

    def due(self, now: float) -> float:
        """When the session has been silent too long, or too long without a login."""
        pending = self.stream.pending_out
        if self._busy or pending != self._out_seen:
            # It waits for us, or takes what we send: that is no silence.
            self._out_seen = pending
            self._active = now
        if self.engine.state is State.AUTHORIZATION:
            return self._started + self.services.login_timeout_s
        return self._active + self.services.timeout_s

    def expire(self) -> None:
        """Close without an answer and without an update (RFC 1939 3)."""
        self.stream.abort()

    # From the stream.

    def data_received(self, view: memoryview) -> None:
        """Octets from the peer."""
        self._active = self.services.loop.time()
        self.engine.feed(view)
        self._pump()

    def eof_received(self) -> None:
        """The peer sends no more: what it has asked for is answered. Without QUIT nothing is removed."""
        self._eof = True
        self._pump()

    def writable(self) -> None:
        """The peer has taken all output."""
        self._active = self.services.loop.time()
        if self._transfer is not None:
            self._send_more()
        elif self.engine.buffered:
            self._pump()

    def tls_ready(self) -> None:
        """The handshake is done."""
        services = self.services
        services.count("tls_total", 1)
        self._active = services.loop.time()
        engine = self.engine
        tls = self.stream.sslobj
        if tls is not None and engine.offer.scram:
            engine.bindings = bindings(tls)
        if engine.secure:
            engine.greet()
            self.stream.send(engine.take_output())
        else:
            engine.secured()
            self._busy = False
            self._pump()

    def connection_lost(self, cause: Exception | None) -> None:
        """The connection is gone. An update under way goes on and frees the maildrop itself."""
        self._lost = True
        self._transfer = None
        if self._task is None:
            self._free()
        self.services.closed(self)

    def _free(self) -> None:
        if self._held:
            self.services.locks.release(self._held)
            self._held = 0

    # Commands.

    def drain(self) -> None:
        """The server stops: end when nothing is under way; what was marked stays."""
        self.draining = True
        if not self._busy and self._transfer is None:
            self.engine.end("[SYS/TEMP] The server is going down")
            self._finish()

    def _pump(self) -> None:
        """Look at commands until one has to wait."""
        if self._pumping or self._lost:
            return
        self._pumping = True
        engine, stream = self.engine, self.stream
        try:
            while not self._busy and self._transfer is None:
                if stream.pending_out > HIGH_OCTETS:
                    # Goes on when the peer has taken it (`writable`).
                    self._finish(more=True)
                    return
                event = engine.next_event()
                if event is None:
                    break
                if type(event) is Retrieve:
                    self._retrieve(event)
                elif type(event) is Login or type(event) is Sasl:
                    self._spawn(self._login(event))
                elif type(event) is Quit:
                    self._spawn(self._update())
                elif type(event) is StartTls:
                    self._busy = True
                    stream.send(engine.take_output())
                    assert self.services.tls is not None
                    stream.start_tls(self.services.tls)
                    return
            self._finish()
        except Exception as fault:
            self._broken(fault)
        finally:
            self._pumping = False

    def _broken(self, fault: BaseException) -> None:
        """A fault of ours where no answer is possible any more: hang up."""
        self.services.count("errors_total", 1)
        self.services.error("POP3 session failed", fault)
        self.stream.abort()

    def _finish(self, more: bool = False) -> None:
        """Send what the engine has to say; close, or read on, as it stands. more: commands wait to be looked at."""
        engine, stream = self.engine, self.stream
        out = engine.take_output()
        if out:
            stream.send(out)
        waits = self._busy or self._transfer is not None
        if not waits and (engine.state is State.CLOSED or (self._eof and not more)):
            stream.close()
        elif engine.buffered > BACKLOG_OCTETS:
            if not self._paused:
                self._paused = True
                stream.pause_reading()
        elif self._paused and not self._eof:
            self._paused = False
            stream.resume_reading()

    def _spawn(self, work: Any) -> None:
        self._busy = True
        self._task = self.services.loop.create_task(self._guard(work))

    async def _guard(self, work: Any) -> None:
        """Run a command that waits; afterwards go on, or clean up if the peer has gone."""
        try:
            await work
        except Exception as fault:
            # Ours, not the client's: it learns nothing but that it may try again.
            self.services.count("errors_total", 1)
            self.services.error("POP3 command failed", fault)
            self.engine.end("[SYS/TEMP] Internal error")
        finally:
            self._task = None
            self._busy = False
        if self._lost:
            self._free()
            return
        if self.draining:
            self.engine.end("[SYS/TEMP] The server is going down")
        self._pump()

    async def _login(self, event: Login | Sasl) -> None:
        services, engine = self.services, self.engine
        logins = services.authenticator
        account: Account | None = None
        try:
            if isinstance(event, Login):
                name = event.login
                account = await logins.check(name, event.password, self.peer_ip)
            else:
                found = await settle(logins, event.exchange, event.outcome, self.peer_ip)
                name = event.exchange.login
                if isinstance(found, Challenge):
                    engine.challenge(found.octets)
                    return
                if not isinstance(found, Refused):
                    account = found
                elif found.why == MALFORMED:
                    engine.malformed()
                    return
        except LoginHeldBack:
            engine.refuse_login(
                "[SYS/TEMP] Too many failed logins from your network, try again later", wrong=True
            )
            return
        except DirectoryUnavailable as fault:
            services.error("login can't be checked", fault)
            engine.refuse_login("[SYS/TEMP] Try again later")
            return
        if account is None:
            services.count("logins_failed_total", 1)
            services.event("login-failed", protocol="pop3", user=name[:320], client=self.peer_ip)
            engine.refuse_login("[AUTH] Wrong name or password", wrong=True)
            return
        if self._lost:
            return
        if not services.locks.take(account.number):
            engine.refuse_login("[IN-USE] The maildrop is in use by another session")
            return
        self._held = account.number
        try:
            engine.logged_in(self._maildrop(account.number))
        except Exception:
            self._free()
            raise
        self.user = account.address
        services.count("logins_total", 1)
        services.event("login", protocol="pop3", user=account.address, client=self.peer_ip)

    def _maildrop(self, account: int) -> Maildrop:
        reader = self.services.reader
        inbox = reader.mailbox(account, INBOX)
        found = reader.sizes(account, inbox.id) if inbox is not None else None
        if found is None:
            # Nothing was ever delivered: the mailbox comes with the first message.
            return Maildrop(account, 0, 0, [], [])
        mailbox, uids, sizes, flags = found
        drop = Maildrop(account, mailbox.id, mailbox.uidvalidity, uids, sizes)
        drop.seen = {number for number, bits in enumerate(flags, 1) if bits & SEEN}
        return drop

    async def _update(self) -> None:
        """The UPDATE state: remove what is marked, note what was read (RFC 1939 6)."""
        drop, store = self.engine.maildrop, self.services.store
        assert drop is not None
        trouble = ""
        gone = drop.deleted_uids()
        read = drop.read_uids()
        try:
            if gone:
                # A message another session has removed meanwhile is no failure: it is gone, as wanted.
                await store.store_flags(drop.account, drop.mailbox_id, gone, "+", ["\\Deleted"])
                await store.expunge(drop.account, drop.mailbox_id, gone)
        except StoreError as fault:
            self.services.error("maildrop not updated", fault)
            trouble = "[SYS/TEMP] Some deleted messages not removed"
        if read:
            try:
                await store.store_flags(drop.account, drop.mailbox_id, read, "+", ["\\Seen"])
            except StoreError as fault:
                # Only a hint for IMAP clients; the session itself is complete.
                self.services.error("read messages not marked", fault)
        self._free()
        self.services.event(
            "logout", protocol="pop3", user=self.user, retrieved=len(drop.retrieved), deleted=len(gone)
        )
        self.engine.updated(trouble)

    # Content.

    def _retrieve(self, event: Retrieve) -> None:
        """Begin to send a message."""
        services, engine, stream = self.services, self.engine, self.stream
        drop = engine.maildrop
        assert drop is not None
        row = services.reader.message(drop.account, drop.mailbox_id, drop.uids[event.number - 1])
        if row is None:
            engine.refuse("The message was removed by another session")
            return
        size = row.size
        try:
            slices = services.reader.blobs.slices(row.rope, 0, size)
        except OSError as fault:
            services.count("errors_total", 1)
            services.error("content can't be opened", fault)
            engine.refuse("[SYS/TEMP] The message can't be read")
            return
        if event.lines is None:
            engine.answer(b"+OK %d octets\r\n" % size)
            services.count("fetched_messages_total", 1)
            services.count("octets_out_total", size)
            if event.number not in drop.seen:
                drop.retrieved.add(event.number)
            if size <= SMALL_OCTETS:
                data = read_cached(slices)
                if data is not None:
                    stuffer = Stuffer()
                    body = data if row.dot_free else stuffer.chunk(data)
                    end = END if data.endswith(b"\r\n") or not data else b"\r\n" + END
                    stream.send(b"".join((engine.take_output(), body, end)))
                    return
            elif row.dot_free:
                last = last_octets(slices)
                if last is not None:
                    self._send_file(slices, END if last == b"\r\n" else b"\r\n" + END)
                    return
        else:
            engine.answer(b"+OK\r\n")
        self._transfer = _Transfer(row.rope, size, event.lines)
        stream.send(engine.take_output())
        self._send_more()

    def _send_file(self, pieces: list[Any], end: bytes) -> None:
        """Send content no line of which begins with a dot, from the file to the socket."""
        stream = self.stream
        stream.cork()
        stream.send(self.engine.take_output())
        for piece in pieces:
            if isinstance(piece, bytes):
                stream.send(piece)
            else:
                stream.send_file(*piece)
        stream.send(end)
        stream.uncork()

    def _send_more(self) -> None:
        """Send the transfer's next chunks until the peer is slower than we are."""
        try:
            self._send_chunks()
        except Exception as fault:
            self._broken(fault)

    def _send_chunks(self) -> None:
        transfer, stream = self._transfer, self.stream
        blobs = self.services.reader.blobs
        while transfer is not None and not self._busy and stream.pending_out <= HIGH_OCTETS:
            length = min(CHUNK_OCTETS, transfer.size - transfer.at)
            if length <= 0 or transfer.stuffer.done:
                self._transfer = transfer = None
                self._end_transfer()
                return
            slices = blobs.slices(transfer.rope, transfer.at, length)
            data = read_cached(slices)
            if data is None:
                self._read_in_thread(slices)
                return
            self._take(transfer, data)

    def _take(self, transfer: _Transfer, data: bytes) -> None:
        transfer.at += len(data)
        out = transfer.stuffer.chunk(data)
        if transfer.stuffer.done or transfer.at >= transfer.size:
            out += transfer.stuffer.end()
        self.stream.send(out)

    def _read_in_thread(self, slices: list[Any]) -> None:
        """Fetch a cold chunk; the descriptors stay open meanwhile."""
        blobs = self.services.reader.blobs
        fds = [piece[0] for piece in slices if not isinstance(piece, bytes)]
        for fd in fds:
            blobs.pin(fd)
        self._busy = True

        def done(future: asyncio.Future[bytes]) -> None:
            for fd in fds:
                blobs.unpin(fd)
            self._busy = False
            transfer = self._transfer
            if self._lost or transfer is None:
                self._free()
                return
            fault = future.exception()
            if fault is not None:
                # In the middle of a message there is no other way to say so.
                self._broken(fault)
                return
            self._take(transfer, future.result())
            self._send_more()

        self.services.loop.run_in_executor(None, read_slow, slices).add_done_callback(done)

    def _end_transfer(self) -> None:
        if self.draining:
            self.engine.end("[SYS/TEMP] The server is going down")
        if not self._pumping:
            self._pump()
