"""CLOSE (RFC 3501 6.4.2): expunge without a word and deselect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imapd.commands.common import highest, no_arguments, selected
from iems.imapd.engine import Command, Spec, State, Updates

if TYPE_CHECKING:
    from iems.imapd.session import Session


async def run(session: Session, command: Command) -> bytes:
    """Carry out CLOSE; the text of the tagged answer. Raises Refused, StoreError."""
    view = selected(session)
    code = b""
    if not view.read_only and (view.rights is None or "e" in view.rights):
        removed = await session.services.store.expunge(view.account, view.mailbox_id, None)
        if removed and session.view is view:
            session.refresh()
            if session.view is view:
                code = highest(session, view)
    session.deselect()
    return b"OK %bCLOSE completed" % code


SPECS = [Spec(b"CLOSE", State.SELECTED, no_arguments, run, Updates.NONE)]
