"""What the directory holds and what it answers: entries, accounts, connectors, resolutions.

Values only. An entry's attributes are lists of text under LDAP names, so `ldapd` and LDIF can show them as they are.
"""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from iems.directory.stored import ATTRIBUTE
from iems.errors import IemsError
from iems.model import Channel, Reply

if TYPE_CHECKING:
    from iems.directory.bayeschoice import BayesChoice
    from iems.directory.sharing import Member
    from iems.directory.spamcontrol import SpamControl

# Object classes. Standard ones where they exist: domain (RFC 4524), inetOrgPerson (RFC 2798), nisMailAlias (RFC 2307).
LOCAL_DOMAIN = "iemsLocalDomain"
ACCOUNT = "iemsAccount"
ALIAS = "nisMailAlias"
RECIPIENT = "iemsRecipient"
FORWARD = "iemsForward"
MATRIX = "iemsMatrix"
SETTINGS = "iemsSettings"
BAN = "iemsBan"
DNSBL = "iemsDnsbl"
ATTACHMENT = "iemsAttachmentRule"
AUTOTEXT = "iemsAutoText"
HEADER_RULE = "iemsHeaderRule"
#: Beside ACCOUNT: nobody logs in as this one, its members read it (sharing.py).
SHARED_MAILBOX = "iemsSharedMailbox"
MEMBERS = "iemsMember"
MEMBER_OF = "iemsMemberOf"


class DirectoryRefusal(IemsError):
    """A policy change that makes no sense (exists already, unknown, not an address); nothing was changed."""


class Permission(IntFlag):
    """What a connector may be used for (product.md 8)."""

    NONE = 0
    SEND = 1
    RECEIVE = 2
    BOTH = 3

    @classmethod
    def of(cls, text: str) -> Permission:
        """`none`, `send`, `receive`, `send+receive`. Raises DirectoryRefusal."""
        try:
            return _PERMISSIONS[text.lower()]
        except KeyError:
            raise DirectoryRefusal(f"permission is one of {', '.join(_PERMISSIONS)}, not {text!a}") from None

    @property
    def text(self) -> str:
        """As `of` takes it."""
        return next(text for text, value in _PERMISSIONS.items() if value == self)


_PERMISSIONS = {
    "none": Permission.NONE,
    "send": Permission.SEND,
    "receive": Permission.RECEIVE,
    "send+receive": Permission.BOTH,
}

#: The permissions that make sense for each channel (product.md 8).
CHANNEL_PERMISSIONS = {
    Channel.LOCAL: (Permission.SEND, Permission.BOTH),
    Channel.SMTPC: (Permission.BOTH,),
    Channel.BSMTPOUT: (Permission.BOTH,),
    Channel.DL: (Permission.BOTH,),
    Channel.CCMAIL: (Permission.NONE, Permission.SEND, Permission.RECEIVE, Permission.BOTH),
    Channel.NOTES: (Permission.NONE, Permission.SEND, Permission.RECEIVE, Permission.BOTH),
}


class Connector(Struct, frozen=True):
    """The way to one entry: a channel, what the channel needs to know, and whether it may send and receive."""

    channel: Channel
    identifier: str = ""
    permission: Permission = Permission.BOTH

    def text(self) -> str:
        """As kept in the attribute `iemsConnector`."""
        return f"{self.channel.name} {self.permission.text} {self.identifier}".rstrip()

    @classmethod
    def parse(cls, text: str) -> Connector:
        """From the attribute."""
        name, permission, *rest = text.split(" ", 2)
        return cls(Channel[name], rest[0] if rest else "", Permission.of(permission))


class Entry(Struct, array_like=True):
    """One entry as stored: its parent's id, its RDN, the text it is looked up by, classes and attributes."""

    parent: int
    rdn: str
    kind: int
    lookup: str
    classes: list[str]
    attributes: dict[str, list[str]]

    def first(self, name: str, default: str = "") -> str:
        """The first value of an attribute."""
        values = self.attributes.get(name)
        return values[0] if values else default


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Entry).decode


