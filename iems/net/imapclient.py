"""An IMAP client for picking mail up (RFC 3501, 4315): one session with one mailbox, with the methods of `pop3.Pop3Client`.

Every wait has a limit, every answer a bound. What is deleted goes at `quit`, alone where the server has UIDPLUS.
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from typing import Final

from iems.errors import IemsError
from iems.imap.names import encode

#: A line of an answer; all of an answer beside the mail asked for; mails looked at in a session.
LINE_OCTETS: Final = 65_536
ANSWER_OCTETS: Final = 8 << 20
MAX_LISTED: Final = 50_000
CHUNK: Final = 256 * 1024

_LITERAL = re.compile(rb"\{(\d{1,10})\+?\}\r\n\Z")
_EXISTS = re.compile(rb"\* (\d{1,10}) EXISTS\r\n", re.I)
_VALIDITY = re.compile(rb"\* OK \[UIDVALIDITY (\d{1,10})\]", re.I)
_FETCH = re.compile(rb"\* \d{1,10} FETCH \(", re.I)
_UID = re.compile(rb"[( ]UID (\d{1,10})[ )]", re.I)
_SIZE = re.compile(rb"[( ]RFC822\.SIZE (\d{1,19})[ )]", re.I)
_QUOTED = re.compile(rb'BODY\[\] "((?:[^"\\\r\n]|\\["\\])*)"', re.I)
_QUOTABLE = re.compile(r"[\x20-\x7e]*\Z")


class ImapError(IemsError):
    """The server refused a command or said what is no IMAP; the text holds its words, never a password."""


class _Answer:
    """An untagged line: its text with each literal left out, and the literals (None: longer than was wanted)."""

    __slots__ = ("line", "literals")

    def __init__(self) -> None:
        self.line = b""
        self.literals: list[bytes | None] = []


class ImapClient:
    """One session. Use: connect, login, listing, retrieve and delete, quit; `close` in any case.

    timeout_s: of each wait. mailbox: where the mail lies.
    """

    def __init__(self, timeout_s: float, mailbox: str = "INBOX") -> None:
        self._timeout_s = timeout_s
        self._mailbox = mailbox
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._number = 0
        self._capabilities: frozenset[bytes] = frozenset()
        self._marked: list[int] = []

    async def connect(self, host: str, port: int, tls: str, context: ssl.SSLContext | None) -> None:
        """Connect and read the greeting. tls: none, starttls or implicit. Raises OSError, TimeoutError, ImapError."""
        async with asyncio.timeout(self._timeout_s):
            self._reader, self._writer = await asyncio.open_connection(
                host, port, limit=LINE_OCTETS, ssl=context if tls == "implicit" else None
            )
        greeting = await self._line()
        if not greeting.upper().startswith(b"* OK"):
            # PREAUTH too: it would keep STARTTLS from being used (RFC 9051 11.1), and nobody asked for it.
            raise ImapError(f"greeting: {_shown(greeting)}")
        if tls == "starttls":
            await self._command("STARTTLS", "STARTTLS")
            assert context is not None
            # What came behind the answer came in the clear: an attacker may have put it there.
            if self._reader._buffer:  # type: ignore[attr-defined]
                raise ImapError("octets in the clear behind the answer to STARTTLS")
            async with asyncio.timeout(self._timeout_s):
                await self._writer.start_tls(context, server_hostname=host)

    async def login(self, user: str, password: str) -> None:
        """AUTHENTICATE PLAIN where the server has it, else LOGIN. Raises as `connect`."""
        await self._ask_capabilities()
        if b"AUTH=PLAIN" in self._capabilities:
            if "\0" in user + password:
                raise ImapError("login: a NUL in name or password")
            token = base64.b64encode(f"\0{user}\0".encode() + password.encode("utf-8", "surrogateescape"))
            await self._command("AUTHENTICATE PLAIN", "login", token)
        elif b"LOGINDISABLED" in self._capabilities:
            raise ImapError("login: the server takes none on this connection")
        else:
            if not _QUOTABLE.match(user + password):
                raise ImapError("login: name or password can't be said by LOGIN")
            await self._command(f"LOGIN {_quoted(user)} {_quoted(password)}", "login")
        await self._ask_capabilities()

    async def listing(self) -> list[tuple[int, int, bytes]]:
        """(uid, octets, unique id) of each message, the oldest first, at most `MAX_LISTED`. Raises as `connect`."""
        exists, validity = 0, b"0"
        for answer in await self._command(f"SELECT {_quoted(encode(self._mailbox))}", "SELECT"):
            if match := _EXISTS.match(answer.line):
                exists = int(match[1])
            elif match := _VALIDITY.match(answer.line):
                validity = match[1]
        if not exists:
            return []
        found = []
        for answer in await self._command(f"FETCH 1:{min(exists, MAX_LISTED)} (UID RFC822.SIZE)", "FETCH"):
            if _FETCH.match(answer.line) and (uid := _UID.search(answer.line)) and (size := _SIZE.search(answer.line)):
                found.append((int(uid[1]), int(size[1]), validity + b"." + uid[1]))
        return found

    async def retrieve(self, number: int, limit: int) -> bytes | None:
        """The octets of a message, None if there are more than `limit`. Raises as `connect`."""
        for answer in await self._command(f"UID FETCH {number} (BODY.PEEK[])", "FETCH", limit=limit):
            uid = _UID.search(answer.line)
            if not _FETCH.match(answer.line) or uid is None or int(uid[1]) != number:
                continue
            if answer.literals:
                return answer.literals[-1]
            if quoted := _QUOTED.search(answer.line):
                return re.sub(rb"\\(.)", rb"\1", quoted[1])
        raise ImapError("FETCH: the mail is not there any more")

    async def delete(self, number: int) -> None:
        """Mark a message; it goes at `quit`. Raises as `connect`."""
        await self._command(f"UID STORE {number} +FLAGS.SILENT (\\Deleted)", "STORE")
        self._marked.append(number)

    async def quit(self) -> None:
        """Let the server delete what is marked. Raises as `connect`: then it may not have."""
        if self._marked:
            if b"UIDPLUS" in self._capabilities:
                for start in range(0, len(self._marked), 500):
                    uids = ",".join(map(str, self._marked[start : start + 500]))
                    await self._command(f"UID EXPUNGE {uids}", "EXPUNGE")
            else:
                await self._command("EXPUNGE", "EXPUNGE")
        await self._command("LOGOUT", "LOGOUT")

    def close(self) -> None:
        """End the connection at once; without `quit` nothing is deleted, at most marked."""
        if self._writer is not None:
            self._writer.transport.abort()

    # ---------------------------------------------------------------- the protocol

    async def _ask_capabilities(self) -> None:
        for answer in await self._command("CAPABILITY", "CAPABILITY"):
            words = answer.line.upper().split()
            if words[1:2] == [b"CAPABILITY"]:
                self._capabilities = frozenset(words[2:])

    async def _command(self, line: str, name: str, then: bytes = b"", limit: int = 0) -> list[_Answer]:
        """Say a command; its untagged answers. then: what is said when the server asks on. limit: of the literals kept."""
        assert self._writer is not None
        self._number += 1
        tag = b"A%d " % self._number
        await self._say(tag + line.encode())
        answers: list[_Answer] = []
        octets = 0
        while True:
            start = await self._line()
            if start.startswith(tag):
                if start[len(tag) : len(tag) + 2].upper() == b"OK":
                    return answers
                if name == "login":
                    raise ImapError("the login was refused")  # a server may say the password again
                raise ImapError(f"{name}: {_shown(start[len(tag) :])}")
            if start.startswith(b"+"):
                if not then:
                    raise ImapError(f"{name}: the server waits for something")
                await self._say(then)
                then = b""
                continue
            if not start.startswith(b"* "):
                raise ImapError(f"{name}: an answer that is none")
            answer = await self._rest(start, limit)
            octets += len(answer.line)
            if octets > ANSWER_OCTETS:
                raise ImapError(f"{name}: an answer that is too long")
            if answer.line[:6].upper() == b"* BYE " and name != "LOGOUT":
                raise ImapError(f"{name}: {_shown(answer.line)}")
            answers.append(answer)

    async def _rest(self, start: bytes, limit: int) -> _Answer:
        """What follows a line's beginning: literals, and text between them."""
        answer = _Answer()
        line = start
        while True:
            answer.line += line
            if len(answer.line) > ANSWER_OCTETS:
                raise ImapError("an answer that is too long")
            match = _LITERAL.search(line)
            if match is None:
                return answer
            answer.literals.append(await self._literal(int(match[1]), limit))
            line = await self._line()

    async def _literal(self, length: int, limit: int) -> bytes | None:
        """A literal; beyond `limit` octets it is read and dropped."""
        assert self._reader is not None
        kept: bytearray | None = bytearray() if length <= limit else None
        while length:
            async with asyncio.timeout(self._timeout_s):
                chunk = await self._reader.read(min(length, CHUNK))
            if not chunk:
                raise ImapError("the connection ended within an answer")
            length -= len(chunk)
            if kept is not None:
                kept += chunk
        return bytes(kept) if kept is not None else None

    async def _line(self) -> bytes:
        assert self._reader is not None
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._reader.readuntil(b"\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise ImapError("the connection ended, or a line that is too long") from None

    async def _say(self, line: bytes) -> None:
        assert self._writer is not None
        if b"\r" in line or b"\n" in line or b"\0" in line:
            raise ImapError("a control character in an argument")
        self._writer.write(line + b"\r\n")
        async with asyncio.timeout(self._timeout_s):
            await self._writer.drain()


def _quoted(text: str | bytes) -> str:
    text = text.decode("ascii") if isinstance(text, bytes) else text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _shown(line: bytes) -> str:
    return f"{line.strip()[:200].decode('utf-8', 'replace')!a}"
