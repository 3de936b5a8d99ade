"""What waits by destination: one row for each channel and next hop, counted by keys alone.

Rows are read in short transactions, and of each destination one item a class is decoded, so a look at a long queue costs neither
memory by message nor the workers' time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from iems.model import Channel
from iems.spool import admin, keys
from iems.spool.index import Index

if TYPE_CHECKING:
    from iems.blobs import Blobs
    from iems.spool.items import Item
    from iems.spool.weight import Weights

#: Keys read in one transaction.
_SLICE = 10_000
#: Items of a destination that are weighed, in each class those that are due first: weighing may read a header.
WEIGHED = 64
_STATE = {keys.FRESH: "ready", keys.RETRY: "deferred", keys.HELD: "held", keys.QUARANTINED: "quarantined"}


class _Row(Struct):
    """Counts by state; the oldest message, in ms of its id; the first key of each class."""

    counts: dict[str, int]
    oldest_ms: int
    first: dict[int, bytes]


def destinations(path: Path, channel: int | None = None, weights: Weights | None = None) -> list[dict[str, Any]]:
    """Every destination with mail that waits, in the order of channels and names.

    channel, destination ("" for INPUT and LOCAL), on_hold, ready, leased, deferred, held, quarantined, oldest_s (by the time in
    the message's id), reason (what its host said last, or its first item's reason), next_attempt (RFC 3339 in UTC, or None), failures
    (of the destination, in a row), limit (items leased at once, 0: any), weight (of what leaves first among the `WEIGHED` that are due first; None
    where nothing is weighed: without weights, and on other channels than SMTPC). On a channel on hold all that is ready or deferred is held.
    """
    with admin.content_of(path, weights) as blobs, admin.looking(path) as index:
        rows: dict[tuple[int, int], _Row] = {}
        _count_queued(index, channel, rows)
        _count_leased(index, channel, rows)
        now_ms = time.time_ns() // 1_000_000
        offset_ms = now_ms - index.clock.now_ms()
        found = [
            _entry(index, number, hashed, row, now_ms, offset_ms) for (number, hashed), row in rows.items()
        ]
        for (number, hashed), (_, entry) in zip(rows, found, strict=True):
            if weights is not None and blobs is not None and number == Channel.SMTPC:
                entry["weight"] = _lightest(index, number, hashed, weights, blobs)
    return [entry for _, entry in sorted(found, key=lambda pair: (pair[0], pair[1]["destination"]))]


def _add(rows: dict[tuple[int, int], _Row], place: tuple[int, int], state: str, id: bytes) -> _Row:
    made_ms = int.from_bytes(id[:6], "big")
    row = rows.get(place)
    if row is None:
        row = rows[place] = _Row(dict.fromkeys(admin.STATES, 0), made_ms, {})
    row.counts[state] += 1
    row.oldest_ms = min(row.oldest_ms, made_ms)
    return row


def _count_queued(index: Index, channel: int | None, rows: dict[tuple[int, int], _Row]) -> None:
    prefix = b"" if channel is None else bytes((channel,))
    start = prefix
    while True:
        found: list[bytes] = []
        with index.read() as txn:
            cursor = txn.cursor(index.db["queue"])
            if cursor.set_range(start):
                for key in cursor.iternext(values=False):
                    if len(found) == _SLICE or not key.startswith(prefix):
                        break
                    found.append(key)
        for key in found:
            number, class_, hashed, _, id, _ = keys.unpack_queue_key(key)
            row = _add(rows, (number, hashed), _STATE.get(class_, "held"), id)
            row.first.setdefault(class_, key)
        if len(found) < _SLICE:
            return
        start = found[-1] + b"\0"


def _count_leased(index: Index, channel: int | None, rows: dict[tuple[int, int], _Row]) -> None:
    for key, _ in index.leased():
        _, _, _, number, hashed, id, _ = keys.unpack_lease_key(key)
        if channel is None or channel == number:
            _add(rows, (number, hashed), "leased", id)


def _lightest(index: Index, channel: int, hashed: int, weights: Weights, blobs: Blobs) -> int | None:
    """The lowest weight among a destination's items that are due first; None if none waits."""
    items: list[Item] = []
    with index.read() as txn:
        cursor = txn.cursor(index.db["queue"])
        for class_ in (keys.FRESH, keys.RETRY):
            prefix = keys.queue_prefix(channel, class_, hashed)
            more = cursor.set_range(prefix)
            left = WEIGHED
            while more and left and cursor.key().startswith(prefix):
                try:
                    items.append(keys.decode_item(cursor.value()))
                except keys.DamagedRow:
                    pass
                left -= 1
                more = cursor.next()
    now_ms = index.clock.now_ms()
    return min((weights.of_item(item, blobs, max(0, now_ms - item.queued_ms) / 1000) for item in items), default=None)


def _entry(
    index: Index, channel: int, hashed: int, row: _Row, now_ms: int, offset_ms: int
) -> tuple[int, dict[str, Any]]:
    known = None
    name = reason = ""
    with index.read() as txn:
        value = txn.get(keys.dest_key(channel, hashed), db=index.db["dest"]) if hashed else None
        if value:
            known = keys.decode_destination(value)
            name, reason = known.name, known.reason
        for class_ in (keys.RETRY, keys.QUARANTINED, keys.HELD, keys.FRESH):
            value = txn.get(row.first[class_], db=index.db["queue"]) if class_ in row.first else None
            try:
                item = keys.decode_item(value) if value else None
            except keys.DamagedRow:
                item = None
            if item is not None:
                name = name or item.destination
                reason = reason or item.reason
    counts = dict(row.counts)
    on_hold = index.channel_held(channel)
    due_ms = [
        int.from_bytes(row.first[class_][10:18], "big")
        for class_ in (keys.FRESH, keys.RETRY)
        if class_ in row.first and not on_hold
    ]
    if on_hold:
        counts["held"] += counts["ready"] + counts["deferred"]
        counts["ready"] = counts["deferred"] = 0
    backoff_ms = known.backoff_ms if known else 0
    return channel, {
        "channel": admin.channel_name(channel),
        "destination": name,
        "on_hold": on_hold,
        **counts,
        "oldest_s": max(0.0, (now_ms - row.oldest_ms) / 1000),
        "reason": reason,
        "next_attempt": admin.rfc3339((keys.resumes_ms(min(due_ms), backoff_ms) + offset_ms) * 1_000_000)
        if due_ms
        else None,
        "failures": known.failures if known else 0,
        "limit": known.limit if known else 0,
        "weight": None,
    }
