"""DMARC: what the domain in From asks receivers to do with mail that neither SPF nor DKIM vouches for (RFC 9989).

Organisational domains are found by the tree walk of RFC 9989 4.10, in DNS, not by a list of public suffixes. `pct` of RFC 7489,
which many records still carry, is honoured. Unsure is `temperror` and asks for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from msgspec import Struct

from iems.authres.asking import DnsFailure, Lookup, ascii_name, ask, texts
from iems.authres.dkim import Signature
from iems.authres.spf import Spf

#: Names a tree walk asks about (RFC 9989 4.10).
MAX_WALK: Final = 8
#: Octets of a record that are read, and addresses for reports.
MAX_RECORD: Final = 8192
MAX_URIS: Final = 10

_VERSION = re.compile(rb"v[ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)")
_URI = re.compile(
    r"mailto:([A-Z0-9.#$&'*+/=?^_`{|}~-]{1,64}@[A-Z0-9.-]{1,253})(?:![0-9]+[kmgt]?)?\Z", re.IGNORECASE
)
_POLICIES: Final = ("none", "quarantine", "reject")
_MILDER: Final = {"reject": "quarantine", "quarantine": "none", "none": "none"}


class Record(Struct, frozen=True):
    """A policy as published. p, sp, np: none, quarantine or reject; sp and np "" if not given. strict_dkim, strict_spf: alignment.

    pct: share of failing mail it is for. testing: t=y. psd: y, n or u. rua: addresses for aggregate reports. fo: as given.
    """

    domain: str
    p: str
    sp: str = ""
    np: str = ""
    strict_dkim: bool = False
    strict_spf: bool = False
    pct: int = 100
    testing: bool = False
    psd: str = "u"
    rua: tuple[str, ...] = ()
    fo: str = "0"


class Dmarc(Struct, frozen=True):
    """What DMARC says. result: none, pass, fail, temperror or permerror. domain: of From. policy: what the domain asks for in
    case of a failure, "" without a record; disposition: what it asks for this message (none unless it fails).

    spf, dkim: whether one that is aligned passes. record: None if there is none.
    """

    result: str
    domain: str = ""
    policy: str = ""
    disposition: str = "none"
    spf: bool = False
    dkim: bool = False
    record: Record | None = None
    problem: str = ""


@lru_cache(maxsize=1024)
def read_record(text: bytes, domain: str) -> Record | None:
    """The policy in a TXT record of `_dmarc.domain`, or None if it is none. Tags that can't be read stand at their defaults."""
    if len(text) > MAX_RECORD or not _VERSION.match(text):
        return None
    tags: dict[str, str] = {}
    for piece in text.decode("ascii", "replace").split(";")[:100]:
        name, equals, value = piece.partition("=")
        if equals:
            tags.setdefault(name.strip().lower(), value.strip())
    rua: list[str] = []
    for uri in tags.get("rua", "").split(",")[:MAX_URIS]:
        address = _URI.match(uri.strip())
        if address:
            rua.append(address[1])
    p = tags.get("p", "").lower()
    if p not in _POLICIES:
        # A record with a wrong policy still asks for reports (RFC 9989 4.7); one without both says nothing.
        if not rua:
            return None
        p = "none"
    sp, np = tags.get("sp", "").lower(), tags.get("np", "").lower()
    pct = tags.get("pct", "100")
    psd = tags.get("psd", "u").lower()
    return Record(
        domain,
        p,
        sp if sp in _POLICIES else "",
        np if np in _POLICIES else "",
        tags.get("adkim", "r").lower() == "s",
        tags.get("aspf", "r").lower() == "s",
        int(pct) if re.fullmatch(r"\d{1,2}|100", pct, re.ASCII) else 100,
        tags.get("t", "n").lower() == "y",
        psd if psd in ("y", "n") else "u",
        tuple(rua),
        tags.get("fo", "0")[:20],
    )


def steps(domain: str) -> list[str]:
    """The names a tree walk from `domain` looks at, at most MAX_WALK (RFC 9989 4.10)."""
    labels = domain.split(".")
    found = [domain]
    rest = labels[-(MAX_WALK - 1) :] if len(labels) > MAX_WALK else labels[1:]
    while rest:
        found.append(".".join(rest))
        rest = rest[1:]
    return found


