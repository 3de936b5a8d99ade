"""Client of a milter: one message is told to it as a mail server would during SMTP; what it answers is given as one value.

A connection for each message. Content is streamed. The message is accepted already: what a milter says at any stage
counts for the message, or at RCPT for the recipient. `milterwire` has the packets.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from msgspec import Struct

from iems.model import Extent, Reply
from iems.net.breaker import Breaker, Guard, NoAnswer
from iems.scan import milterwire as wire

#: Changes of the header in one answer, octets of them, recipients removed, signs of life between two answers.
CHANGES_MAX = 1_000
CHANGES_OCTETS = 1 << 20
REMOVED_MAX = 10_000
PROGRESS_MAX = 10_000
#: A new body is made durable in pieces of about this length.
PIECE_OCTETS = 1 << 20

REFUSED = Reply(550, 7, 1, "Refused by a check of the content")
PUT_OFF = Reply(451, 7, 1, "Put off by a check of the content")


class Mail(Struct):
    """One message for a milter. fields: (name, value with its line ends, white space before it kept). body: gives the octets after the header.

    id: as in our log. auth: the user who logged in, or "". arguments: of MAIL FROM. keep: makes octets of a new body durable.
    """

    id: str
    client_ip: str
    helo: bytes
    auth: str
    reverse_path: bytes
    arguments: tuple[bytes, ...]
    recipients: Sequence[bytes]
    fields: Sequence[tuple[bytes, bytes]]
    body: Callable[[], AsyncIterator[bytes]]
    keep: Callable[[bytes], Awaitable[Extent]]


class Answer(Struct):
    """What the milter wants. reply: the message is refused (5xx) or put off (4xx). discard: it ends without a word.

    refused: recipients refused at RCPT. quarantine: why it is put aside, or "". changes: of the header, in order. leading_space: whether
    their values bring the space after the colon. body: a new one, or None. removed: recipients taken off, as the milter wrote them.
    """

    reply: Reply | None = None
    discard: bool = False
    refused: list[tuple[bytes, Reply]] = []
    quarantine: str = ""
    changes: list[wire.HeaderChange] = []
    leading_space: bool = False
    body: list[Extent] | None = None
    removed: list[bytes] = []

    @property
    def text(self) -> str:
        """For the log, in a few words."""
        if self.discard:
            return "discard"
        if self.reply is not None:
            return f"{self.reply.code} {self.reply.status} {self.reply.text}"
        parts = [f"{len(self.refused)} recipients refused"] if self.refused else []
        parts += [f"quarantine: {self.quarantine}"] if self.quarantine else []
        parts += [f"{len(self.changes)} fields changed"] if self.changes else []
        parts += ["body replaced"] if self.body is not None else []
        parts += [f"{len(self.removed)} recipients removed"] if self.removed else []
        return ", ".join(parts) or "accept"


class Milter:
    """place: inet:HOST:PORT or unix:/PATH. timeout_s: for one answer, anew after a sign of life; deadline_s: for one message in all.

    at_once: messages at the same time. body_max: octets of a new body. hostname: ours.
    """

    def __init__(
        self, place: str, *, hostname: str, timeout_s: float, deadline_s: float, at_once: int, body_max: int, breaker: Breaker
    ) -> None:
        self.name = place
        self._hostname = hostname.encode("ascii", "replace")
        self._timeout_s = timeout_s
        self._body_max = body_max
        self._guard = Guard(place, timeout_s=deadline_s, at_once=at_once, breaker=breaker)

    async def examine(self, mail: Mail) -> Answer:
        """What the milter says of a message. Raises NoAnswer."""
        async with self._guard.asking():
            return await self._ask(mail)

    async def _ask(self, mail: Mail) -> Answer:
        kind, _, place = self.name.partition(":")
        async with asyncio.timeout(self._timeout_s):
            if kind == "unix":
                reader, writer = await asyncio.open_unix_connection(place)
            else:
                host, _, port = place.rpartition(":")
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            talk = _Talk(reader, writer, self._timeout_s, self._body_max, self._hostname, mail)
            await talk.run()
            writer.write(wire.packet(wire.ABORT) * (not talk.ended) + wire.packet(wire.QUIT))
            return talk.answer
        except asyncio.IncompleteReadError as error:
            raise NoAnswer("it closed the connection") from error
        finally:
            writer.close()


class _Done(Exception):
    """The milter has decided."""


class _Talk:
    """One message with one milter. ended: the end of the message was told and answered."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float, body_max: int, hostname: bytes, mail: Mail
    ) -> None:
        self.answer = Answer()
        self.ended = False
        self._reader = reader
        self._writer = writer
        self._timeout_s = timeout_s
        self._body_max = body_max
        self._hostname = hostname
        self._mail = mail
        self._terms = wire.Terms(wire.VERSION, 0, 0)

    async def run(self) -> None:
        """Tell the message; what was said is in `answer`."""
        try:
            await self._negotiate()
            await self._envelope()
            await self._header()
            await self._body()
            await self._end()
        except _Done:
            pass

    async def _negotiate(self) -> None:
        await self._send(wire.packet(wire.NEGOTIATE, wire.offer()))
        command, data = await self._receive()
        if command != wire.NEGOTIATE:
            raise NoAnswer(f"no answer to the negotiation: {command!r}")
        self._terms = wire.terms(data)
        self.answer.leading_space = bool(self._terms.steps & wire.LEADING_SPACE)

    async def _envelope(self) -> None:
        mail = self._mail
        ip, name = mail.client_ip or "127.0.0.1", b"localhost"
        if mail.client_ip:
            name = b"[" + ip.encode("ascii", "replace") + b"]"
        try:
            family = b"6" if ipaddress.ip_address(ip).version == 6 else b"4"
            client = name + b"\0" + family + bytes(2) + wire.strings(ip.encode())
        except ValueError:
            client = b"unknown\0U"
        macros = (b"j", self._hostname, b"{daemon_name}", b"iems", b"v", b"IEMS", b"{client_addr}", ip.encode("ascii", "replace"))
        await self._tell(wire.CONNECT, client, *macros, b"{client_name}", name)
        await self._tell(wire.HELO, wire.strings(mail.helo or b"localhost"))
        auth = (b"{auth_authen}", mail.auth.encode(), b"{auth_type}", b"PLAIN") if mail.auth else ()
        sender = b"<" + mail.reverse_path + b">"
        await self._tell(
            wire.MAIL, wire.strings(sender, *mail.arguments), b"i", mail.id.encode(), b"{mail_addr}", mail.reverse_path, *auth
        )
        for address in mail.recipients:
            said = await self._tell(wire.RCPT, wire.strings(b"<" + address + b">"), b"{rcpt_addr}", address, recipient=address)
            if said is not None:
                self.answer.refused.append((address, said))
        if len(self.answer.refused) == len(mail.recipients):
            raise _Done
        await self._tell(wire.DATA, b"", b"i", mail.id.encode())

    async def _header(self) -> None:
        for name, value in self._mail.fields:
            lines = value.replace(b"\r\n", b"\n")
            if not self.answer.leading_space:
                lines = lines.removeprefix(b" ")
            name = name[:1_000]
            await self._tell(wire.HEADER, wire.strings(name, lines[: wire.DATA_MAX - len(name) - 2]))
        await self._tell(wire.END_OF_HEADER, b"")

    async def _body(self) -> None:
        if not self._terms.sends(wire.BODY):
            return
        async for octets in self._mail.body():
            for at in range(0, len(octets), wire.DATA_MAX):
                await self._send(wire.packet(wire.BODY, octets[at : at + wire.DATA_MAX]))
                if self._terms.answers(wire.BODY):
                    command, data = await self._receive()
                    if command == wire.SKIP:
                        return
                    self._decide(command, data)

    async def _end(self) -> None:
        await self._send(self._macros(wire.END_OF_BODY, b"i", self._mail.id.encode()) + wire.packet(wire.END_OF_BODY))
        octets = 0
        body: _Body | None = None
        while True:
            command, data = await self._receive()
            needs = wire.NEEDS.get(command)
            if needs is None:
                break
            if not self._terms.actions & needs:
                raise NoAnswer(f"it does what was not agreed on: {command!r}")
            if command == wire.REPLACE_BODY:
                body = body or _Body(self._mail.keep, self._body_max)
                await body.add(data)
                continue
            octets += len(data)
            if octets > CHANGES_OCTETS or len(self.answer.changes) >= CHANGES_MAX or len(self.answer.removed) >= REMOVED_MAX:
                raise NoAnswer("it wants too many changes")
            if command == wire.QUARANTINE:
                text = " ".join(data.rstrip(b"\0").decode("utf-8", "replace").split())[:200]
                self.answer.quarantine = "".join(char if char.isprintable() else "?" for char in text) or "by a milter"
            elif command == wire.DELETE_RECIPIENT:
                self.answer.removed.append(data.rstrip(b"\0"))
            else:
                self.answer.changes.append(wire.header_change(command, data))
        self.ended = True
        if body is not None:
            self.answer.body = await body.end()
        self._decide(command, data)

    async def _tell(self, command: bytes, data: bytes, *macros: bytes, recipient: bytes | None = None) -> Reply | None:
        """One stage. The refusal of a recipient; what is said of the message raises _Done."""
        if not self._terms.sends(command):
            return None
        await self._send((self._macros(command, *macros) if macros else b"") + wire.packet(command, data))
        if not self._terms.answers(command):
            return None
        said, given = await self._receive()
        if recipient is not None and said == wire.REJECT:
            return REFUSED
        if recipient is not None and said == wire.REPLY and not (reply := wire.reply(given)).transient:
            return reply
        self._decide(said, given)
        return None

    @staticmethod
    def _macros(command: bytes, *values: bytes) -> bytes:
        return wire.packet(wire.MACRO, command + wire.strings(*values))

    def _decide(self, command: bytes, data: bytes) -> None:
        """What an answer means; raises _Done if it ends the message."""
        if command == wire.CONTINUE:
            return
        if command == wire.REJECT:
            self.answer.reply = REFUSED
        elif command == wire.TEMPFAIL or command in wire.CUT_OFF:
            self.answer.reply = PUT_OFF
        elif command == wire.REPLY:
            self.answer.reply = wire.reply(data)
        elif command == wire.DISCARD:
            self.answer.discard = True
        elif command != wire.ACCEPT:
            raise NoAnswer(f"it answers {command!r} where it may not")
        raise _Done

    async def _send(self, octets: bytes) -> None:
        self._writer.write(octets)
        async with asyncio.timeout(self._timeout_s):
            await self._writer.drain()

    async def _receive(self) -> tuple[bytes, bytes]:
        """The next answer; signs of life start the time for it anew."""
        for _ in range(PROGRESS_MAX):
            async with asyncio.timeout(self._timeout_s):
                head = await self._reader.readexactly(5)
                length = int.from_bytes(head[:4], "big")
                if not 1 <= length <= wire.ANSWER_MAX:
                    raise NoAnswer(f"a packet of {length} octets")
                data = await self._reader.readexactly(length - 1)
            if head[4:] != wire.PROGRESS:
                return head[4:], data
        raise NoAnswer("it goes on without an answer")


class _Body:
    """A new body as it comes, in durable pieces."""

    def __init__(self, keep: Callable[[bytes], Awaitable[Extent]], most: int) -> None:
        self._keep = keep
        self._most = most
        self._lines = wire.Lines()
        self._pending: list[bytes] = []
        self._octets = self._all = 0
        self._last = b"\n"
        self._extents: list[Extent] = []

    async def add(self, octets: bytes) -> None:
        """The next octets. Raises NoAnswer if they are too many."""
        self._put(self._lines.feed(octets))
        if self._all > self._most:
            raise NoAnswer(f"its new body has more than {self._most} octets")
        if self._octets >= PIECE_OCTETS:
            await self._flush()

    async def end(self) -> list[Extent]:
        """Where it stands; its last line has an end."""
        self._put(self._lines.end())
        if self._last != b"\n":
            self._put(b"\r\n")
        await self._flush()
        return self._extents

    def _put(self, octets: bytes) -> None:
        if octets:
            self._pending.append(octets)
            self._octets += len(octets)
            self._all += len(octets)
            self._last = octets[-1:]

    async def _flush(self) -> None:
        if self._pending:
            self._extents.append(await self._keep(b"".join(self._pending)))
            self._pending.clear()
            self._octets = 0
