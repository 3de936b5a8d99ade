"""Header values of whole mailboxes, for SEARCH, SORT and THREAD: one list a mailbox and value, made from the index rows.

A message never changes, so a value once read stays right for its uid; new messages are added at the end. Each worker keeps
the columns lately used, bounded in octets.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from iems.imap import envelope as envelopes
from iems.imap.envelope import Envelope
from iems.imap.grammar import Refused
from iems.imap.subjects import base_subject, casemap
from iems.imapd.content import Source
from iems.message import header_fields
from iems.message.date import parse_date
from iems.message.header import values
from iems.message.text import fold
from iems.store.reader import FETCH_ENVELOPE

if TYPE_CHECKING:
    from iems.imapd.session import Session
    from iems.imapd.view import View

#: Octets of all columns a worker keeps.
MAX_OCTETS = 48 << 20
#: Octets of rows looked at in one turn of the loop.
TURN_OCTETS = 128 << 10
#: Messages whose header is read in one transaction; messages whose subject is looked at in one turn of the loop; seconds such a turn may take.
ROWS = 100
SUBJECTS = 5_000
TURN_S = 0.005
#: Subjects found one by one in a text of many; with more each is looked at.
MANY = 200
#: Message ids of one message that are kept (RFC 5256 needs the nearest).
MAX_IDS = 100

_FETCH = b"FETCH (ENVELOPE "
_START = re.compile(rb"\* (\d+) FETCH \(ENVELOPE ")
_LITERAL = re.compile(rb"\{(\d+)\}\r\n")
_ID = re.compile(rb"<[^<>\s]{1,998}>")
_PLACES = {
    "FROM": envelopes.FROM,
    "TO": envelopes.TO,
    "CC": envelopes.CC,
    "BCC": envelopes.BCC,
}


def _date(envelope: Envelope) -> int:
    moment = parse_date(envelope.text(envelopes.DATE) or b"")
    return NO_DATE if moment is None else int(moment.timestamp())


def _texts(place: int) -> Callable[[Envelope], str]:
    return lambda envelope: fold("\n".join(envelopes.address_texts(envelope, place)))


def _base(envelope: Envelope) -> tuple[str, bool]:
    base, reply = base_subject(envelopes.subject(envelope))
    return casemap(base), reply


#: Stands for a Date field that is missing or can't be read.
NO_DATE = -(1 << 62)

#: What can be read from an ENVELOPE: the name of the column and how its value is made.
COLUMNS: dict[str, Callable[[Envelope], Any]] = {
    "SUBJECT": lambda envelope: fold(envelopes.subject(envelope)),
    **{name: _texts(place) for name, place in _PLACES.items()},
    "BASE": _base,
    "DATE": _date,
    **{
        "SORT-" + name: (lambda envelope, place=place: casemap(envelopes.first_mailbox(envelope, place)))  # type: ignore[misc]
        for name, place in _PLACES.items()
        if name != "BCC"
    },
    "DISPLAYFROM": lambda envelope: casemap(envelopes.display(envelope, envelopes.FROM)),
    "DISPLAYTO": lambda envelope: casemap(envelopes.display(envelope, envelopes.TO)),
}
#: (own Message-ID, those it answers from the oldest on), from the header.
IDS = "IDS"
_EMPTY: dict[str, Any] = {"BASE": ("", False), "DATE": NO_DATE, IDS: (b"", ())}

Key = tuple[int, int, str]


class _Column:
    __slots__ = ("octets", "uids", "values")

    def __init__(self) -> None:
        self.uids: array[int] = array("I")
        self.values: list[Any] = []
        self.octets = 0

    def add(self, uid: int, value: Any) -> None:
        self.uids.append(uid)
        self.values.append(value)
        self.octets += 12 + _octets(value)


class Subjects:
    """The subjects of a mailbox as they are compared, many in one text with a line feed between each two: searched without an object for each."""

    __slots__ = ("_firsts", "_starts", "_texts", "octets", "uids")

    def __init__(self) -> None:
        self.uids: array[int] = array("I")
        self.octets = 0
        self._texts: list[str] = []
        self._firsts: list[int] = []  # of each text, which of the messages its first line is
        self._starts: list[np.ndarray | None] = []  # where its lines begin, once that was asked

    def add(self, uids: np.ndarray, joined: str) -> None:
        """Take in messages with higher uids: uint32[n], n lines."""
        if not len(uids):
            return
        first = len(self.uids)
        if self._texts and first - self._firsts[-1] + len(uids) <= SUBJECTS:
            joined = self._texts.pop() + "\n" + joined
            first = self._firsts.pop()
            self._starts.pop()
        self.uids.frombytes(np.ascontiguousarray(uids, np.uint32).tobytes())
        self._texts.append(joined)
        self._firsts.append(first)
        self._starts.append(None)
        self.octets = 12 * len(self.uids) + sum(map(sys.getsizeof, self._texts))

    def holding(self, uids: np.ndarray, text: str) -> np.ndarray:
        """Which of the messages (uint32[n] ascending) have a subject that holds a folded text; "": that have one."""
        holds = np.zeros(len(self.uids) + 1, bool)
        for at in range(len(self._texts)):
            found = self._lines(at, text)
            if len(found):
                holds[found + self._firsts[at]] = True
        have = np.frombuffer(self.uids, np.uint32)
        if len(have) == len(uids) and np.array_equal(have, uids):
            return holds[:-1]
        if not len(have):
            return np.zeros(len(uids), bool)
        places = np.searchsorted(have, uids)
        places[places == len(have)] = 0
        held: np.ndarray = holds[places] & (have[places] == uids)
        return held

    def _lines(self, at: int, text: str) -> np.ndarray:
        """The numbers of the lines of one text."""
        joined = self._texts[at]
        place = joined.find(text) if text else 0
        if place < 0:
            return np.empty(0, np.int64)
        starts = self._starts[at]
        if starts is None:
            octets = np.frombuffer(joined.encode("latin-1" if joined.isascii() else "utf-32-le", "surrogatepass"), np.uint8 if joined.isascii() else np.uint32)
            starts = self._starts[at] = np.concatenate([[0], np.nonzero(octets == 10)[0] + 1]).astype(np.int32)
        if not text:
            return np.nonzero(np.diff(np.append(starts, len(joined) + 1)) > 1)[0]
        found = []
        while place >= 0:
            line = int(np.searchsorted(starts, place, "right")) - 1
            found.append(line)
            if len(found) > MANY:
                # Line by line is less work then.
                rest = joined[int(starts[line]) :].split("\n")
                found += [line + more for more in range(1, len(rest)) if text in rest[more]]
                break
            if line + 1 == len(starts):
                break
            place = joined.find(text, int(starts[line + 1]))
        return np.array(found, np.int64)


def _octets(value: Any) -> int:
    if isinstance(value, tuple):
        return 60 + sum(map(_octets, value))
    return sys.getsizeof(value)


class Columns:
    """The columns a worker keeps; the one not used for longest goes first."""

    def __init__(self) -> None:
        self._kept: dict[Key, _Column | Subjects] = {}
        self.octets = 0

    def held(self) -> list[Key]:
        """(account, mailbox id, name) of what is kept, the latest last."""
        return list(self._kept)

    async def of(self, session: Session, view: View, names: list[str]) -> dict[str, Any]:
        """The values of all messages of the view, in the order of its positions, by the name of the column; of SUBJECT a `Subjects`."""
        found: dict[str, Any] = {}
        for name in names:
            key = (view.account, view.mailbox_id, name)
            column = self._kept.pop(key, None)
            if column is None:
                column = Subjects() if name == "SUBJECT" else _Column()
            else:
                self.octets -= column.octets
            last = column.uids[-1] if column.uids else 0
            if view.uids and view.uids[-1] > last:
                if isinstance(column, Subjects):
                    await _fill_subjects(session, view, last, column)
                elif name == IDS:
                    await _fill_ids(session, view, last, column)
                else:
                    await _fill(session, view, last, column, COLUMNS[name])
            found[name] = column if isinstance(column, Subjects) else _aligned(view, column, _EMPTY.get(name, ""))
            # Two sessions may have filled one each meanwhile: the longer one stays.
            other = self._kept.pop(key, None)
            if other is not None:
                self.octets -= other.octets
                if len(other.uids) > len(column.uids):
                    column = other
            self._kept[key] = column
            self.octets += column.octets
            while self.octets > MAX_OCTETS and self._kept:
                oldest = next(iter(self._kept))
                self.octets -= self._kept.pop(oldest).octets
        return found


def _aligned(view: View, column: _Column, empty: Any) -> list[Any]:
    if column.uids == view.uids:
        return column.values
    have = np.frombuffer(column.uids.tobytes(), np.uint32)
    want = np.frombuffer(view.uids.tobytes(), np.uint32)
    if not len(have):
        return [empty] * len(want)
    at = np.searchsorted(have, want)
    at[at == len(have)] = 0
    same = have[at] == want
    values_ = column.values
    return [values_[place] if known else empty for place, known in zip(at.tolist(), same.tolist(), strict=True)]


async def _fill(
    session: Session, view: View, last: int, column: _Column, make: Callable[[Envelope], Any]
) -> None:
    """Add the messages after uid `last` from the kernel's ENVELOPE responses."""
    uids = np.frombuffer(view.uids.tobytes(), np.uint32)
    uids = uids[uids > last]
    start = 0
    while start < len(uids):
        try:
            text, start = session.services.reader.fetch_summaries(
                view.account, view.mailbox_id, uids, uids, [FETCH_ENVELOPE], start, TURN_OCTETS, 1 << 32
            )
        except KeyError:
            raise Refused("The mailbox is gone") from None
        for uid, raw in _responses(text):
            column.add(uid, make(Envelope(raw)))
        if start < len(uids):
            await session.room()