class Walk:
    """Records and organisational domains, each name asked about once."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._known: dict[str, Record | None] = {}

    async def record(self, domain: str) -> Record | None:
        """The policy at `_dmarc.domain` itself; None if there is none, or more than one. Raises DnsFailure."""
        if domain in self._known:
            return self._known[domain]
        found = [
            one
            for text in await texts(self._lookup, f"_dmarc.{domain}")
            if (one := read_record(text, domain)) is not None
        ]
        record = self._known[domain] = found[0] if len(found) == 1 else None
        return record

    async def organisation(self, domain: str) -> tuple[str, Record | None]:
        """(organisational domain, the record that speaks for `domain` where it has none itself). Raises DnsFailure."""
        chosen: Record | None = None
        names = steps(domain)
        for at, name in enumerate(names):
            record = await self.record(name)
            if record is None:
                continue
            if record.psd == "n":
                return name, record
            if record.psd == "y" and at:
                # Public suffix: the organisation is the name one label longer, below it in the walk or beside it.
                below = name.count(".") + 2
                own = ".".join(domain.split(".")[-below:])
                return own, await self.record(own) or record
            chosen = record
            if record.psd == "y":
                break
        return (chosen.domain if chosen is not None else domain), chosen


async def discover(walk: Walk, domain: str) -> Record | None:
    """The record that applies to mail From `domain`. Raises DnsFailure."""
    own = await walk.record(domain)
    return own if own is not None else (await walk.organisation(domain))[1]


async def evaluate(
    lookup: Lookup, domain: str, spf: Spf | None, signatures: Sequence[Signature], *, sample: int = 0
) -> Dmarc:
    """What DMARC says of mail From `domain`, given SPF (None: not asked) and the DKIM signatures.

    sample: 0 to 99; with pct=N, messages with a sample of N and above get the milder policy.
    """
    try:
        domain = ascii_name(domain)
    except ValueError:
        return Dmarc("permerror", domain, problem="no domain in From")
    walk = Walk(lookup)
    try:
        record = await discover(walk, domain)
        if record is None:
            return Dmarc("none", domain)
        policy = record.p
        if record.domain != domain:
            policy = record.sp or record.p
            if record.np and not (await ask(lookup, domain, "A")).exists:
                policy = record.np
        by_spf = spf is not None and spf.result == "pass" and await _aligned(walk, domain, spf.domain, record.strict_spf)
        by_dkim = False
        for signature in signatures:
            if signature.result == "pass" and await _aligned(walk, domain, signature.domain, record.strict_dkim):
                by_dkim = True
                break
    except DnsFailure as cause:
        return Dmarc("temperror", domain, problem=str(cause))
    if by_spf or by_dkim:
        return Dmarc("pass", domain, policy, "none", by_spf, by_dkim, record)
    # What failed for a moment could have passed: that is no failure of the sender's.
    for what, domain_of, word in [
        *([("SPF", spf.domain, spf.result)] if spf is not None else []),
        *(("DKIM", signature.domain, signature.result) for signature in signatures),
    ]:
        if word == "temperror" and _related(domain, domain_of):
            return Dmarc("temperror", domain, policy, "none", record=record, problem=f"{what} of {domain_of} can't be told now")
    asked = policy
    if record.testing or sample >= record.pct:
        asked = _MILDER[policy]
    return Dmarc("fail", domain, policy, asked, record=record)


def _related(first: str, second: str) -> bool:
    """Whether two names could be of one organisation: the last label is the same."""
    return first.rpartition(".")[2] == second.lower().rpartition(".")[2]


async def _aligned(walk: Walk, domain: str, other: str, strict: bool) -> bool:
    """Whether an authenticated domain is that of From, or of its organisation (RFC 9989 4.10.2)."""
    other = other.lower().rstrip(".")
    if other == domain:
        return True
    if strict or not other:
        return False
    organisation, _ = await walk.organisation(domain)
    if other != organisation and not other.endswith("." + organisation):
        return False
    return (await walk.organisation(other))[0] == organisation


async def reports_allowed(lookup: Lookup, domain: str, address: str) -> bool:
    """Whether an address of another organisation agreed to reports about `domain` (RFC 9990 4; RFC 7489 7.1). Raises DnsFailure."""
    target = ascii_name(address.rpartition("@")[2])
    walk = Walk(lookup)
    if (await walk.organisation(target))[0] == (await walk.organisation(domain))[0]:
        return True
    return any(_VERSION.match(text) for text in await texts(lookup, f"{domain}._report._dmarc.{target}"))
