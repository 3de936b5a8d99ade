"""Mailboxes that other accounts share (RFC 4314), as rules at delivery and commands name them: `Other Users/ADDRESS/MAILBOX`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from iems.imap.mailboxes import normal
from iems.store.reader import Reader

#: The namespace of other users (RFC 2342).
ROOT = "Other Users/"
#: Rights, one of which lets a rule of another user put mail into a mailbox: insert, post (RFC 4314 2.1).
INSERT = "ip"


class Shared(Struct, frozen=True):
    """A mailbox of another account. owner: his account. rights: those of who names it."""

    owner: Any
    box: Any
    rights: str

    @property
    def may_insert(self) -> bool:
        """Whether mail may be put there."""
        return any(right in self.rights for right in INSERT)


def find(reader: Reader, account: Callable[[str], Any], number: int, name: str) -> Shared | None:
    """The mailbox that a name of account `number` means; None if there is none, or the account has no right at all to it.

    account: address -> account or None, raises DirectoryUnavailable.
    """
    if not name.startswith(ROOT):
        return None
    address, _, rest = name[len(ROOT) :].partition("/")
    owner = account(address) if rest else None
    if owner is None or owner.number == number:
        return None
    box = reader.mailbox(owner.number, normal(rest))
    if box is None or box.noselect:
        return None
    held = next((rights for other, rights in reader.acl(owner.number, box.id).values() if other == number), "")
    return Shared(owner, box, held) if held else None
