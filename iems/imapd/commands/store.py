"""STORE (RFC 3501 6.4.6) and UID STORE, with UNCHANGEDSINCE (RFC 7162)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from iems.imap import flags, sequence
from iems.imap.grammar import Arguments, Bad, Refused
from iems.imap.rights import flag_right
from iems.imap.sequence import Ranges
from iems.imapd.commands.common import chosen, present, writable
from iems.imapd.engine import Command, Spec, State, Updates
from iems.imapd.view import UIDONLY
from iems.store.rows import SYSTEM_FLAGS

if TYPE_CHECKING:
    from iems.imapd.session import Session
    from iems.imapd.view import View

#: Messages changed by one request to the store, so that one huge STORE does not hold up everybody's commits.
BATCH = 5000
MAX_FLAGS = 100


class Request(Struct, frozen=True):
    """mode: "=", "+" or "-"."""

    ranges: Ranges
    mode: str
    silent: bool
    names: list[str]
    unchangedsince: int | None


def parse(arguments: Arguments) -> Request:
    """The arguments of STORE and UID STORE. Raises Bad."""
    arguments.space()
    ranges = arguments.sequence_set()
    arguments.space()
    unchangedsince = None
    if arguments.accept(b"("):
        if arguments.word() != b"UNCHANGEDSINCE":
            raise Bad("Unknown STORE modifier")
        arguments.space()
        unchangedsince = arguments.number64()
        arguments.expect(b")")
        arguments.space()
    mode = "="
    if arguments.accept(b"+"):
        mode = "+"
    elif arguments.accept(b"-"):
        mode = "-"
    word = arguments.word()
    if word not in (b"FLAGS", b"FLAGS.SILENT"):
        raise Bad("FLAGS expected")
    arguments.space()
    if arguments.looking_at(b"("):
        names = arguments.flag_list()
    else:
        names = [arguments.flag()]
        while arguments.accept(b" "):
            names.append(arguments.flag())
    arguments.end()
    if len(names) > MAX_FLAGS:
        raise Bad("Too many flags")
    return Request(ranges, mode, word == b"FLAGS.SILENT", flags.settable(names), unchangedsince)


def _permitted(view: View, request: Request) -> list[tuple[str, list[str]]]:
    """What STORE does with the rights the session has (RFC 4314 4): (mode, flags) one after the other. Raises `Refused`."""
    held = view.rights or ""
    given = [name for name in request.names if flag_right(name) in held]
    if request.mode != "=":
        if not given and request.names:
            raise Refused("[NOPERM] You may not change these flags")
        return [(request.mode, given)]
    known = [*SYSTEM_FLAGS, *(name for name in view.keywords if name)]
    lower = {name.lower() for name in request.names}
    cleared = [name for name in known if flag_right(name) in held and name.lower() not in lower]
    if not given and not cleared:
        raise Refused("[NOPERM] You may not change flags")
    return [("+", given), ("-", cleared)]


async def run(session: Session, command: Command) -> bytes:
    """Carry out STORE and UID STORE; the text of the tagged answer. Raises Refused, StoreError."""
    view = writable(session)
    request: Request = command.arguments
    uid = command.spec.name.startswith(b"UID")
    if request.unchangedsince is not None:
        session.want_modseq()
    session.refresh(False)
    if session.view is not view:
        raise Refused("The mailbox is gone")
    uids = present(view, chosen(view, request.ranges, uid))
    missing = len(uids) != len(chosen(view, request.ranges, uid))
    changed: list[tuple[int, int, int]] = []
    steps = [(request.mode, request.names)] if view.rights is None else _permitted(view, request)
    for start in range(0, len(uids), BATCH):
        part, unchangedsince = uids[start : start + BATCH], request.unchangedsince
        for mode, flag_names in steps:
            done = await session.services.store.store_flags(
                view.account, view.mailbox_id, part, mode, flag_names, unchangedsince, view.member
            )
            # A second step goes on where the first one was allowed to.
            part, unchangedsince = [item[0] for item in done], None
        changed += done
        if session.view is not view:
            raise Refused("The mailbox is gone")
    if any(name[0] != "\\" and not flags.keyword_bit(name.encode(), view.keywords) for name in request.names):
        session.refresh()  # the names of new keywords
        if session.view is not view:
            raise Refused("The mailbox is gone")
    view.changed_here(changed)
    reached = {item[0] for item in changed}
    if view.unreported:
        view.unreported -= reached
    parts = [view.updates(False)]
    modified: list[int] = []
    for number in uids:
        at = view.position(number)
        if at < 0:
            continue
        if number not in reached:
            if request.unchangedsince is not None and view.modseqs[at] >= request.unchangedsince:
                modified.append(number)
                parts.append(view.fetch_flags(at, uid))
            else:
                missing = True
            continue
        if not request.silent:
            parts.append(view.fetch_flags(at, uid))
        elif view.condstore:
            if view.mode & UIDONLY:
                parts.append(b"* %d UIDFETCH (MODSEQ (%d))\r\n" % (number, view.modseqs[at]))
            else:
                parts.append(b"* %d FETCH (UID %d MODSEQ (%d))\r\n" % (at + 1, number, view.modseqs[at]))
    session.send(b"".join(parts))
    if modified:
        numbers = modified if uid else [view.position(number) + 1 for number in modified]
        return b"OK [MODIFIED %b] Conditional STORE failed for some" % sequence.render(numbers)
    if missing and not uid and not changed:
        return b"NO [EXPUNGEISSUED] The messages no longer exist"
    return b"OK STORE completed"


SPECS = [
    Spec(b"STORE", State.SELECTED, parse, run, Updates.FLAGS | Updates.CHECK),
    Spec(b"UID STORE", State.SELECTED, parse, run),
]
