"""COPY (RFC 3501 6.4.7) and UID COPY, with COPYUID (RFC 4315)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap import sequence
from iems.imap.grammar import Arguments, Refused
from iems.imapd import transfer
from iems.imapd.commands.common import chosen, existing, mailbox_argument, present, selected
from iems.imapd.engine import Command, Spec, State, Updates

if TYPE_CHECKING:
    from iems.imap.sequence import Ranges
    from iems.imapd.session import Session


def parse(arguments: Arguments) -> tuple[Ranges, str]:
    """(set, name of the target); MOVE has the same arguments."""
    arguments.space()
    ranges = arguments.sequence_set()
    name = mailbox_argument(arguments)
    arguments.end()
    return ranges, name


def copyuid(uidvalidity: int, sources: list[int], targets: list[int]) -> bytes:
    """The response code."""
    return b"[COPYUID %d %b %b]" % (uidvalidity, sequence.render(sources), sequence.render(targets))


async def run(session: Session, command: Command) -> bytes:
    """Carry out COPY and UID COPY; the text of the tagged answer. Raises Refused, StoreError."""
    view = selected(session)
    ranges, name = command.arguments
    positions = chosen(view, ranges, command.spec.name.startswith(b"UID"))
    target = existing(session, name, trycreate=True, right="i")
    uids = present(view, positions)
    if not uids:
        if len(positions):
            raise Refused("[EXPUNGEISSUED] The messages no longer exist")
        return b"OK No messages to copy"
    uidvalidity, sources, targets = await transfer.copy(session, view, uids, target)
    if not sources:
        raise Refused("[EXPUNGEISSUED] The messages no longer exist")
    return b"OK " + copyuid(uidvalidity, sources, targets) + b" COPY completed"


SPECS = [
    Spec(b"COPY", State.SELECTED, parse, run, Updates.FLAGS | Updates.CHECK),
    Spec(b"UID COPY", State.SELECTED, parse, run),
]