async def _fill_subjects(session: Session, view: View, last: int, column: Subjects) -> None:
    """Add the messages after uid `last`: most subjects are ASCII on one line and come as they are compared, the others are decoded."""
    services = session.services
    uids = np.frombuffer(view.uids.tobytes(), np.uint32)
    uids = uids[uids > last]
    for start in range(0, len(uids), SUBJECTS):
        if start:
            await session.room()
        started = services.now()
        found, joined, odd = services.reader.subjects(view.account, view.mailbox_id, uids, start, SUBJECTS)
        if odd:
            texts = joined.split("\n")
            for place, raw in odd:
                if raw is None:
                    row = services.reader.message(view.account, view.mailbox_id, int(found[place]))
                    raw = b"" if row is None else row.envelope
                texts[place] = COLUMNS["SUBJECT"](Envelope(raw)) if raw else ""
                if services.now() - started > TURN_S:
                    await session.room()
                    started = services.now()
            joined = "\n".join(texts)
        column.add(found, joined)


def _responses(text: bytes) -> list[tuple[int, bytes]]:
    """(number, ENVELOPE) of each FETCH response."""
    found = []
    if b"}\r\n" not in text:  # no literal: a line is a response
        for line in text.split(b"\r\n")[:-1]:
            number, _, rest = line[2:].partition(b" ")
            found.append((int(number), rest[len(_FETCH) : -1]))
        return found
    pos = 0
    while pos < len(text):
        match = _START.match(text, pos)
        if match is None:
            break
        begin = pos = match.end()
        while True:
            end = text.index(b"\r\n", pos)
            literal = _LITERAL.match(text, text.rfind(b"{", pos, end)) if text[end - 1] == 125 else None
            if literal is None or literal.end() != end + 2:
                break
            pos = literal.end() + int(literal.group(1))
        found.append((int(match.group(1)), text[begin : end - 1]))
        pos = end + 2
    return found