class Account(Struct, frozen=True):
    """A mailbox owner. number: u32, never used again. quota_octets: None is unlimited. password: its hash, as argon2 writes it.

    spam: what its owner wants done with tagged mail, None if nothing was chosen.
    keys: what else is kept of the password, see stored.py. send_as: addresses, domains and `*.DOMAIN` it may send from beside its own.
    filtered: it has an active script (MailSort, Sieve) that its mail goes through. bayes: what its Bayesian filter does, None: it is off.
    shared: it is a shared mailbox, which nobody logs in to; members: who works in it. member_of: numbers of the shared mailboxes it is a member of.
    """

    number: int
    address: str
    enabled: bool
    quota_octets: int | None
    partition: int
    password: str
    may_receive: bool = True
    spam: SpamControl | None = None
    keys: tuple[str, ...] = ()
    send_as: tuple[str, ...] = ()
    filtered: bool = False
    bayes: BayesChoice | None = None
    domain_quota_octets: int | None = None
    shared: bool = False
    members: tuple[Member, ...] = ()
    member_of: tuple[int, ...] = ()

    def member(self, number: int) -> Member | None:
        """The member of an account number; None if it is none."""
        return next((one for one in self.members if one.number == number), None)

    @property
    def domain(self) -> str:
        """The domain of the address."""
        return self.address.rpartition("@")[2]


class Retired(Struct, frozen=True):
    """A deleted account: its number, when (ns since 1970), and the partition that has its mail."""

    number: int
    deleted_ns: int
    partition: int


class Target(Struct, frozen=True):
    """Where mail for a recipient goes: an output channel, what that channel needs to know, and the final address."""

    channel: int
    identifier: str
    address: bytes


class Resolution(Struct, frozen=True):
    """What becomes of mail to one address.

    local: its domain is local. ours: mail for it is taken from anyone (local, or in the domain forwarding table).
    exists: it can be routed; if not, targets is empty and reply says why. steps: how it was found, if asked for.
    """

    local: bool
    exists: bool
    targets: list[Target]
    reply: Reply | None = None
    ours: bool = False
    steps: list[tuple[str, str]] = []


def account_of(entry: Entry) -> Account:
    """The account an entry of class iemsAccount holds."""
    from iems.directory import spamcontrol

    attributes = entry.attributes
    quota = attributes.get("iemsQuotaOctets")
    password = entry.first("userPassword")
    return Account(
        number=int(attributes["iemsAccountNumber"][0]),
        address=entry.lookup,
        enabled=entry.first("iemsEnabled", "TRUE") == "TRUE",
        quota_octets=int(quota[0]) if quota else None,
        partition=int(entry.first("iemsPartition", "0")),
        password=password.removeprefix("{ARGON2}"),
        may_receive=any(
            Connector.parse(text).permission & Permission.RECEIVE
            for text in attributes.get("iemsConnector", ())
            if text.startswith("LOCAL ")
        ),
        spam=spamcontrol.read(attributes),
        keys=tuple(attributes.get(ATTRIBUTE, ())),
        send_as=tuple(attributes.get("iemsSendAs", ())),
        filtered=entry.first("iemsFiltered") == "TRUE",
        bayes=_bayes(attributes),
        shared=SHARED_MAILBOX in entry.classes,
        members=_members(attributes),
        member_of=tuple(int(number) for number in attributes.get(MEMBER_OF, ())),
    )


def _members(attributes: dict[str, list[str]]) -> tuple[Member, ...]:
    if MEMBERS not in attributes:
        return ()
    from iems.directory import sharing

    return tuple(sharing.parse(text) for text in attributes[MEMBERS])


def _bayes(attributes: dict[str, list[str]]) -> BayesChoice | None:
    if "iemsBayes" not in attributes:
        return None
    # Imported where somebody uses it: the filter brings numpy.
    from iems.directory import bayeschoice

    return bayeschoice.read(attributes)
