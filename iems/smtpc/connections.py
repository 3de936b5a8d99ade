"""Connections to other hosts: the engine's dialogue over a stream, content sent from the spool, deadlines, TLS where offered.

A session knows nothing of queues. Its owner hands it transactions and hears of their end; between two destinations that share
a host it is handed on. Content up to `INLINE_OCTETS` goes out in one piece with the dot and the next message's commands;
longer content that needs no dot stuffing goes by sendfile, the rest in chunks as fast as the peer reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from msgspec import Struct

from iems.blobs import Blobs
from iems.model import Reply, Rope
from iems.net.stream import Stream
from iems.smtpc.dane import anchored, chain_of, matches
from iems.smtpc.engine import NEED_DATA, Engine, Event, Transaction, Wait, What
from iems.smtpc.loud import LoudEngine
from iems.smtpc.mx import Host
from iems.smtpc.security import NEEDS, Need

#: Content up to this size is read as a whole.
INLINE_OCTETS: Final = 65536
CHUNK_OCTETS: Final = 262_144
#: After QUIT nothing is lost by hanging up soon.
QUIT_S: Final = 5.0

_DONE, _CONTENT = What.DONE, What.CONTENT
_BARE = re.compile(rb"\r\n|\r|\n")


class Timeouts(Struct, frozen=True):
    """Seconds to wait for each reply (RFC 5321 4.5.3.2), and for the peer to take a block of content."""

    connect_s: float = 30.0
    greeting_s: float = 300.0
    helo_s: float = 300.0
    mail_s: float = 300.0
    rcpt_s: float = 300.0
    data_s: float = 120.0
    block_s: float = 180.0
    end_s: float = 600.0


class Stuffer:
    """Makes content fit for DATA, chunk by chunk: dots doubled, every line end CRLF (RFC 5321 4.5.2, 2.3.8).

    A bare CR or LF becomes CRLF, so that no receiver can be led to see a second message in it.
    """

    def __init__(self) -> None:
        self._at_start = True
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """The next octets to send."""
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if chunk.endswith(b"\r"):  # its LF may come with the next chunk
            self._held = b"\r"
            chunk = chunk[:-1]
        if not chunk:
            return b""
        pairs = chunk.count(b"\r\n")
        if chunk.count(b"\n") != pairs or chunk.count(b"\r") != pairs:
            chunk = _BARE.sub(b"\r\n", chunk)
        first = b"." if self._at_start and chunk.startswith(b".") else b""
        self._at_start = chunk.endswith(b"\n")
        return first + chunk.replace(b"\r\n.", b"\r\n..")

    def finish(self) -> bytes:
        """What is still needed for the content to end with CRLF."""
        if self._held:
            self._held = b""
            return b"\r\n"
        return b"" if self._at_start else b"\r\n"


def stuffed(content: bytes, dot_free: bool) -> bytes:
    """All of a content, fit for DATA and ending with CRLF. dot_free: it is known to be so but for the end."""
    if dot_free:
        return content if content.endswith(b"\r\n") or not content else content + b"\r\n"
    stuffer = Stuffer()
    return stuffer.feed(content) + stuffer.finish()


def is_text(chunks: Iterator[bytes]) -> bool:
    """Whether content said to be binary could go by DATA all the same: CRLF line ends of at most 998 octets, no NUL.

    chunks: the content in pieces of at least 1,000 octets (but for the last).
    """
    rest = b""
    for chunk in chunks:
        piece = rest + chunk
        if b"\0" in piece:
            return False
        if piece.endswith(b"\r"):  # its LF may come with the next
            piece, held = piece[:-1], b"\r"
        else:
            held = b""
        lines = piece.split(b"\r\n")
        if any(len(line) > 998 or b"\r" in line or b"\n" in line for line in lines):
            return False
        rest = lines[-1] + held
    return b"\r" not in rest


class Content(Struct):
    """What a transaction sends. data: the whole of it, made fit for DATA, if it is short; else it is read from the rope.

    binary: it goes by BDAT, as it is.
    """

    rope: Rope
    size: int
    dot_free: bool
    data: bytes | None = None
    binary: bool = False


class Owner(Protocol):
    """Who runs sessions. All calls come from the loop."""

    def next_transaction(self, session: Session) -> Transaction | None:
        """The next message for this session, its `owner.content` a `Content`; None if there is none now."""

    def finished(self, session: Session, transaction: Transaction) -> None:
        """All recipients of the transaction have their reply."""

    def rested(self, session: Session) -> None:
        """Nothing is under way and there was no next transaction. `session.go_on()` makes it ask again."""

    def ended(self, session: Session, reply: Reply, unfinished: list[Transaction]) -> None:
        """The session is gone; what of its transactions has no outcome. Not called if it ends before it was `opened`."""


class Session:
    """One connection to one host.

    need: the TLS it must have. opened: a future; None when transactions may begin, else the reply that says why not. used: a transaction was completed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        host: Host,
        owner: Owner,
        *,
        helo: bytes,
        timeouts: Timeouts,
        blobs: Blobs,
        tls: ssl.SSLContext | None = None,
        max_messages: int = 100,
        need: Need = NEEDS["may"],
        heard: Callable[[str, bytes], Any] | None = None,
    ) -> None:
        """heard: is told of every command and reply, to be logged."""
        self.host = host
        self.need = need
        self.name = str(host)
        options = {"tls": tls is not None, "must": need.must}
        self.engine = Engine(helo, **options) if heard is None else LoudEngine(heard, helo, **options)
        self.opened: asyncio.Future[Reply | None] = loop.create_future()
        self.used = False
        self.tls_failed = False
        self.tls_cause: Exception | None = None  # of a handshake that failed
        self.destination: Any = None  # the owner's
        self.resting_since_s = 0.0
        self._loop = loop
        self._owner = owner
        self._timeouts = timeouts
        self._seconds = _deadlines(timeouts)
        self._blobs = blobs
        self._tls = tls
        self._max_messages = max_messages
        self._handshaking = False
        self._gone = False
        self._reply: Reply | None = None
        self._pumping: _Pumping | None = None
        self._pending_out = 0
        self._deadline_s = loop.time() + timeouts.greeting_s
        self._busy = False
        self._resting = False
        self._adopted = False
        self.stream = Stream(loop, sock, self)

    # ---------------------------------------------------------------- the owner's side

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""
        return self._gone

    @property
    def secure(self) -> bool:
        """Whether TLS protects it."""
        return self.engine.secure

    @property
    def spent(self) -> bool:
        """Whether no further message should go over this connection."""
        engine = self.engine
        return engine.transactions >= self._max_messages or engine.sent_quit or self._gone

    def limit_messages(self, messages: int) -> None:
        """Let no more than this number go over it in all."""
        self._max_messages = min(self._max_messages, messages)

    def go_on(self) -> None:
        """Ask the owner for work, as something may have come."""
        if not self._gone and not self._busy:
            self._resting = False
            self._adopted = True
            self._run()

    def quit(self) -> None:
        """End it politely once nothing is under way."""
        if not self._gone:
            self.engine.quit()
            self._flush()

    def fail(self, reply: Reply) -> None:
        """End it at once because of `reply`."""
        if not self._gone:
            self._end(reply)

    def tick(self, now_s: float) -> None:
        """Look at the deadline; to be called about once a second."""
        if self._gone:
            return
        pending = self.stream.pending_out
        if pending:
            # Every block the peer takes starts its time anew (RFC 5321 4.5.3.2.5).
            if pending != self._pending_out:
                self._pending_out = pending
                self._deadline_s = now_s + self._timeouts.block_s
        elif self._pending_out:
            self._pending_out = 0
            self._arm()
        waiting = self.engine.waiting
        if now_s >= self._deadline_s and (
            waiting is not None or self._handshaking or self._pumping is not None or pending
        ):
            what = "TLS handshake" if self._handshaking else _WAITS.get(waiting, "content to be taken")
            if self._handshaking:
                self.tls_failed = True
                self.tls_cause = TimeoutError("timeout")
            self._end(Reply(451, 4, 2, f"timeout while waiting for {what}"))

    # ---------------------------------------------------------------- the stream's side

    def data_received(self, view: memoryview) -> None:
        """Octets of the remote host."""
        self.engine.feed(view)
        self._run()

    def eof_received(self) -> None:
        """It closes its side."""
        self._end(self._reply or Reply(451, 4, 2, "the remote host closed the connection"))

    def connection_lost(self, cause: Exception | None) -> None:
        """The connection is gone."""
        if self._gone:
            return
        if self._handshaking:
            self.tls_failed = True
            self.tls_cause = cause or ConnectionError("connection closed")
            self._end(Reply(451, 7, 5, f"TLS handshake failed: {cause}"))
        else:
            self._end(Reply(451, 4, 2, f"connection lost: {cause}" if cause else "connection lost"))

    def tls_ready(self) -> None:
        """The handshake is done."""
        self._handshaking = False
        if self.need.level == "dane" and not self._named():
            self.tls_failed = True
            self._end(Reply(451, 7, 5, "the certificate is none that the TLSA records name"))
            return
        self.engine.tls_started()
        self._flush()

    def _named(self) -> bool:
        """Whether the TLSA records stand for the host's certificate."""
        need, tls = self.need, self.stream.sslobj
        if tls is None:
            return False
        certificate = tls.getpeercert(binary_form=True)
        if not certificate:
            return False
        if need.tlsa and matches(certificate, need.tlsa):
            return True
        return bool(need.anchors) and anchored(
            chain_of(tls), need.anchors, need.names, datetime.datetime.now(datetime.UTC)
        )

    def writable(self) -> None:
        """There is room for more octets."""
        if self._pumping is not None and not self._gone:
            self._pump()

    # ---------------------------------------------------------------- the dialogue

    def _run(self) -> None:
        """Handle what the engine has found, then look for more work and send."""
        if self._busy:
            return
        self._busy = True
        engine = self.engine
        try:
            while not self._gone:
                event = engine.next_event()
                if event is not NEED_DATA:
                    what = event.what
                    if what is _DONE:
                        self.used = True
                        self._owner.finished(self, event.transaction)  # type: ignore[arg-type]
                    elif what is _CONTENT:
                        self._send_content(event.transaction)  # type: ignore[arg-type]
                    else:
                        self._handle(event)
                    continue
                if self._resting or not engine.idle or self._gone:
                    break
                transaction = None if self.spent else self._owner.next_transaction(self)
                if transaction is None:
                    self._resting = True
                    break
                engine.begin(transaction)
        finally:
            self._busy = False
        if self._gone:
            return
        self._flush()
        if self._resting and self._adopted and engine.idle:
            self._owner.rested(self)

    def _handle(self, event: Event) -> None:
        """What happens once a connection, not once a message."""
        match event.what:
            case What.READY:
                mail_max = self.engine.extensions.mail_max
                if mail_max:
                    self._max_messages = min(self._max_messages, mail_max)
                if not self.opened.done():
                    self._resting = True  # the owner says go_on when it has taken the session in
                    self.opened.set_result(None)
            case What.TLS:
                assert self._tls is not None
                self._handshaking = True
                self._deadline_s = self._loop.time() + self._timeouts.helo_s
                name = _server_name(self.host)
                if self._tls.check_hostname:
                    name = name or self.host.address
                self.stream.start_tls(self._tls, server_side=False, server_hostname=name)
            case What.CLOSED:
                self._reply = event.reply
                self._end(event.reply or Reply(221, 0, 0, "closed"))

    def _flush(self) -> None:
        out = self.engine.take_output()
        if out:
            self.stream.send(out)
        self._arm()

    def _arm(self) -> None:
        """Set the deadline for the reply now awaited."""
        if self._handshaking:
            return
        waiting = self.engine.waiting
        if waiting is not None:
            self._deadline_s = self._loop.time() + self._seconds[waiting]

    def _send_content(self, transaction: Transaction) -> None:
        engine = self.engine
        if engine.can_follow and not self.spent:
            # Its commands ride behind the dot, so a session costs one round trip a message.
            following = self._owner.next_transaction(self)
            if following is not None:
                engine.begin(following)
        content: Content = transaction.owner.content
        data = content.data
        if data is not None:
            if content.binary:
                data = engine.take_output() + data
            engine.content_sent()
            self.stream.send(data + engine.take_output())
            content.data = None
        elif content.dot_free or content.binary:
            self._send_file(content)
        else:
            self._pumping = _Pumping(content)
            self._deadline_s = self._loop.time() + self._timeouts.block_s
            self._pump()

    def _send_file(self, content: Content) -> None:
        """Long content without a dot at a line's start, or by BDAT, straight from the files it lies in."""
        stream = self.stream
        try:
            pieces = self._blobs.slices(content.rope, 0, content.size)
            end = self._blobs.read_range(content.rope, max(content.size - 2, 0), 2)
        except (OSError, EOFError) as fault:
            self._unreadable(fault)
            return
        stream.cork()
        stream.send(self.engine.take_output())
        for piece in pieces:
            if isinstance(piece, bytes):
                stream.send(piece)
            else:
                stream.send_file(*piece)
        if end != b"\r\n" and not content.binary:
            stream.send(b"\r\n")
        self.engine.content_sent()
        stream.send(self.engine.take_output())
        stream.uncork()

    def _pump(self) -> None:
        """Go on with long content that needs stuffing: read a chunk in a thread when the peer has taken most of the last."""
        pumping = self._pumping
        if pumping is None or pumping.reading or self.stream.pending_out > CHUNK_OCTETS:
            return
        content = pumping.content
        if pumping.at >= content.size:
            self._pumping = None
            self.stream.send(pumping.stuffer.finish())
            self.engine.content_sent()
            self._run()
            return
        length = min(CHUNK_OCTETS, content.size - pumping.at)
        blobs = self._blobs
        try:
            reading = read_range(self._loop, blobs, content.rope, pumping.at, length)
        except OSError as fault:
            self._unreadable(fault)
            return
        pumping.at += length
        pumping.reading = True

        def have(done: asyncio.Future[bytes]) -> None:
            pumping.reading = False
            if self._pumping is not pumping:
                return
            fault = done.exception()
            if fault is not None:
                self._unreadable(fault if isinstance(fault, Exception) else OSError(str(fault)))
                return
            self.stream.send(pumping.stuffer.feed(done.result()))
            self._pump()

        reading.add_done_callback(have)

    def _unreadable(self, fault: Exception) -> None:
        """Our own fault in the middle of DATA: only a dropped connection keeps the peer from taking half a message."""
        self._loop.call_exception_handler({"message": "content can't be read", "exception": fault})
        self._end(Reply(451, 3, 0, "content can't be read for now"))

    def _end(self, reply: Reply) -> None:
        if self._gone:
            return
        self._gone = True
        self._pumping = None
        if self.engine.sent_quit or not self.engine.ready:
            self.stream.close()
        else:
            self.stream.abort()
        if not self.opened.done():
            self.opened.set_result(reply)
            return
        self._owner.ended(self, reply, self.engine.unfinished())


