"""SEARCH (RFC 3501 6.4.4) and UID SEARCH, with ESEARCH (RFC 4731), SEARCHRES (5182), PARTIAL (9394), UPDATE (5267), MODSEQ (7162),
YOUNGER and OLDER (5032).

First every message is judged by what the view and the flags rows know, in vectors: yes, no, or it depends. Only what is
left is looked at one by one, its header first and its body last; this gives other sessions a turn every few milliseconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from iems.imap import flags, objectid, results, search, sequence
from iems.imap.grammar import SAVED, Arguments, Bad, Refused
from iems.imap.results import Returned
from iems.imapd import columns, contexts
from iems.imapd.commands.common import chosen, selected
from iems.imapd.content import Source
from iems.imapd.engine import Command, Spec, State, Updates
from iems.imapd.narrowing import ADDRESSES, narrowed
from iems.imapd.sifting import Sifted, sifted
from iems.message.address import parse_addresses
from iems.message.date import sent_date
from iems.message.header import values
from iems.message.text import Searchable, fold

if TYPE_CHECKING:
    from iems.imapd.session import Session
    from iems.imapd.view import View

#: Messages left to look at up to which they are looked at one by one, instead of all of the mailbox.
FEW = 50
#: Time one search may hold the loop, and rows read in one transaction.
SLICE_S = 0.005
ROWS = 200

Mask = Any  # numpy bool array over the messages the client knows


class Request(Struct, frozen=True):
    """key: the tree. returned: options of RETURN, None for a plain SEARCH."""

    key: Any
    returned: Returned | None
    charset: bool = False  # whether one was named


def parse(arguments: Arguments) -> Request:
    """The arguments of SEARCH and UID SEARCH. Raises Bad."""
    arguments.space()
    returned = results.parse(arguments)
    charset = arguments.data[arguments.pos : arguments.pos + 8].upper() == b"CHARSET "
    return Request(search.parse(arguments), returned, charset)


@contextmanager
def saving(view: View, returned: Returned | None) -> Iterator[None]:
    """With SAVE, a search that fails leaves nothing saved (RFC 5182 2.1)."""
    try:
        yield
    except BaseException:
        if returned is not None and b"SAVE" in returned.options:
            view.saved = None
        raise


def save(view: View, returned: Returned | None, positions: Sequence[int]) -> None:
    """Keep what SAVE asks for."""
    if returned is not None and b"SAVE" in returned.options:
        view.saved = array("I", sorted(view.uids[at] for at in returned.saved(positions)))


def answers(returned: Returned) -> bool:
    """Whether an ESEARCH response is sent: not if all that is asked is SAVE (RFC 5182 2.1)."""
    return returned.partial is not None or bool(returned.options - {b"SAVE", b"CONTEXT"})


async def run(session: Session, command: Command) -> bytes:
    """Carry out SEARCH and UID SEARCH; the text of the tagged answer. Raises Refused, StoreError."""
    view = selected(session)
    request: Request = command.arguments
    returned = request.returned
    if returned is None and b"IMAP4REV2" in session.enabled:
        returned = Returned()  # RFC 9051 7.3.4 has no other response
    uid_form = command.spec.name.startswith(b"UID")
    if request.charset and b"UTF8=ACCEPT" in session.enabled:
        raise Bad("All is UTF-8 after ENABLE UTF8=ACCEPT")  # RFC 6855 3
    if b"UIDONLY" in session.enabled and search.uses_numbers(request.key):
        raise Bad("[UIDREQUIRED] Only UIDs are used in this session")
    with_modseq = search.uses_modseq(request.key)
    if with_modseq:
        session.want_modseq()
    session.refresh()
    if session.view is not view:
        raise Refused("The mailbox is gone")
    with saving(view, returned):
        positions = await find(session, view, request.key, tag=command.tag)
        save(view, returned, positions)
    numbers = [view.uids[at] for at in positions] if uid_form else [at + 1 for at in positions]
    name = command.spec.name
    highest = 0
    if with_modseq:
        told = positions if returned is None else returned.told(positions)
        highest = max((view.modseqs[at] for at in told), default=0)
    if returned is None:
        text = b"* SEARCH"
        if numbers:
            text += b" " + " ".join(map(str, numbers)).encode()
            if with_modseq:
                text += b" (MODSEQ %d)" % highest
        session.send(text + b"\r\n")
    else:
        contexts.begin(session, command, returned, request.key, (), positions)
        if answers(returned):
            session.send(results.esearch(command.tag, uid_form, returned, numbers, highest))
    return b"OK " + name + b" completed"


async def find(
    session: Session, view: View, key: Any, among: Sequence[int] | None = None, tag: bytes = b""
) -> list[int]:
    """The positions of the messages a key holds for, ascending.

    among: only these are looked at. tag: of the command whose progress is told.
    """
    count = view.told
    now_s = int(session.services.clock())
    judged = _Vectors(
        view, count, now_s, lambda: session.services.reader.table(view.account, view.mailbox_id)
    )
    must, may = judged.of(key)
    if view.gone:
        alive = np.ones(count, bool)
        for uid in view.gone:
            at = view.position(uid)
            if 0 <= at < count:
                alive[at] = False
        must, may = must & alive, may & alive
    if among is not None:
        wanted = np.zeros(count, bool)
        wanted[np.array(among, np.int64)] = True
        must, may = must & wanted, may & wanted
    if (names := _column_names(key)) and np.count_nonzero(may & ~must) > FEW:
        judged.columns = await session.services.columns.of(session, view, names)
        if session.view is not view:
            raise Refused("The mailbox is gone")
        again = judged.of(key)
        must, may = again[0] & may, again[1] & may
    open_questions = np.nonzero(may & ~must)[0].tolist()
    found: list[int] = np.nonzero(must)[0].tolist()
    open_questions, want = await narrowed(session, view, key, judged, open_questions)
    if open_questions:
        found += await _read(session, view, key, judged, open_questions, tag)
        found.sort()
    if want and session.services.finder is not None:
        # Not before the answer is found: making it takes the same processor.
        session.services.finder.want(view.account, view.mailbox_id)
    return found


async def _read(session: Session, view: View, key: Any, judged: _Vectors, open_questions: list[int], tag: bytes) -> list[int]:
    """Those of `open_questions` for which the key holds, found by reading the messages."""
    loop_now = session.services.now
    found: list[int] = []
    started = told_s = loop_now()
    total = len(open_questions)

    def told(done: int) -> None:
        nonlocal told_s
        told_s = session.progress(tag, told_s, done, total)

    judged.sifted = await sifted(session, view, key, open_questions, judged.count, told)
    if judged.sifted is not None:
        must, may = judged.of(key)
        found = [at for at in open_questions if must[at]]
        open_questions = [at for at in open_questions if may[at] and not must[at]]
    started = loop_now()
    done = total - len(open_questions)
    key = _prepared(key, judged)
    reader = session.services.reader
    for start in range(0, len(open_questions), ROWS):
        part = open_questions[start : start + ROWS]
        rows = reader.messages(view.account, view.mailbox_id, [view.uids[at] for at in part])
        for at, row in zip(part, rows, strict=True):
            if row is not None:
                source = Source(session.services, (view.account, view.mailbox_id, row.uid), row)
                if await _holds(key, at, source):
                    found.append(at)
            if loop_now() - started > SLICE_S:
                await session.room()
                if session.view is not view:
                    raise Refused("The mailbox is gone")
                told(done + start)
                started = loop_now()
    return found


class _Vectors:
    """Judges all messages at once: `of` gives (holds for sure, may hold)."""

    def __init__(self, view: View, count: int, now_s: int, read: Callable[[], Any]) -> None:
        self.view = view
        self._now_s = now_s
        self._read = read
        self._table: tuple[Mask, Any, Any] | None = None
        self.columns: dict[str, Any] = {}
        self.sifted: Sifted | None = None
        self.count = count
        self.uids = np.frombuffer(view.uids.tobytes(), np.uint32)[:count]
        self.bits = np.frombuffer(view.flags.tobytes(), np.uint64)[:count]
        self.modseqs = np.frombuffer(view.modseqs.tobytes(), np.uint64)[:count]
        recent = self.uids >= view.recent_uid
        self.bits = np.where(recent, self.bits | np.uint64(flags.RECENT), self.bits)

    def of(self, key: Any) -> tuple[Mask, Mask]:
        match key:
            case search.And(keys):
                must = np.ones(self.count, bool)
                may = must
                for part in keys:
                    part_must, part_may = self.of(part)
                    must, may = must & part_must, may & part_may
                return must, may
            case search.Or(left, right):
                left_must, left_may = self.of(left)
                right_must, right_may = self.of(right)
                return left_must | right_must, left_may | right_may
            case search.Not(inner):
                must, may = self.of(inner)
                return ~may, ~must
            case search.Text(text, header) if self.sifted is not None:
                known = self.sifted.holds((fold(text), header))
                if known is not None:
                    return known
        mask = self.exact(key)
        if mask is None:
            return np.zeros(self.count, bool), np.ones(self.count, bool)
        return mask, mask

    def rows(self) -> tuple[Mask, Any, Any]:
        """(which messages are still there, their sizes, their dates), read once; 0 for the others."""
        if self._table is None:
            there = np.zeros(self.count, bool)
            sizes = np.zeros(self.count, np.int64)
            dates = np.zeros(self.count, np.int64)
            found = self._read()
            if found is not None:
                table = found[1]
                at = np.searchsorted(self.uids, table["uid"])
                known = at < self.count
                known[known] = self.uids[at[known]] == table["uid"][known]
                at = at[known]
                there[at] = True
                sizes[at] = table["size"][known]
                dates[at] = table["internaldate"][known]
            self._table = there, sizes, dates
        return self._table

    def exact(self, key: Any) -> Mask | None:
        """Where a key holds that view and flags rows can answer, else None."""
        match key:
            case search.Flag(bits, wanted):
                return ((self.bits & np.uint64(bits)) != 0) == wanted
            case search.Keyword(name, wanted):
                bit = flags.SYSTEM.get(name.upper()) or flags.keyword_bit(name, self.view.keywords)
                return ((self.bits & np.uint64(bit)) != 0) == wanted
            case search.Sequence(ranges, uid):
                mask = np.zeros(self.count, bool)
                positions: Sequence[int]
                if ranges is SAVED:
                    positions = chosen(self.view, ranges, uid)
                elif uid:
                    positions = sequence.uid_positions(ranges, self.view.uids)
                else:
                    positions = sequence.positions(ranges, self.count, strict=False)
                if isinstance(positions, range):
                    mask[positions.start : positions.stop] = True
                else:
                    places = np.array(positions, np.int64)
                    mask[places[places < self.count]] = True
                return mask
            case search.Envelope(name, text):
                column = self.columns.get(name.decode())
                if column is None:
                    return None
                wanted_text = fold(text)
                if isinstance(column, columns.Subjects):
                    return column.holding(self.uids, wanted_text)
                found = [wanted_text in held for held in column[: self.count]]
                if not text:
                    found = [bool(held) for held in column[: self.count]]
                return np.array(found, bool)
            case search.Modseq(value):
                return self.modseqs >= np.uint64(value)
            case search.Size(octets, larger):
                there, sizes, _ = self.rows()
                return there & (sizes > octets if larger else sizes < octets)
            case search.Age(seconds, younger):
                there, _, dates = self.rows()
                return there & ((dates >= self._now_s - seconds) == younger)
            case search.Date(day, op, False):
                there, _, dates = self.rows()
                return there & _compare(dates // 86400, op, day)
        return None


def _column_names(key: Any) -> list[str]:
    """The columns the keys of a tree ask for."""
    match key:
        case search.And(keys):
            return list(dict.fromkeys(name for part in keys for name in _column_names(part)))
        case search.Or(left, right):
            return list(dict.fromkeys(_column_names(left) + _column_names(right)))
        case search.Not(inner):
            return _column_names(inner)
        case search.Envelope(name, _):
            return [name.decode()]
    return []


def sizes_and_dates(session: Session, view: View) -> tuple[list[int], list[int]]:
    """RFC822.SIZE and INTERNALDATE (seconds since 1970) of every message of the view; 0 for what is gone."""
    read = lambda: session.services.reader.table(view.account, view.mailbox_id)  # noqa: E731
    _, sizes, dates = _Vectors(view, len(view), 0, read).rows()
    return sizes.tolist(), dates.tolist()


class _Known(Struct, frozen=True):
    """A key the view has answered for all messages."""

    mask: Any


def _prepared(key: Any, judged: _Vectors) -> Any:
    """The tree with its texts folded for comparison and what the view knows answered, once for all messages."""
    match key:
        case search.And(keys):
            # Cheap questions first: what is known, then a header, then a body.
            return search.And(sorted((_prepared(part, judged) for part in keys), key=_cost))
        case search.Or(left, right):
            parts = sorted((_prepared(left, judged), _prepared(right, judged)), key=_cost)
            return search.Or(*parts)
        case search.Not(inner):
            return search.Not(_prepared(inner, judged))
        case search.Header(name, text):
            return search.Header(name, fold(text))
        case search.Envelope(name, text) if name.decode() not in judged.columns:
            return search.Envelope(name, fold(text))
        case search.Text(text, header):
            return search.Text(fold(text), header)
    mask = judged.exact(key)
    return key if mask is None else _Known(mask)


def _cost(key: Any) -> int:
    match key:
        case search.And(keys):
            return max((_cost(part) for part in keys), default=0)
        case search.Or(left, right):
            return max(_cost(left), _cost(right))
        case search.Not(inner):
            return _cost(inner)
        case search.Envelope():
            return 1
        case search.Header() | search.Date() | search.ObjectId(b"THREADID"):
            return 2
        case search.Text():
            return 3
    return 0


async def _holds(key: Any, at: int, source: Source) -> bool:
    match key:
        case _Known(mask):
            return bool(mask[at])
        case search.And(keys):
            for part in keys:
                if not await _holds(part, at, source):
                    return False
            return True
        case search.Or(left, right):
            return await _holds(left, at, source) or await _holds(right, at, source)
        case search.Not(inner):
            return not await _holds(inner, at, source)
        case search.Date(day, op, _):
            actual = _sent_day(await source.header())
            return actual is not None and bool(_compare(actual, op, day))
        case search.Envelope(name, text):
            held = columns.value(name.decode(), source.row)
            return text in held if text else bool(held)
        case search.Header(name, text):
            return _in_header(await source.header(), name, text)
        case search.Saved(day, op):
            return bool(_compare(source.row.saved_s // 86400, op, day))
        case search.ObjectId(b"EMAILID", wanted):
            return objectid.email(source.row.origin, *source.key) == wanted
        case search.ObjectId(_, wanted):
            return objectid.thread(*columns.message_ids(await source.header())) == wanted
        case search.Text(text, header):
            if not text:
                return True
            searchable = source.searchable
            if searchable is None:
                searchable = source.searchable = await source.examine(_opened)
            return bool(searchable.in_text(text) if header else searchable.in_body(text))
    raise TypeError(f"no search key: {key!r}")


def _compare(actual: Any, op: str, wanted: int) -> Any:
    if op == "<":
        return actual < wanted
    return actual == wanted if op == "=" else actual >= wanted


_EPOCH = 719163  # 1970-01-01 as date.toordinal


def _in_header(header: bytes, name: bytes, text: str) -> bool:
    """Whether a field of that name holds the text, as written or, of an address, as it is meant."""
    if Searchable(header).in_field(name, text):
        return True
    if name not in ADDRESSES:
        return False
    return any(
        text in fold(address.addr_spec)
        for value in values(header, name)
        for address in parse_addresses(value)
    )


def _opened(content: bytes) -> Searchable:
    """The texts of a message, decoded."""
    searchable = Searchable(content)
    _ = searchable.body
    return searchable


def _sent_day(header: bytes) -> int | None:
    """The day of the Date field, whatever its time and zone (RFC 3501 6.4.4), from 1970."""
    found = values(header, b"Date")
    day = sent_date(found[0]) if found else None
    return None if day is None else day.toordinal() - _EPOCH


SPECS = [
    Spec(b"SEARCH", State.SELECTED, parse, run, Updates.FLAGS | Updates.CHECK),
    Spec(b"UID SEARCH", State.SELECTED, parse, run),
]
