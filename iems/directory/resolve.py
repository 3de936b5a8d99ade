"""From an address to its (channel, identifier, address) pairs. Pure: what is looked up is handed in.

Order of questions for a recipient, first answer wins:

1. No domain: `postmaster` and plain names belong to the primary domain.
2. Is the domain local (listed, or covered by `*.DOMAIN`), or forwarded to LOCAL?
   no: domain forwarding table (exact, then nearest `*.`), else the Internet delivery channel.
3. Has the address an entry? If not, has it without its detail (`user+detail`)? Alias: its targets, each from 1.
   Entry with connectors: each connector that may receive. Entry without: the default local delivery channel.
4. No entry: `postmaster` goes to the domain's first account (RFC 5321 4.5.1 wants it accepted), else the forwarding
   table for that domain, else the default local delivery channel, which for LOCAL means 550.
"""

from __future__ import annotations

from typing import Protocol

from iems.directory.entries import ACCOUNT, ALIAS, Connector, Entry, Permission, Resolution, Target
from iems.directory.names import address_of
from iems.model import Channel, Reply

MAX_ALIAS_DEPTH = 16
MAX_TARGETS = 1000

BAD_ADDRESS = Reply(553, 1, 3, "Bad recipient address syntax")
NO_SUCH_USER = Reply(550, 1, 1, "No such user here")
NO_SUCH_ADDRESS = Reply(550, 1, 1, "The alias leads to no address that exists")
DISABLED = Reply(550, 2, 1, "Mailbox disabled")
NO_RECEIVE = Reply(550, 2, 1, "Mailbox accepts no mail")
ALIAS_LOOP = Reply(550, 4, 6, "Alias loop")
TOO_MANY = Reply(550, 5, 3, "The alias leads to too many addresses")

_LOCAL = int(Channel.LOCAL)
#: The connectors of nearly every account.
_ONLY_LOCAL = [Connector(Channel.LOCAL).text()]


class Lookup(Protocol):
    """What the resolver asks; one consistent view of the directory."""

    @property
    def default_local(self) -> Channel:
        """The default local delivery channel."""

    @property
    def internet(self) -> Channel:
        """The Internet delivery channel."""

    @property
    def separator(self) -> str:
        """What parts user and detail, or ""."""

    @property
    def primary_domain(self) -> str:
        """The domain of an address that has none, or ""."""

    def local_as(self, domain: str) -> str:
        """The entry of the list of local domains that covers a domain, or ""."""

    def forward(self, domain: str) -> tuple[str, Channel, str] | None:
        """(pattern, channel, identifier) of the forwarding table for a domain."""

    def entry(self, address: str) -> Entry | None:
        """The entry of an address in normal form."""

    def first_account(self, domain: str) -> str:
        """The address of the domain's first account, or of the primary domain's, or ""."""


def resolve(look: Lookup, octets: bytes, explain: bool = False) -> Resolution:
    """Where mail to an address goes, or why it can't.

    octets: the address as in the envelope, without angle brackets. Follows aliases up to 16 deep and 1,000 targets.
    """
    steps: list[tuple[str, str]] | None = [] if explain else None
    walk = _Walk(look, steps)
    local, ours = walk.follow(octets, 0)
    reply = None
    if not walk.targets:
        reply = walk.reply or NO_SUCH_USER
    elif walk.reply is TOO_MANY:
        reply, walk.targets = TOO_MANY, []
    if steps is not None:
        answer = (
            ", ".join(_shown(target) for target in walk.targets)
            if reply is None
            else f"{reply.code} {reply.status} {reply.text}"
        )
        steps.append(("Where does it go?", answer))
    return Resolution(local, reply is None, walk.targets, reply, ours, steps or [])


def _shown(target: Target) -> str:
    identifier = f" ({target.identifier})" if target.identifier else ""
    return f"{Channel(target.channel).name}{identifier} as {target.address.decode('utf-8', 'replace')}"


