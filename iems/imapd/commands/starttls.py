"""STARTTLS (RFC 3501 6.2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap.grammar import Bad, Refused
from iems.imapd.commands.common import no_arguments
from iems.imapd.engine import Command, Spec, State

if TYPE_CHECKING:
    from iems.imapd.session import Session


def run(session: Session, command: Command) -> None:
    """Carry out STARTTLS; the text of the tagged answer. Raises Refused, StoreError."""
    if session.stream.secure:
        raise Bad("TLS is already in use")
    context = session.services.tls
    if context is None:
        raise Refused("TLS is not available")
    session.send(command.tag + b" OK Begin TLS negotiation now\r\n")
    # Whatever came with the command was not protected: it must not count as sent under TLS.
    session.engine.discard_input()
    session.failures = 0
    session.stream.uncork()
    session.stream.start_tls(context)  # type: ignore[union-attr]  # COMPRESS is for after login


SPECS = [Spec(b"STARTTLS", State.NOT_AUTHENTICATED, no_arguments, run)]
