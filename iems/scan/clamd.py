"""Client of clamd (its commands IDSESSION and INSTREAM), over TCP or a Unix socket: content is streamed, and connections are kept for the next."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator

from msgspec import Struct

from iems.config import host_port
from iems.net.breaker import Breaker, Guard, NoAnswer

#: How long a session without work is kept; clamd ends it after IdleTimeout, 30 s if nothing else is set.
IDLE_S = 10.0
#: Content up to this length can be told again, should a kept session have ended just now; longer content gets a new one.
AGAIN_OCTETS = 256 << 10
PORT = 3310
_CHUNK_MAX = 1 << 20
_ANSWER_MAX = 4096
_ANSWER = re.compile(rb"([0-9]{1,10}): (.*)\Z", re.S)


class _Session(Struct):
    """asked: commands so far; each answer bears the number of its command."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    asked: int = 0
    idle_since: float = 0.0


class Clamd:
    """place: HOST:PORT or the path of a socket. timeout_s: for one message. at_once: messages at the same time, and sessions kept."""

    def __init__(self, place: str, *, timeout_s: float, at_once: int, breaker: Breaker) -> None:
        self.place = place
        self.name = f"clamd:{place}"
        self._guard = Guard(self.name, timeout_s=timeout_s, at_once=at_once, breaker=breaker)
        self._idle: list[_Session] = []

    async def scan(self, content: AsyncIterator[bytes]) -> str:
        """The name of the virus, "" if none is found. Raises NoAnswer."""
        async with self._guard.asking():
            first: list[bytes] = []
            octets = 0
            async for piece in content:
                first.append(piece)
                octets += len(piece)
                if octets > AGAIN_OCTETS:
                    return await self._ask(await self._session(), first, content)
            while (session := self._kept()) is not None:
                try:
                    return await self._ask(session, first, None)
                except (ConnectionError, EOFError):
                    continue  # it had ended before we asked
            return await self._ask(await self._session(), first, None)

    def _kept(self) -> _Session | None:
        while self._idle:
            session = self._idle.pop()
            if not session.reader.at_eof() and time.monotonic() - session.idle_since < IDLE_S:
                return session
            session.writer.close()
        return None

    async def _session(self) -> _Session:
        if self.place.startswith("/"):
            reader, writer = await asyncio.open_unix_connection(self.place)
        else:
            reader, writer = await asyncio.open_connection(*host_port(self.place, PORT))
        writer.write(b"zIDSESSION\0")
        return _Session(reader, writer)

    async def _ask(self, session: _Session, first: list[bytes], rest: AsyncIterator[bytes] | None) -> str:
        """rest: what comes after the first pieces, None if nothing does."""
        kept = False
        try:
            found = await self._stream(session, first, rest)
            kept = True
            return found
        finally:
            if kept:
                session.idle_since = time.monotonic()
                self._idle.append(session)
            else:
                session.writer.close()

    async def _stream(self, session: _Session, first: list[bytes], rest: AsyncIterator[bytes] | None) -> str:
        writer = session.writer
        session.asked += 1
        writer.write(b"zINSTREAM\0")
        try:
            for octets in first:
                await _send(writer, octets)
            if rest is not None:
                async for octets in rest:
                    await _send(writer, octets)
            writer.write(bytes(4))
            await writer.drain()
        except ConnectionError:
            pass  # it says why before it closes: too much for its limits
        try:
            answer = await session.reader.readuntil(b"\0")
        except asyncio.IncompleteReadError as error:
            if not error.partial and session.asked > 1:
                raise
            raise NoAnswer(f"it closed: {error.partial[:200]!r}") from error
        except asyncio.LimitOverrunError as error:
            raise NoAnswer("it answers without end") from error
        numbered = _ANSWER.match(answer)
        if numbered is None or int(numbered[1]) != session.asked:
            raise NoAnswer(f"no answer of clamd: {answer[:200]!r}")
        return _verdict(numbered[2][:_ANSWER_MAX])


async def _send(writer: asyncio.StreamWriter, octets: bytes) -> None:
    for at in range(0, len(octets), _CHUNK_MAX):
        piece = octets[at : at + _CHUNK_MAX]
        writer.write(len(piece).to_bytes(4, "big") + piece)
    await writer.drain()


def _verdict(answer: bytes) -> str:
    text = answer.rstrip(b"\0\n ").decode("utf-8", "replace")
    if not text.startswith("stream: "):
        raise NoAnswer(f"no answer of clamd: {text[:200]!r}")
    text = text.removeprefix("stream: ")
    if text == "OK":
        return ""
    if text.endswith(" FOUND"):
        return text.removesuffix(" FOUND")[:200] or "unnamed"
    raise NoAnswer(text[:200])