class _Walk:
    """One resolution under way."""

    def __init__(self, look: Lookup, steps: list[tuple[str, str]] | None) -> None:
        self.look = look
        self.steps = steps
        self.targets: list[Target] = []
        self.known: set[Target] = set()
        self.reply: Reply | None = None
        self.seen: set[str] = set()

    def step(self, question: str, answer: str) -> None:
        if self.steps is not None:
            self.steps.append((question, answer))

    def refuse(self, reply: Reply) -> None:
        if self.reply is None or reply is TOO_MANY:
            self.reply = reply

    def add(self, channel: int, identifier: str, address: bytes) -> None:
        target = Target(channel, identifier, address)
        if target in self.known:
            return
        if len(self.targets) >= MAX_TARGETS:
            self.refuse(TOO_MANY)
            return
        self.known.add(target)
        self.targets.append(target)

    def follow(self, octets: bytes, depth: int) -> tuple[bool, bool]:
        """Resolve one address into targets; (domain is local, mail for it is ours)."""
        look = self.look
        parts = address_of(octets)
        if parts is None:
            self.step("Is it an address?", "no: the syntax or a length is wrong")
            self.refuse(BAD_ADDRESS)
            return False, False
        local_part, domain = parts
        if not domain:
            domain = look.primary_domain
            self.step("Which domain, as none is given?", domain or "none: the home has no local domain")
            if not domain:
                self.refuse(BAD_ADDRESS)
                return False, False
        listed = look.local_as(domain)
        forward = look.forward(domain)
        if self.steps is not None:
            if listed:
                self.step(f"Is {domain} a local domain?", f"yes, listed as {listed}")
            else:
                self.step(f"Is {domain} a local domain?", "no")
        if not listed and (forward is None or forward[1] != _LOCAL):
            # The local part of somebody else's address is kept as written (RFC 5321 2.4).
            written = _with_domain(octets, domain)
            if forward is not None:
                self.step(
                    f"Is {domain} in the domain forwarding table?",
                    f"yes, as {forward[0]}: {forward[1].name} {forward[2]}".rstrip(),
                )
                self.add(int(forward[1]), forward[2], written)
                return False, True
            self.step(f"Is {domain} in the domain forwarding table?", "no")
            self.step("Which is the Internet delivery channel?", look.internet.name)
            self.add(int(look.internet), "", written)
            return False, False
        self.local(local_part, domain, octets, forward, depth)
        return True, True

    def local(
        self,
        local_part: str,
        domain: str,
        octets: bytes,
        forward: tuple[str, Channel, str] | None,
        depth: int,
    ) -> None:
        """Resolve an address of a local domain."""
        look = self.look
        address = f"{local_part}@{domain}"
        entry = look.entry(address)
        if self.steps is not None:
            self.step(f"Has {address} an entry?", _kind(entry))
        separator = look.separator
        if entry is None and separator:
            user, found, _detail = local_part.partition(separator)
            if found and user:
                address = f"{user}@{domain}"
                entry = look.entry(address)
                self.step(f"Has {address}, without the detail after {separator!r}, an entry?", _kind(entry))
        if entry is not None:
            self.entry(entry, address, depth)
            return
        if local_part == "postmaster":
            owner = look.first_account(domain)
            self.step(
                "Who reads postmaster's mail, as it has no entry?", owner or "nobody: there is no account"
            )
            if owner:
                self.alias(f"postmaster@{domain}", [owner], depth)
                return
        if forward is not None and forward[1] != _LOCAL:
            self.step(
                f"Is {domain} in the domain forwarding table?",
                f"yes, as {forward[0]}: {forward[1].name} {forward[2]}".rstrip(),
            )
            self.add(int(forward[1]), forward[2], _with_domain(octets, domain))
            return
        self.by_default(_with_domain(octets, domain), NO_SUCH_USER)

    def by_default(self, address: bytes, unknown: Reply) -> None:
        channel = self.look.default_local
        self.step("Which is the default local delivery channel?", channel.name)
        if channel == _LOCAL:
            self.refuse(unknown)
        else:
            self.add(int(channel), "", address)

    def entry(self, entry: Entry, address: str, depth: int) -> None:
        """Resolve by what the entry says."""
        classes = entry.classes
        if ALIAS in classes:
            self.alias(address, entry.attributes.get("rfc822MailMember", []), depth)
            return
        octets = address.encode()
        is_account = ACCOUNT in classes
        if is_account and entry.first("iemsEnabled", "TRUE") != "TRUE":
            self.step("Is the account enabled?", "no")
            self.refuse(DISABLED)
            return
        texts = entry.attributes.get("iemsConnector", ())
        if texts == _ONLY_LOCAL:
            self.step("Which connectors has it?", texts[0])
            self.add(_LOCAL, "", octets)
            return
        connectors = [Connector.parse(text) for text in texts]
        if not connectors:
            self.step("Which connectors has it?", "none")
            if is_account and self.look.default_local == _LOCAL:
                self.step("Which is the default local delivery channel?", "LOCAL")
                self.add(_LOCAL, "", octets)
            else:
                self.by_default(octets, NO_SUCH_USER)
            return
        self.step("Which connectors has it?", ", ".join(connector.text() for connector in connectors))
        usable = [c for c in connectors if c.permission & Permission.RECEIVE]
        if not usable:
            self.step("Which of them may receive?", "none")
            self.refuse(NO_RECEIVE)
        for connector in usable:
            self.add(int(connector.channel), connector.identifier, octets)

    def alias(self, address: str, members: list[str], depth: int) -> None:
        """Resolve each member of an alias, each address once."""
        self.step(
            f"Where does {address} lead?", ", ".join(members[:20]) + (", ..." if len(members) > 20 else "")
        )
        if address in self.seen:
            self.step("Was it seen on the way here?", "yes: a loop, not followed")
            self.refuse(ALIAS_LOOP)
            return
        if depth >= MAX_ALIAS_DEPTH:
            self.step("Is the chain too long?", f"yes: more than {MAX_ALIAS_DEPTH} aliases")
            self.refuse(ALIAS_LOOP)
            return
        self.seen.add(address)
        for member in members:
            if self.reply is TOO_MANY:
                return
            before = self.reply
            self.follow(member.encode("utf-8", "surrogatepass"), depth + 1)
            if before is None and self.reply is NO_SUCH_USER:
                self.reply = NO_SUCH_ADDRESS


def _with_domain(octets: bytes, domain: str) -> bytes:
    """The address with its local part as written and its domain in normal form."""
    local, at, _ = octets.rpartition(b"@")
    return (local if at else octets) + b"@" + domain.encode()


def _kind(entry: Entry | None) -> str:
    if entry is None:
        return "no"
    if ALIAS in entry.classes:
        return "yes, an alias"
    if ACCOUNT in entry.classes:
        return f"yes, account number {entry.first('iemsAccountNumber')}"
    return "yes, a recipient with connectors only"