class _Pumping:
    """Long content on its way out in chunks."""

    __slots__ = ("at", "content", "reading", "stuffer")

    def __init__(self, content: Content) -> None:
        self.content = content
        self.at = 0
        self.reading = False
        self.stuffer = Stuffer()


def read_range(
    loop: asyncio.AbstractEventLoop, blobs: Blobs, rope: Rope, start: int, length: int
) -> asyncio.Future[bytes]:
    """A range of a content, read in a thread. Raises OSError at once or later, EOFError later."""
    pieces = blobs.slices(rope, start, length)
    held = [piece[0] for piece in pieces if not isinstance(piece, bytes)]
    for fd in held:
        blobs.pin(fd)

    def release(_: object) -> None:
        for fd in held:
            blobs.unpin(fd)

    reading: asyncio.Future[bytes] = loop.run_in_executor(None, _read, pieces)
    reading.add_done_callback(release)
    return reading


def _read(pieces: list[bytes | tuple[int, int, int]]) -> bytes:
    """The octets of slices of a rope; called in a thread. Raises OSError, EOFError."""
    found = []
    for piece in pieces:
        if isinstance(piece, bytes):
            found.append(piece)
            continue
        fd, offset, length = piece
        while length:
            data = os.pread(fd, length, offset)
            if not data:
                raise EOFError("content ends before its length")
            found.append(data)
            offset += len(data)
            length -= len(data)
    return b"".join(found)


