"""Banned addresses, domains and clients, in a form that answers fast. Decisions only."""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable

from iems.directory.names import address_of, domain_of, suffixes
from iems.directory.screening import PERMANENT, Ban
from iems.message.address import Address, parse_addresses
from iems.message.header import fields, header_fields, unfold
from iems.model import Reply
from iems.smtpd.screen.verdicts import Refusal

#: Places where addresses and domains are tested: the envelope's, then header fields (product.md 2).
MAIL_FROM = "mail-from"
PLACES = (MAIL_FROM, "from", "reply-to", "resent-from", "sender", "return-path")
#: Octets of the fields looked at, and addresses in one field, above which a message is refused while something is banned.
FIELD_OCTETS = 65_536
MAX_MAILBOXES = 1000
#: Header fields that are remembered as free of bans: how many, and octets of each.
KEPT = 1024
KEPT_OCTETS = 1024

CLIENT_BANNED = Reply(554, 7, 1, "No mail is taken from this address")
CLIENT_BANNED_NOW = Reply(421, 7, 1, "No mail is taken from this address for now")
SENDER_BANNED = Reply(553, 7, 1, "No mail is taken from this sender")
SENDER_BANNED_NOW = Reply(451, 7, 1, "No mail is taken from this sender for now")
FIELDS_TOO_LONG = Reply(554, 6, 0, "The header names too many senders")


class Bans:
    """All bans under one state of the directory. places: of PLACES, where addresses and domains are tested."""

    __slots__ = ("_fields", "_free", "_names", "_spans", "at_mail", "clients", "header")

    def __init__(self, bans: Iterable[Ban] = (), places: Iterable[str] = PLACES) -> None:
        self._names: dict[str, int] = {}
        spans: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for ban in bans:
            if ban.kind in ("address", "domain"):
                self._names[ban.value] = ban.reply
            else:
                version, first, last = ban.span()
                spans.setdefault((ban.reply, version), []).append((first, last))
        # (reply, IP version) -> firsts and lasts of spans that do not touch, ascending.
        self._spans = {key: _merged(found) for key, found in sorted(spans.items(), reverse=True)}
        #: Header fields, as they stood, that name nobody who is banned: senders come again.
        self._free: set[bytes] = set()
        self.clients = bool(self._spans)
        chosen = frozenset(places) if self._names else frozenset()
        self.at_mail = MAIL_FROM in chosen
        self._fields = [place.encode() for place in PLACES[1:] if place in chosen]
        #: Whether header fields are tested at all.
        self.header = bool(self._fields)

    def client(self, ip: str) -> Refusal | None:
        """Whether a client may not connect. ip: as `Policy.peer` writes it; "" is nobody."""
        if not ip:
            return None
        address = ipaddress.ip_address(ip)
        number = int(address)
        for (reply, version), (firsts, lasts) in self._spans.items():
            if version == address.version:
                place = bisect_right(firsts, number) - 1
                if place >= 0 and number <= lasts[place]:
                    return Refusal(CLIENT_BANNED if reply == PERMANENT else CLIENT_BANNED_NOW, "ban", ip)
        return None

    def sender(self, reverse_path: bytes) -> Refusal | None:
        """Whether a reverse-path is banned at MAIL FROM; the null path never is."""
        local, at, domain = reverse_path.rpartition(b"@")
        if not at or not self.at_mail:
            return None
        return self._named(local + at + domain, domain, MAIL_FROM)

    def content(self, content: bytes) -> Refusal | None:
        """Whether a header field names somebody banned. content: the message, or as much of it as holds the whole header."""
        raw = header_fields(content, self._fields)
        if raw in self._free:
            return None
        if len(raw) > FIELD_OCTETS:
            return Refusal(FIELDS_TOO_LONG, "ban", "header")
        for field in fields(raw):
            mailboxes = parse_addresses(unfold(raw[field.value : field.end]))
            if len(mailboxes) > MAX_MAILBOXES:
                return Refusal(FIELDS_TOO_LONG, "ban", field.name.decode())
            for mailbox in mailboxes:
                refusal = self._mailbox(mailbox, field.name.decode())
                if refusal is not None:
                    return refusal
        if len(raw) <= KEPT_OCTETS:
            if len(self._free) >= KEPT:
                self._free.clear()
            self._free.add(bytes(raw))
        return None

    def _mailbox(self, mailbox: Address, place: str) -> Refusal | None:
        if not mailbox.domain:
            return None
        return self._named(mailbox.addr_spec.encode("utf-8", "surrogateescape"), mailbox.domain, place)

    def _named(self, address: bytes, domain: bytes, place: str) -> Refusal | None:
        names = self._names
        parts = address_of(address)
        # A local part too long for an address of the directory still has a domain.
        name = parts[1] if parts is not None else domain_of(domain.decode("utf-8", "replace"))
        if not name:
            return None
        found = names.get("@".join(parts)) if parts is not None else None
        for pattern in (name, *suffixes(name)):
            if found is not None:
                break
            found = names.get(pattern)
        if found is None:
            return None
        reply = SENDER_BANNED if found == PERMANENT else SENDER_BANNED_NOW
        return Refusal(reply, "ban", f"{place} {address.decode('utf-8', 'backslashreplace')}")


def _merged(spans: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    firsts: list[int] = []
    lasts: list[int] = []
    for first, last in sorted(spans):
        if lasts and first <= lasts[-1] + 1:
            lasts[-1] = max(lasts[-1], last)
        else:
            firsts.append(first)
            lasts.append(last)
    return firsts, lasts
