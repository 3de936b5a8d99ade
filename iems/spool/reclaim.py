"""Giving disk space back: segments and large contents nobody needs go, the last living messages of old ones move.

A segment may go when it is sealed, nothing in it lives, and every segment its outcomes are about is gone or goes with it: after a
lost index those outcomes are all that tells a delivered message from one to deliver. The set is written to a LEDGER record
first, with the sums `audit` needs, so a crash between two unlinks leaves no half-remembered outcome. Names go no earlier
than ten minutes after the last need for them, so whoever was just handed an extent can still link or read it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from iems.blobs import blob_number, large_name, segment_name
from iems.durable import sync_folder
from iems.model import Channel, Extent, Outcome, Rope
from iems.spool import keys, records
from iems.spool.index import Change
from iems.spool.items import Item
from iems.spool.keys import BlobRow
from iems.spool.rebuild import free, placed
from iems.spool.records import Done, Kind, Ledger, MovedHead, Record
from iems.spool.spool import AwaitedPost

if TYPE_CHECKING:
    from iems.spool.spool import Spool

#: How long a name stays after the last need for it.
LINGER_MS = 600_000
#: Age at which a mostly dead segment is emptied, and at which any is.
MOVE_SPARSE_MS = 3_600_000
MOVE_ALL_MS = 86_400_000
#: A segment is mostly dead with less than this part of its octets alive.
SPARSE = 0.25
#: Files nobody knows go after this time without a write.
ORPHAN_S = 3600.0
#: Messages moved in one round at most.
_MOVES = 1000
_COUNTED = ("accepted", "delivered", "relayed", "dsn", "discarded", "made")


class Reclaimed(Struct):
    """What a round did. files: names removed; octets: their size; moved: messages copied out of old segments."""

    files: int = 0
    octets: int = 0
    moved: int = 0
    damaged: int = 0


# --- the ledger


def tally(fd: int, upto: int | None = None, void: list[tuple[int, int]] | None = None) -> dict[str, int]:
    """What the records of a segment add to the audit's sums; read by headers and payloads only."""
    totals = dict.fromkeys(_COUNTED, 0)
    opened = records.open_records(fd)
    if opened is None:
        return totals
    head, end, _ = opened
    for record in records.walk(fd, records.FILE_OCTETS, min(end, upto) if upto else end, head.nonce):
        if any(start <= record.offset < stop for start, stop in void or ()):
            continue
        add_record(totals, fd, record)
    return totals


def add_record(totals: dict[str, int], fd: int, record: Record) -> list[Done]:
    """Add one record to the sums; its outcomes. Damaged ones add nothing."""
    if record.kind not in (Kind.MESSAGE, Kind.SETTLE):
        return []
    try:
        payload = records.read_payload(fd, record)
        if record.kind == Kind.MESSAGE:
            message = records.decode_message(payload)
            if message.envelope.input_channel == Channel.MTA or message.envelope.parent:
                totals["made"] += 1
            else:
                totals["accepted"] += len(message.envelope.recipients)
            settles = message.settles
        else:
            settles = records.decode_settle(payload)
    except (ValueError, OSError):
        return []
    for done in settles:
        add_outcomes(totals, done)
    return settles


_SUM = {
    int(Outcome.DELIVERED): "delivered",
    int(Outcome.RELAYED): "relayed",
    int(Outcome.FAILED): "dsn",
    int(Outcome.DISCARDED): "discarded",
    int(Outcome.EXPANDED): "delivered",
}


#: Channels whose mail was made here because of other mail, which has its own outcomes.
_MADE = frozenset({int(Channel.MTA), int(Channel.LOCALOUT)})


def add_outcomes(totals: dict[str, int], done: Done) -> None:
    """Add outcomes to the sums: those of accepted mail, not of notices and forwards made here."""
    if done.origin not in _MADE:
        for _, outcome in done.results:
            name = _SUM.get(outcome)
            if name:
                totals[name] += 1


