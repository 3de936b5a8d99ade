"""SEARCH (RFC 3501 6.4.4) and UID SEARCH, with ESEARCH (RFC 4731), MODSEQ (7162), YOUNGER and OLDER (5032).

First every message is judged by what the view and the flags rows know, in vectors: yes, no, or it depends. Only what is
left is looked at one by one, its header first and its body last; this gives other sessions a turn every few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from iems.imap import flags, search, sequence
from iems.imap.grammar import Arguments, Bad, Refused
from iems.imap.response import string
from iems.imapd.commands.common import selected
from iems.imapd.content import Source
from iems.imapd.engine import Command, Spec, State, Updates
from iems.message.address import parse_addresses
from iems.message.date import sent_date
from iems.message.header import values
from iems.message.text import Searchable, fold

if TYPE_CHECKING:
    from iems.imapd.session import Session
    from iems.imapd.view import View

#: Time one search may hold the loop, and rows read in one transaction.
SLICE_S = 0.005
ROWS = 200

Mask = Any  # numpy bool array over the messages the client knows


class Request(Struct, frozen=True):
    """key: the tree. returned: options of RETURN, None for a plain SEARCH."""

    key: Any
    returned: frozenset[bytes] | None


_RETURN = {b"MIN", b"MAX", b"ALL", b"COUNT"}


def parse(arguments: Arguments) -> Request:
    arguments.space()
    returned = None
    if arguments.data[arguments.pos : arguments.pos + 8].upper() == b"RETURN (":
        arguments.pos += 8
        found = set()
        if not arguments.accept(b")"):
            while True:
                word = arguments.word()
                if word not in _RETURN:
                    raise Bad("Unknown RETURN option")
                found.add(word)
                if arguments.accept(b")"):
                    break
                arguments.space()
        returned = frozenset(found or {b"ALL"})
        arguments.space()
    return Request(search.parse(arguments), returned)


async def run(session: Session, command: Command) -> bytes:
    view = selected(session)
    request: Request = command.arguments
    uid_form = command.spec.name.startswith(b"UID")
    with_modseq = search.uses_modseq(request.key)
    if with_modseq:
        session.want_modseq()
    session.refresh()
    if session.view is not view:
        raise Refused("The mailbox is gone")
    positions = await find(session, view, request.key)
    numbers = [view.uids[at] for at in positions] if uid_form else [at + 1 for at in positions]
    name = command.spec.name
    highest = (
        max((view.modseqs[at] for at in _told(positions, request.returned)), default=0) if with_modseq else 0
    )
    if request.returned is None:
        text = b"* SEARCH"
        if numbers:
            text += b" " + " ".join(map(str, numbers)).encode()
            if with_modseq:
                text += b" (MODSEQ %d)" % highest
        session.send(text + b"\r\n")
    else:
        session.send(_extended(command, request.returned, numbers, uid_form, highest))
    return b"OK " + name + b" completed"


def _told(positions: list[int], returned: frozenset[bytes] | None) -> list[int]:
    """The positions whose highest mod-sequence is told (RFC 7162 3.1.10): of MIN and MAX alone, only those two."""
    if returned is None or returned & {b"ALL", b"COUNT"} or not positions:
        return positions
    return [positions[0]] * (b"MIN" in returned) + [positions[-1]] * (b"MAX" in returned)


def _extended(
    command: Command, returned: frozenset[bytes], numbers: list[int], uid_form: bool, highest: int
) -> bytes:
    parts = [b"* ESEARCH (TAG " + string(command.tag) + b")"]
    if uid_form:
        parts.append(b"UID")
    if numbers:
        if b"MIN" in returned:
            parts.append(b"MIN %d" % numbers[0])
        if b"MAX" in returned:
            parts.append(b"MAX %d" % numbers[-1])
        if b"ALL" in returned:
            parts.append(b"ALL " + sequence.render(numbers))
    if b"COUNT" in returned:
        parts.append(b"COUNT %d" % len(numbers))
    if highest and numbers:
        parts.append(b"MODSEQ %d" % highest)
    return b" ".join(parts) + b"\r\n"


async def find(session: Session, view: View, key: Any) -> list[int]:
    """The positions of the messages a key holds for, ascending."""
    count = view.told
    loop_now = session.services.now
    now_s = int(session.services.clock())
    judged = _Vectors(
        view, count, now_s, lambda: session.services.reader.table(session.number, view.mailbox_id)
    )
    must, may = judged.of(key)
    if view.gone:
        alive = np.ones(count, bool)
        for uid in view.gone:
            at = view.position(uid)
            if 0 <= at < count:
                alive[at] = False
        must, may = must & alive, may & alive
    open_questions = np.nonzero(may & ~must)[0].tolist()
    found: list[int] = np.nonzero(must)[0].tolist()
    if not open_questions:
        return found
    started = loop_now()
    key = _prepared(key, judged)
    reader = session.services.reader
    for start in range(0, len(open_questions), ROWS):
        part = open_questions[start : start + ROWS]
        rows = reader.messages(session.number, view.mailbox_id, [view.uids[at] for at in part])
        for at, row in zip(part, rows, strict=True):
            if row is not None:
                source = Source(session.services, (session.number, view.mailbox_id, row.uid), row)
                if await _holds(key, at, source):
                    found.append(at)
            if loop_now() - started > SLICE_S:
                await session.room()
                if session.view is not view:
                    raise Refused("The mailbox is gone")
                started = loop_now()
    found.sort()
    return found


class _Vectors:
    """Judges all messages at once: `of` gives (holds for sure, may hold)."""

    def __init__(self, view: View, count: int, now_s: int, read: Callable[[], Any]) -> None:
        self.view = view
        self._now_s = now_s
        self._read = read
        self._table: tuple[Mask, Any, Any] | None = None
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
        mask = self.exact(key)
        if mask is None:
            return np.zeros(self.count, bool), np.ones(self.count, bool)
        return mask, mask

    def _rows(self) -> tuple[Mask, Any, Any]:
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
                if uid:
                    positions = sequence.uid_positions(ranges, self.view.uids)
                else:
                    positions = sequence.positions(ranges, self.count, strict=False)
                if isinstance(positions, range):
                    mask[positions.start : positions.stop] = True
                else:
                    chosen = np.array(positions, np.int64)
                    mask[chosen[chosen < self.count]] = True
                return mask
            case search.Modseq(value):
                return self.modseqs >= np.uint64(value)
            case search.Size(octets, larger):
                there, sizes, _ = self._rows()
                return there & (sizes > octets if larger else sizes < octets)
            case search.Age(seconds, younger):
                there, _, dates = self._rows()
                return there & ((dates >= self._now_s - seconds) == younger)
            case search.Date(day, op, False):
                there, _, dates = self._rows()
                return there & _compare(dates // 86400, op, day)
        return None


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
        case search.Header() | search.Date():
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
        case search.Header(name, text):
            return _in_header(await source.header(), name, text)
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


_ADDRESSES = (b"FROM", b"TO", b"CC", b"BCC", b"SENDER", b"REPLY-TO")
_EPOCH = 719163  # 1970-01-01 as date.toordinal


def _in_header(header: bytes, name: bytes, text: str) -> bool:
    """Whether a field of that name holds the text, as written or, of an address, as it is meant."""
    if Searchable(header).in_field(name, text):
        return True
    if name not in _ADDRESSES:
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
