"""FETCH (RFC 3501 6.4.5) and UID FETCH, with CHANGEDSINCE (RFC 7162).

Four ways, by what is asked for:

- one whole message (most of what clients do): the parser is skipped, header and content leave in one send;
- flags, uids, mod-sequences of a few: from the view, without the store;
- of many, and dates, sizes, ENVELOPE, BODYSTRUCTURE: the reader's kernel builds the responses;
- with content: row by row; large content goes from file to socket.

All but the first stop while the peer is slow and give other sessions a turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct, structs

from iems.errors import StoreError
from iems.imap import fetch as items
from iems.imap import objectid, response, sequence
from iems.imap.fetch import Request, Section
from iems.imap.flags import SEEN
from iems.imap.grammar import SAVED, Arguments, Bad, Refused
from iems.imap.results import Returned
from iems.imap.sequence import Ranges
from iems.imapd.columns import message_ids
from iems.imapd.commands.common import chosen, selected
from iems.imapd.commands.select import earlier
from iems.imapd.content import INLINE_MAX, Piece, Source, decoded, send_pieces
from iems.imapd.engine import Command, Shortcut, Spec, State, Updates
from iems.imapd.view import UIDONLY
from iems.message import body as body_of
from iems.message.text import preview
from iems.store.reader import (
    FETCH_BODYSTRUCTURE,
    FETCH_ENVELOPE,
    FETCH_FLAGS,
    FETCH_INTERNALDATE,
    FETCH_MODSEQ,
    FETCH_RFC822_SIZE,
    FETCH_UID,
)

if TYPE_CHECKING:
    from iems.imapd.session import Session
    from iems.imapd.view import View

#: Up to this many messages, flags are told from the view; the kernel reads the rows of more of them in less time.
MEMORY_MAX = 500
#: Messages that get \\Seen by one request to the store.
SEEN_BATCH = 5000
#: Rows read in one transaction.
ROW_SLICE = 16
#: Octets of responses the kernel builds in one turn.
KERNEL_OCTETS = 128 * 1024

#: Octets of a large message that are looked at for PREVIEW.
PREVIEW_OCTETS = 256 * 1024

_KERNEL_ITEMS = {
    b"UID": FETCH_UID,
    b"FLAGS": FETCH_FLAGS,
    b"INTERNALDATE": FETCH_INTERNALDATE,
    b"RFC822.SIZE": FETCH_RFC822_SIZE,
    b"ENVELOPE": FETCH_ENVELOPE,
    b"BODYSTRUCTURE": FETCH_BODYSTRUCTURE,
    b"MODSEQ": FETCH_MODSEQ,
}
_MEMORY_ITEMS = {b"UID", b"FLAGS", b"MODSEQ"}


class Fetch(Struct, frozen=True):
    """Arguments of FETCH."""

    ranges: Ranges
    request: Request


def parse(arguments: Arguments) -> Fetch:
    """The arguments of FETCH. Raises Bad."""
    arguments.space()
    ranges = arguments.sequence_set()
    arguments.space()
    return Fetch(ranges, items.parse(arguments))


def parse_uid(arguments: Arguments) -> Fetch:
    """The arguments of UID FETCH. Raises Bad."""
    found = parse(arguments)
    request = found.request
    if b"UID" not in request.simple:
        # The answer to a UID command always tells the UID (RFC 3501 6.4.8).
        request = structs.replace(request, simple=(b"UID", *request.simple))
    return Fetch(found.ranges, request)


# -------------------------------------------------------------------- one whole message

_PLAIN = re.compile(
    rb"([A-Za-z0-9]{1,40}) (UID )?FETCH (\d{1,9}) "
    rb"(\((?:(?:UID|FLAGS|RFC822\.SIZE|INTERNALDATE) ){0,4})?(BODY\.PEEK\[\]|BODY\[\]|RFC822)(?(4)\))\r\n",
    re.IGNORECASE,
)
_PLAIN_SECTIONS = {
    b"BODY.PEEK[]": Section(label=b"BODY[]"),
    b"BODY[]": Section(peek=False, label=b"BODY[]"),
    b"RFC822": Section(peek=False, label=b"RFC822"),
}


def plain_arguments(match: re.Match[bytes]) -> tuple[bool, int, bytes, bytes]:
    """(UID form, number, items before the content, item of the content)."""
    before = match.group(4)
    return (
        match.group(2) is not None,
        int(match.group(3)),
        before[1:].upper() if before else b"",
        match.group(5).upper(),
    )


def run_plain(session: Session, command: Command) -> bytes | Coroutine[Any, Any, bytes | None] | None:
    """Answer a FETCH of one whole message, at once if it is in the page cache and \\Seen need not change."""
    uid_form, number, before, item = command.arguments
    view = session.view
    if view is None:
        raise Refused("No mailbox is selected")
    if uid_form:
        at = view.position(number)
        if not 0 <= at < view.told:
            return b"OK UID FETCH completed"
        if b"UID" not in before:
            before = b"UID " + before
    else:
        at = number - 1
        if not 0 <= at < view.told:
            raise Bad("Message sequence number beyond the mailbox")
    services = session.services
    section = _PLAIN_SECTIONS[item]
    if view.stale:
        session.refresh(False)
        if session.closing:
            return None
    row = content = None
    if section.peek or view.read_only or view.flags[at] & SEEN:
        row = services.reader.message(view.account, view.mailbox_id, view.uids[at])
        if row is None:
            raise Refused("[EXPUNGEISSUED] The message no longer exists")
        if row.size <= INLINE_MAX:
            content = services.contents.read_now(row.rope, row.size)
    if row is None or (content is None and row.size <= INLINE_MAX):
        request = Request(tuple(dict.fromkeys(before.split())), (section,))
        return _general(session, command, view, range(at, at + 1), request, uid_form)
    head = b"* %d FETCH (%b%b {%d}\r\n" % (at + 1, _before(view, at, row, before), section.label, row.size)
    updates = view.updates(uid_form and not session.engine.pipelined)
    done = b")\r\n%b%b OK %bFETCH completed\r\n" % (updates, command.tag, b"UID " if uid_form else b"")
    services.count("fetched_messages_total")
    stream = session.stream
    if content is not None:
        stream.send(b"".join((head, content, done)))
    else:
        send_pieces(stream, [head, *services.contents.pieces(row.rope, 0, row.size), done], session.corked)
    return None


def _before(view: View, at: int, row: Any, items: bytes) -> bytes:
    """The items of a response before its content."""
    if not items:
        return b""
    parts = []
    for item in dict.fromkeys(items.split()):
        if item == b"UID":
            parts.append(b"UID %d " % row.uid)
        elif item == b"FLAGS":
            parts.append(b"FLAGS %b " % view.rendered(at))
        elif item == b"RFC822.SIZE":
            parts.append(b"RFC822.SIZE %d " % row.size)
        else:
            parts.append(b"INTERNALDATE %b " % response.internaldate(row.internaldate_s))
    return b"".join(parts)


# -------------------------------------------------------------------- the general way


def run(session: Session, command: Command) -> Coroutine[Any, Any, bytes | None]:
    """Carry out FETCH and UID FETCH; the text of the tagged answer. Raises Refused, StoreError."""
    view = selected(session)
    fetch: Fetch = command.arguments
    uid_form = command.spec.name.startswith(b"UID")
    if view.stale:
        session.refresh(False)  # so that the flags told are not yesterday's
    if fetch.request.vanished:
        if not uid_form or b"QRESYNC" not in session.enabled or fetch.ranges is SAVED:
            raise Bad("VANISHED is for UID FETCH with QRESYNC enabled")
        assert fetch.request.changed_since is not None
        gone = earlier(session, view, fetch.request.changed_since, fetch.ranges)
        if gone:
            session.send(b"* VANISHED (EARLIER) " + sequence.render(gone) + b"\r\n")
    if fetch.request.partial is not None and not uid_form:
        raise Bad("PARTIAL is for UID FETCH")
    positions = chosen(view, fetch.ranges, uid_form)
    simple = fetch.request.simple
    told_here = b"FLAGS" in simple and (b"MODSEQ" in simple or not view.condstore)
    if view.unreported and told_here and fetch.request.changed_since is None:
        if view.new_keywords:
            session.send(view.flags_response())
            view.new_keywords = False
        view.unreported -= {view.uids[at] for at in positions}
    return _general(session, command, view, positions, fetch.request, uid_form)


async def tell(session: Session, view: View, positions: Sequence[int], request: Request) -> None:
    """Send the items of a request for messages nobody asked for now (RFC 5465 5.2)."""
    if b"UID" not in request.simple:
        request = structs.replace(request, simple=(b"UID", *request.simple))
    seen = await _set_seen(session, view, positions) if request.sets_seen else frozenset()
    await _with_content(session, view, positions, request, seen)


async def _general(
    session: Session, command: Command, view: View, positions: Sequence[int], request: Request, uid_form: bool
) -> bytes | None:
    if request.changed_since is not None or b"MODSEQ" in request.simple:
        session.want_modseq()
    if request.changed_since is not None:
        since = request.changed_since
        positions = [at for at in positions if view.modseqs[at] > since]
    if request.partial is not None:
        positions = Returned(frozenset(), request.partial).cut(positions)
    simple = request.simple
    if len(positions) == 0:
        complete = True
    elif request.sections or view.mode & UIDONLY or not _KERNEL_ITEMS.keys() >= set(simple):
        seen = await _set_seen(session, view, positions) if request.sets_seen else frozenset()
        complete = await _with_content(session, view, positions, request, seen)
    elif _MEMORY_ITEMS.issuperset(simple) and len(positions) <= MEMORY_MAX:
        complete = _from_view(session, view, positions, simple)
    else:
        complete = await _from_kernel(session, view, positions, simple)
    if not complete:
        # RFC 2180 4.1.2: what is there was sent; the client learns of the rest by EXPUNGE.
        return b"NO [EXPUNGEISSUED] Some messages no longer exist"
    return b"OK UID FETCH completed" if uid_form else b"OK FETCH completed"


def _check(session: Session, view: View) -> None:
    if session.view is not view or not session.may_go_on():
        raise Refused("The mailbox is gone")


async def _set_seen(session: Session, view: View, positions: Sequence[int]) -> frozenset[int]:
    """Set \\Seen where it is not; the uids of the messages that got it, to be told with their flags."""
    if view.read_only or (view.rights is not None and "s" not in view.rights):
        return frozenset()
    unseen = [view.uids[at] for at in positions if not view.flags[at] & SEEN]
    if not unseen:
        return frozenset()
    changed: list[tuple[int, int, int]] = []
    try:
        for start in range(0, len(unseen), SEEN_BATCH):
            changed += await session.services.store.store_flags(
                view.account, view.mailbox_id, unseen[start : start + SEEN_BATCH], "+", ["\\Seen"], member=view.member
            )
    except StoreError as fault:
        # Reading goes on while nothing can be written; the messages stay unread.
        session.services.log("imap-unavailable", command="FETCH", cause=str(fault))
    _check(session, view)
    view.changed_here(changed)
    reached = frozenset(item[0] for item in changed)
    if view.unreported:
        view.unreported -= reached
    return reached


def _from_view(session: Session, view: View, positions: Sequence[int], simple: tuple[bytes, ...]) -> bool:
    uids, modseqs = view.uids, view.modseqs
    values: dict[bytes, Callable[[int], bytes]] = {
        b"UID": lambda at: b"UID %d" % uids[at],
        b"FLAGS": lambda at: b"FLAGS " + view.rendered(at),
        b"MODSEQ": lambda at: b"MODSEQ (%d)" % modseqs[at],
    }
    chosen_values = [values[item] for item in simple]
    if simple == (b"FLAGS",):
        lines = [b"* %d FETCH (FLAGS %b)\r\n" % (at + 1, view.rendered(at)) for at in positions]
    else:
        lines = [
            b"* %d FETCH (%b)\r\n" % (at + 1, b" ".join([value(at) for value in chosen_values]))
            for at in positions
        ]
    session.send(b"".join(lines))
    return True


async def _from_kernel(
    session: Session, view: View, positions: Sequence[int], simple: tuple[bytes, ...]
) -> bool:
    """The reader's kernel builds the responses."""
    reader = session.services.reader
    codes = [_KERNEL_ITEMS[item] for item in simple]
    if isinstance(positions, range):
        ats = np.arange(positions.start, positions.stop, dtype=np.uint32)
    else:
        ats = np.array(positions, np.uint32)
    uids = np.frombuffer(view.uids.tobytes(), np.uint32)[ats]
    seqs = ats + np.uint32(1)
    start = 0
    while start < len(uids):
        if start:
            await session.room()
            _check(session, view)
        try:
            text, start = reader.fetch_summaries(
                view.account, view.mailbox_id, seqs, uids, codes, start, KERNEL_OCTETS, view.recent_uid, view.member
            )
        except KeyError:
            raise Refused("The mailbox is gone") from None
        session.send(text)
    return True


