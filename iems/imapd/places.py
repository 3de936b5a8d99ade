"""Which mailbox a name means, and what the session may do with it: its own, or one another account shares (RFC 4314).

Mailboxes of others stand below `Other Users/ADDRESS/`, those of shared mailboxes below `Shared Folders/ADDRESS/`. Only what asks here sees
them: all else looks at the own account.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from iems.errors import DirectoryUnavailable
from iems.imap.grammar import Refused
from iems.imap.rights import ALL, flag_right
from iems.store import shared

if TYPE_CHECKING:
    from iems.imapd.session import Session


class Place(Struct, frozen=True):
    """A mailbox by its name. name: as this client names it. rights: None for the owner, who may do all.

    owner: the account that has it. member: the account whose \\Seen counts there, 0 where there is one for all.
    """

    account: int
    box: Any
    name: str
    rights: str | None
    owner: Any
    member: int = 0

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
    if box is not None:
        return Place(session.number, box, name, None, services.now_known(session.account))
    parts = shared.split(name)
    if parts is None or not parts[1] or services.directory is None:
        return None
    owner = services.directory.account(parts[0])
    if owner is None or owner.shared != parts[2]:
        return None
    if not owner.shared and owner.number not in services.reader.shared(session.number):
        return None
    return _place(session, owner, services.reader.mailbox(owner.number, parts[1]))


def _place(session: Session, owner: Any, box: Any) -> Place | None:
    """A mailbox of another account, if the session has the right to know of it."""
    if box is None or box.noselect or owner.number == session.number:
        return None
    rights = shared.rights(session.services.reader, owner, box.id, session.number)
    if "l" not in rights:
        return None
    session.services.know(owner)
    return Place(owner.number, box, shared.name_of(owner, box.name), rights, owner, session.number if owner.shared else 0)


def owners(session: Session) -> Iterator[Any]:
    """The accounts that may have mailboxes for the session's: those that share some, and the shared mailboxes it is a member of."""
    services = session.services
    if services.directory is None:
        return
    for number in services.reader.shared(session.number):
        owner = services.directory.account_by_number(number)
        if owner is not None and not owner.shared:
            yield owner
    for number in services.now_known(session.account).member_of:
        owner = services.directory.account_by_number(number)
        if owner is not None and owner.shared:
            yield owner


def foreign(session: Session) -> Iterator[Place]:
    """All mailboxes of others that the session's account may know of."""
    for owner in owners(session):
        for box in session.services.reader.mailboxes(owner.number):
            place = _place(session, owner, box)
            if place is not None:
                yield place


def unmade(session: Session) -> list[Any]:
    """The shared mailboxes that have no mailboxes yet, as no mail has come."""
    reader = session.services.reader
    # One look-up each: the mailbox that is made first is INBOX, and stays.
    found = [owner for owner in owners(session) if owner.shared and reader.mailbox_by_id(owner.number, 1) is None]
    for owner in found:
        session.services.know(owner)
    return found


def above(session: Session, name: str) -> tuple[Any, str, str] | None:
    """For a mailbox to be made or to be named anew as `name`: (account it is in, name there, rights in what stands above); None in the own account.

    Raises `Refused` if nobody can make a mailbox of that name.
    """
    if not (name + "/").startswith(shared.ROOTS):
        return None
    refused = Refused("[CANNOT] The names of other users' mailboxes begin so")
    parts = shared.split(name)
    services = session.services
    owner = services.directory.account(parts[0]) if parts is not None and parts[1] and services.directory is not None else None
    if owner is None or parts is None or owner.shared != parts[2] or owner.number == session.number:
        raise refused
    services.know(owner)
    upper = parts[1].rpartition("/")[0]
    while upper:
        # The nearest one that is there decides, also if it is hidden from this session.
        box = services.reader.mailbox(owner.number, upper)
        if box is not None and not box.noselect:
            rights = shared.rights(services.reader, owner, box.id, session.number)
            if "l" not in rights:
                raise refused
            return owner, parts[1], rights
        upper = upper.rpartition("/")[0]
    # The first level of a shared mailbox has no list of its own: what a member may do everywhere counts.
    member = owner.member(session.number) if owner.shared else None
    if member is None:
        raise refused
    return owner, parts[1], member.rights


def renew(session: Session) -> bool:
    """Whether the session may still read the mailbox of another that it has selected; what it may do there is from now on what it may now."""
    view = session.view
    if view is None or view.rights is None:
        return True
    services = session.services
    try:
        owner = services.directory.account_by_number(view.account)
    except DirectoryUnavailable:
        return True  # who was let in may go on
    rights = shared.rights(services.reader, owner, view.mailbox_id, session.number) if owner is not None else ""
    if "l" not in rights or "r" not in rights:
        return False
    view.rights = rights
    return True
