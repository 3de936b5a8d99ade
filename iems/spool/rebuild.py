"""Building the index again from the segments, while mail is accepted.

Two passes over the segments of earlier lives. The first reads everything, checks every record, and remembers outcomes, voided ranges,
copies and the ledger; the second puts what has recipients open into the queue: messages into INPUT, to be routed again (outcomes
of routed recipients are kept in `settled`, so that only the rest is delivered), copies where they stood. Each batch
notes how far it came in the same transaction, so it goes on after a crash. Segments made since the start are their writers' business.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from iems.blobs import blob_number, large_name, segment_name
from iems.model import INPUT, Extent, Rope
from iems.spool import keys, records
from iems.spool.index import Change
from iems.spool.items import Item
from iems.spool.keys import QUARANTINED
from iems.spool.records import Damaged, Done, Kind, Ledger, Record

if TYPE_CHECKING:
    from iems.spool.spool import Spool

#: What is noted of a damaged row whose message is in no segment.
NOT_FOUND = "its message is in no segment"
#: How long writers get to let go of segments an earlier index knew.
LET_GO_S = 30.0
#: Records between two looks at the loop, and entries in a transaction.
_SLICE = 32


class Rebuilt(Struct):
    """What came out. messages: put back into the queue; complete: had all their outcomes; damaged: records that can't be read."""

    segments: int = 0
    records: int = 0
    messages: int = 0
    complete: int = 0
    damaged: int = 0


class _Outcomes(Struct, gc=False):
    """Outcomes of one message: of its latest copy (generation), the fanout last recorded, and packed entries."""

    generation: int
    fanout: int
    queue_ms: int
    routed: bool
    entries: bytes  # per outcome: generation u16, channel u8, outcome u8, hash of (channel, address) 8


_ENTRY = 12


class Facts:
    """What a set of segments says besides the messages themselves."""

    def __init__(self) -> None:
        self.outcomes: dict[bytes, _Outcomes] = {}
        self.void: dict[int, list[tuple[int, int]]] = {}
        self.moved: dict[bytes, int] = {}
        self.ledger = Ledger(0, {}, [])
        self.bad: dict[int, set[int]] = {}  # blob -> offsets of records that don't count
        self.named: dict[int, set[int]] = {}

    def settle(self, done: Done, queue_ms: int) -> None:
        """Remember outcomes."""
        entries = b"".join(
            done.generation.to_bytes(2, "big")
            + bytes((done.channel, outcome))
            + keys.settled_key(b"", done.channel, address)
            for address, outcome in done.results
        )
        known = self.outcomes.get(done.id)
        routed = done.channel != INPUT
        if known is None:
            self.outcomes[done.id] = _Outcomes(done.generation, done.fanout, queue_ms, routed, entries)
            return
        known.entries += entries
        # The fanout after routing is the true one; routing repeated after a rebuild may have changed it.
        if (done.generation, routed, queue_ms) >= (known.generation, known.routed, known.queue_ms):
            known.generation, known.fanout, known.queue_ms, known.routed = (
                done.generation,
                done.fanout,
                queue_ms,
                routed,
            )

    def complete(self, id: bytes, generation: int) -> bool:
        """Whether every recipient of this copy of the message has an outcome."""
        known = self.outcomes.get(id)
        return (
            known is not None
            and known.generation == generation
            and len({e[2:] for e in _entries(known) if int.from_bytes(e[:2], "big") == generation})
            >= known.fanout
        )

    def settled(self, id: bytes) -> dict[bytes, int]:
        """settled_key (channel and address, without id) -> outcome, with the channel in front."""
        known = self.outcomes.get(id)
        return {bytes((e[2],)) + e[4:]: e[3] for e in _entries(known)} if known else {}

    def is_void(self, blob: int, record: Record) -> bool:
        """Whether the record does not count."""
        return record.offset in self.bad.get(blob, ()) or any(
            start <= record.offset < end for start, end in self.void.get(blob, ())
        )

    def read(self, blob: int, fd: int, record: Record) -> None:
        """Take in a record that counts. Raises msgspec.DecodeError."""
        payload = records.read_payload(fd, record)
        if record.kind == Kind.MESSAGE:
            for done in records.decode_message(payload).settles:
                self._outcome(blob, done, record)
        elif record.kind == Kind.SETTLE:
            for done in records.decode_settle(payload):
                self._outcome(blob, done, record)
        elif record.kind == Kind.VOID:
            for named, start, end in records.decode_void(payload):
                self.void.setdefault(named, []).append((start, end))
                self.named.setdefault(blob, set()).add(named)
        elif record.kind == Kind.MOVED:
            self.moved[record.id] = max(self.moved.get(record.id, 0), record.generation)
            for item in records.decode_moved(payload).items:
                self.named.setdefault(blob, set()).add(item.home)  # the original, which counts no more
        elif record.kind == Kind.LEDGER:
            ledger = records.decode_ledger(payload)
            if ledger.sequence > self.ledger.sequence:
                self.ledger = ledger

    def _outcome(self, blob: int, done: Done, record: Record) -> None:
        if done.home != blob:
            self.named.setdefault(blob, set()).add(done.home)
        self.settle(done, record.queue_ms)


