"""Client of an ICAP server (RFC 3507): content is streamed to it, a preview first if it wants one, and it says whether it lets it pass.

No change (204) is clean. So is the content given back octet for octet, by a server that can't answer 204. What else it gives back, a page
that says why, or a message without its virus, is a finding: nothing of it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import time
from collections.abc import AsyncIterator, Callable

from msgspec import Struct

from iems.config import host_port
from iems.net.breaker import Breaker, Guard, NoAnswer
from iems.scan import icapwire as wire

#: How long a connection without work is kept.
IDLE_S = 20.0
PORT, TLS_PORT = 1344, 11344
_CHUNK_MAX = 256 << 10
#: What an answer may be longer than the content.
_ANSWER_MORE = 1 << 20
_CHANGED = "changed by the scanner"


class _Connection(Struct):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    idle_since: float = 0.0
    used: bool = False


class Icap:
    """place: //HOST:PORT/SERVICE. timeout_s: for one message. at_once: messages at the same time, and connections kept.

    tls: makes the context with which its certificate and name are checked, asked for once; None: in the clear.
    """

    def __init__(
        self, place: str, *, timeout_s: float, at_once: int, breaker: Breaker, tls: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        self.name = f"{'icap' if tls is None else 'icaps'}:{place}"
        self._host, _, self._service = place.removeprefix("//").partition("/")
        self._address = host_port(self._host, PORT if tls is None else TLS_PORT)
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._guard = Guard(self.name, timeout_s=timeout_s, at_once=at_once, breaker=breaker)
        self._idle: list[_Connection] = []
        self._options: wire.Options | None = None
        self._options_until = 0.0

    async def scan(self, content: AsyncIterator[bytes]) -> str:
        """The name of what it found, "" if it lets the content pass. Raises NoAnswer."""
        async with self._guard.asking(asyncio.LimitOverrunError):
            try:
                return await self._ask(_Source(content))
            except asyncio.IncompleteReadError as error:
                raise NoAnswer(f"it closed: {error.partial[:200]!r}") from error

    async def _ask(self, source: _Source) -> str:
        options = await self._known()
        while True:
            connection = await self._connect()
            kept = False
            try:
                found, kept = await self._one(connection, options, source)
                return found
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                # A kept connection may have been closed by its other end just now; nothing but the beginning is gone, and that we have.
                if not connection.used or source.passed or (isinstance(error, asyncio.IncompleteReadError) and error.partial):
                    raise
            finally:
                self._done(connection, kept)

    async def _known(self) -> wire.Options:
        """What the server has told of the service, asked anew when it is too old."""
        while self._options is None or time.monotonic() >= self._options_until:
            connection = await self._connect()
            kept = False
            try:
                connection.writer.write(wire.request("OPTIONS", self._host, self._service))
                answer = await _head(connection.reader)
                options = wire.options(answer)
                await _drop(connection.reader, answer)
                self._options, self._options_until = options, time.monotonic() + options.ttl_s
                # Without a preview a kept connection that is closed meanwhile could not be told from a failure.
                kept = not _closes(answer) and options.preview is not None
                return options
            except (ConnectionError, asyncio.IncompleteReadError):
                if not connection.used:
                    raise
            finally:
                self._done(connection, kept)
        return self._options

    def _done(self, connection: _Connection, kept: bool) -> None:
        if kept:
            connection.idle_since = time.monotonic()
            connection.used = True
            self._idle.append(connection)
        else:
            connection.writer.close()

    async def _connect(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof() and time.monotonic() - connection.idle_since < IDLE_S:
                return connection
            connection.writer.close()
        if self._tls is not None and self._context is None:
            # The system's authorities are many files: not read on the loop.
            self._context = await asyncio.to_thread(self._tls)
        reader, writer = await asyncio.open_connection(*self._address, ssl=self._context)
        return _Connection(reader, writer)

    async def _one(self, connection: _Connection, options: wire.Options, source: _Source) -> tuple[str, bool]:
        """(what was found, whether the connection can be used again)."""
        reader, writer = connection.reader, connection.writer
        writer.write(wire.request(options.method, self._host, self._service, preview=options.preview))
        if options.preview is not None:
            first, whole = await source.beginning(options.preview)
            writer.write(wire.chunk(first) + (wire.PREVIEW_END if whole else wire.END))
            answer = await _head(reader)
            if answer.code != 100:
                return await self._verdict(reader, answer, source, whole)
            if whole:
                raise NoAnswer("it wants more than there is")
        sending = asyncio.ensure_future(_send(writer, source))
        try:
            answer = await _head(reader)
            found, usable = await self._verdict(reader, answer, source, True, sending)
            return found, usable and sending.done() and options.preview is not None
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sending

    async def _verdict(
        self, reader: asyncio.StreamReader, answer: wire.Head, source: _Source, all_sent: bool, sending: asyncio.Future[None] | None = None
    ) -> tuple[str, bool]:
        """all_sent: the server has seen, or is being shown, everything."""
        if found := wire.finding(answer):
            return found, False
        if answer.code == 204:
            if wire.encapsulated(answer).body:
                raise NoAnswer("no change, and a body")
            return "", not _closes(answer)
        if answer.code not in (200, 201):
            raise NoAnswer(f"it answers {answer.code}")
        parts = wire.encapsulated(answer)
        for kind, length in parts.heads:
            octets = await reader.readexactly(length)
            if kind == "res-hdr":
                inner = wire.head(octets, b"HTTP")
                if found := wire.finding(inner):
                    return found, False
                if inner.code != 200:
                    return f"{_CHANGED}: HTTP {inner.code}", False
        if not parts.body or not all_sent:
            return _CHANGED, False
        back = hashlib.blake2b()
        octets_back = 0
        async for piece in _chunks(reader):
            back.update(piece)
            octets_back += len(piece)
            if octets_back > source.octets + _ANSWER_MORE:
                return _CHANGED, False
        if sending is not None:
            if not sending.done() and octets_back == source.octets:
                await asyncio.wait({sending}, timeout=1.0)
            if not sending.done() or sending.exception() is not None:
                raise NoAnswer("it answered before it had seen everything")
        if octets_back != source.octets or back.digest() != source.digest.digest():
            return _CHANGED, False
        return "", not _closes(answer)


class _Source:
    """The content on its way. octets, digest: of what was given out. passed: something is gone for good."""

    def __init__(self, content: AsyncIterator[bytes]) -> None:
        self._content = content
        self._first: bytes | None = None
        self._rest = b""
        self._whole = False
        self.octets = 0
        self.digest = hashlib.blake2b()
        self.passed = False

    async def beginning(self, most: int) -> tuple[bytes, bool]:
        """(the first octets, whether they are all); the same if asked again."""
        if self._first is None:
            held = b""
            # One more than is shown tells whether there is more.
            while len(held) <= most:
                try:
                    held += await anext(self._content)
                except StopAsyncIteration:
                    self._whole = True
                    break
            self._first, self._rest = held[:most], held[most:]
            self._whole = self._whole and not self._rest
            self._out(self._first)
        return self._first, self._whole

    async def rest(self) -> AsyncIterator[bytes]:
        """What comes after the beginning, in chunks."""
        self.passed = True
        held = self._rest
        while True:
            for at in range(0, len(held), _CHUNK_MAX):
                piece = held[at : at + _CHUNK_MAX]
                self._out(piece)
                yield piece
            try:
                held = await anext(self._content)
            except StopAsyncIteration:
                return

    def _out(self, octets: bytes) -> None:
        self.octets += len(octets)
        self.digest.update(octets)


async def _send(writer: asyncio.StreamWriter, source: _Source) -> None:
    async for piece in source.rest():
        writer.write(wire.chunk(piece))
        await writer.drain()
    writer.write(wire.END)
    await writer.drain()


async def _head(reader: asyncio.StreamReader) -> wire.Head:
    octets = await reader.readuntil(b"\r\n\r\n")
    return wire.head(octets)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while length := wire.chunk_octets(await _line(reader)):
        while length:
            piece = await reader.read(min(length, 65_536))
            if not piece:
                raise NoAnswer("it closed within a body")
            length -= len(piece)
            yield piece
        if await reader.readexactly(2) != wire.CRLF:
            raise NoAnswer("a chunk without an end")
    for _ in range(wire.FIELDS_MAX):
        if not await _line(reader):
            return
    raise NoAnswer("a trailer without an end")


async def _line(reader: asyncio.StreamReader) -> bytes:
    octets = await reader.readuntil(wire.CRLF)
    if len(octets) > wire.CHUNK_LINE_MAX:
        raise NoAnswer("a chunk's line is too long")
    return octets[:-2]


async def _drop(reader: asyncio.StreamReader, answer: wire.Head) -> None:
    """Read past what follows the answer to OPTIONS."""
    parts = wire.encapsulated(answer)
    octets = sum(length for _, length in parts.heads)
    await reader.readexactly(octets)
    if parts.body:
        async for piece in _chunks(reader):
            octets += len(piece)
            if octets > _ANSWER_MORE:
                raise NoAnswer("OPTIONS is answered without end")


def _closes(answer: wire.Head) -> bool:
    return "close" in answer.fields.get("connection", "").lower()
