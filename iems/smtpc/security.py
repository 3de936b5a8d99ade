"""What TLS a host must offer before mail goes to it: by setting, by profile, by DANE (RFC 7672), by MTA-STS (RFC 8461).

A need that is not met defers mail; it never goes in the clear instead. DANE outweighs MTA-STS (RFC 8461 2).
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from msgspec import Struct, structs

from iems.model import Reply
from iems.net.resolver import Answer, DnsFailure, system_servers
from iems.smtp.sts import StsPolicy
from iems.smtpc.dane import SHOWS_CHAIN, Record, usable
from iems.smtpc.mx import Host, Route

Level = Literal["off", "may", "encrypt", "verify", "dane"]


class Need(Struct, frozen=True):
    """What a connection must have. may: TLS where offered. encrypt: TLS with any certificate. verify: one that a known authority
    signed for the host's name. dane: one that a TLSA record of `tlsa` names (usage 3), or that is for one of `names` and leads to an
    authority that a record of `anchors` names (usage 2). certificate: name of the one we show if asked for one."""

    level: Level
    tlsa: tuple[Record, ...] = ()
    anchors: tuple[Record, ...] = ()
    names: tuple[str, ...] = ()
    certificate: str = ""

    @property
    def must(self) -> bool:
        """Whether nothing may be sent without TLS."""
        return self.level in ("encrypt", "verify", "dane")


NEEDS: Final[dict[str, Need]] = {
    "off": Need("off"),
    "may": Need("may"),
    "encrypt": Need("encrypt"),
    "verify": Need("verify"),
}


class Resolver(Protocol):
    """What is asked of `iems.net.resolver`."""

    async def query(self, name: str, kind: str) -> Answer:
        """The records of one type, and whether DNSSEC vouches for them. Raises DnsFailure."""


class Policies(Protocol):
    """What is asked of `iems.smtpc.sts`."""

    async def find(self, domain: str) -> StsPolicy | None:
        """The policy of a domain; None if it has none."""


def verifying_tls(ca_file: str | Path = "") -> ssl.SSLContext:
    """TLS that checks certificate and name. ca_file: authorities known besides the system's. Raises OSError, ssl.SSLError."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def validating(servers: Sequence[tuple[str, int]], trusted: Sequence[str]) -> bool:
    """Whether the AD bit of all these DNS servers counts: each is on loopback or named in `trusted` (by address)."""
    known = {ipaddress.ip_address(text) for text in trusted}
    for host, _ in servers or system_servers():
        address = ipaddress.ip_address(host.partition("%")[0])
        if not address.is_loopback and address not in known:
            return False
    return True


class Security:
    """Finds what a destination's hosts need beyond the setting. dane: look for TLSA records. policies: MTA-STS, None for off.

    troubled: hears of what kept a host from being used: domain, `tlsa` or `sts`, the result type of RFC 8460, host, why.
    """

    def __init__(
        self,
        resolver: Resolver,
        *,
        dane: bool,
        policies: Policies | None,
        troubled: Callable[[str, str, str, str, str], None] | None = None,
    ) -> None:
        self._troubled = troubled
        self._resolver = resolver
        self._dane = dane
        self._policies = policies
        self.active = dane or policies is not None

    async def find(self, domain: str, route: Route) -> tuple[Route, dict[str, Need]]:
        """(hosts that may be used, or a transient reply; needs by host name) of a route to a domain."""
        needs: dict[str, Need] = {}
        hosts = route.hosts
        unsure = ""
        if self._dane:
            try:
                secure = not route.mx or (await self._resolver.query(domain, "MX")).secure
            except (DnsFailure, ValueError):
                secure = False
            for host in hosts if secure else ():
                if host.name == host.address or host.name in needs:
                    continue
                try:
                    need = await self._by_dane(host, domain if route.mx else host.name)
                except DnsFailure as cause:
                    # An attacker may be keeping the records from us (RFC 7672 2.1.2): this host is not used now.
                    unsure = str(cause)
                    if self._troubled is not None:
                        self._troubled(domain, "tlsa", "dnssec-invalid", host.name, unsure)
                    hosts = tuple(other for other in hosts if other.name != host.name)
                    continue
                if need is not None:
                    needs[host.name] = need
        if not hosts:
            return Route((), Reply(451, 7, 5, f"no answer from DNS to the question for TLSA: {unsure}")), {}
        if self._policies is not None and route.mx:
            policy = await self._policies.find(domain)
            if policy is not None and policy.mode != "none" and self._troubled is not None:
                for host in hosts:
                    if host.name not in needs and not policy.covers(host.name):
                        self._troubled(domain, "sts", "validation-failure", host.name, "not a mail host of the policy")
            if policy is not None and policy.mode == "enforce":
                hosts = tuple(host for host in hosts if host.name in needs or policy.covers(host.name))
                if not hosts:
                    return Route(
                        (), Reply(451, 7, 5, "no mail host of the domain is in its MTA-STS policy")
                    ), {}
                for host in hosts:
                    needs.setdefault(host.name, NEEDS["verify"])
        return structs.replace(route, hosts=hosts), needs

    async def _by_dane(self, host: Host, domain: str) -> Need | None:
        """What the TLSA records of a host ask; None if it has none that count. Raises DnsFailure."""
        for kind in ("AAAA", "A"):
            try:
                if (await self._resolver.query(host.name, kind)).secure:
                    break
            except DnsFailure:
                continue
        else:
            return (
                None  # an unsigned zone: no question that its servers might not understand (RFC 7672 2.2.2)
            )
        answer = await self._resolver.query(f"_{host.port}._tcp.{host.name}", "TLSA")
        if not answer.secure or not answer.records:
            return None
        tlsa = usable(answer.records, 3)
        anchors = usable(answer.records, 2) if SHOWS_CHAIN else ()
        if anchors:
            return Need("dane", tlsa, anchors, tuple(dict.fromkeys((host.name, domain))))
        return Need("dane", tlsa) if tlsa else NEEDS["encrypt"]