def _entries(known: _Outcomes) -> list[bytes]:
    return [known.entries[at : at + _ENTRY] for at in range(0, len(known.entries), _ENTRY)]


def counted(
    fd: int, start: int, end: int, nonce: bytes, *, unsealed: bool = False
) -> Iterator[tuple[Record | None, list[Record], Damaged | None]]:
    """(record that counts, records that don't, damage) in order, checked whole; one of the three is given at a time. unsealed: as of `scan`."""
    chains = records.Chains()
    for found in records.scan(fd, start, end, nonce, unsealed=unsealed):
        counts, broken = chains.feed(found)
        if broken:
            yield None, broken, None
        for record in counts:
            yield record, [], None
        if isinstance(found, Damaged):
            yield None, [], found
    broken = chains.end()
    if broken:
        yield None, broken, None


class _Old(Struct):
    """A segment of an earlier life. end: of its records; size: of the file."""

    blob: int
    path: Path
    head: records.FileHead
    end: int
    size: int
    sealed: bool


async def rebuild(spool: Spool) -> Rebuilt | None:
    """Fill a new index; None if none is being built. Run by the janitor, in slices."""
    index = spool.index
    if not index.is_rebuilding():
        index.rebuilding = False
        return None
    index.rebuilding = True
    result = Rebuilt()
    facts = Facts()
    await _let_go(spool)
    olds = _old_segments(spool)
    # What doesn't count is known before anything is judged: voids and the ledger may stand in any segment, also of this life.
    for old in _segments(spool):
        await _each(old, lambda fd, record, old=old: _read_void(facts, old, fd, record))  # type: ignore[misc]
    gone = set(facts.ledger.gone)
    olds = [old for old in olds if old.blob not in gone]
    damaged: list[tuple[int, Damaged]] = []
    for old in olds:
        await _judge(old, facts, damaged, result)
    for old in olds:
        await _fill(spool, old, facts, result)
    with index.change() as change:
        for blob, found in damaged:
            change.note_damage(blob, found.offset, found.end, found.id, "record")
        change.set_meta(keys.META_LEDGER, records.encode(facts.ledger))
    result.damaged = len(damaged)
    result.segments = len(olds)
    for blob in gone:
        for name in (segment_name(blob), large_name(blob)):
            for folder in ("segments", "large"):
                (spool.params.path / folder / name).unlink(missing_ok=True)
    index.set_meta(keys.META_REBUILD, None)
    index.rebuilding = False
    for lost in spool.params.path.glob("index.lost-*"):
        shutil.rmtree(lost, ignore_errors=True)
    for channel in {key[0] for key, number in index.counts().items() if number}:
        spool.announce(channel)
    return result


