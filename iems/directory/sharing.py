"""Shared mailboxes, as the directory keeps them: accounts without a log-in of their own, and members with rights in them.

A membership stands in two entries, written in one transaction: the shared mailbox names its members, and each member's account names the
shared mailboxes, so that a session finds them without looking through all. Both name accounts by number, which is never used twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from iems.directory import keys
from iems.directory.entries import ACCOUNT, MEMBER_OF, MEMBERS, SHARED_MAILBOX, DirectoryRefusal, Entry
from iems.directory.names import entry_address
from iems.imap import rights
from iems.imap.grammar import Bad

if TYPE_CHECKING:
    from iems.directory.view import Change

#: Members of one shared mailbox; shared mailboxes of one member.
MEMBERS_MAX = 500
SHARED_MAX = 1_000
#: Names for sets of rights (RFC 4314 2.1). What reads may say for itself what it has seen; what writes keeps flags, puts mail there and deletes it.
NAMED = {"read": "lrs", "write": "lrswipte", "manage": rights.ALL}
_SEND = "send-as"


class Member(Struct, frozen=True):
    """An account that may work in a shared mailbox. rights: in each of its mailboxes that has no entry of its own for it. send_as: it may
    send from the shared mailbox's addresses."""

    number: int
    address: str
    rights: str
    send_as: bool = False

    def text(self) -> str:
        """As kept in the attribute."""
        return f"{self.number} {self.rights} {_SEND if self.send_as else '-'} {self.address}"

    @property
    def named(self) -> str:
        """The rights as an administrator writes them."""
        return next((name for name, letters in NAMED.items() if letters == self.rights), self.rights)


def parse(text: str) -> Member:
    """A member from the attribute. Raises ValueError."""
    number, letters, send, address = text.split(" ", 3)
    return Member(int(number), address, letters, send == _SEND)


def rights_of(text: str) -> str:
    """Rights as an administrator writes them: read, write, manage, or letters of RFC 4314. Raises DirectoryRefusal."""
    named = NAMED.get(text.lower())
    if named is not None:
        return named
    try:
        found = rights.parse(text.encode("ascii"))
    except (Bad, UnicodeEncodeError):
        found = ""
    if not found:
        raise DirectoryRefusal(f"rights are {', '.join(NAMED)}, or some of the letters {rights.ALL}, not {text!a}")
    return found


def shared_of(work: Change, address: str) -> tuple[int, Entry]:
    """(id, entry) of a shared mailbox. Raises DirectoryRefusal."""
    name = "@".join(entry_address(address))
    found = work.find(keys.KIND_MAIL, name)
    if found is None or SHARED_MAILBOX not in found[1].classes:
        raise DirectoryRefusal(f"there is no shared mailbox {name}")
    return found


def join(work: Change, address: str, member: str, letters: str, send_as: bool) -> Member:
    """Make an account a member, or give a member other rights. letters: of `rights_of`. Raises DirectoryRefusal."""
    identity, entry = shared_of(work, address)
    member_id, account = work.account(member)
    if SHARED_MAILBOX in account.classes:
        raise DirectoryRefusal(f"{account.lookup} is a shared mailbox: members log in, it does not")
    number = int(account.first("iemsAccountNumber"))
    new = Member(number, account.lookup, letters, send_as)
    kept = [text for text in entry.attributes.get(MEMBERS, ()) if parse(text).number != number]
    if len(kept) >= MEMBERS_MAX:
        raise DirectoryRefusal(f"{entry.lookup} has {MEMBERS_MAX} members already")
    owners = account.attributes.get(MEMBER_OF, [])
    own = entry.first("iemsAccountNumber")
    if own not in owners:
        if len(owners) >= SHARED_MAX:
            raise DirectoryRefusal(f"{account.lookup} is a member of {SHARED_MAX} shared mailboxes already")
        work.replace(member_id, account, {MEMBER_OF: [*owners, own]})
    work.replace(identity, entry, {MEMBERS: sorted([*kept, new.text()], key=lambda text: parse(text).address)})
    return new


def leave(work: Change, address: str, member: str) -> Member:
    """Take a membership away. Raises DirectoryRefusal."""
    identity, entry = shared_of(work, address)
    name = "@".join(entry_address(member))
    members = [parse(text) for text in entry.attributes.get(MEMBERS, ())]
    gone = next((one for one in members if one.address == name), None)
    if gone is None:
        raise DirectoryRefusal(f"{name} is no member of {entry.lookup}")
    work.replace(identity, entry, {MEMBERS: [one.text() for one in members if one is not gone]})
    _forget(work, gone.number, entry.first("iemsAccountNumber"))
    return gone


def _forget(work: Change, number: int, owner: str) -> None:
    """Take a shared mailbox from the list its member's entry has."""
    found = work.get(keys.account_key(number), db=work.db[b"accounts"])
    if found is None:
        return
    identity = keys.u64_of(found)
    account = work.read(identity)
    owners = account.attributes.get(MEMBER_OF, [])
    if owner in owners:
        work.replace(identity, account, {MEMBER_OF: [one for one in owners if one != owner]})


def part(work: Change, entry: Entry) -> None:
    """Undo all memberships of an account, or of a shared mailbox, that is about to be removed."""
    number = entry.first("iemsAccountNumber")
    for text in entry.attributes.get(MEMBERS, ()):
        _forget(work, parse(text).number, number)
    for owner in entry.attributes.get(MEMBER_OF, ()):
        found = work.get(keys.account_key(int(owner)), db=work.db[b"accounts"])
        if found is None:
            continue
        identity = keys.u64_of(found)
        shared = work.read(identity)
        kept = [text for text in shared.attributes.get(MEMBERS, ()) if parse(text).number != int(number)]
        if ACCOUNT in shared.classes and len(kept) < len(shared.attributes.get(MEMBERS, ())):
            work.replace(identity, shared, {MEMBERS: kept})
