"""A POP3 client (RFC 1939, 2449, 2595): one session with one maildrop. Every wait has a limit, every answer a bound."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from iems._native import kernel
from iems.errors import IemsError

_DataDecoder = kernel("smtp").DataDecoder
_Buffer = kernel("buffer").Buffer

#: RFC 2449 4 allows 512 octets; servers that say more are read all the same.
LINE_OCTETS = 4096
#: Octets of a listing that are read: some 100,000 messages. What does not fit is seen in a later session.
LISTING_OCTETS = 8 << 20
CHUNK = 256 * 1024


class Pop3Error(IemsError):
    """The server refused a command or said what is no POP3; the text holds its words, never a password."""


class Pop3Client:
    """One session. Use: connect, login, listing, retrieve and delete, quit; `close` in any case. timeout_s: of each wait."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, host: str, port: int, tls: str, context: ssl.SSLContext | None) -> None:
        """Connect and read the greeting. tls: none, starttls or implicit. Raises OSError, TimeoutError, Pop3Error."""
        async with asyncio.timeout(self._timeout_s):
            self._reader, self._writer = await asyncio.open_connection(
                host, port, limit=LINE_OCTETS, ssl=context if tls == "implicit" else None
            )
        await self._answer("greeting")
        if tls == "starttls":
            await self._command("STLS")
            assert context is not None
            # What came behind the answer came in the clear (RFC 2595 4): an attacker may have put it there.
            if self._reader._buffer:  # type: ignore[attr-defined]
                raise Pop3Error("octets in the clear behind the answer to STLS")
            async with asyncio.timeout(self._timeout_s):
                await self._writer.start_tls(context, server_hostname=host)

    async def login(self, user: str, password: str) -> None:
        """USER and PASS. Raises as `connect`."""
        await self._command(f"USER {user}", "USER")
        await self._command(f"PASS {password}", "PASS")

    async def listing(self) -> list[tuple[int, int, bytes]]:
        """(number, octets, unique id or b"" where the server has none) of each message. Raises as `connect`."""
        sizes = await self._lines("LIST")
        ids: dict[int, bytes] = {}
        try:
            for line in await self._lines("UIDL"):
                number, _, unique = line.partition(b" ")
                if number.isdigit() and len(number) < 10:
                    ids[int(number)] = unique.strip()[:255]
        except Pop3Error:
            pass  # an optional command
        found = []
        for line in sizes:
            words = line.split()
            if len(words) < 2 or not all(word.isdigit() and len(word) < 20 for word in words[:2]):
                raise Pop3Error("an answer to LIST that is none")
            found.append((int(words[0]), int(words[1]), ids.get(int(words[0]), b"")))
        return found

    async def retrieve(self, number: int, limit: int) -> bytes | None:
        """The octets of a message, None if there are more than `limit`. Raises as `connect`."""
        await self._command(f"RETR {number}")
        decoder, buffer = await self._multiline(limit)
        return None if decoder.too_big else bytes(buffer)

    async def delete(self, number: int) -> None:
        """Mark a message; it goes at `quit`. Raises as `connect`."""
        await self._command(f"DELE {number}")

    async def quit(self) -> None:
        """Let the server delete what is marked. Raises as `connect`: then it may not have."""
        await self._command("QUIT")

    def close(self) -> None:
        """End the connection at once; without `quit` nothing is deleted."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def _command(self, line: str, name: str = "") -> bytes:
        if not line.isprintable():
            raise Pop3Error(f"{name or line[:4]}: a control character in the argument")
        assert self._writer is not None
        self._writer.write(line.encode() + b"\r\n")
        async with asyncio.timeout(self._timeout_s):
            await self._writer.drain()
        return await self._answer(name or line)

    async def _answer(self, what: str) -> bytes:
        assert self._reader is not None
        try:
            async with asyncio.timeout(self._timeout_s):
                line = await self._reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise Pop3Error(f"{what}: the connection ended, or a line that is too long") from None
        if not line.startswith(b"+OK"):
            if what == "PASS":
                raise Pop3Error("the login was refused")  # a server may say the password again
            raise Pop3Error(f"{what}: {line.strip()[:200].decode('utf-8', 'replace')!a}")
        return line

    async def _lines(self, command: str) -> list[bytes]:
        await self._command(command)
        decoder, buffer = await self._multiline(LISTING_OCTETS)
        lines = bytes(buffer).split(b"\r\n")
        if decoder.too_big:
            lines.pop()  # it may be torn
        return [line for line in lines if line]

    async def _multiline(self, limit: int) -> tuple[Any, Any]:
        """What follows until the line of one dot (RFC 1939 3). Beyond `limit` octets it is read and dropped."""
        assert self._reader is not None
        decoder, buffer = _DataDecoder(limit, binary=True), _Buffer()
        while not decoder.done:
            async with asyncio.timeout(self._timeout_s):
                chunk = await self._reader.read(CHUNK)
            if not chunk:
                raise Pop3Error("the connection ended within an answer")
            taken, _ = decoder.feed(chunk, 0, len(chunk), buffer)
            if taken < len(chunk):
                raise Pop3Error("octets behind an answer")
        return decoder, buffer


def context_of(ca_file: str, verify: bool) -> ssl.SSLContext:
    """A client's TLS context, 1.2 or later. ca_file: PEM of trusted roots beside those of the system, or "". Raises OSError."""
    context = ssl.create_default_context(cafile=ca_file or None)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
