"""The asking side of ODMR (RFC 2645): log in, say ATRN, then hand the connection on to whoever plays the server on it.

Every wait before the reversal has a limit, every answer a bound; afterwards octets are carried both ways, a bounded number at a time.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import socket
import ssl

from iems.errors import IemsError

LINE_OCTETS = 4096
REPLY_LINES = 100
CHUNK = 65_536


class OdmrError(IemsError):
    """The provider refused a command or said what is no SMTP; the text holds its words, never a password."""


class OdmrClient:
    """One connection. Use: connect, login, turn, carry; `close` in any case. timeout_s: of each wait. helo: our name."""

    def __init__(self, timeout_s: float, helo: str) -> None:
        self._timeout_s = timeout_s
        self._helo = helo
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._offers: dict[str, list[str]] = {}
        #: Version and cipher of TLS for Received lines, "" in the clear.
        self.tls = ""
        #: Address and port of the provider.
        self.peer: tuple[str, int] = ("", 0)

    async def connect(self, host: str, port: int, tls: str, context: ssl.SSLContext | None) -> None:
        """Connect, greet, start TLS. tls: none, starttls or implicit. Raises OSError, TimeoutError, OdmrError."""
        async with asyncio.timeout(self._timeout_s):
            self._reader, self._writer = await asyncio.open_connection(
                host, port, limit=LINE_OCTETS, ssl=context if tls == "implicit" else None
            )
        address = self._writer.get_extra_info("peername") or ("", 0)
        self.peer = str(address[0]), int(address[1])
        await self._answer("greeting", 220)
        await self._hello()
        if tls == "starttls":
            if "STARTTLS" not in self._offers:
                raise OdmrError("STARTTLS is not offered")
            await self._command("STARTTLS", 220)
            assert context is not None
            # What came behind the answer came in the clear (RFC 3207 6): an attacker may have put it there.
            if self._reader._buffer:  # type: ignore[attr-defined]
                raise OdmrError("octets in the clear behind the answer to STARTTLS")
            async with asyncio.timeout(self._timeout_s):
                await self._writer.start_tls(context, server_hostname=host)
            await self._hello()
        cipher = self._writer.get_extra_info("cipher")
        if cipher:
            self.tls = f"{cipher[1]} with cipher {cipher[0]}"

    async def _hello(self) -> None:
        lines = await self._command(f"EHLO {self._helo}", 250)
        self._offers = {}
        for line in lines[1:]:
            words = line[4:].upper().split()
            if words:
                self._offers[words[0]] = words[1:]

    async def login(self, user: str, password: str) -> None:
        """AUTH: over TLS PLAIN or LOGIN, else CRAM-MD5, which every provider has (RFC 2645 4); PLAIN in the clear only where there is no other way.

        Raises as `connect`.
        """
        offered = self._offers.get("AUTH", [])
        order = ("PLAIN", "LOGIN", "CRAM-MD5") if self.tls else ("CRAM-MD5", "PLAIN", "LOGIN")
        mechanism = next((name for name in order if name in offered), "")
        if mechanism == "PLAIN":
            text = _coded(b"\0" + user.encode() + b"\0" + password.encode("utf-8", "surrogateescape"))
            await self._command(f"AUTH PLAIN {text}", 235, "AUTH")
        elif mechanism == "LOGIN":
            await self._command("AUTH LOGIN", 334)
            await self._command(_coded(user.encode()), 334, "AUTH")
            await self._command(_coded(password.encode("utf-8", "surrogateescape")), 235, "AUTH")
        elif mechanism == "CRAM-MD5":
            lines = await self._command("AUTH CRAM-MD5", 334)
            try:
                challenge = base64.b64decode(lines[0][4:], validate=True)
            except ValueError:
                raise OdmrError("AUTH CRAM-MD5: a challenge that is none") from None
            digest = hmac.digest(password.encode("utf-8", "surrogateescape"), challenge, "md5").hex()
            await self._command(_coded(f"{user} {digest}".encode()), 235, "AUTH")
        else:
            raise OdmrError(f"no way to log in that we have: {' '.join(offered)[:200]!a}")

    async def turn(self, domains: list[str]) -> bool:
        """ATRN: whether the connection is turned round; False if nothing waits. domains: [] for all of the account's. Raises as `connect`."""
        if "ATRN" not in self._offers:
            raise OdmrError("ATRN is not offered")
        try:
            await self._command(f"ATRN {','.join(domains)}".rstrip(), 250)
        except _Refused as refusal:
            if refusal.code == 453:
                return False
            raise
        return True

    async def quit(self) -> None:
        """QUIT, before a reversal. Raises as `connect`."""
        await self._command("QUIT", 221)

    async def carry(self, sock: socket.socket) -> None:
        """Carry octets between the provider and the server behind `sock`, which is closed, until one of them ends. Raises OSError."""
        assert self._reader is not None and self._writer is not None
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=CHUNK)
        ways = [
            asyncio.create_task(_copy(self._reader, writer)),
            asyncio.create_task(_copy(reader, self._writer)),
        ]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if ways[1] in done:
                # The server has closed: what it said last is on its way.
                self._writer.close()
                async with asyncio.timeout(self._timeout_s):
                    await self._writer.wait_closed()
            else:
                # The provider has closed: the server hears of it and ends, too.
                if writer.can_write_eof():
                    writer.write_eof()
                await asyncio.wait(ways, timeout=self._timeout_s)
            for task in ways:
                if task.done() and not task.cancelled() and (fault := task.exception()) is not None:
                    raise fault
        finally:
            for task in ways:
                task.cancel()
            writer.transport.abort()

    def close(self) -> None:
        """End the connection at once."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def _command(self, line: str, code: int, name: str = "") -> list[str]:
        if not line.isprintable() or not line.isascii():
            raise OdmrError(f"{name or line[:4]}: something that can't be said in a command")
        assert self._writer is not None
        self._writer.write(line.encode() + b"\r\n")
        async with asyncio.timeout(self._timeout_s):
            await self._writer.drain()
        return await self._answer(name or line.partition(" ")[0], code)

    async def _answer(self, what: str, code: int) -> list[str]:
        """The lines of a reply of this code. Raises OdmrError for another one."""
        assert self._reader is not None
        lines: list[str] = []
        while not lines or lines[-1][3:4] == "-":
            if len(lines) >= REPLY_LINES:
                raise OdmrError(f"{what}: a reply without end")
            try:
                async with asyncio.timeout(self._timeout_s):
                    octets = await self._reader.readuntil(b"\n")
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                raise OdmrError(f"{what}: the connection ended, or a line that is too long") from None
            line = octets.rstrip(b"\r\n").decode("utf-8", "replace")
            if not line[:3].isascii() or not line[:3].isdigit():
                raise OdmrError(f"{what}: {line[:200]!a} is no reply")
            lines.append(line)
        if int(lines[0][:3]) != code:
            said = "the login was refused" if what == "AUTH" and lines[0][0] == "5" else f"{what}: {lines[0][:200]!a}"
            raise _Refused(int(lines[0][:3]), said)
        return lines


class _Refused(OdmrError):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def _coded(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK):
        writer.write(chunk)
        await writer.drain()


__all__ = ["OdmrClient", "OdmrError"]
