"""A partition in a temporary folder, with a spool that has one segment, for the tests of the store."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import msgspec

from iems.model import Extent
from iems.store import wire
from iems.store.partition import Job, Outcome, Partition
from iems.store.reader import Reader
from iems.store.wire import Delivered, Delivery, NewMessage

SEGMENT = 0x0192_0000_0000_0001
ENVELOPE = b'("Mon, 1 Jan 2024 00:00:00 +0000" "s" NIL NIL NIL NIL NIL NIL NIL "<a@b>")'
STRUCTURE = b'("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 5 1 NIL NIL NIL NIL)'


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def origin(number: int) -> bytes:
    """A made-up id of acceptance."""
    return number.to_bytes(16, "big")


class Home:
    """HOME with spool and one partition. `ask` runs one request and gives its decoded value."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.clock = Clock()
        self.options = options
        self.segments = path / "spool" / "segments"
        self.segments.mkdir(parents=True)
        (path / "spool" / "large").mkdir()
        self.add_segment(SEGMENT, bytes(range(256)) * 4096)
        self.seq = 0
        self.open()

    def open(self) -> None:
        self.partition = Partition(
            self.path / "store" / "p0", self.path / "spool", clock=self.clock, sync=False, **self.options
        )
        self.reader = Reader(self.path / "store", {0: self.partition.env})

    def reopen(self) -> None:
        """As after the store's death."""
        self.close()
        self.open()

    def close(self) -> None:
        self.reader.close()
        self.partition.close()

    def add_segment(self, blob: int, data: bytes, suffix: str = ".seg") -> None:
        folder = self.segments if suffix == ".seg" else self.path / "spool" / "large"
        (folder / f"{blob:016x}{suffix}").write_bytes(data)

    def job(self, body: Any, client: int = 0, seq: int = 0, acked: int = 0) -> Outcome:
        return self.partition.apply([Job(client, seq, acked, body)])[0]

    def ask(self, body: Any) -> Any:
        """The value, or (code, text) of a refusal."""
        return msgspec.msgpack.decode(self.job(body).value)

    def deliver(self, *deliveries: Delivery) -> list[Delivered]:
        outcome = self.job(wire.Deliver(list(deliveries)))
        assert outcome.status == wire.DONE
        return msgspec.msgpack.decode(outcome.value, type=list[Delivered])

    def append(self, account: int, mailbox: str, *messages: NewMessage, quota: int | None = None) -> list[int]:
        _, _, uids = self.ask(wire.Append(account, mailbox, list(messages), quota))
        return unpack(uids)


def unpack(packed: bytes) -> list[int]:
    found = array("I")
    found.frombytes(packed)
    return found.tolist()


def pack(*uids: int) -> bytes:
    return array("I", uids).tobytes()


def delivery(number: int, account: int = 1, **fields: Any) -> Delivery:
    rope = fields.pop("rope", None)
    if rope is None:
        rope = [b"Return-Path: <>\r\n", Extent(SEGMENT, number % 1000 * 16, 100)]
    size = sum(len(piece) if isinstance(piece, bytes) else piece.length for piece in rope)
    fields.setdefault("envelope", ENVELOPE)
    fields.setdefault("bodystructure", STRUCTURE)
    return Delivery(account, origin(number), rope, fields.pop("size", size), 1_690_000_000, **fields)


def message(number: int = 0, flags: list[str] | None = None, length: int = 100) -> NewMessage:
    rope: list[Extent | bytes] = [Extent(SEGMENT, number, length)]
    return NewMessage(rope, length, 1_690_000_000 + number, ENVELOPE, STRUCTURE, flags or [])
