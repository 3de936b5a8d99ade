"""DELETE (RFC 3501 6.3.4): messages go; a name with names below it stays as \\Noselect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap.grammar import Refused
from iems.imapd import places
from iems.imapd.commands.common import one_mailbox
from iems.imapd.engine import LOGGED_IN, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session


async def run(session: Session, command: Command) -> bytes:
    """Carry out DELETE; the text of the tagged answer. Raises Refused, StoreError."""
    name = command.arguments
    if name == "INBOX":
        raise Refused("[CANNOT] INBOX can't be deleted")
    view = session.view
    place = places.find(session, name)
    if place is None:
        raise Refused("[NONEXISTENT] No such mailbox")
    place.require("x")
    if place.box.name == "INBOX":
        raise Refused("[CANNOT] INBOX can't be deleted")
    await session.services.store.delete(place.account, place.box.name)
    if view is not None and (view.account, view.mailbox_id) == (place.account, place.box.id):
        session.deselect()
    return b"OK DELETE completed"


SPECS = [Spec(b"DELETE", LOGGED_IN, one_mailbox, run)]
