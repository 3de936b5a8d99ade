"""NAMESPACE (RFC 2342): the own mailboxes, those other users share, and shared mailboxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imapd.commands.common import no_arguments
from iems.imapd.engine import LOGGED_IN, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session


def run(session: Session, command: Command) -> bytes:
    """Carry out NAMESPACE; the text of the tagged answer. Raises Refused, StoreError."""
    session.send(b'* NAMESPACE (("" "/")) (("Other Users/" "/")) (("Shared Folders/" "/"))\r\n')
    return b"OK NAMESPACE completed"


SPECS = [Spec(b"NAMESPACE", LOGGED_IN, no_arguments, run)]
