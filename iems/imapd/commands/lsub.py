"""LSUB (RFC 3501 6.3.9): the subscribed names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap import mailboxes, names
from iems.imap.grammar import Arguments, Bad
from iems.imapd.commands.list import _decoded
from iems.imapd.engine import LOGGED_IN, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session


def parse(arguments: Arguments) -> tuple[str, str]:
    """The arguments of LSUB. Raises Bad."""
    arguments.space()
    reference = _decoded(arguments.astring(), arguments.utf8)
    arguments.space()
    pattern = _decoded(arguments.list_mailbox(), arguments.utf8)
    arguments.end()
    if len(reference) + len(pattern) > mailboxes.NAME_OCTETS_MAX:
        raise Bad("Pattern too long")
    return reference, pattern


def run(session: Session, command: Command) -> bytes:
    """Carry out LSUB; the text of the tagged answer. Raises Refused, StoreError."""
    reference, text = command.arguments
    if not text:
        session.send(b'* LSUB (\\Noselect) "/" ""\r\n')
        return b"OK LSUB completed"
    pattern = names.Pattern(reference + text)
    reader = session.services.reader
    shown: dict[str, bytes] = {}
    boxes = {box.name: box for box in reader.mailboxes(session.number)}
    for name in reader.subscriptions(session.number):
        if pattern.matches(name):
            box = boxes.get(name)
            shown[name] = rb"\Noselect" if box is not None and box.noselect else b""
        elif text.endswith("%"):
            # A % at the end also shows the level above a subscribed name that it can't reach (RFC 3501 6.3.9).
            for parent in mailboxes.parents(name):
                if pattern.matches(parent):
                    shown.setdefault(parent, rb"\Noselect")
    lines = [
        b'* LSUB (%b) "/" %b\r\n' % (shown[name], session.mailbox_text(name))
        for name in sorted(shown, key=lambda name: (name != "INBOX", name))
    ]
    session.send(b"".join(lines))
    return b"OK LSUB completed"


SPECS = [Spec(b"LSUB", LOGGED_IN, parse, run)]