async def _fill_ids(session: Session, view: View, last: int, column: _Column) -> None:
    """Add the messages after uid `last` from their headers: References is in no row."""
    services = session.services
    started = services.now()
    uids = [uid for uid in view.uids if uid > last]
    for start in range(0, len(uids), ROWS):
        part = uids[start : start + ROWS]
        for uid, row in zip(part, services.reader.messages(view.account, view.mailbox_id, part), strict=True):
            if row is None:
                continue
            source = Source(services, (view.account, view.mailbox_id, uid), row)
            column.add(uid, message_ids(await source.header()))
            if services.now() - started > TURN_S:
                await session.room()
                if session.view is not view:
                    raise Refused("The mailbox is gone")
                started = services.now()


def message_ids(header: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """(Message-ID, the ids it refers to, oldest first) of a header; without References, of In-Reply-To the first."""
    part = header_fields(header, (b"MESSAGE-ID", b"REFERENCES", b"IN-REPLY-TO"))
    own = references = b""
    answered = b""
    for value in values(part, b"Message-ID")[:1]:
        match = _ID.search(value)
        own = match.group() if match else b""
    for value in values(part, b"References")[:1]:
        references = value
    for value in values(part, b"In-Reply-To")[:1]:
        answered = value
    ids = _ID.findall(references)[-MAX_IDS:] or _ID.findall(answered)[:1]
    return own, tuple(ids)


def value(name: str, row: Any) -> Any:
    """The value of a column for one message row."""
    return COLUMNS[name](Envelope(row.envelope))
