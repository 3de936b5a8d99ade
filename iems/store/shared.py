"""Mailboxes of other accounts: what one gives rights in (RFC 4314), `Other Users/ADDRESS/MAILBOX`, and those of a shared mailbox,
`Shared Folders/ADDRESS/MAILBOX`. Who may do what there, for sessions, rules at delivery and commands alike.

In a mailbox of a user his list of rights says all. In a shared mailbox it says it for the members it names; the others have what the directory
gives a member, and who is no member has nothing, whatever a list says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from iems.imap.mailboxes import normal
from iems.store.reader import Reader

#: The namespace of other users (RFC 2342), and that of shared mailboxes.
USERS = "Other Users/"
SHARED = "Shared Folders/"
#: Names of others' mailboxes begin with one of these.
ROOTS = (USERS, SHARED)
#: Rights, one of which lets a rule of another user put mail into a mailbox: insert, post (RFC 4314 2.1).
INSERT = "ip"
#: In a list of a shared mailbox: a member without any right there. (An empty text would be no entry.)
NOTHING = "-"


class Shared(Struct, frozen=True):
    """A mailbox of another account. owner: his account. rights: those of who names it."""

    owner: Any
    box: Any
    rights: str

    @property
    def may_insert(self) -> bool:
        """Whether mail may be put there."""
        return any(right in self.rights for right in INSERT)


def name_of(owner: Any, mailbox: str) -> str:
    """What others call a mailbox of an account."""
    return f"{SHARED if owner.shared else USERS}{owner.address}/{mailbox}"


def split(name: str) -> tuple[str, str, bool] | None:
    """(address, mailbox there or "", whether of a shared mailbox) of a name of others' mailboxes; None if it is none."""
    for root in ROOTS:
        if name.startswith(root):
            address, _, rest = name[len(root) :].partition("/")
            return address, normal(rest), root == SHARED
    return None


def rights(reader: Reader, owner: Any, mailbox_id: int, number: int) -> str:
    """What account `number` may do in a mailbox of another, as letters; "" for nothing at all."""
    listed = next((held for other, held in reader.acl(owner.number, mailbox_id).values() if other == number), "")
    if not owner.shared:
        return listed
    member = owner.member(number)
    if member is None:
        return ""
    return listed.replace(NOTHING, "") if listed else str(member.rights)


def find(reader: Reader, account: Callable[[str], Any], number: int, name: str) -> Shared | None:
    """The mailbox that a name of account `number` means; None if there is none, or the account has no right at all to it.

    account: address -> account or None, raises DirectoryUnavailable.
    """
    parts = split(name)
    if parts is None or not parts[1]:
        return None
    owner = account(parts[0])
    if owner is None or owner.number == number or owner.shared != parts[2]:
        return None
    box = reader.mailbox(owner.number, parts[1])
    if box is None or box.noselect:
        return None
    held = rights(reader, owner, box.id, number)
    return Shared(owner, box, held) if held else None
