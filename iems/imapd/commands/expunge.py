"""EXPUNGE (RFC 3501 6.4.3) and UID EXPUNGE (RFC 4315)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap.grammar import Arguments
from iems.imapd.commands.common import chosen, highest, no_arguments, permitted, present, writable
from iems.imapd.engine import Command, Spec, State

if TYPE_CHECKING:
    from iems.imap.sequence import Ranges
    from iems.imapd.session import Session


def parse_uid(arguments: Arguments) -> Ranges:
    """The arguments of UID EXPUNGE. Raises Bad."""
    arguments.space()
    ranges = arguments.sequence_set()
    arguments.end()
    return ranges


async def run(session: Session, command: Command) -> bytes:
    """Carry out EXPUNGE and UID EXPUNGE; the text of the tagged answer. Raises Refused, StoreError."""
    view = writable(session)
    permitted(view, "e")
    uids = None
    if command.arguments is not None:
        uids = present(view, chosen(view, command.arguments, True))
        if not uids:
            return b"OK EXPUNGE completed"
    removed = await session.services.store.expunge(view.account, view.mailbox_id, uids)
    if session.view is not view:
        return b"OK EXPUNGE completed"
    view.expunged_here(removed)
    # An EXPUNGE that the client asked for is told even if it has sent more commands already.
    session.refresh()
    if session.view is view:
        session.send(view.updates(True))
    return b"OK %bEXPUNGE completed" % (highest(session, view) if removed else b"")


SPECS = [
    Spec(b"EXPUNGE", State.SELECTED, no_arguments, run),
    Spec(b"UID EXPUNGE", State.SELECTED, parse_uid, run),
]