_WAITS: Final[dict[Wait | None, str]] = {
    Wait.GREETING: "the greeting",
    Wait.EHLO: "the reply to EHLO",
    Wait.HELO: "the reply to HELO",
    Wait.STARTTLS: "the reply to STARTTLS",
    Wait.MAIL: "the reply to MAIL",
    Wait.RCPT: "the reply to RCPT",
    Wait.LAST_RCPT: "the reply to RCPT",
    Wait.DATA: "the reply to DATA",
    Wait.END: "the reply to the final dot",
    Wait.EMPTY: "the reply to the final dot",
    Wait.RSET: "the reply to RSET",
    Wait.QUIT: "the reply to QUIT",
}


def _deadlines(timeouts: Timeouts) -> tuple[float, ...]:
    """Seconds to wait for each reply, by `Wait`."""
    seconds = dict.fromkeys(Wait, timeouts.mail_s)
    seconds[Wait.GREETING] = timeouts.greeting_s
    seconds[Wait.EHLO] = seconds[Wait.HELO] = seconds[Wait.STARTTLS] = timeouts.helo_s
    seconds[Wait.RCPT] = seconds[Wait.LAST_RCPT] = timeouts.rcpt_s
    seconds[Wait.DATA] = timeouts.data_s
    seconds[Wait.END] = seconds[Wait.EMPTY] = timeouts.end_s
    seconds[Wait.QUIT] = QUIT_S
    return tuple(seconds[wait] for wait in sorted(seconds))


def _server_name(host: Host) -> str | None:
    """The name for SNI; an address is none (RFC 6066 3)."""
    return None if host.name == host.address else host.name


def client_tls() -> ssl.SSLContext:
    """Opportunistic TLS (RFC 7435): any certificate will do, for the other choice is no protection at all."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    return context


async def connect(loop: asyncio.AbstractEventLoop, host: Host) -> socket.socket:
    """A connected, non-blocking socket. Raises OSError; the caller sets a limit."""
    family = socket.AF_INET6 if ":" in host.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await loop.sock_connect(sock, (host.address, host.port))
    except BaseException:
        with contextlib.suppress(OSError):
            sock.close()
        raise
    return sock
