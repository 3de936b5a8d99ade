"""Where mail for a domain goes: mail exchangers, the host table, or relay hosts (RFC 5321 5.1; product.md 3, Routing).

Decides; asks only the resolver it is handed. The outcome is a value: hosts in the order they are tried, or a reply. Whatever is
unsure (a DNS failure, an exchanger without an address, a host table that can't be read) is transient: mail waits.

The host table is a text file, `#` begins a comment. Either form, line by line:

    example.net   mx1.example.net  192.0.2.7:2525     a domain (`*.domain` its sub-domains, `*` all), then hosts in order
    192.0.2.7     mail.example.net example.net        as hosts(5): an address, then the names that stand for it
"""

from __future__ import annotations

import ipaddress
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Literal, Protocol

from msgspec import Struct

from iems.model import Reply
from iems.net.resolver import Answer, DnsFailure, Exchanges, ascii_name, ip_literal

#: Addresses tried in one attempt, over all exchangers (RFC 5321 5.1 asks for at least two).
MAX_ADDRESSES: Final = 8

Resolution = Literal["dns", "dns-hosts", "hosts-dns", "hosts", "relay"]


class Host(Struct, frozen=True):
    """One address to connect to. name: for TLS, the log and reports."""

    name: str
    address: str
    port: int
    preference: int = 0

    def __str__(self) -> str:
        if self.name != self.address:
            return f"{self.name}[{self.address}]:{self.port}"
        return f"[{self.address}]:{self.port}"


class Route(Struct, frozen=True):
    """hosts: best first, equal preference shuffled. reply: why there is none; 5xx only where that is certain. mx: DNS named them."""

    hosts: tuple[Host, ...]
    reply: Reply | None = None
    mx: bool = False


class Resolver(Protocol):
    """What is asked of `iems.net.resolver`."""

    async def query(self, name: str, kind: str) -> Answer:
        """The records of one type. Raises DnsFailure."""
    async def exchanges(self, domain: str) -> Exchanges:
        """Mail exchangers, or what stands in their place. Raises DnsFailure."""
    async def addresses(self, host: str, families: str = "46") -> list[str]:
        """Addresses, of the wanted families. Raises DnsFailure."""


NO_SUCH_DOMAIN = Reply(550, 1, 2, "the recipient's domain does not exist")
NULL_MX = Reply(556, 1, 10, "the recipient's domain takes no mail (null MX)")
NO_ADDRESS = Reply(550, 4, 4, "the recipient's domain has neither mail exchanger nor address")
NOT_IN_TABLE = Reply(550, 4, 4, "the recipient's domain is not in the host table")
LOOP = Reply(554, 4, 6, "mail for the recipient's domain loops back to this host")
BAD_DOMAIN = Reply(553, 1, 2, "the recipient's domain is no domain name")
NO_RELAY = Reply(451, 3, 5, "no relay host is configured")
NO_TABLE = Reply(451, 3, 5, "the host table can't be read")


def parse_host(text: str, port: int) -> tuple[str, int]:
    """`HOST`, `HOST:PORT`, `[ADDRESS]:PORT` or a bare address as (host, port). Raises ValueError."""
    host, number = text, str(port)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(text)
        host = ip_literal(f"[{host}]") or host
        number = rest[1:] or number
    elif text.count(":") == 1:
        host, _, number = text.partition(":")
    if not host or not (number.isascii() and number.isdigit() and 0 < int(number) < 65536):
        raise ValueError(text)
    return host, int(number)


def parse_table(text: str, port: int) -> dict[str, list[tuple[str, int]]]:
    """The host table in `text`: name -> hosts in order. Lines that make no sense are left out."""
    table: dict[str, list[tuple[str, int]]] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) < 2:
            continue
        try:
            first = parse_host(words[0], port)
            by_address = ip_literal(first[0]) is not None
            hosts = [first] if by_address else [parse_host(word, port) for word in words[1:]]
            names = words[1:] if by_address else words[:1]
        except ValueError:
            continue
        for name in names:
            table.setdefault(name.rstrip(".").lower(), []).extend(hosts)
    return table


class HostTable:
    """The host table in a file, read again when the file changes."""

    def __init__(self, path: Path, port: int) -> None:
        self._path = path
        self._port = port
        self._stamp: tuple[int, int, int] | None = None
        self._table: dict[str, list[tuple[str, int]]] = {}

    def find(self, domain: str) -> list[tuple[str, int]]:
        """The hosts for a domain: its own line, else the nearest `*.`, else `*`; [] if none. Raises OSError."""
        found = os.stat(self._path)
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp != self._stamp:
            self._table = parse_table(self._path.read_text("utf-8", "replace"), self._port)
            self._stamp = stamp
        table = self._table
        hosts = table.get(domain)
        rest = domain
        while hosts is None and rest:
            _, _, rest = rest.partition(".")
            hosts = table.get(f"*.{rest}" if rest else "*")
        return hosts or []


def listening_addresses(bind: Iterable[str]) -> Callable[[str], bool]:
    """A test whether an address is one this machine listens on. bind: addresses bound, empty for all."""
    bound = [ipaddress.ip_address(text) for text in bind]

    def local(address: str) -> bool:
        found = ipaddress.ip_address(address)
        if bound and not any(one.is_unspecified for one in bound):
            return found in bound
        if found.is_loopback or found.is_unspecified:
            return True
        import psutil

        return any(
            address == known.address.partition("%")[0]
            for nic in psutil.net_if_addrs().values()
            for known in nic
        )

    return local


