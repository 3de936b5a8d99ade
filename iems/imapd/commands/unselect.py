"""UNSELECT (RFC 3691): deselect and leave \\Deleted messages alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imapd.commands.common import no_arguments
from iems.imapd.engine import Command, Spec, State, Updates

if TYPE_CHECKING:
    from iems.imapd.session import Session


def run(session: Session, command: Command) -> bytes:
    """Carry out UNSELECT; the text of the tagged answer. Raises Refused, StoreError."""
    session.deselect()
    return b"OK UNSELECT completed"


SPECS = [Spec(b"UNSELECT", State.SELECTED, no_arguments, run, Updates.NONE)]
