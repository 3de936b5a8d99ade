"""The index of the spool: one LMDB environment in spool/index, never synced, built again from the segments when lost.

| database | key (big-endian, so byte order is order) | value | writers | readers |
| --- | --- | --- | --- | --- |
| meta | name | see `META_*` | master (prepare), janitor | all |
| queue | channel u8, class u8, destination hash u64, due u64 (queue time, ms), id 16, part u16 | Item, CRC-32C | all | takers, CLI |
| lease | run u32, generation u32, slot u16, channel u8, destination hash u64, id 16, part u16 | Item, CRC-32C | takers | janitor, CLI |
| agenda | channel u8, due u64, destination hash u64 | empty | whoever queues or takes | takers |
| dest | channel u8, destination hash u64 | Destination | whoever queues or takes | takers, CLI |
| count | channel u8, class u8 (LEASED for leased) | u64 | all | status |
| blob | blob u64 | BlobRow | writer of the blob, janitor | janitor |
| names | blob u64, blob u64 | empty: outcomes in the first name messages of the second | who settles | janitor |
| settled | id 16, hash of (channel, address) u64 | outcome u8 | rebuild, late settlements | move |
| damaged | blob u64, offset u64 | Damage | rebuild, takers | fsck |

Values are MessagePack arrays; Item rows end with their CRC-32C, so a flipped bit in a page is found at the row.
Due times and ages count in queue time (`clock.py`). A destination without agenda (INPUT, LOCAL) has hash 0.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from typing import Final

import msgspec
from msgspec import Struct

from iems._native import kernel
from iems.model import INPUT, Channel
from iems.spool.items import Item
from iems.spool.records import CRC_RESIDUE

crc32c = kernel("crc32c").crc32c

DATABASES = ("meta", "queue", "lease", "agenda", "dest", "count", "blob", "names", "settled", "damaged")

# classes in the queue, in the order they are served; from HELD on nobody takes them
FRESH, RETRY, HELD, QUARANTINED = 0, 1, 200, 201
#: Beside the classes in `count`.
LEASED = 255

META_VERSION = b"version"  # u32: layout of this index
META_RUN = b"run"  # u32: starts of the master this index has seen
META_CLOCK = b"clock"  # i64: queue time minus boot clock, ms
META_QUEUE_MS = b"queue_ms"  # u64: queue time as last saved
META_BLOB = b"blob"  # u64: highest blob number given
META_REBUILD = b"rebuild"  # present while the index is being built from segments
META_LEDGER = b"ledger"  # records.Ledger: totals of reclaimed segments
META_HOLD = b"hold"  # + channel u8: the channel is on hold
VERSION = 1

_QUEUE = struct.Struct(">BBQQ16sH")
_LEASE = struct.Struct(">IIHBQ16sH")
_HOLDER = struct.Struct(">IIH")
_AGENDA = struct.Struct(">BQQ")
_DEST = struct.Struct(">BQ")
_QUEUE_PREFIX = struct.Struct(">BBQ")
_TWO = struct.Struct(">QQ")
QUEUE_OCTETS, LEASE_OCTETS, HOLDER_OCTETS = _QUEUE.size, _LEASE.size, _HOLDER.size

queue_key = _QUEUE.pack
unpack_queue_key = _QUEUE.unpack
queue_prefix = _QUEUE_PREFIX.pack
lease_key = _LEASE.pack
unpack_lease_key = _LEASE.unpack
holder_key = _HOLDER.pack
agenda_key = _AGENDA.pack
unpack_agenda_key = _AGENDA.unpack
dest_key = _DEST.pack
pair_key = _TWO.pack
unpack_pair_key = _TWO.unpack


class Destination(Struct, array_like=True):
    """How a next hop fares. backoff_ms: queue time before which only what is late is taken (`LATE_MS`); limit: most items leased at once (0: any).

    agenda_ms: where it stands in the agenda, -1 if nowhere. failures: in a row. reason: of the last one.
    """

    name: str
    agenda_ms: int = -1
    backoff_ms: int = 0
    failures: int = 0
    limit: int = 0
    leased: int = 0
    reason: str = ""


#: How long after it fell due an item waits for a next hop that is backed off. Then it is taken all the same, so that its sender hears of a
#: delay, or of the end, not much later than settings say.
LATE_MS: Final = 600_000
#: Items leased at once of a next hop that failed when it was tried last: enough to try it with.
PROBES: Final = 4


def most_leased(destination: Destination, now_ms: int) -> int:
    """How many items of a next hop may be leased at once; 0: any number. While it is backed off only what is late comes, and all of it."""
    if destination.failures and destination.backoff_ms <= now_ms:
        return min(destination.limit or PROBES, PROBES)
    return destination.limit


def resumes_ms(due_ms: int, backoff_ms: int) -> int:
    """When an item that is due at `due_ms` is taken, if its next hop is backed off until `backoff_ms`."""
    return max(due_ms, min(backoff_ms, due_ms + LATE_MS))


class BlobRow(Struct, array_like=True):
    """A segment (large = False) or the file of one large content.

    indexed: the index knows the records before this offset. live, live_octets: queue items that need it, and their content there.
    sealed: nobody writes it any more. run, generation, slot, pid: its writer. length: octets when sealed.
    created_ms, sealed_ms, idle_ms: queue time of creation, of sealing, and since when nothing in it lives (0: something does).
    """

    large: bool = False
    indexed: int = 64
    live: int = 0
    live_octets: int = 0
    sealed: bool = False
    run: int = 0
    generation: int = 0
    slot: int = 0
    pid: int = 0
    role: str = ""
    length: int = 0
    created_ms: int = 0
    idle_ms: int = 0
    sealed_ms: int = 0


class Damage(Struct, array_like=True):
    """What could not be read. id: of the message if known; what: for people."""

    end: int
    id: bytes
    what: str
    found_ns: int


_encoder = msgspec.msgpack.Encoder()
_decode_item = msgspec.msgpack.Decoder(Item).decode
encode = _encoder.encode
decode_destination = msgspec.msgpack.Decoder(Destination).decode
decode_blob = msgspec.msgpack.Decoder(BlobRow).decode
decode_damage = msgspec.msgpack.Decoder(Damage).decode


class DamagedRow(ValueError):
    """A row that does not match its checksum, or is no item."""


def encode_item(item: Item) -> bytes:
    """The row of an item."""
    value = _encoder.encode(item)
    checksum: int = crc32c(value)
    return value + checksum.to_bytes(4, "little")


def decode_item(value: bytes) -> Item:
    """The item of a row. Raises DamagedRow."""
    if crc32c(value) != CRC_RESIDUE:
        raise DamagedRow("checksum")
    try:
        return _decode_item(value[:-4])
    except msgspec.DecodeError as error:
        raise DamagedRow(str(error)) from error


def peek_queued_ms(value: bytes | None) -> int | None:
    """When the message of a row was accepted (queue time), or None if the row is damaged or gone."""
    if value is None:
        return None
    try:
        return decode_item(value).queued_ms
    except DamagedRow:
        return None


@lru_cache(maxsize=16384)
def destination_hash(destination: str) -> int:
    """The number a destination has in keys; 0 for none."""
    if not destination:
        return 0
    return int.from_bytes(hashlib.blake2b(destination.encode(), digest_size=8).digest(), "big") or 1


def settled_key(id: bytes, channel: int, address: bytes) -> bytes:
    """The key of a recipient's outcome."""
    return id + hashlib.blake2b(bytes([channel]) + address, digest_size=8).digest()


def item_end(item: Item) -> bytes:
    """The end of an item's key, which is its own among those of a destination."""
    return item.id + item.part.to_bytes(2, "big")


def has_agenda(channel: int) -> bool:
    """Whether the channel's queue is divided by destination."""
    return channel != INPUT and channel != Channel.LOCAL
