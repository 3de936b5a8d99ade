"""Whether another host takes mail for a recipient: asked by MAIL and RCPT, without a message (call-ahead).

For relay domains: an unknown recipient is refused at our door, and no notice goes to a sender who may be forged. Answers are kept;
whatever is unsure is no answer.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from typing import Any, Final, Protocol

from iems.net.resolver import DnsFailure, Exchanges

#: How long answers are kept, and the word that there was none.
KNOWN_S: Final = 86_400.0
UNKNOWN_S: Final = 3_600.0
UNSURE_S: Final = 10.0
MAX_KEPT: Final = 100_000
#: Probes under way at once, and those that may wait for their turn; all of one probe's time; lines of one reply.
MAX_PROBES: Final = 20
MAX_WAITING: Final = 500
PROBE_S: Final = 30.0
MAX_LINES: Final = 100
MAX_ADDRESSES: Final = 4

_STATUS = re.compile(rb"\d{3}[ -]5\.(\d{1,3})\.(\d{1,3})\b")


class Resolver(Protocol):
    """What is asked of `iems.net.resolver`."""

    async def exchanges(self, domain: str) -> Exchanges:
        """Mail exchangers, or what stands in their place. Raises DnsFailure."""
    async def addresses(self, host: str, families: str = "46") -> list[str]:
        """Addresses, of the wanted families. Raises DnsFailure."""


class Callahead:
    """Asks and remembers. hostname: what we call ourselves; port: of hosts that name none. Used from within one loop."""

    def __init__(self, resolver: Resolver, hostname: str, port: int = 25) -> None:
        self._resolver = resolver
        self._hostname = hostname
        self.port = port
        self._kept: OrderedDict[tuple[str, bytes], tuple[float, bool | None]] = OrderedDict()
        self._asking: dict[tuple[str, bytes], asyncio.Task[bool | None]] = {}
        self._room = asyncio.Semaphore(MAX_PROBES)

    async def exists(self, host: tuple[str, int] | None, address: bytes) -> bool | None:
        """Whether the next host takes mail for an address; None if it can't be found out now.

        host: (name, port) of the next host; None: the exchangers of the address's domain.
        """
        key = (f"{host[0]}:{host[1]}" if host else "", address)
        loop = asyncio.get_running_loop()
        kept = self._kept.get(key)
        if kept is not None:
            if kept[0] > loop.time():
                self._kept.move_to_end(key)
                return kept[1]
            del self._kept[key]
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= MAX_WAITING:
                return None
            task = self._asking[key] = loop.create_task(self._ask(host, address))
            task.add_done_callback(lambda done: self._answered(key, done, loop.time()))
        return await asyncio.shield(task)

    def _answered(self, key: tuple[str, bytes], task: asyncio.Task[bool | None], now_s: float) -> None:
        self._asking.pop(key, None)
        if task.cancelled() or task.exception() is not None:
            return
        answer = task.result()
        keep_s = UNSURE_S if answer is None else KNOWN_S if answer else UNKNOWN_S
        self._kept[key] = (now_s + keep_s, answer)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def close(self) -> None:
        """Give up what is under way."""
        for task in list(self._asking.values()):
            task.cancel()

    async def _ask(self, host: tuple[str, int] | None, address: bytes) -> bool | None:
        try:
            async with self._room, asyncio.timeout(PROBE_S):
                for where in await self._where(host, address):
                    try:
                        return await self._probe(where, address)
                    except (OSError, EOFError, ValueError):
                        continue
        except (TimeoutError, DnsFailure, ValueError):
            pass
        return None

    async def _where(self, host: tuple[str, int] | None, address: bytes) -> list[tuple[str, int]]:
        """Addresses and ports to ask, best first; never hosts as far from the domain as we are."""
        names = [host] if host else []
        if host is None:
            found = await self._resolver.exchanges(address.rpartition(b"@")[2].decode("ascii", "replace"))
            own = min((p for p, name in found.hosts if name == self._hostname.lower()), default=1 << 16)
            names = [(name, self.port) for preference, name in found.hosts if preference < own]
        where: list[tuple[str, int]] = []
        for name, port in names[:MAX_ADDRESSES]:
            where += [(found, port) for found in await self._resolver.addresses(name)]
        return where[:MAX_ADDRESSES]

    async def _probe(self, where: tuple[str, int], address: bytes) -> bool | None:
        """One dialogue. Raises OSError, EOFError, ValueError for a host that breaks it off or says nonsense."""
        if (
            not address.isascii()
            or not address.decode("ascii").isprintable()
            or b"<" in address
            or b">" in address
        ):
            return None  # would need SMTPUTF8, or can't be said
        reader, writer = await asyncio.open_connection(*where, limit=4096)
        try:
            if not (await _reply(reader)).startswith(b"220"):
                return None
            hello = self._hostname.encode("idna")
            if not (await _say(reader, writer, b"EHLO " + hello)).startswith(b"250") and not (
                await _say(reader, writer, b"HELO " + hello)
            ).startswith(b"250"):
                return None
            if not (await _say(reader, writer, b"MAIL FROM:<>")).startswith(b"250"):
                return None
            answer = _meaning(await _say(reader, writer, b"RCPT TO:<" + address + b">"))
            writer.write(b"QUIT\r\n")
            return answer
        finally:
            writer.close()


def _meaning(reply: bytes) -> bool | None:
    """What a reply to RCPT says of the recipient: only a word about the address itself is a no, not one about us (5.7.x)."""
    if reply[:1] == b"2":
        return True
    if reply[:1] != b"5":
        return None
    status = _STATUS.match(reply)
    if status is not None and (status[1], status[2]) != (b"0", b"0"):
        return False if status[1] == b"1" or (status[1], status[2]) == (b"2", b"1") else None
    return False if reply[:3] in (b"550", b"551", b"553") else None


async def _say(reader: asyncio.StreamReader, writer: Any, command: bytes) -> bytes:
    writer.write(command + b"\r\n")
    return await _reply(reader)


async def _reply(reader: asyncio.StreamReader) -> bytes:
    """The last line of a reply."""
    for _ in range(MAX_LINES):
        try:
            line = await reader.readuntil(b"\n")
        except (asyncio.LimitOverrunError, asyncio.IncompleteReadError) as cause:
            raise EOFError("no whole reply") from cause
        if not line[:3].isdigit():
            raise ValueError("no reply")
        if line[3:4] != b"-":
            return line
    raise ValueError("a reply without end")