class _LedgerPost(AwaitedPost):
    """Sums of all segments gone so far, and the names that go now."""

    __slots__ = ("ledger",)

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(Kind.LEDGER, payload=records.encode(ledger))
        self.ledger = ledger

    def apply(self, change: Change) -> None:
        change.set_meta(keys.META_LEDGER, self.payload)


def read_ledger(spool: Spool) -> Ledger:
    """The ledger in force."""
    value = spool.index.meta(keys.META_LEDGER)
    return records.decode_ledger(value) if value else Ledger(0, {}, [])


# --- removing


async def reclaim(spool: Spool, *, linger_ms: int = LINGER_MS) -> Reclaimed:
    """One round; does nothing while the index is being built. Run by the janitor alone."""
    done = Reclaimed()
    index = spool.index
    if index.is_rebuilding():
        return done
    with index.change() as change:
        if change.any_settled():
            change.prune_settled()
    ledger = read_ledger(spool)
    await _unlink_gone(spool, ledger, done)
    rows = index.blob_rows()
    now_ms = index.clock.now_ms()
    going = _going(rows, index.named(), now_ms - linger_ms)
    ours = [blob for blob in going if not rows[blob].large and rows[blob].role != "janitor"]
    if going and (ours or len(going) > 3):
        # the janitor's own segments hold little but ledgers: they don't go one by one, each for the sake of the next
        totals = dict(ledger.totals)
        void = _voids(spool, going)
        for blob in going:
            if not rows[blob].large:
                await _add_segment(spool, blob, void.get(blob, []), totals)
        ledger = Ledger(ledger.sequence + 1, totals, sorted(going))
        # Outcomes that are only in the page cache may be needed by what stays; those in going segments are old enough.
        await spool.record([_LedgerPost(ledger)])
        await _unlink_gone(spool, ledger, done)
    return done


def _going(rows: dict[int, BlobRow], named: dict[int, set[int]], before_ms: int) -> set[int]:
    """The largest set that may go together."""
    going = {
        blob
        for blob, row in rows.items()
        if row.sealed and row.live <= 0 and row.idle_ms and max(row.idle_ms, row.sealed_ms) <= before_ms
    }
    while True:
        kept = {
            blob for blob in going if any(name in rows and name not in going for name in named.get(blob, ()))
        }
        if not kept:
            return going
        going -= kept


