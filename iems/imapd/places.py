"""Which mailbox a name means, and what the session may do with it: its own, or one another account shares (RFC 4314).

Mailboxes of others stand below `Other Users/ADDRESS/`. Only what asks here sees them: all else looks at the own account.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from iems.imap.grammar import Refused
from iems.imap.rights import ALL, flag_right
from iems.store.shared import ROOT as ROOT

if TYPE_CHECKING:
    from iems.imapd.session import Session



class Place(Struct, frozen=True):
    """A mailbox by its name. name: as this client names it. rights: None for the owner, who may do all.

    owner: the account that has it.
    """

    account: int
    box: Any
    name: str
    rights: str | None
    owner: Any

    @property
    def address(self) -> str:
        """Of the owner."""
        return str(self.owner.address)

    @property
    def quota_octets(self) -> int | None:
        """Of the owner's account."""
        limit: int | None = self.owner.quota_octets
        return limit

    def may(self, right: str) -> bool:
        """Whether the session has a right."""
        return self.rights is None or right in self.rights

    def require(self, rights: str) -> None:
        """Raises `Refused` without one of the rights."""
        if self.rights is not None and any(right not in self.rights for right in rights):
            raise Refused("[NOPERM] You may not do this here")

    def allowed(self, flags: list[str]) -> list[str]:
        """The flags the session may set here."""
        return flags if self.rights is None else [name for name in flags if flag_right(name) in self.rights]

    @property
    def all_rights(self) -> str:
        """The rights as letters."""
        return ALL if self.rights is None else self.rights


def find(session: Session, name: str) -> Place | None:
    """The mailbox of a name; None if there is none, or none the session may know of."""
    if not name:
        return None
    services = session.services
    box = services.reader.mailbox(session.number, name)
    account = session.account
    if box is not None:
        return Place(session.number, box, name, None, account)
    if not name.startswith(ROOT):
        return None
    address, _, rest = name[len(ROOT) :].partition("/")
    owner = services.directory.account(address) if rest and services.directory is not None else None
    if owner is None or owner.number not in services.reader.shared(session.number):
        return None
    return _shared(session, owner, services.reader.mailbox(owner.number, rest))


def _shared(session: Session, owner: Any, box: Any) -> Place | None:
    """A mailbox of another account, if the session has the right to know of it."""
    if box is None or box.noselect or owner.number == session.number:
        return None
    rights = next(
        (held for number, held in session.services.reader.acl(owner.number, box.id).values() if number == session.number),
        "",
    )
    if "l" not in rights:
        return None
    session.services.know(owner)
    name = f"{ROOT}{owner.address}/{box.name}"
    return Place(owner.number, box, name, rights, owner)


def foreign(session: Session) -> Iterator[Place]:
    """All mailboxes others share with the session's account."""
    services = session.services
    if services.directory is None:
        return
    for number in services.reader.shared(session.number):
        owner = services.directory.account_by_number(number)
        if owner is None:
            continue
        for box in services.reader.mailboxes(number):
            place = _shared(session, owner, box)
            if place is not None:
                yield place


def parent(session: Session, name: str) -> tuple[Place, str] | None:
    """For a mailbox to be made below one of another account: (the mailbox above, name within that account)."""
    above, _, _ = name.rpartition("/")
    place = find(session, above) if name.startswith(ROOT) else None
    if place is None:
        return None
    return place, place.box.name + name[len(above) :]
