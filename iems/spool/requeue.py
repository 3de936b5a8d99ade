"""Trying again at once what waits for some destinations of a channel, in slices between which the loop serves others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from iems.spool import keys
from iems.spool.keys import FRESH, RETRY

if TYPE_CHECKING:
    from iems.spool.spool import Spool

#: Items moved in one transaction, and rows of destinations read in one.
SLICE = 64
READ_SLICE = 1000
#: Items of one destination that are counted.
COUNTED = 10_000


async def make_due(spool: Spool, channel: int, destinations: Iterable[str]) -> int:
    """Make what waits for these destinations due now and forget their back-off; how many items wait, those on hold left out (of each destination
    at most `COUNTED` are counted).

    Raises lmdb.Error.
    """
    number = 0
    for name in destinations:
        number += await _one(spool, channel, name)
    if number:
        spool.announce(channel)
    return number


async def _one(spool: Spool, channel: int, name: str) -> int:
    hashed = keys.destination_hash(name)
    known = spool.index.destination(channel, name)
    if known is None:
        return 0
    fresh = keys.queue_prefix(channel, FRESH, hashed)
    retry = keys.queue_prefix(channel, RETRY, hashed)
    number = 0
    with spool.index.change() as change:
        destination = change.destination(channel, hashed, name)
        destination.backoff_ms = destination.failures = 0
        change.arm(channel, hashed, destination)
    with spool.index.read() as txn:
        cursor = txn.cursor(spool.index.db["queue"])
        for prefix in (fresh, retry):
            if cursor.set_range(prefix):
                for key in cursor.iternext(values=False):
                    if number == COUNTED or not key.startswith(prefix):
                        break
                    number += 1
    while await _slice(spool, retry):
        await asyncio.sleep(0)
    return number


async def _slice(spool: Spool, prefix: bytes) -> bool:
    """Move items that are due later to now; whether there may be more."""
    moved = 0
    with spool.index.change() as change:
        found: list[tuple[bytes, bytes]] = []
        with change.txn.cursor(change.db["queue"]) as cursor:
            # What was moved before stands at or before now and is not met again.
            more = cursor.set_range(prefix + (change.now_ms + 1).to_bytes(8, "big"))
            while more and len(found) < SLICE and cursor.key().startswith(prefix):
                found.append((bytes(cursor.key()), bytes(cursor.value())))
                more = cursor.next()
        for key, value in found:
            try:
                item = keys.decode_item(value)
            except keys.DamagedRow:
                continue
            if change.remove(key, item, live=False):
                change.put(item, RETRY, live=False)
                moved += 1
    return moved == SLICE


def known_destinations(spool: Spool, channel: int, suffix: str, most: int) -> list[str]:
    """Names of a channel's destinations that end in `suffix`, at most `most`."""
    found: list[str] = []
    start = bytes((channel,))
    while True:
        rows: list[tuple[bytes, bytes]] = []
        with spool.index.read() as txn:
            cursor = txn.cursor(spool.index.db["dest"])
            if cursor.set_range(start):
                for key, value in cursor:
                    if key[0] != channel or len(rows) == READ_SLICE:
                        break
                    rows.append((bytes(key), bytes(value)))
        for _, value in rows:
            name = keys.decode_destination(value).name
            if name.endswith(suffix):
                found.append(name)
                if len(found) == most:
                    return found
        if len(rows) < READ_SLICE:
            return found
        start = rows[-1][0] + b"\0"


def anything_waits(spool: Spool, channel: int, destinations: Iterable[str]) -> bool:
    """Whether anything waits for these destinations, due or not, or is in hand; what is on hold does not count. Raises lmdb.Error."""
    index = spool.index
    if index.channel_held(channel):
        return False
    with index.read() as txn:
        cursor = txn.cursor(index.db["queue"])
        for name in destinations:
            hashed = keys.destination_hash(name)
            for class_ in (FRESH, RETRY):
                prefix = keys.queue_prefix(channel, class_, hashed)
                if cursor.set_range(prefix) and cursor.key().startswith(prefix):
                    return True
            value = txn.get(keys.dest_key(channel, hashed), db=index.db["dest"])
            if value and keys.decode_destination(value).leased:
                return True
    return False
