"""What a partition does when an account moves to another one (`move.py` drives it; the order of steps and what a crash leaves is told there).

An account is here if it has an account row that was not given away. Rows brought in advance stand under a `staged` row, without an account row:
nobody reads them, nobody writes to them, housekeeping counts them as alive. A `staged` row that names its own partition stays for good where an
account was: what comes late is told that it moved. Calls come from the writer thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from iems.errors import StoreError
from iems.model import Extent
from iems.store import keys, wire
from iems.store.rows import (
    MESSAGE_HEAD,
    SUMMARY_OUTSIDE,
    SUMMARY_PLACE,
    Account,
    encode,
    message_rope,
    summary_place,
)

if TYPE_CHECKING:
    from iems.store.partition import Partition

#: An account is held so long after the last `Hold`: a mover that died holds up nobody for longer.
HOLD_S = 10.0
_NIL = encode(None)
_decode_account = msgspec.msgpack.Decoder(Account).decode


def owner_of(key: bytes) -> int:
    """The account a row belongs to, 0 if to none."""
    if key[:4] != b"\0\0\0\0":
        return int.from_bytes(key[:4], "big")
    kind = key[4]
    if kind == keys.DEDUP and len(key) == 25:
        return int.from_bytes(key[-4:], "big")
    if kind == keys.TRASH:
        return keys.split_trash(key)[1]
    return keys.split_purge(key)[1] if kind == keys.PURGE else 0


def is_message(key: bytes) -> bool:
    """Whether a row is a message row."""
    return key[4] == keys.MESSAGE and key[:4] != b"\0\0\0\0"


class Handover:
    """Operations of a move on one partition. held: account -> (token of the mover, when it lapses)."""

    def __init__(self, partition: Partition, clock: Callable[[], float] = time.monotonic) -> None:
        self._partition = partition
        self._clock = clock
        self._found: dict[int, tuple[set[int], set[int]]] = {}  # by id of the request: blobs to copy, blobs that are gone
        self.held: dict[int, tuple[int, float]] = {}
        self.operations: dict[type, Callable[[Any], bytes]] = {
            wire.Hold: self._hold,
            wire.Give: self._give,
            wire.Bring: self._bring,
            wire.Take: self._take,
            wire.Leave: self._leave,
        }

    def check(self, number: int) -> None:
        """Raises StoreError (MOVED) while an account is held."""
        found = self.held.get(number)
        if found is None:
            return
        if self._clock() < found[1]:
            raise StoreError("the account is being moved", "MOVED")
        del self.held[number]

    def _row(self, number: int) -> Account | None:
        raw = self._partition.txn.get(keys.account(number))
        return _decode_account(raw) if raw is not None else None

    def _hold(self, body: wire.Hold) -> bytes:
        row = self._row(body.account)
        if row is None or row.given >= 0:
            raise StoreError("the account is not here", "NONEXISTENT")
        token, until = self.held.get(body.account, (0, 0.0))
        now = self._clock()
        if now < until and token != body.token:
            raise StoreError("the account is being moved by someone else", "INUSE")
        self.held[body.account] = (body.token, now + HOLD_S)
        return encode(now < until)

    def _give(self, body: wire.Give) -> bytes:
        row = self._row(body.account)
        if row is None:
            raise StoreError("the account is not here", "NONEXISTENT")
        if row.given < 0:
            token, until = self.held.get(body.account, (0, 0.0))
            if token != body.token or self._clock() >= until:
                raise StoreError("the account was not held all the time", "EXPIRED")
            self._partition.count_domain(row.domain, -row.octets, -row.messages, -1)
            row.given = body.partition
            self._partition.txn.put(keys.account(body.account), encode(row))
            self._partition.forget_account(body.account)
            del self.held[body.account]
        elif row.given != body.partition:
            raise StoreError(f"the account was given to partition {row.given}", "CANNOT")
        return encode(encode(msgspec.structs.replace(row, given=-1)))

    def adopt(self, body: wire.Bring) -> None:
        """Own every blob the rows to be put name, before the transaction that puts them. Raises OSError."""
        partition = self._partition
        named = set()
        for key, value in body.puts:
            if is_message(key):
                named |= {piece.blob for piece in message_rope(value) if type(piece) is Extent}
                if (place := summary_place(value)) is not None:
                    named.add(place[0])
        with partition.env.begin() as txn:
            unknown = [blob for blob in named if txn.get(keys.blob(blob)) is None]
        self._found[id(body)] = partition.content.link(unknown, self._source(body)) if unknown else (set(), set())

    def _source(self, body: wire.Bring) -> Any:
        return self._partition.path.parent / f"p{body.source}" / "blobs"

    def _bring(self, body: wire.Bring) -> bytes:
        partition, number = self._partition, body.account
        txn = partition.txn
        copy, missing = self._found.pop(id(body), (set(), set()))
        if self._row(number) is not None:
            raise StoreError("the account is here", "ALREADYEXISTS")
        if any(owner_of(key) != number for key in (*body.deletes, *(key for key, _ in body.puts))):
            raise StoreError("a row of another account", "CLIENTBUG")
        for key in body.deletes:
            if is_message(key):
                partition.remove_message(key)
            elif key == keys.staged(number):
                # It stays: a delivery that was sent here before the directory said otherwise must not found the account anew.
                txn.put(key, partition.number.to_bytes(4, "big"))
            else:
                txn.delete(key)
        if body.puts:
            txn.put(keys.staged(number), body.source.to_bytes(4, "big"))
        left = 0
        for key, value in body.puts:
            new = value
            if is_message(key):
                found = self._own(value, copy, missing, body)
                if found is None:
                    left += 1
                    continue
                new = found
                partition.remove_message(key)
                partition.count_message(new)
            txn.put(key, new)
        return encode(left)

    def _own(self, value: bytes, copy: set[int], missing: set[int], body: wire.Bring) -> bytes | None:
        """The row with its octets in this partition; None if they are gone and this is not the last word."""
        content, source = self._partition.content, self._source(body)
        rope, place = message_rope(value), summary_place(value)
        blobs = {piece.blob for piece in rope if type(piece) is Extent} | ({place[0]} if place else set())
        if blobs & missing:
            return value if body.last else None
        if not blobs & copy:
            return value
        try:
            moved = content.copy(rope, copy, source)
            if place is not None and place[0] in copy:
                [made] = content.copy([Extent(*place)], copy, source)
                assert isinstance(made, Extent)
                place = (made.blob, made.offset, made.length)
        except (FileNotFoundError, EOFError):
            return value if body.last else None
        self._partition.own_blob(content.current)
        packed = encode(moved)
        tail = value[MESSAGE_HEAD.size + int.from_bytes(value[4:8], "little") :]
        if value[1] & SUMMARY_OUTSIDE and place is not None:
            tail = SUMMARY_PLACE.pack(*place[:2])
        return value[:4] + len(packed).to_bytes(4, "little") + value[8 : MESSAGE_HEAD.size] + packed + tail

    def _take(self, body: wire.Take) -> bytes:
        number, partition = body.account, self._partition
        if self._row(number) is not None:
            return _NIL
        if partition.txn.get(keys.staged(number)) is None:
            raise StoreError("nothing of the account was brought here", "NONEXISTENT")
        row = _decode_account(body.row)
        partition.txn.put(keys.account(number), encode(row))
        partition.txn.delete(keys.staged(number))
        partition.forget_account(number)
        partition.count_domain(row.domain, row.octets, row.messages, 1)
        return _NIL

    def _leave(self, body: wire.Leave) -> bytes:
        number, partition = body.account, self._partition
        row = self._row(number)
        if row is None:
            return _NIL
        if row.given < 0:
            raise StoreError("the account was not given away", "CANNOT")
        # Who watches a mailbox looks again, and finds it in its new place.
        prefix = keys.head(number, keys.MAILBOX)
        cursor = partition.txn.cursor()
        if cursor.set_range(prefix):
            for key in cursor.iternext(values=False):
                if not key.startswith(prefix):
                    break
                partition.touched[number, int.from_bytes(key[5:9], "big")] = row.modseq
        partition.txn.delete(keys.account(number))
        partition.txn.put(keys.staged(number), partition.number.to_bytes(4, "big"))
        partition.forget_account(number)
        return _NIL