async def _with_content(
    session: Session, view: View, positions: Sequence[int], request: Request, seen: frozenset[int]
) -> bool:
    """Row by row; whether every message was still there."""
    services = session.services
    complete = True
    simple = request.simple
    with_flags = simple
    if seen:
        # Who wants mod-sequences is told the new one with the new flags (RFC 7162 3.1).
        wanted = (b"FLAGS", b"MODSEQ") if view.condstore else (b"FLAGS",)
        with_flags = (*simple, *(item for item in wanted if item not in simple))
    uids = [view.uids[at] for at in positions]
    for start in range(0, len(uids), ROW_SLICE):
        part = uids[start : start + ROW_SLICE]
        rows = services.reader.messages(view.account, view.mailbox_id, part)
        for uid, row in zip(part, rows, strict=True):
            if row is None:
                complete = False
                continue
            at = view.position(uid)
            if at < 0:
                continue
            await _message(session, view, at, row, with_flags if uid in seen else simple, request.sections)
            services.count("fetched_messages_total")
            if session.stream.pending_out > KERNEL_OCTETS:
                await session.room()
                _check(session, view)
        if start + ROW_SLICE < len(uids):
            await session.room()
            _check(session, view)
    return complete


async def _message(
    session: Session, view: View, at: int, row: Any, simple: tuple[bytes, ...], sections: tuple[Section, ...]
) -> None:
    """Send the response for one message."""
    source = Source(session.services, (view.account, view.mailbox_id, row.uid), row)
    parts = []
    for item in simple:
        if item == b"UID":
            parts.append(b"UID %d" % row.uid)
        elif item == b"FLAGS":
            parts.append(b"FLAGS " + view.rendered(at))
        elif item == b"INTERNALDATE":
            parts.append(b"INTERNALDATE " + response.internaldate(row.internaldate_s))
        elif item == b"RFC822.SIZE":
            parts.append(b"RFC822.SIZE %d" % row.size)
        elif item == b"ENVELOPE":
            parts.append(b"ENVELOPE " + row.envelope)
        elif item == b"BODYSTRUCTURE":
            parts.append(b"BODYSTRUCTURE " + row.bodystructure)
        elif item == b"MODSEQ":
            parts.append(b"MODSEQ (%d)" % view.modseqs[at])
        elif item == b"BODY":
            parts.append(b"BODY " + bytes(await source.examine(body_of)))
        else:
            parts.append(await _extra(session, view, row, source, item))
    if view.mode & UIDONLY:
        if len(parts) + len(sections) > 1:
            parts = [part for part in parts if not part.startswith(b"UID ")]
        head = b"* %d UIDFETCH (" % row.uid
    else:
        head = b"* %d FETCH (" % (at + 1)
    pieces: list[Piece] = [head + b" ".join(parts)]
    separator = b" " if parts else b""
    for section in sections:
        if section.binary:
            pieces.append(separator + await _binary(source, section))
            separator = b" "
            continue
        found = await source.section(section)
        if found is None:
            pieces.append(separator + section.label + b" NIL")
        else:
            length, content = found
            pieces.append(separator + section.label + b" {%d}\r\n" % length)
            pieces.extend(content)
        separator = b" "
    pieces.append(b")\r\n")
    send_pieces(session.stream, pieces, session.corked)


