"""RENAME (RFC 3501 6.3.5): with all names below; INBOX gives its messages away and stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap import names
from iems.imap.grammar import Arguments, Refused
from iems.imapd import places
from iems.imapd.commands.common import mailbox_argument
from iems.imapd.engine import LOGGED_IN, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session


def parse(arguments: Arguments) -> tuple[str, str]:
    """The arguments of RENAME. Raises Bad."""
    old = mailbox_argument(arguments)
    new = mailbox_argument(arguments)
    arguments.end()
    return old, new


async def run(session: Session, command: Command) -> bytes:
    """Carry out RENAME; the text of the tagged answer. Raises Refused, StoreError."""
    old, new = command.arguments
    new = names.check_new(new)
    if new == "INBOX":
        raise Refused("[ALREADYEXISTS] INBOX is there")
    target = places.above(session, new)
    if not old:
        raise Refused("[NONEXISTENT] No such mailbox")
    place = places.find(session, old)
    if place is None or place.rights is None:
        if target is not None:
            raise Refused("[CANNOT] A mailbox is renamed within its account")
        await session.services.store.rename(session.number, old, new)
        return b"OK RENAME completed"
    if target is None or target[0].number != place.account or not place.owner.shared:
        raise Refused("[CANNOT] A mailbox of others is renamed within a shared mailbox only")
    place.require("x")
    if "k" not in target[2]:
        raise Refused("[NOPERM] You may not do this here")
    if place.box.name == "INBOX":
        raise Refused("[CANNOT] The INBOX of a shared mailbox stays")
    await session.services.store.rename(place.account, place.box.name, target[1])
    return b"OK RENAME completed"


SPECS = [Spec(b"RENAME", LOGGED_IN, parse, run)]
