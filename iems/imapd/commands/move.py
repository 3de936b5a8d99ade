"""MOVE and UID MOVE (RFC 6851)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap.grammar import Refused
from iems.imapd import transfer
from iems.imapd.commands.common import chosen, existing, highest, permitted, present, writable
from iems.imapd.commands.copy import copyuid, parse
from iems.imapd.engine import Command, Spec, State

if TYPE_CHECKING:
    from iems.imapd.session import Session


async def run(session: Session, command: Command) -> bytes:
    """Carry out MOVE and UID MOVE; the text of the tagged answer. Raises Refused, StoreError."""
    view = writable(session)
    ranges, name = command.arguments
    positions = chosen(view, ranges, command.spec.name.startswith(b"UID"))
    permitted(view, "te")
    target = existing(session, name, trycreate=True, right="i")
    uids = present(view, positions)
    if not uids:
        if len(positions):
            raise Refused("[EXPUNGEISSUED] The messages no longer exist")
        return b"OK No messages to move"
    uidvalidity, sources, targets = await transfer.copy(session, view, uids, target, move=True)
    if not sources:
        raise Refused("[EXPUNGEISSUED] The messages no longer exist")
    # COPYUID comes before the EXPUNGEs that make its source uids unknown (RFC 6851 4.3).
    session.send(b"* OK " + copyuid(uidvalidity, sources, targets) + b" Moved\r\n")
    if session.view is view:
        session.refresh()
        if session.view is view:
            if (target.account, target.box.id) != (view.account, view.mailbox_id):
                view.expunged_here(sources)
            session.send(view.updates(True))
    return b"OK %bMOVE completed" % highest(session, view)


SPECS = [Spec(b"MOVE", State.SELECTED, parse, run), Spec(b"UID MOVE", State.SELECTED, parse, run)]