def _voids(spool: Spool, blobs: set[int]) -> dict[int, list[tuple[int, int]]]:
    """Ranges of these segments that don't count: from the sealed length on, and what VOID records elsewhere say."""
    found: dict[int, list[tuple[int, int]]] = {}
    namers = {blob for blob, named in spool.index.named().items() if named & blobs}
    for blob in namers:
        try:
            fd = os.open(spool.params.path / "segments" / segment_name(blob), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            opened = records.open_records(fd)
            if opened is None:
                continue
            head, end, _ = opened
            for record in records.walk(fd, records.FILE_OCTETS, end, head.nonce):
                if record.kind == Kind.VOID and records.intact(fd, record):
                    for named, start, stop in records.decode_void(records.read_payload(fd, record)):
                        found.setdefault(named, []).append((start, stop))
        finally:
            os.close(fd)
    return found


async def _add_segment(spool: Spool, blob: int, void: list[tuple[int, int]], totals: dict[str, int]) -> None:
    try:
        fd = os.open(spool.params.path / "segments" / segment_name(blob), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        found = await spool.loop.run_in_executor(spool.executor, tally, fd, None, void)
    finally:
        os.close(fd)
    for name, number in found.items():
        totals[name] = totals.get(name, 0) + number


async def _unlink_gone(spool: Spool, ledger: Ledger, done: Reclaimed) -> None:
    """Remove what the ledger says goes, then forget it. Repeated after a crash until all is done."""
    rows = spool.index.blob_rows()
    gone = [blob for blob in ledger.gone if blob in rows]
    if not gone:
        return
    path = spool.params.path
    for blob in gone:
        for place in (path / "segments" / segment_name(blob), path / "large" / large_name(blob)):
            try:
                done.octets += place.stat().st_size
                place.unlink()
                done.files += 1
            except FileNotFoundError:
                pass
        spool.blobs.forget(blob)
        await asyncio.sleep(0)

    def sync() -> None:
        sync_folder(path / "segments")
        sync_folder(path / "large")

    await spool.loop.run_in_executor(spool.executor, sync)
    for start in range(0, len(gone), 64):
        with spool.index.change() as change:
            for blob in gone[start : start + 64]:
                change.drop_blob(blob)


def remove_orphans(spool: Spool, *, older_s: float = ORPHAN_S) -> int:
    """Files no row names and nobody holds: uploads cut short, segments without a record. How many."""
    if spool.index.is_rebuilding():
        return 0
    rows = spool.index.blob_rows()
    removed = 0
    for folder in ("segments", "large"):
        for path in (spool.params.path / folder).iterdir():
            blob = blob_number(path.name)
            if blob is None or blob in rows:
                continue
            try:
                if time.time() - path.stat().st_mtime < older_s or not free(path):
                    continue
                if folder == "segments" and path.stat().st_size > records.FILE_OCTETS:
                    continue  # a stranger with records: fsck names it, nobody deletes it unseen
                path.unlink()
                removed += 1
            except FileNotFoundError:
                continue
    return removed


# --- moving


#: An item in a move: it, its class in the queue, its due time.
Placed = tuple[Item, int, int]
#: What becomes of a message's items in a move: (place of the item it comes from, new item, class, due).
Made = tuple[int, Item, int, int]


class _MovedPost(AwaitedPost):
    """A copy of a message that lives on, with its items. made: as they stand from now on; ropes: of the items they come from."""

    __slots__ = ("items", "made")

    def __init__(self, items: list[Placed], ropes: list[Rope], pieces: list[bytes], made: list[Made]) -> None:
        first = items[0][0]
        fanout = len({(new.channel, r.address) for _, new, _, _ in made for r in new.envelope.recipients})
        generation = first.generation + 1
        copies = [
            structs.replace(new, rope=ropes[at], generation=generation, fanout=fanout, lease=b"")
            for at, new, _, _ in made
        ]
        head = MovedHead(copies, [class_ for _, _, class_, _ in made])
        super().__init__(
            Kind.MOVED,
            first.id,
            records.encode(head),
            pieces,
            generation=generation,
            units=max(len(items), len(made)),
        )
        self.items = [item for item, _, _ in items]
        self.made = [
            (at, copy, class_, due) for (at, _, class_, due), copy in zip(made, copies, strict=True)
        ]

    def apply(self, change: Change) -> None:
        change.name(self.blob, self.items[0].home)  # the copy says that the original counts no more
        held = [change.unlease(old) for old in self.items]
        for old, was_held in zip(self.items, held, strict=True):
            if was_held:
                change.live(old, -1)
        for at, copy, class_, due_ms in self.made:
            if held[at]:
                copy.rope = placed(copy.rope, self.blob, self.content)
                copy.home = self.blob
                change.put(copy, class_, due_ms)


async def move_old(
    spool: Spool, *, sparse_ms: int = MOVE_SPARSE_MS, all_ms: int = MOVE_ALL_MS, limit: int = _MOVES
) -> Reclaimed:
    """Copy the last living messages of old segments to this process's own, so that the old ones can go.

    Messages somebody is working on are left for the next round.
    """
    done = Reclaimed()
    index = spool.index
    if index.is_rebuilding():
        return done
    now_ms = index.clock.now_ms()
    old = {
        blob
        for blob, row in index.blob_rows().items()
        if not row.large
        and row.sealed
        and row.live > 0
        and (
            now_ms - row.created_ms >= all_ms
            or (now_ms - row.created_ms >= sparse_ms and row.live_octets < SPARSE * max(row.length, 1))
        )
    }
    if not old:
        return done
    found: dict[bytes, list[tuple[bytes, Item, int, int]]] = {}
    for number, (class_, due_ms, item, key) in enumerate(index.queued()):
        if number % 256 == 255:
            await asyncio.sleep(0)
        if item is not None and item.home in old:
            if item.id not in found and len(found) >= limit:
                continue
            found.setdefault(item.id, []).append((key, item, class_, due_ms))
    sources: dict[int, dict[bytes, Record]] = {}
    for group in found.values():
        home = group[0][1].home
        if home not in sources:
            sources[home] = messages_of(spool, home)
        await move_message(spool, group, sources[home], done)
    return done


def messages_of(spool: Spool, blob: int) -> dict[bytes, Record]:
    """id -> its record in a segment."""
    fd = spool.blobs.fd(blob)
    opened = records.open_records(fd)
    if opened is None:
        return {}
    head, end, _ = opened
    return {
        record.id: record
        for record in records.walk(fd, records.FILE_OCTETS, end, head.nonce)
        if record.kind in (Kind.MESSAGE, Kind.MOVED)
    }


async def move_message(
    spool: Spool,
    group: list[tuple[bytes, Item, int, int]],
    source: dict[bytes, Record],
    done: Reclaimed,
    edit: Callable[[list[Placed]], list[Made]] | None = None,
) -> None:
    """Copy one message with all its items, given with their keys, or leave it as it is if somebody works on it.

    source: records of its segment. edit: what becomes of the items; without, they stay as they are. Raises SpoolError.
    """
    index = spool.index
    first = group[0][1]
    record = source.get(first.id)
    if record is None or not records.intact(spool.blobs.fd(first.home), record):
        # a copy would give the damage a good checksum
        with index.change() as change:
            for key, item, _, _ in group:
                if change.remove(key, item, live=False):
                    item.reason = "its record is damaged"
                    change.put(item, keys.QUARANTINED, live=False)
            if record is not None:
                change.note_damage(first.home, record.offset, record.end, first.id, "record")
        done.damaged += 1
        return
    leased: list[Placed] = []
    with index.change() as change:
        if change.is_leased(first.id) or change.has_settled(first.id):
            # Outcomes from before a rebuild wait for the message to be routed again; a copy would not carry them.
            return
        for key, item, class_, due_ms in group:
            if not change.lease(key, item, spool.params.generation, spool.params.slot):
                continue
            leased.append((item, class_, due_ms))
    if len(leased) != len(group):
        with index.change() as change:
            for item, class_, due_ms in leased:
                if change.unlease(item):
                    change.put(item, class_, due_ms, live=False)
        return
    try:
        pieces: list[bytes] = []
        ropes: list[Rope] = []
        known: dict[bytes, Rope] = {}
        size = 0
        for item, _, _ in leased:
            token = records.encode(item.rope)
            rope = known.get(token)
            if rope is None:
                rope = known[token] = []
                for piece in item.rope:
                    if isinstance(piece, Extent) and not _is_large(spool, piece.blob):
                        octets = spool.blobs.read([piece])
                        rope.append(Extent(0, size, len(octets), piece.codec))
                        pieces.append(octets)
                        size += len(octets)
                    else:
                        rope.append(piece)
            ropes.append(list(rope))
        made = (
            edit(leased)
            if edit is not None
            else [(at, item, class_, due_ms) for at, (item, class_, due_ms) in enumerate(leased)]
        )
        await spool.record([_MovedPost(leased, ropes, pieces, made)])
    except BaseException:
        with index.change() as change:
            for item, class_, due_ms in leased:
                if change.unlease(item):
                    change.put(item, class_, due_ms, live=False)
        raise
    done.moved += 1


def _is_large(spool: Spool, blob: int) -> bool:
    row = spool.index.blob_row(blob)
    return row is not None and row.large
