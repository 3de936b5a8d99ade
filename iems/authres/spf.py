"""SPF: whether a domain lets a host send in its name (RFC 7208). Asks the resolver it is handed; no other I/O.

What is bounded: 10 terms that ask DNS, 2 questions without an answer, 10 names of an MX or PTR, so at most 111 questions;
the caller bounds the time. DNS that fails is `temperror`, never `fail`.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final

from msgspec import Struct

from iems.authres.asking import Answer, DnsFailure, Lookup, ascii_name, ask
from iems.authres.spfrecord import BadRecord, Record, Term, expand, is_spf, parse, uses

#: RFC 7208 4.6.4.
MAX_TERMS_ASKING: Final = 10
MAX_VOID: Final = 2
MAX_NAMES: Final = 10
#: Characters of an explanation that are passed on.
MAX_EXPLANATION: Final = 500

_LOCAL_AND_DOMAIN = re.compile(r"(.*)@([^@]*)\Z", re.DOTALL)


class Spf(Struct, frozen=True):
    """What SPF says. result: none, neutral, pass, fail, softfail, temperror or permerror.

    domain: whose record was looked for. scope: `mailfrom`, or `helo` for the null path. mechanism: the term that decided. explanation:
    the domain's own words for a `fail`, untrusted text, "" if there are none. problem: of an error.
    """

    result: str
    domain: str = ""
    scope: str = "mailfrom"
    mechanism: str = ""
    explanation: str = ""
    problem: str = ""


class _Permanent(Exception):
    pass


@lru_cache(maxsize=4096)
def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address in a text, an IPv4 one that is written as IPv6 as such; None if it is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


async def check(
    lookup: Lookup, ip: str, helo: str, mail_from: str, *, receiver: str = "unknown", now_s: int = 0
) -> Spf:
    """Whether the host `ip` may send for the domain of `mail_from`, or of `helo` if that is the null path (RFC 7208 2.4).

    ip: IPv4 or IPv6. receiver, now_s: for the macros of an explanation. Raises ValueError if `ip` is no address.
    """
    address = address_of(ip)
    if address is None:
        raise ValueError(f"no IP address: {ip!r}")
    scope = "mailfrom"
    if not mail_from or mail_from == "<>":
        scope, mail_from = "helo", f"postmaster@{helo}"
    found = _LOCAL_AND_DOMAIN.match(mail_from)
    local, domain = (found[1], found[2]) if found else ("", mail_from)
    try:
        domain = ascii_name(domain)
    except ValueError:
        return Spf("none", domain, scope, problem="no domain name")
    if "." not in domain:
        return Spf("none", domain, scope, problem="no fully qualified domain")
    state = _Check(lookup, address, helo, local or "postmaster", domain, receiver, now_s)
    try:
        result, mechanism, exp = await state.evaluate(domain)
    except DnsFailure as cause:
        return Spf("temperror", domain, scope, problem=str(cause))
    except (_Permanent, BadRecord) as cause:
        return Spf("permerror", domain, scope, problem=str(cause))
    explanation = ""
    if result == "fail" and exp is not None:
        explanation = await state.explanation(*exp)
    return Spf(result, domain, scope, mechanism, explanation)


class _Check:
    """One call of check_host() with those it makes in turn."""

    def __init__(
        self,
        lookup: Lookup,
        ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
        helo: str,
        local: str,
        domain: str,
        receiver: str,
        now_s: int,
    ) -> None:
        self.lookup = lookup
        self.ip = ip
        self.version = ip.version
        self.number = int(ip)
        self.helo = helo
        self.local = local
        self.sender_domain = domain
        self.receiver = receiver
        self.now_s = now_s
        self.terms_left = MAX_TERMS_ASKING
        self.void_left = MAX_VOID
        self.names: list[str] | None = None

    async def evaluate(self, domain: str) -> tuple[str, str, tuple[str, str] | None]:
        """(result, term, (domain, exp) of the record that decided); "none" without a record."""
        redirected = False
        while True:
            record = await self._record(domain)
            if record is None:
                if redirected:
                    raise _Permanent(f"redirect to {domain}, which has no record")
                return "none", "", None
            for term in record.terms:
                if await self._matches(term, domain):
                    return term.result, _shown(term), (domain, record.exp) if record.exp else None
            if not record.redirect:
                return "neutral", "default", None
            self._spend()
            domain, redirected = await self._expanded(record.redirect, domain), True

    async def _record(self, domain: str) -> Record | None:
        answer = await ask(self.lookup, domain, "TXT")
        found = [text for text in answer.records if is_spf(text)]
        if len(found) > 1:
            raise _Permanent(f"{len(found)} records at {domain}")
        return parse(found[0]) if found else None

    def _spend(self) -> None:
        if not self.terms_left:
            raise _Permanent(f"more than {MAX_TERMS_ASKING} terms that ask DNS")
        self.terms_left -= 1

    async def _ask(self, name: str, kind: str) -> Answer:
        answer = await ask(self.lookup, name, kind)
        if not answer.records:
            if not self.void_left:
                raise _Permanent(f"more than {MAX_VOID} questions without an answer")
            self.void_left -= 1
        return answer

    async def _matches(self, term: Term, domain: str) -> bool:
        kind = term.kind
        if kind == "all":
            return True
        if term.network is not None:
            version, network, mask = term.network
            return version == self.version and self.number & mask == network
        self._spend()
        target = await self._expanded(term.domain, domain) if term.domain else domain
        if kind == "include":
            result, _, _ = await self.evaluate(target)
            if result == "none":
                raise _Permanent(f"include of {target}, which has no record")
            return result == "pass"
        if kind == "a":
            return await self._has_address(target, term)
        if kind == "exists":
            return bool((await self._ask(target, "A")).records)
        if kind == "mx":
            hosts = [host for _, host in (await self._ask(target, "MX")).records]
            if len(hosts) > MAX_NAMES:
                raise _Permanent(f"more than {MAX_NAMES} mail exchangers")
            for host in hosts:
                if host and await self._has_address(host, term):
                    return True
            return False
        target = target.rstrip(".").lower()
        return any(name == target or name.endswith("." + target) for name in await self._validated())

    async def _has_address(self, name: str, term: Term) -> bool:
        answer = await self._ask(name, "A" if self.version == 4 else "AAAA")
        bits, length = (32, term.v4) if self.version == 4 else (128, term.v6)
        shift = bits - length
        wanted = self.number >> shift
        return any(int(ipaddress.ip_address(text)) >> shift == wanted for text in answer.records)

    async def _validated(self) -> list[str]:
        """The names of the client that lead back to it (RFC 7208 5.5). DNS that fails gives none."""
        if self.names is not None:
            return self.names
        self.names = []
        try:
            names = (await self._ask(self.ip.reverse_pointer, "PTR")).records[:MAX_NAMES]
        except DnsFailure:
            return self.names
        for name in names:
            try:
                addresses = (await ask(self.lookup, name, "A" if self.version == 4 else "AAAA")).records
            except DnsFailure:
                continue
            if any(int(ipaddress.ip_address(text)) == self.number for text in addresses):
                self.names.append(name.rstrip(".").lower())
        return self.names

    async def _values(self, text: str, domain: str, explanation: bool = False) -> dict[str, str]:
        values = {
            "s": f"{self.local}@{self.sender_domain}",
            "l": self.local,
            "o": self.sender_domain,
            "d": domain,
            "h": self.helo,
            "v": "in-addr" if self.version == 4 else "ip6",
            "i": str(self.ip) if self.version == 4 else ".".join(f"{self.number:032X}"),
        }
        if uses(text, "p"):
            domain = domain.lower()
            names = sorted(
                await self._validated(),
                key=lambda name: 0 if name == domain else 1 if name.endswith("." + domain) else 2,
            )
            values["p"] = names[0] if names else "unknown"
        if explanation:
            values |= {"c": str(self.ip), "r": self.receiver, "t": str(self.now_s)}
        return values

    async def _expanded(self, text: str, domain: str) -> str:
        """A domain-spec as a name; labels on the left go where it is longer than DNS allows (RFC 7208 7.3)."""
        if "%" not in text:
            return text.rstrip(".")
        name = expand(text, await self._values(text, domain)).rstrip(".")
        while len(name) > 253 and "." in name:
            name = name.partition(".")[2]
        return name

    async def explanation(self, domain: str, exp: str) -> str:
        """The domain's words for a fail (RFC 7208 6.2), "" if they can't be had."""
        try:
            found = (await ask(self.lookup, await self._expanded(exp, domain), "TXT")).records
            if len(found) != 1 or not found[0].isascii():
                return ""
            text = found[0].decode("ascii")
            return expand(text, await self._values(text, domain, True), True)[:MAX_EXPLANATION]
        except (DnsFailure, BadRecord):
            return ""


def _shown(term: Term) -> str:
    if term.network is not None:
        version, network, mask = term.network
        address = ipaddress.IPv4Address(network) if version == 4 else ipaddress.IPv6Address(network)
        return f"{term.kind}:{address}/{mask.bit_count()}"
    return f"{term.kind}:{term.domain}" if term.domain else term.kind
