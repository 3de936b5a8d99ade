"""SORT and UID SORT (RFC 5256) with DISPLAYFROM and DISPLAYTO (5957), ESORT, PARTIAL and UPDATE (5267).

Order comes from the index rows: i;unicode-casemap of what ENVELOPE says; equal messages stay in mailbox order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from iems.imap import results, search
from iems.imap.grammar import Arguments, Bad, Refused
from iems.imap.results import Returned
from iems.imapd import contexts
from iems.imapd.columns import NO_DATE
from iems.imapd.commands import search as searching
from iems.imapd.commands.common import selected
from iems.imapd.engine import Command, Spec, State, Updates

if TYPE_CHECKING:
    from iems.imapd.session import Session
    from iems.imapd.view import View

MAX_KEYS = 20

#: Sort keys and the columns they need.
_KEYS: dict[bytes, str] = {
    b"ARRIVAL": "",
    b"SIZE": "",
    b"DATE": "DATE",
    b"SUBJECT": "BASE",
    b"FROM": "SORT-FROM",
    b"TO": "SORT-TO",
    b"CC": "SORT-CC",
    b"DISPLAYFROM": "DISPLAYFROM",
    b"DISPLAYTO": "DISPLAYTO",
}


class Request(Struct, frozen=True):
    """order: (key, reverse) from the most important on. key: of the messages to sort."""

    order: tuple[tuple[bytes, bool], ...]
    key: Any
    returned: Returned | None


def parse(arguments: Arguments) -> Request:
    """The arguments of SORT and UID SORT. Raises Bad."""
    arguments.space()
    returned = results.parse(arguments)
    arguments.expect(b"(")
    order = []
    while True:
        word = arguments.word()
        reverse = word == b"REVERSE"
        if reverse:
            arguments.space()
            word = arguments.word()
        if word not in _KEYS:
            raise Bad("Unknown sort key")
        order.append((word, reverse))
        if len(order) > MAX_KEYS:
            raise Bad("Too many sort keys")
        if arguments.accept(b")"):
            break
        arguments.space()
    arguments.space()
    codec = search.charset(arguments.astring())
    arguments.space()
    return Request(tuple(order), search.parse_keys(arguments, codec), returned)


async def ordered(
    session: Session, view: View, positions: list[int], order: tuple[tuple[bytes, bool], ...]
) -> list[int]:
    """Positions in the order asked for."""
    names = list(dict.fromkeys(_KEYS[key] for key, _ in order if _KEYS[key]))
    columns = await session.services.columns.of(session, view, names)
    if session.view is not view:
        raise Refused("The mailbox is gone")
    sizes: list[int] = []
    dates: list[int] = []
    if any(key in (b"ARRIVAL", b"SIZE", b"DATE") for key, _ in order):
        sizes, dates = searching.sizes_and_dates(session, view)
    found = sorted(positions)
    for key, reverse in reversed(order):
        if key == b"ARRIVAL":
            found.sort(key=dates.__getitem__, reverse=reverse)
        elif key == b"SIZE":
            found.sort(key=sizes.__getitem__, reverse=reverse)
        elif key == b"DATE":
            sent = columns["DATE"]
            found.sort(
                key=lambda at: dates[at] if sent[at] == NO_DATE else sent[at],
                reverse=reverse,
            )
        elif key == b"SUBJECT":
            base = columns["BASE"]
            found.sort(key=lambda at: base[at][0], reverse=reverse)
        else:
            found.sort(key=columns[_KEYS[key]].__getitem__, reverse=reverse)
    return found


async def run(session: Session, command: Command) -> bytes:
    """Carry out SORT and UID SORT; the text of the tagged answer. Raises Refused, StoreError."""
    view = selected(session)
    request: Request = command.arguments
    uid_form = command.spec.name.startswith(b"UID")
    session.refresh()
    if session.view is not view:
        raise Refused("The mailbox is gone")
    with_modseq = search.uses_modseq(request.key)
    if with_modseq:
        session.want_modseq()
    with searching.saving(view, request.returned):
        found = await searching.find(session, view, request.key, tag=command.tag)
        positions = await ordered(session, view, found, request.order)
        searching.save(view, request.returned, positions)
    numbers = [view.uids[at] for at in positions] if uid_form else [at + 1 for at in positions]
    highest = 0
    if with_modseq:
        told = positions if request.returned is None else request.returned.told(positions)
        highest = max((view.modseqs[at] for at in told), default=0)
    if request.returned is None:
        text = b"* SORT"
        if numbers:
            text += b" " + " ".join(map(str, numbers)).encode()
            if with_modseq:
                text += b" (MODSEQ %d)" % highest
        session.send(text + b"\r\n")
    else:
        contexts.begin(session, command, request.returned, request.key, request.order, positions)
        if searching.answers(request.returned):
            session.send(results.esearch(command.tag, uid_form, request.returned, numbers, highest, ordered=False))
    return b"OK " + command.spec.name + b" completed"


SPECS = [
    Spec(b"SORT", State.SELECTED, parse, run, Updates.FLAGS | Updates.CHECK),
    Spec(b"UID SORT", State.SELECTED, parse, run),
]
