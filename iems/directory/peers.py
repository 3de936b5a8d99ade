"""Peer-domain profiles: what is different for one domain, or all its sub-domains, as a peer of smtpd and smtpc (product.md 3).

Values only: `Directory.peers` gives a `Peers`, the state of one moment, which says which profile a name has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct, structs

from iems.directory.entries import DirectoryRefusal, Entry
from iems.directory.names import NameRefused, domain_of, pattern_of, suffixes

#: The object class of a profile, and the values `tls` may have.
PEER: Final = "iemsPeer"
TLS: Final = ("default", "off", "may", "encrypt", "verify")
_MAX_OCTETS: Final = 1 << 40
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Peer(Struct, frozen=True, kw_only=True):
    """One profile. domain: DOMAIN, or `*.DOMAIN` for every sub-domain but not DOMAIN.

    accept: hosts of that name may send. transmit: mail for the domain leaves; off, it bounces. queue_first: its mail waits for
    the next run before the first try. run_interval_s: between tries, retry_period_h: hours until mail is given up;
    max_sessions: connections at once (per worker), max_messages: over one connection; 0 in each: as `smtpc.*` says.
    max_in_octets, max_out_octets: largest message from hosts of that name and to the domain, 0: no limit of its own.
    keep_tags: our spam tags stay in mail to the domain. tls: one of `TLS`. client_certificate: name of the one that is shown to
    its hosts (`smtpc.client_certificates`), `default` as `smtpc.client_certificate` says, `none`.
    """

    domain: str
    accept: bool = True
    transmit: bool = True
    queue_first: bool = False
    run_interval_s: float = 0.0
    retry_period_h: float = 0.0
    max_sessions: int = 0
    max_messages: int = 0
    max_in_octets: int = 0
    max_out_octets: int = 0
    keep_tags: bool = False
    tls: str = "default"
    client_certificate: str = "default"


#: Largest value of each number.
_LIMITS: Final[dict[str, float]] = {
    "run_interval_s": 604_800,
    "retry_period_h": 8_760,
    "max_sessions": 1_000,
    "max_messages": 100_000,
    "max_in_octets": _MAX_OCTETS,
    "max_out_octets": _MAX_OCTETS,
}
_FIELDS: Final = {
    field.name: PEER + "".join(word.capitalize() for word in field.name.split("_"))
    for field in structs.fields(Peer)
    if field.name != "domain"
}


def checked(domain: str, values: dict[str, Any]) -> tuple[str, dict[str, list[str]]]:
    """(pattern, attributes) of what an administrator sets. Raises DirectoryRefusal; NameRefused is turned into it."""
    try:
        pattern = pattern_of(domain)
    except NameRefused as refusal:
        raise DirectoryRefusal(str(refusal)) from None
    attributes = {}
    for name, value in values.items():
        limit = _LIMITS.get(name)
        if limit is not None and not 0 <= value <= limit:
            raise DirectoryRefusal(f"{name} is between 0 and {limit:.0f}")
        if name == "tls" and value not in TLS:
            raise DirectoryRefusal(f"tls is one of {', '.join(TLS)}")
        if name == "client_certificate" and not _NAME.fullmatch(value):
            raise DirectoryRefusal("client_certificate is a name of at most 64 letters, digits, dots and hyphens")
        attributes[_FIELDS[name]] = [str(value).upper() if isinstance(value, bool) else str(value)]
    return pattern, attributes


def peer_of(entry: Entry) -> Peer:
    """The profile an entry of class iemsPeer holds. Raises ValueError for what can't be one."""
    values: dict[str, Any] = {}
    for field in structs.fields(Peer):
        if field.name == "domain" or not (text := entry.first(_FIELDS[field.name])):
            continue
        if isinstance(field.default, bool):
            values[field.name] = text == "TRUE"
        else:
            values[field.name] = type(field.default)(text)
    return Peer(domain=entry.lookup, **values)


class Peers:
    """All profiles at one moment; false if there are none. max_in_octets: the largest inbound limit, 0 if none has one."""

    __slots__ = ("_profiles", "max_in_octets")

    def __init__(self, profiles: Iterable[Peer] = ()) -> None:
        self._profiles = {profile.domain: profile for profile in profiles}
        self.max_in_octets = max((profile.max_in_octets for profile in self._profiles.values()), default=0)

    def __len__(self) -> int:
        return len(self._profiles)

    def find(self, name: str) -> Peer | None:
        """The profile of a domain or host: its own, else the nearest `*.`; None if there is none."""
        domain = domain_of(name)
        if domain is None:
            return None
        found = self._profiles.get(domain)
        if found is None:
            for pattern in suffixes(domain):
                if (found := self._profiles.get(pattern)) is not None:
                    break
        return found

    def list(self) -> list[Peer]:
        """All of them, by domain."""
        return sorted(self._profiles.values(), key=lambda profile: profile.domain)


#: What a home without profiles has.
NONE: Final = Peers()
