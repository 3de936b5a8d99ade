"""Finds and expunges mail that has been in its mailbox for too long, a slice at a time, through the store's writer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from iems.store import wire
from iems.store.client import StoreClient, pack_uids, unpack_uids
from iems.store.reader import Reader

_decode = msgspec.msgpack.Decoder(bytes).decode
#: Messages of one request: a session waits for one at most.
SLICE = 200


async def expire(
    reader: Reader, store: StoreClient, accounts: list[tuple[int, str]], days_of: Callable[[str, str], int], now_s: float
) -> int:
    """How many messages went. accounts: (number, address). days_of(address, mailbox): days kept, 0 for ever. Raises StoreError, lmdb.Error."""
    total = 0
    for number, address in accounts:
        for mailbox_id, before_s in _due(reader, number, address, days_of, now_s):
            after = 0
            while uids := reader.saved_before(number, mailbox_id, int(before_s), SLICE, after):
                raw = await store.ask(number, wire.Expire(number, mailbox_id, pack_uids(uids)))
                total += len(unpack_uids(_decode(raw)))
                after = uids[-1]
    return total


def _due(
    reader: Reader, number: int, address: str, days_of: Callable[[str, str], int], now_s: float
) -> Iterator[tuple[int, float]]:
    for box in reader.mailboxes(number):
        days = days_of(address, box.name) if box.messages else 0
        if days:
            yield box.id, now_s - days * 86_400
