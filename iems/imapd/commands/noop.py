"""NOOP and CHECK (RFC 3501 6.1.2, 6.4.1): nothing to do but tell what is new; the store has no checkpoint to make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imapd.commands.common import no_arguments
from iems.imapd.engine import ANY, Command, Spec, State

if TYPE_CHECKING:
    from iems.imapd.session import Session


def run(session: Session, command: Command) -> bytes:
    """Carry out NOOP and CHECK; the text of the tagged answer. Raises Refused, StoreError."""
    return b"OK " + command.spec.name + b" completed"


SPECS = [Spec(b"NOOP", ANY, no_arguments, run), Spec(b"CHECK", State.SELECTED, no_arguments, run)]