class Router:
    """Finds the hosts for a destination.

    resolution: as `smtpc.resolution`. relay_hosts: (host, port); the only way out in mode "relay", in the others the last
    resort for a domain that nothing else knows. table: the host table, None if there is none. port: of hosts that
    name none. hostname: our own. own_ports: on which we accept mail. local: tests whether an address is ours.
    """

    def __init__(
        self,
        resolver: Resolver,
        *,
        resolution: Resolution,
        relay_hosts: list[tuple[str, int]],
        table: HostTable | None,
        port: int,
        hostname: str,
        own_ports: frozenset[int],
        local: Callable[[str], bool],
        rng: random.Random | None = None,
    ) -> None:
        self.resolver = resolver
        self._resolution = resolution
        self._relays = relay_hosts
        self._table = table
        self._port = port
        self._hostname = hostname.lower()
        self._own_ports = own_ports
        self._local = local
        self._rng = rng or random.Random()

    def key(self, destination: str, direct: bool) -> str:
        """What destinations with the same hosts have in common: they share connections, limits and a dead host's memory."""
        if direct:
            return f">{destination}"
        return ">" if self._resolution == "relay" else destination

    async def find(self, destination: str, direct: bool) -> Route:
        """The hosts for a destination. direct: it is a relay host (`HOST[:PORT]`), not a domain."""
        if direct:
            try:
                return await self._hosts([parse_host(destination, self._port)])
            except ValueError:
                return Route((), BAD_DOMAIN)
        if self._resolution == "relay":
            return await self._hosts(self._relays) if self._relays else Route((), NO_RELAY)
        literal = ip_literal(destination) if destination.startswith("[") else None
        if literal is not None:
            return await self._hosts([(literal, self._port)])
        try:
            domain = ascii_name(destination)
        except ValueError:
            return Route((), BAD_DOMAIN)
        steps = {
            "dns": (self._by_dns,),
            "dns-hosts": (self._by_dns, self._by_table),
            "hosts-dns": (self._by_table, self._by_dns),
            "hosts": (self._by_table,),
        }[self._resolution]
        said: list[Reply] = []
        for step in steps:
            route = await step(domain)
            if route is None:
                continue
            if route.hosts or route.reply in (NULL_MX, LOOP):
                return route
            if route.reply is not None:
                said.append(route.reply)
        if self._relays:
            return await self._hosts(self._relays)
        if not said:
            return Route((), NOT_IN_TABLE)
        # One "I don't know for now" outweighs the other's "no".
        return Route((), next((reply for reply in said if reply.transient), said[0]))

    async def _by_table(self, domain: str) -> Route | None:
        if self._table is None:
            return Route((), NO_TABLE) if self._resolution == "hosts" else None
        try:
            hosts = self._table.find(domain)
        except OSError:
            return Route((), NO_TABLE)
        return await self._hosts(hosts) if hosts else None

    async def _by_dns(self, domain: str) -> Route:
        try:
            found = await self.resolver.exchanges(domain)
        except DnsFailure as cause:
            return Route((), Reply(451, 4, 3, f"no answer from DNS for now: {cause}"))
        except ValueError:
            return Route((), BAD_DOMAIN)
        if found.null:
            return Route((), NULL_MX)
        if not found.exists:
            return Route((), NO_SUCH_DOMAIN)
        hosts = [(preference, host, self._port) for preference, host in found.hosts]
        route = await self._look_up(hosts, implicit=found.implicit)
        return Route(route.hosts, route.reply, mx=True)

    async def _hosts(self, hosts: list[tuple[str, int]]) -> Route:
        """Hosts given by name or address, tried in the order given."""
        return await self._look_up([(place, host, port) for place, (host, port) in enumerate(hosts)])

    async def _look_up(self, hosts: list[tuple[int, str, int]], implicit: bool = False) -> Route:
        """The addresses of hosts that are sorted by preference; equal ones are shuffled (RFC 5321 5.1).

        From the first host on that is ourselves, nothing is tried: those hosts would give it back to us.
        """
        shuffled = sorted(hosts, key=lambda host: (host[0], self._rng.random()))
        found: list[Host] = []
        unsure: str | None = None
        own: int | None = None
        for preference, name, port in shuffled:
            if (own is not None and preference >= own) or len(found) >= MAX_ADDRESSES:
                break
            if port in self._own_ports and name.lower() == self._hostname:
                own = preference
                continue
            try:
                addresses = await self.resolver.addresses(name)
            except DnsFailure as cause:
                unsure = str(cause)
                continue
            except ValueError:
                unsure = f"{name}: no host name"
                continue
            if port in self._own_ports and any(self._local(address) for address in addresses):
                own = preference
                continue
            found += _alternate([Host(name, address, port, preference) for address in addresses])
        if own is not None:
            found = [host for host in found if host.preference < own]
        if found:
            return Route(tuple(found[:MAX_ADDRESSES]))
        if own is not None and unsure is None:
            return Route((), LOOP)
        if unsure is not None:
            return Route((), Reply(451, 4, 3, f"no answer from DNS for now: {unsure}"))
        if implicit:
            return Route((), NO_ADDRESS)
        # The domain wants mail, but its exchangers have no address: a slip that gets mended, so mail waits.
        return Route(
            (),
            Reply(451, 4, 4, f"no address for any mail host ({', '.join(host[1] for host in shuffled[:3])})"),
        )


def _alternate(hosts: list[Host]) -> list[Host]:
    """IPv6 and IPv4 in turn, so that a host whose one family is cut off is reached by the second try."""
    six = [host for host in hosts if ":" in host.address]
    four = [host for host in hosts if ":" not in host.address]
    mixed = []
    for place in range(max(len(six), len(four))):
        mixed += six[place : place + 1] + four[place : place + 1]
    return mixed
