"""The queue index: one write transaction per step, counters and blob rows kept in it.

Synchronous and quick (no flush under LMDB's lock), so it is called on the loop. `keys.py` tells what is in it. Everything
here may be lost: `recovery.py` builds it again from the segments.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import msgspec
from msgspec import Struct

from iems import reserve
from iems.model import Extent, Result
from iems.spool import keys
from iems.spool.clock import QueueClock
from iems.spool.items import Item
from iems.spool.keys import (
    FRESH,
    HELD,
    LEASED,
    QUARANTINED,
    RETRY,
    BlobRow,
    Damage,
    DamagedRow,
    Destination,
    decode_blob,
    decode_destination,
    decode_item,
    destination_hash,
    encode,
    encode_item,
    has_agenda,
)

MAP_OCTETS = 256 << 30
#: Entries in one write transaction at most, so that no process waits long for the lock.
MAX_ENTRIES = 256


class Index:
    """The environment, opened after fork. path: spool/index."""

    def __init__(
        self,
        path: Path,
        *,
        map_octets: int = MAP_OCTETS,
        readonly: bool = False,
        on_damage: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.path = path
        self._map_octets = map_octets
        self._readonly = readonly
        self._on_damage = on_damage
        self._epoch_map = _epoch_file(path.parent, writable=not readonly)
        self._known_names: set[bytes] = set()
        self._open()

    def _open(self) -> None:
        for attempt in range(100):
            self.epoch = self._epoch_now()
            try:
                self.env = lmdb.open(
                    str(self.path),
                    map_size=self._map_octets,
                    max_dbs=len(keys.DATABASES),
                    max_readers=4096,
                    sync=False,
                    metasync=False,
                    readahead=False,
                    meminit=False,
                    readonly=self._readonly,
                    create=False,  # `recovery.prepare` makes it
                    mode=0o600,
                )
                break
            except lmdb.Error:
                # A damaged index is being replaced this moment, or there is none.
                if attempt == 99 or not self.path.parent.is_dir():
                    raise
                time.sleep(0.002)
        self.db: dict[str, Any] = {
            name: self.env.open_db(name.encode(), create=False) for name in keys.DATABASES
        }
        with self.env.begin() as txn:
            meta = self.db["meta"]
            self.run = int.from_bytes(txn.get(keys.META_RUN, db=meta) or b"", "big")
            self.clock = QueueClock(
                int.from_bytes(txn.get(keys.META_CLOCK, db=meta) or b"", "big", signed=True)
            )
            self.last_blob = int.from_bytes(txn.get(keys.META_BLOB, db=meta) or b"", "big")
        self.rebuilding = self.is_rebuilding()
        self._known_names.clear()

    def _epoch_now(self) -> bytes:
        return self._epoch_map[:8] if self._epoch_map is not None else b""

    def refresh(self) -> bool:
        """Open the new index if the janitor has replaced a damaged one; whether it had. Never inside a transaction."""
        if self._epoch_now() == self.epoch:
            return False
        self.env.close()
        self._open()
        return True

    def next_epoch(self) -> None:
        """Tell all processes that another index has taken this one's place."""
        assert self._epoch_map is not None
        self._epoch_map[:8] = (int.from_bytes(self._epoch_map[:8], "little") + 1).to_bytes(8, "little")

    def close(self) -> None:
        """Close the environment; nothing may use it any more."""
        self.env.close()
        if self._epoch_map is not None:
            self._epoch_map.close()

    def sync(self) -> None:
        """Put all of it on the disk (clean stop only)."""
        self.env.sync(True)

    @contextmanager
    def change(self) -> Iterator[Change]:
        """A write transaction; committed at the end of the block, dropped on an exception."""
        if self._epoch_map is not None and self._epoch_map[:8] != self.epoch:
            self.refresh()
        try:
            change = Change(self)
            try:
                yield change
            except BaseException:
                change.txn.abort()
                raise
            change.commit()
        except (lmdb.Error, msgspec.DecodeError) as error:
            if reserve.cut_short(error, self.path):
                raise lmdb.DiskError(f"{error}: {os.strerror(errno.ENOSPC)}") from error
            if self._on_damage is not None and is_damage(error):
                self._on_damage(error)
            raise
        except SystemError as error:
            # what the binding makes of a cursor that meets a bad page while it deletes
            if not isinstance(error.__cause__, lmdb.Error):
                raise
            if self._on_damage is not None and is_damage(error.__cause__):
                self._on_damage(error.__cause__)
            raise error.__cause__ from None

    def read(self) -> Any:
        """A read transaction (`with index.read() as txn`); never keep it across an await."""
        return self.env.begin()

    # --- meta

    def meta(self, name: bytes) -> bytes | None:
        """A row of the meta table."""
        with self.env.begin() as txn:
            value: bytes | None = txn.get(name, db=self.db["meta"])
            return value

    def set_meta(self, name: bytes, value: bytes | None) -> None:
        """Set or (None) delete a row of the meta table."""
        try:
            with self.env.begin(write=True) as txn:
                if value is None:
                    txn.delete(name, db=self.db["meta"])
                else:
                    txn.put(name, value, db=self.db["meta"])
        except lmdb.Error as error:
            if reserve.cut_short(error, self.path):
                raise lmdb.DiskError(f"{error}: {os.strerror(errno.ENOSPC)}") from error
            raise

    def is_rebuilding(self) -> bool:
        """Whether old segments are still being read in."""
        return self.meta(keys.META_REBUILD) is not None

    def channel_held(self, channel: int) -> bool:
        """Whether the channel is on hold."""
        return self.meta(keys.META_HOLD + bytes([channel])) is not None

    def hold_channel(self, channel: int, hold: bool) -> None:
        """Put a channel on hold: nothing is taken, later arrivals wait too; or let it go on."""
        self.set_meta(keys.META_HOLD + bytes([channel]), b"1" if hold else None)

    def named(self) -> dict[int, set[int]]:
        """Segment -> the segments its outcomes are about."""
        found: dict[int, set[int]] = {}
        with self.env.begin() as txn:
            for key in txn.cursor(self.db["names"]).iternext(values=False):
                blob, named = keys.unpack_pair_key(key)
                found.setdefault(blob, set()).add(named)
        return found

    def damages(self) -> dict[tuple[int, int], Damage]:
        """(blob, offset) -> what could not be read; blob 0: a row of this index."""
        with self.env.begin() as txn:
            return {keys.unpack_pair_key(k): keys.decode_damage(v) for k, v in txn.cursor(self.db["damaged"])}

    # --- look without changing

    def blob_row(self, blob: int) -> BlobRow | None:
        """The row of a segment or large content."""
        with self.env.begin() as txn:
            value = txn.get(blob.to_bytes(8, "big"), db=self.db["blob"])
            return decode_blob(value) if value else None

    def blob_rows(self) -> dict[int, BlobRow]:
        """All of them."""
        with self.env.begin() as txn:
            return {int.from_bytes(k, "big"): decode_blob(v) for k, v in txn.cursor(self.db["blob"])}

    def destination(self, channel: int, name: str) -> Destination | None:
        """How a next hop fares, or None if nothing is known."""
        with self.env.begin() as txn:
            value = txn.get(keys.dest_key(channel, destination_hash(name)), db=self.db["dest"])
            return decode_destination(value) if value else None

    def counts(self) -> dict[tuple[int, int], int]:
        """Items per (channel, class or LEASED)."""
        with self.env.begin() as txn:
            return {(k[0], k[1]): int.from_bytes(v, "big") for k, v in txn.cursor(self.db["count"])}

    def queued(
        self, wanted: Callable[[bytes, int], bool] | None = None
    ) -> Iterator[tuple[int, int, Item | None, bytes]]:
        """(class, due, item, key) of what is queued, in transactions of 1,000 rows; a damaged row gives item None.

        wanted: asked with (id, channel) before a row is decoded.
        """
        start = b""
        while True:
            rows = []
            with self.env.begin() as txn:
                cursor = txn.cursor(self.db["queue"])
                if cursor.set_range(start):
                    for key, value in cursor:
                        rows.append((key, value))
                        if len(rows) == 1000:
                            break
            for key, value in rows:
                channel, class_, _, due, id, _ = keys.unpack_queue_key(key)
                if wanted is None or wanted(id, channel):
                    try:
                        yield class_, due, decode_item(value), key
                    except DamagedRow:
                        yield class_, due, None, key
            if len(rows) < 1000:
                return
            start = rows[-1][0] + b"\0"

    def leased(self) -> Iterator[tuple[bytes, Item | None]]:
        """(key, item) of every lease."""
        with self.env.begin() as txn:
            rows = list(txn.cursor(self.db["lease"]))
        for key, value in rows:
            try:
                item = decode_item(value)
                item.lease = key
                yield key, item
            except DamagedRow:
                yield key, None


