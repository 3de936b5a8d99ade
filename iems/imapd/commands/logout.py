"""LOGOUT (RFC 3501 6.1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imapd.commands.common import no_arguments
from iems.imapd.engine import ANY, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session


def run(session: Session, command: Command) -> None:
    """Carry out LOGOUT; the text of the tagged answer. Raises Refused, StoreError."""
    session.send(b"* BYE Logging out\r\n" + command.tag + b" OK LOGOUT completed\r\n")
    session.close()


SPECS = [Spec(b"LOGOUT", ANY, no_arguments, run)]