async def repair(spool: Spool) -> tuple[int, int]:
    """Bring messages back whose row in the index was damaged, from their records; (messages mended, not found).

    What other rows of the same message say stays true: their recipients are left out.
    """
    index = spool.index
    broken = {
        damage.id: key for key, damage in index.damages().items() if key[0] == 0 and damage.what != NOT_FOUND
    }
    if not broken or index.is_rebuilding():
        return 0, 0
    facts = Facts()
    sources: dict[bytes, tuple[int, _Old, Record]] = {}  # id -> generation, segment, record
    olds = _segments(spool)
    for old in olds:
        await _each(old, lambda fd, record, old=old: _read_void(facts, old, fd, record))  # type: ignore[misc]

    def look(old: _Old, fd: int, record: Record) -> None:
        if facts.is_void(old.blob, record) or not records.intact(fd, record):
            return
        if record.kind in (Kind.MESSAGE, Kind.MOVED) and record.id in broken:
            generation = record.generation if record.kind == Kind.MOVED else 0
            if record.id not in sources or generation >= sources[record.id][0]:
                sources[record.id] = (generation, old, record)
        if record.kind in (Kind.SETTLE, Kind.MESSAGE, Kind.MOVED):
            facts.read(old.blob, fd, record)

    for old in olds:
        await _each(old, lambda fd, record, old=old: look(old, fd, record))  # type: ignore[misc]
    result = Rebuilt()
    for id, key in broken.items():
        with index.change() as change:
            change.txn.delete(keys.pair_key(*key), db=change.db["damaged"])
            found = sources.get(id)
            if found is None:
                change.note_damage(0, key[1], 0, id, NOT_FOUND)
                continue
            _, old, record = found
            # not an outcome, but these recipients are taken care of
            others = {
                bytes((item.channel,)) + keys.settled_key(b"", item.channel, r.address): 0
                for item in _other_items(change, id)
                for r in item.envelope.recipients
            }
            fd = os.open(old.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not _restore(spool, change, old, fd, record, facts, result, others, live=False):
                    change.lives_less(old.blob)
            finally:
                os.close(fd)
    for channel in {key[0] for key, number in index.counts().items() if number}:
        spool.announce(channel)
    missing = sum(1 for id in broken if id not in sources)
    return len(broken) - missing, missing


def _other_items(change: Change, id: bytes) -> Iterator[Item]:
    for name in ("queue", "lease"):
        for key, value in change.txn.cursor(change.db[name]):
            if key[-18:-2] == id:
                try:
                    yield keys.decode_item(value)
                except keys.DamagedRow:
                    continue


async def _let_go(spool: Spool) -> None:
    """Wait until the writers of an earlier index have let go of their segments, or died."""
    until = time.monotonic() + LET_GO_S
    while time.monotonic() < until:
        rows = spool.index.blob_rows()
        for path in (spool.params.path / "segments").glob("*.seg"):
            blob = blob_number(path.name)
            if blob is not None and blob not in rows and not free(path):
                break
        else:
            return
        await asyncio.sleep(0.05)


def free(path: Path) -> bool:
    """Whether no process holds the lock of a file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _segments(spool: Spool) -> list[_Old]:
    """All segments with a whole head, in the order they were made."""
    found = []
    for path in sorted((spool.params.path / "segments").glob("*.seg")):
        blob = blob_number(path.name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            opened = records.open_records(fd)
            if blob is not None and opened is not None:
                head, end, sealed = opened
                found.append(_Old(blob, path, head, end, os.fstat(fd).st_size, sealed))
        finally:
            os.close(fd)
    return found


def _old_segments(spool: Spool) -> list[_Old]:
    """Segments nobody of this life writes."""
    rows = spool.index.blob_rows()
    return [
        old
        for old in _segments(spool)
        # one that is locked was just made by a worker that has not entered it yet
        if (old.blob not in rows or not rows[old.blob].run) and free(old.path)
    ]


async def _each(old: _Old, visit: Callable[[int, Record], None], start: int = records.FILE_OCTETS) -> None:
    """Show every record of a segment by its header, in slices."""
    fd = os.open(old.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for number, record in enumerate(records.walk(fd, start, old.end, old.head.nonce)):
            visit(fd, record)
            if number % 256 == 255:
                await asyncio.sleep(0)
    finally:
        os.close(fd)
    await asyncio.sleep(0)


def _read_void(facts: Facts, old: _Old, fd: int, record: Record) -> None:
    if record.kind in (Kind.VOID, Kind.LEDGER) and records.intact(fd, record):
        facts.read(old.blob, fd, record)


async def _judge(old: _Old, facts: Facts, damaged: list[tuple[int, Damaged]], result: Rebuilt) -> None:
    """Check every record whole; take in outcomes, note what doesn't count."""
    bad = facts.bad.setdefault(old.blob, set())
    end = records.FILE_OCTETS
    fd = os.open(old.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for number, (record, broken, damage) in enumerate(
            counted(fd, records.FILE_OCTETS, old.end, old.head.nonce, unsealed=not old.sealed)
        ):
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            bad.update(r.offset for r in broken)
            end = max([end, *(found.end for found in (record, damage, *broken) if found is not None)])
            if damage is not None:
                bad.add(damage.offset)
                # A power cut leaves an unfinished end; anything else is a disk that forgets.
                if old.sealed or damage.end < old.end:
                    damaged.append((old.blob, damage))
            if record is None:
                continue
            result.records += 1
            if facts.is_void(old.blob, record):
                bad.add(record.offset)
            elif record.kind not in (Kind.VOID, Kind.LEDGER):
                try:
                    facts.read(old.blob, fd, record)
                except msgspec.DecodeError:
                    bad.add(record.offset)
                    damaged.append((old.blob, Damaged(record.offset, record.end, record.id, record.kind)))
    finally:
        os.close(fd)
    if not old.sealed:
        # What the power cut left of the room its writer had prepared.
        records.cut_zeros(old.path, end)
        old.end = old.size = end
    await asyncio.sleep(0)


async def _fill(spool: Spool, old: _Old, facts: Facts, result: Rebuilt) -> None:
    """Put what is open in a segment into the queue, a batch a transaction, each noting how far it came."""
    index = spool.index
    row = index.blob_row(old.blob)
    start = row.indexed if row is not None else records.FILE_OCTETS
    batch: list[Record] = []
    fd = os.open(old.path, os.O_RDONLY | os.O_CLOEXEC)

    def write(upto: int, last: bool) -> None:
        with index.change() as change:
            for record in batch:
                _restore(spool, change, old, fd, record, facts, result)
            change.edit_blob(
                old.blob, indexed=upto, role=old.head.role, created_ms=old.head.queue_ms, slot=old.head.slot
            )
            if last:
                for named in facts.named.get(old.blob, ()):
                    change.name(old.blob, named)
                change.edit_blob(old.blob, sealed=True, length=old.size)
        batch.clear()

    try:
        upto = start
        for record in records.walk(fd, start, old.end, old.head.nonce):
            if record.kind in (Kind.MESSAGE, Kind.MOVED) and record.offset not in facts.bad[old.blob]:
                batch.append(record)
            upto = record.end
            if len(batch) == _SLICE:
                write(upto, False)
                await asyncio.sleep(0)
        write(old.size, True)
    finally:
        os.close(fd)


def _restore(
    spool: Spool,
    change: Change,
    old: _Old,
    fd: int,
    record: Record,
    facts: Facts,
    result: Rebuilt,
    others: dict[bytes, int] | None = None,
    live: bool = True,
) -> bool:
    """Put one message back where it belongs, with the recipients that have no outcome; whether there were any.

    others: recipients that count as settled, as in `Facts.settled`.
    """
    generation = record.generation if record.kind == Kind.MOVED else 0
    if generation < facts.moved.get(record.id, 0):
        return False  # a younger copy stands elsewhere
    if facts.complete(record.id, generation):
        result.complete += 1
        return False
    settled = facts.settled(record.id) | (others or {})
    payload = records.read_payload(fd, record)
    if record.kind == Kind.MESSAGE:
        message = records.decode_message(payload)
        items = [message_item(old.blob, record, message)]
        classes = [keys.HELD if message.envelope.held else keys.FRESH]
    else:
        moved = records.decode_moved(payload)
        items, classes = moved.items, moved.classes
        for item in items:
            item.rope = placed(item.rope, old.blob, record.content)
            item.home = old.blob
    put = False
    for item, class_ in zip(items, classes, strict=True):
        item.envelope.recipients = [
            r
            for r in item.envelope.recipients
            if bytes((item.channel,)) + keys.settled_key(b"", item.channel, r.address) not in settled
        ]
        if not item.envelope.recipients:
            continue
        if item.channel == INPUT:
            for key, outcome in settled.items():
                if key[0] != INPUT:
                    change.txn.put(item.id + key[1:], bytes((outcome,)), db=change.db["settled"])
        missing = _missing(spool, item.rope)
        if missing:
            item.reason = missing
            class_ = QUARANTINED
        change.put(item, class_, live=live)
        put = True
        for extent in item.rope:
            if (
                isinstance(extent, Extent)
                and extent.blob != old.blob
                and (spool.params.path / "large" / large_name(extent.blob)).exists()
            ):
                change.edit_blob(extent.blob, large=True, sealed=True)
    result.messages += put
    return put


def _missing(spool: Spool, rope: Rope) -> str:
    """Why a content can't be read, or ''."""
    for piece in rope:
        if isinstance(piece, Extent):
            try:
                if os.fstat(spool.blobs.fd(piece.blob)).st_size < piece.offset + piece.length:
                    return f"the content in {piece.blob:016x} is cut short"
            except FileNotFoundError:
                return f"the content in {piece.blob:016x} is gone"
    return ""


def placed(rope: Rope, blob: int, content: int) -> Rope:
    """A MOVED item's rope, whose own octets are given from the start of the record's content in blob 0."""
    return [
        Extent(blob, content + piece.offset, piece.length, piece.codec)
        if isinstance(piece, Extent) and piece.blob == 0
        else piece
        for piece in rope
    ]


def message_item(blob: int, record: Record, message: records.MessageHead) -> Item:
    """The INPUT item of a MESSAGE record."""
    return Item(
        record.id,
        INPUT,
        "",
        message.envelope,
        records.message_rope(blob, record, message),
        reason=message.envelope.held,
        queued_ms=record.queue_ms,
        home=blob,
        fanout=len(message.envelope.recipients),
        sums=message.checksums(),
    )
