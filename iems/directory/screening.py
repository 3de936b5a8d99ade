"""What the directory holds for the screen of smtpd: bans and DNS-BL zones, in the one form they are kept and compared in.

Values and their rules only; matching is smtpd's. What makes no sense is refused with DirectoryRefusal before anything is written.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from msgspec import Struct

from iems.directory import keys
from iems.directory.entries import BAN, DNSBL, DirectoryRefusal, Entry
from iems.directory.names import NameRefused, address_of, domain_of, pattern_of, rdn, shown
from iems.directory.view import Change, View

#: Kinds of a ban, as the command names them.
BAN_KINDS = ("address", "domain", "ip", "range", "cidr")
#: Bans and zones a home may have: workers keep them in memory.
MAX_BANS = 16_384
MAX_ZONES = 64
PERMANENT, TEMPORARY = 553, 451

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_LISTED = ipaddress.ip_network("127.0.0.0/8")
#: Where lists say that they can't answer (no right to ask, too many questions): never a listing.
TROUBLE = ipaddress.ip_network("127.255.255.0/24")


class Ban(Struct, frozen=True):
    """One banned sender or client. kind: of BAN_KINDS. value: in normal form. reply: 553 (permanent) or 451."""

    kind: str
    value: str
    reply: int = PERMANENT

    def span(self) -> tuple[int, int, int]:
        """(IP version, first, last address as numbers) of the kinds ip, range and cidr."""
        if self.kind == "cidr":
            network = ipaddress.ip_network(self.value)
            return network.version, int(network.network_address), int(network.broadcast_address)
        first, _, last = self.value.partition("-")
        low = ipaddress.ip_address(first)
        return low.version, int(low), int(ipaddress.ip_address(last or first))


class Zone(Struct, frozen=True):
    """A DNS-BL. action: "reject" or "tag". codes: answers that count, as `127.0.0.2` or `127.0.0.4-11`; () is any."""

    name: str
    action: str
    codes: tuple[str, ...] = ()

    def spans(self) -> tuple[tuple[int, int], ...]:
        """The codes as (first, last) numbers of IPv4 addresses."""
        return tuple(_code(text) for text in self.codes)


def ban_of(kind: str, value: str, reply: int = PERMANENT) -> Ban:
    """A ban in normal form. Raises DirectoryRefusal."""
    kind = kind.lower()
    if reply not in (PERMANENT, TEMPORARY):
        raise DirectoryRefusal(f"the reply of a ban is {PERMANENT} or {TEMPORARY}, not {reply}")
    try:
        if kind == "address":
            parts = address_of(value.encode("utf-8", "surrogatepass"))
            if parts is None or not parts[1]:
                raise DirectoryRefusal(f"not an address: {shown(value)}")
            return Ban(kind, "@".join(parts), reply)
        if kind == "domain":
            # A domain literal (`[192.0.2.1]`) can stand behind an @ too.
            literal = domain_of(value) if value.startswith("[") else None
            return Ban(kind, literal or pattern_of(value), reply)
        if kind == "ip":
            return Ban(kind, str(_ip(value)), reply)
        if kind == "range":
            first, dash, last = value.partition("-")
            if not dash:
                raise DirectoryRefusal(f"a range is FIRST-LAST, not {shown(value)}")
            low, high = _ip(first.strip()), _ip(last.strip())
            if low.version != high.version or int(low) > int(high):
                raise DirectoryRefusal(f"a range goes from the lower to the higher address: {shown(value)}")
            return Ban(kind, f"{low}-{high}", reply)
        if kind == "cidr":
            try:
                return Ban(kind, str(ipaddress.ip_network(value)), reply)
            except ValueError as fault:
                raise DirectoryRefusal(f"not a network: {shown(value)} ({fault})") from None
    except NameRefused as refusal:
        raise DirectoryRefusal(str(refusal)) from None
    raise DirectoryRefusal(f"a ban is of kind {', '.join(BAN_KINDS)}, not {shown(kind)}")


def zone_of(name: str, action: str, codes: str = "") -> Zone:
    """A zone in normal form. codes: separated by commas. Raises DirectoryRefusal."""
    domain = domain_of(name.rstrip("."))
    # 73 octets are put in front of it for an IPv6 client.
    if domain is None or domain.startswith("[") or "." not in domain or len(domain) > 180:
        raise DirectoryRefusal(f"not the name of a zone: {shown(name)}")
    if action not in ("reject", "tag"):
        raise DirectoryRefusal(f"the action of a zone is reject or tag, not {shown(action)}")
    texts = tuple(text.strip() for text in codes.split(",")) if codes.strip() else ()
    for text in texts:
        _code(text)
    return Zone(domain, action, texts)


def _ip(text: str) -> _Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise DirectoryRefusal(f"not an IP address: {shown(text)}") from None
    if getattr(address, "scope_id", None):
        raise DirectoryRefusal(f"an IP address without a zone is wanted: {shown(text)}")
    # smtpd knows a client of an IPv6 socket that came by IPv4 under its IPv4 address.
    return getattr(address, "ipv4_mapped", None) or address


def _code(text: str) -> tuple[int, int]:
    """`127.0.0.2`, `127.0.0.4-11` or `127.0.0.4-127.0.0.11` as numbers. Raises DirectoryRefusal."""
    first, dash, last = text.partition("-")
    if dash and last.isascii() and last.isdigit():
        last = f"{first.rpartition('.')[0]}.{last}"
    try:
        low = ipaddress.IPv4Address(first)
        high = ipaddress.IPv4Address(last) if dash else low
    except ValueError:
        low, high = ipaddress.IPv4Address(0), ipaddress.IPv4Address(0)
    if low > high or low not in _LISTED or high not in _LISTED:
        raise DirectoryRefusal(f"a code is like 127.0.0.2 or 127.0.0.4-11, not {shown(text)}")
    if int(high) >= int(TROUBLE.network_address) and int(low) <= int(TROUBLE.broadcast_address):
        raise DirectoryRefusal(
            f"{TROUBLE} says that a list can't answer; it is never a listing: {shown(text)}"
        )
    return int(low), int(high)


# --- in a transaction


def bans(view: View) -> list[Ban]:
    """All bans, oldest first."""
    return [_ban(entry) for _, entry in view.of_class(keys.CLASS_BAN)]


def zones(view: View) -> list[Zone]:
    """All zones, oldest first."""
    return [
        Zone(entry.lookup, entry.first("iemsAction"), tuple(entry.attributes.get("iemsCode", ())))
        for _, entry in view.of_class(keys.CLASS_DNSBL)
    ]


def state(view: View) -> int:
    """A number that grows with each change of bans or zones."""
    found = view.get(b"screen", db=view.db[b"meta"])
    return keys.u64_of(found) if found is not None else 0


def _ban(entry: Entry) -> Ban:
    kind, _, value = entry.lookup.partition(" ")
    return Ban(kind, value, int(entry.first("iemsReply", str(PERMANENT))))


def add_ban(work: Change, ban: Ban) -> None:
    """Add a ban, or give one another reply. Raises DirectoryRefusal."""
    name = f"{ban.kind} {ban.value}"
    values = {"cn": [name], "iemsReply": [str(ban.reply)]}
    found = work.find(keys.KIND_BAN, name)
    if found is not None:
        if _ban(found[1]) == ban:
            raise DirectoryRefusal(f"{name} is banned already")
        work.replace(*found, values)
    else:
        _room(work, keys.CLASS_BAN, MAX_BANS, "bans")
        work.add(Entry(work.folder("ou=bans"), rdn("cn", name), keys.KIND_BAN, name, ["top", BAN], values))
    _changed(work)


def remove_ban(work: Change, ban: Ban) -> None:
    """Lift a ban. Raises DirectoryRefusal."""
    name = f"{ban.kind} {ban.value}"
    found = work.find(keys.KIND_BAN, name)
    if found is None:
        raise DirectoryRefusal(f"{name} is not banned")
    work.remove(*found)
    _changed(work)


def add_zone(work: Change, zone: Zone) -> None:
    """Add a zone, or change its action and codes. Raises DirectoryRefusal."""
    values: dict[str, list[str]] = {
        "cn": [zone.name],
        "iemsAction": [zone.action],
        "iemsCode": list(zone.codes),
    }
    found = work.find(keys.KIND_DNSBL, zone.name)
    if found is not None:
        work.replace(*found, values)
    else:
        _room(work, keys.CLASS_DNSBL, MAX_ZONES, "zones")
        work.add(
            Entry(
                work.folder("ou=dnsbl"),
                rdn("cn", zone.name),
                keys.KIND_DNSBL,
                zone.name,
                ["top", DNSBL],
                values,
            )
        )
    _changed(work)


def remove_zone(work: Change, name: str) -> None:
    """Ask a zone no more. Raises DirectoryRefusal."""
    domain = domain_of(name.rstrip(".")) or name
    found = work.find(keys.KIND_DNSBL, domain)
    if found is None:
        raise DirectoryRefusal(f"{shown(name)} is not among the zones")
    work.remove(*found)
    _changed(work)


def _room(work: Change, code: int, limit: int, what: str) -> None:
    if sum(1 for _ in work.numbers(code)) >= limit:
        raise DirectoryRefusal(f"there are {limit} {what} already, and no more are kept")


def _changed(work: Change) -> None:
    work.put(b"screen", keys.u64(state(work) + 1), "meta")


Screening = tuple[int, list[Ban], list[Zone]]


def read(view: View, known: int) -> Screening | None:
    """(state, bans, zones), or None while the state is still `known`."""
    now: Any = state(view)
    return None if now == known else (now, bans(view), zones(view))
