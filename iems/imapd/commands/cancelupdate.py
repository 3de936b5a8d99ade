"""CANCELUPDATE (RFC 5267): searches no longer kept up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap.grammar import Arguments, Bad
from iems.imapd.commands.common import selected
from iems.imapd.engine import Command, Spec, State

if TYPE_CHECKING:
    from iems.imapd.session import Session


def parse(arguments: Arguments) -> list[bytes]:
    """The arguments of CANCELUPDATE. Raises Bad."""
    tags = []
    while not arguments.at_end():
        arguments.space()
        tags.append(arguments.string())
    if not tags:
        raise Bad("Tag expected")
    return tags


def run(session: Session, command: Command) -> bytes:
    """Carry out CANCELUPDATE; the text of the tagged answer. Raises Refused, StoreError."""
    view = selected(session)
    kept = view.contexts or {}
    unknown = [tag for tag in command.arguments if tag not in kept]
    if unknown:
        return b"BAD No search of that tag is kept up to date"
    for tag in command.arguments:
        kept.pop(tag, None)
    view.contexts = kept or None
    return b"OK CANCELUPDATE completed"


SPECS = [Spec(b"CANCELUPDATE", State.SELECTED, parse, run)]
