"""Sender checks: the sender's domain, the client's name, the name in HELO, addresses without a domain.

Each is off, tags or refuses. What DNS does not answer for now is refused for now (451) by a check that refuses, and nothing to a
check that tags. A check that is off asks nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from iems.model import Reply, Verdict
from iems.net.resolver import DnsFailure, Resolver
from iems.smtp.grammar import Path, is_domain, literal_address
from iems.smtpd.screen.verdicts import NOTHING, Findings, Refusal, answered

#: Names of one client that are looked at (RFC 1912 2.1 wants one).
MAX_NAMES = 10

NO_DOMAIN = Reply(550, 1, 8, "The sender's domain has neither mail exchanger nor address")
NULL_MX = Reply(550, 7, 27, "The sender's domain takes no mail (null MX)")
DOMAIN_UNSURE = Reply(451, 1, 8, "The sender's domain can't be looked up for now")
NO_NAME = Reply(550, 7, 25, "Your address has no name that leads back to it")
NAME_UNSURE = Reply(451, 7, 25, "The name of your address can't be looked up for now")
BAD_HELO = Reply(550, 7, 1, "The name in HELO or EHLO is neither a full domain name nor an address literal")
HELO_UNKNOWN = Reply(550, 7, 1, "The name in HELO or EHLO does not exist")
HELO_UNSURE = Reply(451, 7, 1, "The name in HELO or EHLO can't be looked up for now")
UNQUALIFIED = Reply(553, 5, 4, "The address has no domain")

_T = TypeVar("_T")


def unqualified(path: Path) -> bool:
    """Whether a path was given without a domain; the null path needs none."""
    original = path.original
    # A quoted local part may hold an "@"; a domain never ends in a quote.
    return bool(original) and (b"@" not in original or original.endswith(b'"'))


#: Sender domains that were found well, and how long that is believed without a question: it saves a task a message.
KEPT = 4096
KEPT_S = 60.0


class Checks:
    """The checks that are on. Each of domain, client, helo, unqualified: "off", "tag" or "reject". timeout_s: for one look-up. clock: seconds."""

    def __init__(
        self,
        resolver: Resolver,
        *,
        timeout_s: float,
        domain: str = "off",
        client: str = "off",
        helo: str = "off",
        unqualified: str = "off",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._well: dict[bytes, float] = {}
        self._resolver = resolver
        self._timeout_s = timeout_s
        self._domain = domain
        self._client = client
        self._helo = helo
        self._unqualified = unqualified
        #: Whether checks of the connection (client, HELO), of the sender's domain, of unqualified addresses are on.
        self.of_connection = client != "off" or helo != "off"
        self.of_domain = domain != "off"
        self.of_paths = unqualified != "off"

    def __bool__(self) -> bool:
        return self.of_connection or self.of_domain or self.of_paths

    def path(self, path: Path) -> Findings:
        """Whether a reverse-path or forward-path has a domain; `<postmaster>` needs none (RFC 5321 4.5.1)."""
        if not unqualified(path) or path.original.lower() == b"postmaster":
            return NOTHING
        return self._found(self._unqualified, "unqualified", path.original, "no domain", UNQUALIFIED)

    def connection(self, ip: str, helo: bytes) -> list[Awaitable[Findings]]:
        """The checks of a client that gave a name."""
        work: list[Awaitable[Findings]] = []
        if self._client != "off":
            work.append(self._check(self._client, "client-name", ip, self.client_name(ip), NAME_UNSURE))
        if self._helo != "off":
            work.append(self._check(self._helo, "helo", helo, self.helo(helo), HELO_UNSURE))
        return work

    def is_well(self, reverse_path: bytes) -> bool:
        """Whether nothing need be asked about a sender's domain: it has none to look up, or was found well a moment ago."""
        if not self.of_domain or not reverse_path:
            return True
        domain = reverse_path.rpartition(b"@")[2]
        return domain[:1] == b"[" or self._well.get(domain, 0.0) > self._clock()

    def sender(self, reverse_path: bytes) -> list[Awaitable[Findings]]:
        """The check of a sender's domain; the null path has none."""
        domain = reverse_path.rpartition(b"@")[2]
        if self.is_well(reverse_path):
            return []
        return [self._check(self._domain, "sender-domain", domain, self.domain(domain), DOMAIN_UNSURE)]

    # Each answers with why not, None if all is well.

    async def domain(self, domain: bytes) -> Reply | None:
        """MX, or else A or AAAA. Raises DnsFailure, TimeoutError."""
        try:
            name = domain.decode("utf-8")
            found = await self._in_time(self._resolver.exchanges(name))
            if found.null:
                return NULL_MX
            if not found.exists:
                return NO_DOMAIN
            if found.implicit and not await self._in_time(self._resolver.addresses(name)):
                return NO_DOMAIN
        except ValueError:
            return NO_DOMAIN
        if len(self._well) >= KEPT:
            self._well.clear()
        self._well[domain] = self._clock() + KEPT_S
        return None

    async def client_name(self, ip: str) -> Reply | None:
        """PTR, and one of its names leads back (RFC 8601 2.7.3). Raises DnsFailure, TimeoutError."""
        pointer = ipaddress.ip_address(ip).reverse_pointer
        names = (await self._in_time(self._resolver.query(pointer, "PTR"))).records[:MAX_NAMES]
        unsure: Exception | None = None
        for name in names:
            try:
                if ip in await self._in_time(self._resolver.addresses(name, "6" if ":" in ip else "4")):
                    return None
            except ValueError:
                continue
            except (DnsFailure, TimeoutError) as cause:
                unsure = cause
        if unsure is not None:
            raise unsure
        return NO_NAME

    async def helo(self, helo: bytes) -> Reply | None:
        """An address literal, or a full name with A, AAAA or MX. Raises DnsFailure, TimeoutError."""
        if helo.startswith(b"["):
            return None if literal_address(helo) is not None else BAD_HELO
        name = helo.rstrip(b".")
        if not is_domain(name) or b"." not in name or name.rpartition(b".")[2].isdigit():
            return BAD_HELO
        try:
            text = name.decode("utf-8")
            if await self._in_time(self._resolver.addresses(text)):
                return None
            found = await self._in_time(self._resolver.query(text, "MX"))
        except ValueError:
            return BAD_HELO
        return None if found.records else HELO_UNKNOWN

    async def _in_time(self, look_up: Awaitable[_T]) -> _T:
        async with asyncio.timeout(self._timeout_s):
            return await look_up

    async def _check(
        self, action: str, check: str, subject: bytes | str, work: Awaitable[Reply | None], unsure: Reply
    ) -> Findings:
        try:
            reply = await work
        except (DnsFailure, TimeoutError):
            if action == "tag":
                return answered(check, subject, "no answer")
            return self._found(action, check, subject, "no answer", unsure)
        if reply is None:
            return answered(check, subject, "ok")
        return self._found(action, check, subject, reply.text, reply)

    def _found(self, action: str, check: str, subject: bytes | str, answer: str, reply: Reply) -> Findings:
        if action == "off":
            return NOTHING
        text = subject if isinstance(subject, str) else subject.decode("utf-8", "backslashreplace")
        if action == "tag":
            return Findings(None, (Verdict(check, text, answer),))
        return Findings(Refusal(reply, check, text))
