"""IDLE (RFC 2177): changes are pushed as they happen, until the client says DONE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imapd.commands.common import no_arguments
from iems.imapd.engine import LOGGED_IN, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session


def run(session: Session, command: Command) -> None:
    """Carry out IDLE; the text of the tagged answer. Raises Refused, StoreError."""
    def done(line: bytes) -> None:
        session.idling = False
        if line.upper() == b"DONE":
            session.finish(command, b"OK IDLE completed")
        else:
            session.finish(command, b"BAD DONE expected")

    session.expect(done, b"idling")
    session.idling = True
    view = session.view
    if view is not None:
        # What happened before the watch or while no command was in progress is told first.
        session.send(session.engine.take_output())
        session.refresh()
        if session.view is view:
            session.send(view.updates(True))


SPECS = [Spec(b"IDLE", LOGGED_IN, no_arguments, run)]