class Row(Struct):
    """An item of a channel whose queue is not divided by destination, ready to be put there."""

    key: bytes
    value: bytes
    item: Item
    class_: int

    @classmethod
    def of(cls, item: Item, class_: int, due_ms: int) -> Row:
        """The row of an item that goes into its queue for the first time."""
        return cls(keys.queue_key(item.channel, class_, 0, due_ms, item.id, item.part), encode_item(item), item, class_)


class Change:
    """One write transaction in the making. Differences of counters and blob rows are gathered and written once, at `commit`."""

    __slots__ = (
        "_any_settled",
        "_blobs",
        "_counts",
        "_dests",
        "_edits",
        "_queue",
        "db",
        "index",
        "now_ms",
        "txn",
    )

    def __init__(self, index: Index) -> None:
        self.index = index
        self.db = index.db
        self.now_ms = index.clock.now_ms()
        self.txn = index.env.begin(write=True)
        self._queue = index.db["queue"]
        self._counts: dict[bytes, int] = {}
        self._blobs: dict[int, list[int]] = {}  # blob -> [items, octets]
        self._edits: dict[int, dict[str, Any]] = {}  # blob -> fields of its row to set
        self._dests: dict[bytes, Destination] = {}
        self._any_settled: bool | None = None

    def commit(self) -> None:
        """Write the gathered differences and commit."""
        txn = self.txn
        count_db = self.db["count"]
        for key, difference in self._counts.items():
            if difference:
                number = int.from_bytes(txn.get(key, b"\0", db=count_db), "big") + difference
                txn.put(key, max(number, 0).to_bytes(8, "big"), db=count_db)
        blob_db = self.db["blob"]
        for blob in self._blobs.keys() | self._edits.keys():
            key = blob.to_bytes(8, "big")
            value = txn.get(key, db=blob_db)
            row = decode_blob(value) if value else BlobRow(created_ms=self.now_ms)
            for name, field in self._edits.get(blob, {}).items():
                setattr(row, name, max(row.indexed, field) if name == "indexed" else field)
            items, octets = self._blobs.get(blob) or [0, 0]
            row.live += items
            row.live_octets += octets
            if row.sealed and not row.sealed_ms:
                row.sealed_ms = self.now_ms
            if row.live > 0:
                row.idle_ms = 0
            elif not row.idle_ms:
                row.idle_ms = self.now_ms
            txn.put(key, encode(row), db=blob_db)
            if not value and blob > self.index.last_blob:
                self.index.last_blob = blob
                txn.put(keys.META_BLOB, key, db=self.db["meta"])
        dest_db = self.db["dest"]
        for key, destination in self._dests.items():
            txn.put(key, encode(destination), db=dest_db)
        txn.commit()

    def set_meta(self, name: bytes, value: bytes) -> None:
        """Set a row of the meta table."""
        self.txn.put(name, value, db=self.db["meta"])

    def drop_blob(self, blob: int) -> None:
        """Forget a blob whose name is gone, and what it named."""
        key = blob.to_bytes(8, "big")
        self.txn.delete(key, db=self.db["blob"])
        for name in ("names", "damaged"):
            with self.txn.cursor(self.db[name]) as cursor:
                cursor.set_range(key)
                while cursor.key().startswith(key):
                    cursor.delete()
        self.index._known_names.clear()

    # --- differences

    def count(self, channel: int, class_: int, difference: int) -> None:
        """Change a counter."""
        key = bytes((channel, class_))
        self._counts[key] = self._counts.get(key, 0) + difference

    def edit_blob(self, blob: int, **fields: Any) -> None:
        """Set fields of a blob's row (made if it has none); `indexed` only grows."""
        edit = self._edits.get(blob)
        if edit is None:
            self._edits[blob] = fields
        else:
            edit.update(fields)

    def live(self, item: Item, sign: int) -> None:
        """Count an item in (1) or out (-1) of the blobs that hold it."""
        home = item.home
        blobs = self._blobs
        entry = blobs.get(home)
        if entry is None:
            entry = blobs[home] = [0, 0]
        entry[0] += sign
        for piece in item.rope:
            if isinstance(piece, Extent):
                if piece.blob == home:
                    entry[1] += sign * piece.length
                else:
                    other = blobs.setdefault(piece.blob, [0, 0])
                    other[0] += sign
                    other[1] += sign * piece.length

    def lives_less(self, blob: int) -> None:
        """One item that was counted in a blob turned out to be none."""
        self._blobs.setdefault(blob, [0, 0])[0] -= 1

    # --- queue

    def put(self, item: Item, class_: int = FRESH, due_ms: int = 0, *, live: bool = True) -> None:
        """Queue an item; due_ms 0: now. It must not be leased."""
        due_ms = due_ms or self.now_ms
        channel = item.channel
        item.lease = b""
        hashed = destination_hash(item.destination) if channel else 0
        self.txn.put(
            keys.queue_key(channel, class_, hashed, due_ms, item.id, item.part),
            encode_item(item),
            db=self._queue,
        )
        self.count(channel, class_, 1)
        if live:
            self.live(item, 1)
        if hashed and class_ < HELD and has_agenda(channel):
            self._announce(channel, hashed, item.destination, due_ms)

    def put_row(self, row: Row) -> None:
        """Queue an item that was made into a row before; it counts as live from now on."""
        self.txn.put(row.key, row.value, db=self._queue)
        self.count(row.item.channel, row.class_, 1)
        self.live(row.item, 1)

    def remove(self, key: bytes, item: Item, *, live: bool = True) -> bool:
        """Take a queued item out; False if it is not there any more. live: it lives no longer."""
        if not self.txn.delete(key, db=self._queue):
            return False
        self.count(key[0], key[1], -1)
        if live:
            self.live(item, -1)
        return True

    def lease(self, key: bytes, item: Item, generation: int, slot: int) -> bool:
        """Lease one queued item, held or not; False if it is not there any more."""
        value = self.txn.get(key, db=self._queue)
        if value is None or not self.remove(key, item, live=False):
            return False
        item.lease = keys.holder_key(self.index.run, generation, slot) + key[:1] + key[2:10] + key[18:]
        self.txn.put(item.lease, value, db=self.db["lease"])
        self.count(item.channel, LEASED, 1)
        if item.destination and has_agenda(item.channel):
            self.destination(item.channel, destination_hash(item.destination), item.destination).leased += 1
        return True

    def unlease(self, item: Item) -> bool:
        """End a lease; False if it is not held any more. The item is then in no queue, but still counted as live."""
        if not item.lease or not self.txn.delete(item.lease, db=self.db["lease"]):
            return False
        channel = item.channel
        self.count(channel, LEASED, -1)
        if item.destination and has_agenda(channel):
            hashed = destination_hash(item.destination)
            destination = self.destination(channel, hashed, item.destination)
            destination.leased = max(0, destination.leased - 1)
            if (destination.limit or destination.failures) and destination.agenda_ms < 0:
                self.arm(channel, hashed, destination)
        return True

    def give_back(self, item: Item, due_ms: int = 0) -> bool:
        """Return a leased item to its queue, as it was taken; False if the lease was lost."""
        if not self.unlease(item):
            return False
        self.put(item, RETRY if item.attempts else FRESH, due_ms, live=False)
        return True

    def is_on_hold(self, channel: int) -> bool:
        """Whether nothing may be taken from this channel."""
        return self.txn.get(keys.META_HOLD + bytes((channel,)), db=self.db["meta"]) is not None

    def take(
        self, channel: int, limit: int, generation: int, slot: int, leave: Collection[int] = ()
    ) -> tuple[list[Item], int | None]:
        """Lease up to `limit` items that are due; the second value is when the next one is (queue time), or None.

        One in four places goes to items tried before, if any are due; destinations take turns. leave: hashes of destinations
        to pass over; when their items are due is not told.
        """
        if self.is_on_hold(channel):
            return [], None
        holder = keys.holder_key(self.index.run, generation, slot)
        taken: list[Item] = []
        if has_agenda(channel):
            return taken, self._take_by_agenda(channel, limit, holder, taken, leave)
        due = self._take_from(channel, 0, limit, holder, taken, self.now_ms)
        return taken, due

    def _take_from(
        self, channel: int, hashed: int, limit: int, holder: bytes, taken: list[Item], upto_ms: int
    ) -> int | None:
        """Lease what was due at `upto_ms` from one destination's queue; gives when its next item is due, or None."""
        retries: list[Item] = []
        late = self._take_class(channel, RETRY, hashed, max(1, limit // 4), holder, retries, upto_ms)
        fresh: list[Item] = []
        early = self._take_class(channel, FRESH, hashed, limit - len(retries), holder, fresh, upto_ms)
        if len(fresh) + len(retries) < limit and late is not None and late <= upto_ms:
            late = self._take_class(
                channel, RETRY, hashed, limit - len(fresh) - len(retries), holder, retries, upto_ms
            )
        taken += fresh
        taken += retries
        return min((due for due in (early, late) if due is not None), default=None)

    def _take_class(
        self, channel: int, class_: int, hashed: int, limit: int, holder: bytes, taken: list[Item], upto_ms: int
    ) -> int | None:
        prefix = keys.queue_prefix(channel, class_, hashed)
        upto = upto_ms.to_bytes(8, "big")
        leases: list[tuple[bytes, bytes]] = []
        with self.txn.cursor(self._queue) as cursor:
            cursor.set_range(prefix)
            next_due = None
            while True:
                key = cursor.key()
                if not key.startswith(prefix):
                    break
                if key[10:18] > upto or limit <= 0:
                    next_due = int.from_bytes(key[10:18], "big")
                    break
                value = cursor.value()
                try:
                    item = decode_item(value)
                except DamagedRow as error:
                    self._set_aside(key, str(error))
                else:
                    lease = item.lease = holder + key[:1] + key[2:10] + key[18:]
                    leases.append((lease, value))
                    taken.append(item)
                    limit -= 1
                cursor.delete()
        if leases:
            with self.txn.cursor(self.db["lease"]) as cursor:
                cursor.putmulti(leases)
            self.count(channel, class_, -len(leases))
            self.count(channel, LEASED, len(leases))
        return next_due

    def _set_aside(self, key: bytes, what: str) -> None:
        """Note a row that can't be read; the janitor looks for its message in the segments."""
        channel, class_, _, _, id, part = keys.unpack_queue_key(key)
        self.count(channel, class_, -1)
        self.note_damage(0, int.from_bytes(id[-6:], "big") << 16 | part, 0, id, f"queue row: {what}")

    def note_damage(self, blob: int, offset: int, end: int, id: bytes, what: str) -> None:
        """Remember a damaged stretch or row for `fsck` and the janitor."""
        self.txn.put(
            keys.pair_key(blob, offset), encode(Damage(end, id, what, time.time_ns())), db=self.db["damaged"]
        )

    # --- destinations

    def destination(self, channel: int, hashed: int, name: str = "") -> Destination:
        """A destination's row, to be changed in place; written at commit."""
        key = keys.dest_key(channel, hashed)
        found = self._dests.get(key)
        if found is None:
            value = self.txn.get(key, db=self.db["dest"])
            found = self._dests[key] = decode_destination(value) if value else Destination(name)
        return found

    def _announce(self, channel: int, hashed: int, name: str, due_ms: int) -> None:
        """See to it that takers come by when an item is due."""
        destination = self.destination(channel, hashed, name)
        most = keys.most_leased(destination, self.now_ms)
        if most and destination.leased >= most:
            return
        due_ms = keys.resumes_ms(due_ms, destination.backoff_ms)
        if destination.agenda_ms < 0 or due_ms < destination.agenda_ms:
            self._enter(channel, hashed, destination, due_ms)

    def _enter(self, channel: int, hashed: int, destination: Destination, due_ms: int) -> None:
        agenda = self.db["agenda"]
        if destination.agenda_ms >= 0:
            self.txn.delete(keys.agenda_key(channel, destination.agenda_ms, hashed), db=agenda)
        destination.agenda_ms = due_ms
        if due_ms >= 0:
            self.txn.put(keys.agenda_key(channel, due_ms, hashed), b"", db=agenda)

    def arm(self, channel: int, hashed: int, destination: Destination) -> None:
        """Put a destination where its earliest item belongs in the agenda, or take it out."""
        most = keys.most_leased(destination, self.now_ms)
        if most and destination.leased >= most:
            self._enter(channel, hashed, destination, -1)
            return
        due = None
        with self.txn.cursor(self._queue) as cursor:
            for class_ in (FRESH, RETRY):
                prefix = keys.queue_prefix(channel, class_, hashed)
                if cursor.set_range(prefix) and cursor.key().startswith(prefix):
                    first = int.from_bytes(cursor.key()[10:18], "big")
                    due = first if due is None else min(due, first)
        if due is None:
            self._enter(channel, hashed, destination, -1)
        else:
            # not before now: who still has work goes behind those that wait
            self._enter(channel, hashed, destination, max(keys.resumes_ms(due, destination.backoff_ms), self.now_ms))

    def _take_by_agenda(
        self, channel: int, limit: int, holder: bytes, taken: list[Item], leave: Collection[int]
    ) -> int | None:
        """Go round the destinations that are due, each giving its share."""
        due: list[int] = []
        later = None
        with self.txn.cursor(self.db["agenda"]) as cursor:
            cursor.set_range(bytes((channel,)))
            while True:
                key = cursor.key()
                if not key or key[0] != channel:
                    break
                _, at, hashed = keys.unpack_agenda_key(key)
                if at > self.now_ms or len(due) >= limit:
                    later = at
                    break
                if hashed not in leave:
                    due.append(hashed)
                cursor.next()
        share = -(-limit // len(due)) if due else 0
        for hashed in due:
            room = min(share, limit - len(taken))
            destination = self.destination(channel, hashed)
            most = keys.most_leased(destination, self.now_ms)
            if most:
                room = min(room, most - destination.leased)
            if room > 0:
                before = len(taken)
                late = keys.LATE_MS if destination.backoff_ms > self.now_ms else 0
                self._take_from(channel, hashed, room, holder, taken, max(self.now_ms - late, 0))
                destination.leased += len(taken) - before
            self.arm(channel, hashed, destination)
            if destination.agenda_ms >= 0 and (later is None or destination.agenda_ms < later):
                later = destination.agenda_ms
        return later

    def take_waiting(
        self, channel: int, names: Collection[str], limit: int, generation: int, slot: int, leave: Collection[bytes] = ()
    ) -> list[Item]:
        """Lease up to `limit` items of these destinations, due or not; what is on hold stays. leave: ends of keys (id and part) to pass over."""
        if self.is_on_hold(channel):
            return []
        taken: list[Item] = []
        for name in names:
            hashed = destination_hash(name)
            found: list[tuple[bytes, bytes]] = []
            with self.txn.cursor(self._queue) as cursor:
                for class_ in (RETRY, FRESH):
                    prefix = keys.queue_prefix(channel, class_, hashed)
                    more = cursor.set_range(prefix)
                    while more and len(taken) + len(found) < limit and cursor.key().startswith(prefix):
                        if bytes(cursor.key()[18:]) not in leave:
                            found.append((bytes(cursor.key()), bytes(cursor.value())))
                        more = cursor.next()
            for key, value in found:
                try:
                    item = decode_item(value)
                except DamagedRow as error:
                    if self.txn.delete(key, db=self._queue):
                        self._set_aside(key, str(error))
                    continue
                if self.lease(key, item, generation, slot):
                    taken.append(item)
            if found:
                self.arm(channel, hashed, self.destination(channel, hashed, name))
        return taken

    def drop_damaged_lease(self, key: bytes) -> None:
        """Take a lease whose row can't be read out of account; the janitor looks for its message in the segments."""
        if self.txn.delete(key, db=self.db["lease"]):
            _, _, _, channel, _, id, part = keys.unpack_lease_key(key)
            self.count(channel, LEASED, -1)
            self.note_damage(0, int.from_bytes(id[-6:], "big") << 16 | part, 0, id, "lease row")

    def is_leased(self, id: bytes) -> bool:
        """Whether anybody works on an item of this message."""
        return any(key[-18:-2] == id for key in self.txn.cursor(self.db["lease"]).iternext(values=False))

    # --- settlement

    def settle(self, item: Item, results: list[Result], deferred: list[Result]) -> bool:
        """Apply the outcome of a leased item: what is deferred stays queued; False if the lease was lost."""
        if not self.unlease(item):
            if item.lease and int.from_bytes(item.lease[:4], "big") != self.index.run:
                self._settle_late(item, [r for r in results if r not in deferred])
            return False
        if not deferred:
            self.live(item, -1)
            return True
        recipients = []
        for result in deferred:
            result.recipient.attempts += 1
            if result.reply is not None:
                result.recipient.reply = result.reply
                item.reason = f"{result.reply.code} {result.reply.status} {result.reply.text}"
            recipients.append(result.recipient)
        item.envelope.recipients = recipients
        item.attempts += 1
        delay_ms = int(min(result.next_attempt_s for result in deferred) * 1000)
        self.put(item, RETRY, self.now_ms + max(0, delay_ms), live=False)
        return True

    def _settle_late(self, item: Item, results: list[Result]) -> None:
        """Apply the outcome of an item leased under an index since replaced; its message may be queued again already."""
        self.note_settled(item.id, [(r.recipient, r.outcome) for r in results], item.channel)
        settled = {r.recipient.address for r in results}
        again = [
            bytes(key)
            for key in self.txn.cursor(self._queue).iternext(values=False)
            if key[18:34] == item.id and key[0] == item.channel and key[0]
        ]
        for key in again:
            try:
                found = decode_item(self.txn.get(key, db=self._queue) or b"")
            except DamagedRow:
                continue
            left = [r for r in found.envelope.recipients if r.address not in settled]
            if len(left) == len(found.envelope.recipients):
                continue
            if self.remove(key, found, live=not left) and left:
                found.envelope.recipients = left
                self.put(found, key[1], int.from_bytes(key[10:18], "big"), live=False)

    def prune_settled(self) -> None:
        """Forget outcomes of messages that no longer wait to be routed again."""
        waiting = {
            bytes(key[-18:-2])
            for name, at in (("queue", 0), ("lease", 10))
            for key in self.txn.cursor(self.db[name]).iternext(values=False)
            if key[at] == 0
        }
        with self.txn.cursor(self.db["settled"]) as cursor:
            more = cursor.first()
            while more:
                more = (
                    cursor.next() if cursor.key()[:16] in waiting else cursor.delete() and bool(cursor.key())
                )

    def note_settled(self, id: bytes, outcomes: list[tuple[Any, int]], channel: int) -> None:
        """Remember outcomes of a message whose items are not all known (rebuild)."""
        self._any_settled = True
        for recipient, outcome in outcomes:
            address = recipient if isinstance(recipient, bytes) else recipient.address
            self.txn.put(keys.settled_key(id, channel, address), bytes((outcome,)), db=self.db["settled"])

    def is_settled(self, id: bytes, channel: int, address: bytes) -> bool:
        """Whether an outcome is remembered."""
        return self.txn.get(keys.settled_key(id, channel, address), db=self.db["settled"]) is not None

    def any_settled(self) -> bool:
        """Whether outcomes of any message are remembered; nearly never, as no index was lost lately."""
        if self._any_settled is None:
            self._any_settled = self.txn.stat(self.db["settled"])["entries"] > 0
        return self._any_settled

    def has_settled(self, id: bytes) -> bool:
        """Whether any outcome of the message is remembered."""
        if not self.any_settled():
            return False
        with self.txn.cursor(self.db["settled"]) as cursor:
            return bool(cursor.set_range(id) and cursor.key().startswith(id))

    def forget_settled(self, id: bytes) -> None:
        """Routing was repeated: the remembered outcomes have done their duty."""
        with self.txn.cursor(self.db["settled"]) as cursor:
            cursor.set_range(id)
            while cursor.key().startswith(id):
                cursor.delete()

    def name(self, blob: int, named: int) -> None:
        """Note that `blob` says something about `named` and must stay as long."""
        key = keys.pair_key(blob, named)
        known = self.index._known_names
        if key not in known:
            if len(known) > 65536:
                known.clear()
            self.txn.put(key, b"", db=self.db["names"])
            known.add(key)


#: LMDB's complaints that are about room or use, not about what stands in the file.
_NO_DAMAGE = (
    lmdb.MapFullError,
    lmdb.DbsFullError,
    lmdb.ReadersFullError,
    lmdb.TxnFullError,
    lmdb.MapResizedError,
    lmdb.MemoryError,
    lmdb.LockError,
    lmdb.ReadonlyError,
    lmdb.DiskError,
)


def is_damage(error: BaseException) -> bool:
    """Whether an error means that the index itself can't be trusted any more."""
    if isinstance(error, lmdb.Error):
        text = str(error)
        # about room, and first: LMDB calls a write that a full disk cut short an I/O error (`Index.change`)
        if any(os.strerror(number) in text for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)):
            return False
        return os.strerror(errno.EIO) in text or not isinstance(error, _NO_DAMAGE)
    return isinstance(error, msgspec.DecodeError)


def _epoch_file(folder: Path, writable: bool) -> mmap.mmap | None:
    """The number of the index in force, shared by all processes; None where it can't be had (a reader of a stopped spool)."""
    try:
        fd = os.open(
            folder / "epoch", (os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY) | os.O_CLOEXEC, 0o600
        )
    except OSError:
        return None
    try:
        if os.fstat(fd).st_size < 8:
            if not writable:
                return None
            os.posix_fallocate(fd, 0, 8)
        return mmap.mmap(fd, 8, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
    finally:
        os.close(fd)


__all__ = ["MAX_ENTRIES", "QUARANTINED", "Change", "Index", "is_damage"]