async def _extra(session: Session, view: View, row: Any, source: Source, item: bytes) -> bytes:
    """EMAILID, THREADID (RFC 8474), SAVEDATE (8514), PREVIEW (8970)."""
    if item == b"EMAILID":
        return b"EMAILID (%b)" % objectid.email(row.origin, view.account, view.mailbox_id, row.uid)
    if item == b"THREADID":
        found = objectid.thread(*message_ids(await source.header()))
        return b"THREADID NIL" if found is None else b"THREADID (%b)" % found
    if item == b"SAVEDATE":
        return b"SAVEDATE " + (response.internaldate(row.saved_s) if row.saved_s else b"NIL")
    if row.size > PREVIEW_OCTETS:
        text = preview(await source.range(0, PREVIEW_OCTETS))
    else:
        text = preview(await source.whole())
    return b"PREVIEW " + (response.utf8_string(text) if session.engine.utf8 else response.string(text.encode()))


async def _binary(source: Source, section: Section) -> bytes:
    """A section with its transfer encoding undone, with its label (RFC 3516). Raises `Refused`."""
    octets: bytes | None = await source.examine(lambda content: decoded(content, section.part))
    if octets is None:
        return section.label + b" NIL"
    if section.size:
        return section.label + b" %d" % len(octets)
    if section.origin >= 0:
        octets = octets[section.origin : section.origin + section.count]
    mark = b"~" if b"\0" in octets else b""
    return section.label + b" %b{%d}\r\n" % (mark, len(octets)) + octets


SPECS = [
    Spec(b"FETCH", State.SELECTED, parse, run, Updates.FLAGS),
    Spec(b"UID FETCH", State.SELECTED, parse_uid, run, Updates.FLAGS | Updates.EXPUNGES),
]
SHORTCUT: Shortcut = (
    _PLAIN,
    Spec(b"FETCH", State.SELECTED, parse, run_plain, Updates.FLAGS),
    plain_arguments,
)
