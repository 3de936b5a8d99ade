"""What the spool is given and gives back: messages, queue items and their settlement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct, field

from iems.model import Envelope, Result, Rope

if TYPE_CHECKING:
    from iems.spool.content import Content


class Item(Struct, array_like=True):
    """One unit of work in a queue: some recipients of one message, on their way to one destination.

    id: of the message. channel: INPUT or an output channel. destination: "" for INPUT and LOCAL, the next-hop domain for SMTPC,
    the identifier for others. envelope: its recipients are only those of this item. attempts: tries already made.
    reason: why it was last deferred, held or quarantined, for people.

    The spool keeps the rest: queued_ms (queue time of acceptance, see `Spool.age_s`), home (the segment with the message's
    record), fanout (recipients the message was routed to in all), part (tells items of one message and destination apart),
    generation (copies made when old segments were emptied), deaths (workers that died over it), lease (who holds it), sums (blob and
    CRC-32C of contents in files of their own).
    """

    id: bytes
    channel: int
    destination: str
    envelope: Envelope
    rope: Rope
    attempts: int = 0
    reason: str = ""
    queued_ms: int = 0
    home: int = 0
    fanout: int = 0
    part: int = 0
    generation: int = 0
    deaths: int = 0
    lease: bytes = b""
    sums: list[tuple[int, int]] = field(default_factory=list)


class Settlement(Struct):
    """What became of one leased item: the result of every recipient of it, each exactly once."""

    item: Item
    results: list[Result]


class Message(Struct):
    """A message to be made durable, for the INPUT queue.

    content: header lines put in front (bytes) and then the content as it came (a `Content`), or simply octets.
    settled: the items whose handling made this message; they are settled by the same record.
    """

    id: bytes
    envelope: Envelope
    content: Content | Sequence[bytes | Content]
    settled: list[Settlement] = field(default_factory=list)
