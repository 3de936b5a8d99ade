"""Transactions as values the directory asks: `View` reads, `Change` writes and keeps what it touched for the audit.

A view is one consistent state; it implements `resolve.Lookup`. Layout: keys.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iems.directory import keys
from iems.directory.entries import (
    ACCOUNT,
    ALIAS,
    ATTACHMENT,
    AUTOTEXT,
    BAN,
    DNSBL,
    FORWARD,
    HEADER_RULE,
    LOCAL_DOMAIN,
    MATRIX,
    RECIPIENT,
    SETTINGS,
    SHARED_MAILBOX,
    DirectoryRefusal,
    Entry,
    decode,
    encode,
)
from iems.directory.names import domain_rdns, entry_address, suffixes
from iems.directory.peers import PEER, Peers, peer_of
from iems.directory.relaydomains import RELAYED, RelayDomain, RelayDomains
from iems.errors import DirectoryUnavailable
from iems.model import Channel

ROOT = 0
#: Domains whose policy is remembered.
MAX_DOMAINS = 16_384

_CODES = {
    LOCAL_DOMAIN: keys.CLASS_LOCAL_DOMAIN,
    ACCOUNT: keys.CLASS_ACCOUNT,
    ALIAS: keys.CLASS_ALIAS,
    RECIPIENT: keys.CLASS_RECIPIENT,
    FORWARD: keys.CLASS_FORWARD,
    MATRIX: keys.CLASS_MATRIX,
    SETTINGS: keys.CLASS_SETTINGS,
    BAN: keys.CLASS_BAN,
    DNSBL: keys.CLASS_DNSBL,
    PEER: keys.CLASS_PEER,
    RELAYED: keys.CLASS_RELAYED,
    ATTACHMENT: keys.CLASS_ATTACHMENT,
    AUTOTEXT: keys.CLASS_AUTOTEXT,
    HEADER_RULE: keys.CLASS_HEADER_RULE,
}


class Policy:
    """What was looked up about domains and settings under one value of the `policy` counter."""

    __slots__ = ("forwards", "local", "only_domain", "peers", "quotas", "relay_domains", "settings", "version")

    def __init__(self, version: bytes | None = None) -> None:
        self.version = version
        self.local: dict[str, str] = {}
        self.quotas: dict[str, int] | None = None
        self.forwards: dict[str, tuple[str, Channel, str] | None] = {}
        self.settings: dict[str, list[str]] | None = None
        self.only_domain: str | None = None
        self.peers: Peers | None = None
        self.relay_domains: RelayDomains | None = None


class View:
    """One consistent view: a transaction and what it answers. Implements `resolve.Lookup`.

    policy: answers that hold in this transaction, to be added to; kept by the caller from one view to the next.
    """

    def __init__(self, databases: dict[bytes, Any], txn: Any, policy: Policy | None = None) -> None:
        self.db = databases
        self.txn = txn
        self.get = txn.get
        self.policy = policy if policy is not None else Policy()

    # Entries.

    def read(self, entry: int) -> Entry:
        """An entry by its id. Raises DirectoryUnavailable if it is named but missing."""
        octets = self.get(keys.u64(entry), db=self.db[b"entries"])
        if octets is None:
            raise DirectoryUnavailable(f"directory entry {entry} is named but missing")
        return decode(octets)

    def ids(self, kind: int, text: str) -> Iterator[int]:
        """The ids of a look-up text; others with the same key may be among them."""
        with self.txn.cursor(self.db[b"lookup"]) as cursor:
            if cursor.set_key(keys.lookup_key(kind, text)):
                for value in cursor.iternext_dup():
                    yield keys.u64_of(value)

    def find(self, kind: int, text: str) -> tuple[int, Entry] | None:
        """(id, entry) of a look-up text, compared in the entry."""
        first = self.get(keys.lookup_key(kind, text), db=self.db[b"lookup"])
        if first is None:
            return None
        number = keys.u64_of(first)
        entry = self.read(number)
        if entry.lookup == text and entry.kind == kind:
            return number, entry
        for number in self.ids(kind, text):
            entry = self.read(number)
            if entry.lookup == text and entry.kind == kind:
                return number, entry
        return None

    def child(self, parent: int, rdn_text: str) -> tuple[int, Entry] | None:
        """(id, entry) of a name below a parent; names compare without regard to case."""
        folded = rdn_text.lower()
        with self.txn.cursor(self.db[b"names"]) as cursor:
            if cursor.set_key(keys.name_key(parent, folded)):
                for value in cursor.iternext_dup():
                    number = keys.u64_of(value)
                    entry = self.read(number)
                    if entry.parent == parent and entry.rdn.lower() == folded:
                        return number, entry
        return None

    def has_children(self, parent: int) -> bool:
        """Whether anything stands below an entry."""
        with self.txn.cursor(self.db[b"names"]) as cursor:
            return bool(cursor.set_range(keys.u64(parent))) and cursor.key()[:8] == keys.u64(parent)

    def of_class(self, code: int) -> Iterator[tuple[int, Entry]]:
        """(id, entry) of a class, oldest first."""
        for number in self.numbers(code):
            yield number, self.read(number)

    def numbers(self, code: int) -> Iterator[int]:
        """The ids of a class, oldest first."""
        with self.txn.cursor(self.db[b"classes"]) as cursor:
            found = cursor.set_range(bytes([code]))
            while found:
                key = cursor.key()
                if key[0] != code:
                    return
                yield keys.u64_of(key[1:])
                found = cursor.next()

    def dn(self, entry: Entry) -> str:
        """The distinguished name of an entry."""
        names = [entry.rdn]
        parent = entry.parent
        while parent != ROOT:
            above = self.read(parent)
            names.append(above.rdn)
            parent = above.parent
        return ",".join(names)

    # resolve.Lookup.

    def entry(self, address: str) -> Entry | None:
        """The entry of a mail address, None if there is none."""
        found = self.find(keys.KIND_MAIL, address)
        return found[1] if found else None

    def local_as(self, domain: str) -> str:
        """The local domain, or `*.` pattern, that a domain falls under; "" if none."""
        known = self.policy.local
        answer = known.get(domain)
        if answer is None:
            answer = ""
            for pattern in (domain, *suffixes(domain)):
                found = self.find(keys.KIND_DOMAIN, pattern)
                if found and LOCAL_DOMAIN in found[1].classes:
                    answer = pattern
                    break
            if len(known) >= MAX_DOMAINS:
                known.clear()
            known[domain] = answer
        return answer

    @property
    def domain_quotas(self) -> dict[str, int]:
        """Domain -> octets its accounts may keep together, of the local domains that have a limit."""
        found = self.policy.quotas
        if found is None:
            found = self.policy.quotas = {
                entry.lookup: int(entry.first("iemsQuotaOctets"))
                for _, entry in self.of_class(keys.CLASS_LOCAL_DOMAIN)
                if entry.first("iemsQuotaOctets")
            }
        return found

    def forward(self, domain: str) -> tuple[str, Channel, str] | None:
        """(pattern, channel, identifier) of the forwarding entry that a domain falls under."""
        known = self.policy.forwards
        if domain in known:
            return known[domain]
        answer = None
        for pattern in (domain, *suffixes(domain)):
            found = self.find(keys.KIND_FORWARD, pattern)
            if found:
                answer = pattern, Channel[found[1].first("iemsChannel")], found[1].first("iemsIdentifier")
                break
        if len(known) >= MAX_DOMAINS:
            known.clear()
        known[domain] = answer
        return answer

    @property
    def peers(self) -> Peers:
        """The peer-domain profiles."""
        found = self.policy.peers
        if found is None:
            found = self.policy.peers = Peers(peer_of(entry) for _, entry in self.of_class(keys.CLASS_PEER))
        return found

    @property
    def relay_domains(self) -> RelayDomains:
        """The domain forwarding table with its checks of recipients."""
        found = self.policy.relay_domains
        if found is None:
            found = self.policy.relay_domains = RelayDomains(
                RelayDomain(entry.lookup, entry.first("iemsIdentifier"), entry.first("iemsCheck", "none"))
                for _, entry in self.of_class(keys.CLASS_FORWARD)
            )
        return found

    @property
    def settings(self) -> dict[str, list[str]]:
        """The attributes of the settings entry."""
        if self.policy.settings is None:
            found = self.find(keys.KIND_SETTINGS, "")
            self.policy.settings = found[1].attributes if found else {}
        return self.policy.settings

    def _setting(self, name: str, default: str) -> str:
        values = self.settings.get(name)
        return values[0] if values else default

    @property
    def default_local(self) -> Channel:
        """The channel of local addresses without an entry."""
        return Channel[self._setting("iemsDefaultLocalChannel", "LOCAL")]

    @property
    def internet(self) -> Channel:
        """The channel of all other domains."""
        return Channel[self._setting("iemsInternetChannel", "SMTPC")]

    @property
    def separator(self) -> str:
        """What separates the detail from the user in a local part."""
        return self._setting("iemsDetailSeparator", "+")

    @property
    def primary_domain(self) -> str:
        """The first local domain that is no pattern; "" if there is none."""
        for _, entry in self.of_class(keys.CLASS_LOCAL_DOMAIN):
            if not entry.lookup.startswith("*."):
                return entry.lookup
        return ""

    def first_account(self, domain: str) -> str:
        """An account of a domain, else one of the primary domain; "" if there is none."""
        primary = self.primary_domain
        fallback = ""
        for _, entry in self.of_class(keys.CLASS_ACCOUNT):
            if SHARED_MAILBOX in entry.classes:
                continue  # it may have no member who reads
            found = entry.lookup.rpartition("@")[2]
            if found == domain:
                return entry.lookup
            if found == primary and not fallback:
                fallback = entry.lookup
        return fallback


class Change(View):
    """A view whose transaction writes; keeps what it touched for the audit lines."""

    def __init__(self, databases: dict[bytes, Any], txn: Any) -> None:
        super().__init__(databases, txn)
        self.touched: list[tuple[str, dict[str, list[str]] | None, dict[str, list[str]] | None]] = []

    def put(self, key: bytes, value: bytes, name: str) -> None:
        """Write a row of a database."""
        self.txn.put(key, value, db=self.db[name.encode()])

    def next(self, name: bytes) -> int:
        """The next number of a counter."""
        number = keys.u64_of(self.get(name, db=self.db[b"meta"]))
        self.txn.put(name, keys.u64(number + 1), db=self.db[b"meta"])
        return number

    def count(self, name: bytes) -> None:
        """Step a counter."""
        self.next(name)

    def add(self, entry: Entry, number: int = 0, audit: bool = True) -> int:
        """Write an entry with its name, look-up and class rows; its id. number: keep this id (the entry was removed)."""
        identity = number or self.next(b"entry")
        self.put(keys.u64(identity), encode(entry), "entries")
        self.put(keys.name_key(entry.parent, entry.rdn.lower()), keys.u64(identity), "names")
        if entry.kind:
            self.put(keys.lookup_key(entry.kind, entry.lookup), keys.u64(identity), "lookup")
        for name in entry.classes:
            if name in _CODES:
                self.put(keys.class_key(_CODES[name], identity), b"", "classes")
        if audit:
            self.touched.append((self.dn(entry), None, entry.attributes | {"objectClass": entry.classes}))
        return identity

    def remove(self, number: int, entry: Entry, audit: bool = True) -> None:
        """Delete an entry and every row that names it."""
        if audit:
            self.touched.append((self.dn(entry), entry.attributes | {"objectClass": entry.classes}, None))
        value = keys.u64(number)
        delete = self.txn.delete
        delete(value, db=self.db[b"entries"])
        delete(keys.name_key(entry.parent, entry.rdn.lower()), value, db=self.db[b"names"])
        if entry.kind:
            delete(keys.lookup_key(entry.kind, entry.lookup), value, db=self.db[b"lookup"])
        for name in entry.classes:
            if name in _CODES:
                delete(keys.class_key(_CODES[name], number), db=self.db[b"classes"])

    def replace(self, number: int, entry: Entry, values: dict[str, list[str]]) -> None:
        """Set attributes of an entry; an empty list removes one."""
        old = {name: entry.attributes.get(name, []) for name in values}
        attributes = entry.attributes | values
        entry.attributes = {name: found for name, found in attributes.items() if found}
        self.put(keys.u64(number), encode(entry), "entries")
        self.touched.append((self.dn(entry), old, values))

    def account(self, address: str) -> tuple[int, Entry]:
        """(id, entry) of an account. Raises DirectoryRefusal."""
        name = "@".join(entry_address(address))
        found = self.find(keys.KIND_MAIL, name)
        if found is None or ACCOUNT not in found[1].classes:
            raise DirectoryRefusal(f"there is no account {name}")
        return found

    def children(self, parent: int) -> Iterator[Entry]:
        """The entries right below one."""
        start = keys.u64(parent)
        with self.txn.cursor(self.db[b"names"]) as cursor:
            found = cursor.set_range(start)
            while found and cursor.key()[:8] == start:
                yield self.read(keys.u64_of(cursor.value()))
                found = cursor.next()

    def domain_entry(self, domain: str) -> int:
        """The id of `dc=jade,dc=net`, each level made if it is missing (RFC 2377)."""
        parent = ROOT
        for name in domain_rdns(domain):
            found = self.child(parent, name)
            if found is None:
                label = name.removeprefix("dc=")
                parent = self.add(Entry(parent, name, 0, "", ["top", "domain"], {"dc": [label]}), audit=False)
            else:
                parent = found[0]
        return parent

    def folder(self, name: str) -> int:
        """The id of `ou=...,cn=iems`, or of `cn=iems` for ""; made if missing."""
        parent = ROOT
        for part in ("cn=iems", name) if name else ("cn=iems",):
            found = self.child(parent, part)
            if found is None:
                attribute, _, value = part.partition("=")
                classes = ["top", "organizationalUnit" if attribute == "ou" else "applicationProcess"]
                parent = self.add(Entry(parent, part, 0, "", classes, {attribute: [value]}), audit=False)
            else:
                parent = found[0]
        return parent
