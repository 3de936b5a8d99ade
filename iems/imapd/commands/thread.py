"""THREAD and UID THREAD (RFC 5256): ORDEREDSUBJECT and REFERENCES."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iems.imap import search, threads
from iems.imap.grammar import Arguments, Bad, Refused
from iems.imapd.columns import IDS, NO_DATE
from iems.imapd.commands import search as searching
from iems.imapd.commands.common import selected
from iems.imapd.engine import Command, Spec, State, Updates

if TYPE_CHECKING:
    from iems.imapd.session import Session

ALGORITHMS = (b"ORDEREDSUBJECT", b"REFERENCES")


def parse(arguments: Arguments) -> tuple[bytes, Any]:
    """(algorithm, search key)."""
    arguments.space()
    algorithm = arguments.word()
    if algorithm not in ALGORITHMS:
        raise Bad("Unknown threading algorithm")
    arguments.space()
    codec = search.charset(arguments.astring())
    arguments.space()
    return algorithm, search.parse_keys(arguments, codec)


async def run(session: Session, command: Command) -> bytes:
    """Carry out THREAD and UID THREAD; the text of the tagged answer. Raises Refused, StoreError."""
    view = selected(session)
    algorithm, key = command.arguments
    uid_form = command.spec.name.startswith(b"UID")
    session.refresh()
    if session.view is not view:
        raise Refused("The mailbox is gone")
    positions = await searching.find(session, view, key, tag=command.tag)
    names = ["BASE", "DATE"] + ([IDS] if algorithm == b"REFERENCES" else [])
    columns = await session.services.columns.of(session, view, names)
    if session.view is not view:
        raise Refused("The mailbox is gone")
    arrived = searching.sizes_and_dates(session, view)[1]
    sent = columns["DATE"]
    dates = [arrived[at] if sent[at] == NO_DATE else sent[at] for at in positions]
    bases = columns["BASE"]
    numbers = [view.uids[at] for at in positions] if uid_form else [at + 1 for at in positions]
    if algorithm == b"REFERENCES":
        ids = columns[IDS]
        found = threads.references(
            numbers, [ids[at][0] for at in positions], [ids[at][1] for at in positions],
            [bases[at] for at in positions], dates,
        )  # fmt: skip
    else:
        found = threads.ordered_subject(numbers, [bases[at][0] for at in positions], dates)
    text = threads.render(found)
    session.send(b"* THREAD " + text + b"\r\n" if text else b"* THREAD\r\n")
    return b"OK " + command.spec.name + b" completed"


SPECS = [
    Spec(b"THREAD", State.SELECTED, parse, run, Updates.FLAGS | Updates.CHECK),
    Spec(b"UID THREAD", State.SELECTED, parse, run),
]
