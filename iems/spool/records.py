"""The layout of segments: what is written and how it is read back. `docs/spool.md` draws it byte by byte.

Pure functions over octets and over one open file; no knowledge of the index. Numbers in files are little-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import msgspec
from msgspec import Struct, field

from iems._native import kernel
from iems.model import Envelope, Extent, Rope
from iems.spool.items import Item

crc32c = kernel("crc32c").crc32c

#: CRC-32C over octets followed by their own little-endian CRC-32C is this, whatever they are.
CRC_RESIDUE = 0x48674BC7

FILE_HEAD = struct.Struct("<8s8sQQQ12sHHII")
FILE_MAGIC = b"IEMSseg1"
FILE_OCTETS = 64
HEAD = struct.Struct("<4sBBH8sQ16sQIII")
HEAD_MAGIC = b"IRec"
HEAD_OCTETS = 64
END = struct.Struct("<8s8sQI")
END_MAGIC = b"IEMSend1"
END_OCTETS = 32

#: No record is longer than this; a length above it is damage.
MAX_PART = 0x7FFFFFFF
NO_ID = bytes(16)
#: The end of a range that has none.
FOR_EVER = (1 << 63) - 1


class Kind(IntEnum):
    """What a record says."""

    MESSAGE = 1  # a message was accepted or made here
    SETTLE = 2  # outcomes of recipients
    CONTENT = 3  # octets another part refers to (IMAP APPEND)
    MOVED = 4  # a living message copied out of an old segment, with its queue items
    VOID = 5  # ranges of other segments that don't count
    LEDGER = 6  # what reclaimed segments held, and which names may go
    FOOTER = 7  # headers of all records of this sealed segment


#: Flags: this record counts only together with the next, or the previous, one of its segment.
CHAINED = 1
FOLLOWS = 2


class Done(Struct, array_like=True):
    """Outcomes of one item. home, fanout, part, generation are the item's; origin: its input channel; results: (address, outcome)."""

    id: bytes
    channel: int
    part: int
    home: int
    fanout: int
    generation: int
    results: list[tuple[bytes, int]]
    origin: int = 0


class MessageHead(Struct, array_like=True):
    """Payload of MESSAGE: the rope is the record's own content followed by `rope`, of whose extents `sums` are the CRC-32C."""

    envelope: Envelope
    rope: Rope
    settles: list[Done] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)

    def checksums(self) -> list[tuple[int, int]]:
        """(blob, CRC-32C) of contents in files of their own, as an `Item` has them."""
        blobs = [piece.blob for piece in self.rope if isinstance(piece, Extent)]
        return list(zip(blobs, self.sums, strict=False))


class MovedHead(Struct, array_like=True):
    """Payload of MOVED. items: as they stood in the queue; in their ropes blob 0 is this record's content, `home` is the original's."""

    items: list[Item]
    classes: list[int]  # for each item its class in the queue


class Ledger(Struct, array_like=True):
    """Payload of LEDGER. totals: of all segments reclaimed so far; gone: names that count no more and may still be there."""

    sequence: int
    totals: dict[str, int]
    gone: list[int]


VoidRange = tuple[int, int, int]  # blob, first octet, end

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_message = msgspec.msgpack.Decoder(MessageHead).decode
decode_settle = msgspec.msgpack.Decoder(list[Done]).decode
decode_moved = msgspec.msgpack.Decoder(MovedHead).decode
decode_void = msgspec.msgpack.Decoder(list[VoidRange]).decode
decode_ledger = msgspec.msgpack.Decoder(Ledger).decode


class Record(Struct):
    """A record found in a segment. `content` is where its content stands in the file."""

    kind: int
    flags: int
    generation: int
    offset: int
    id: bytes
    queue_ms: int
    payload_length: int
    content_length: int

    @property
    def length(self) -> int:
        """Octets it takes in the file, with checksum and padding."""
        return record_length(self.payload_length, self.content_length)

    @property
    def end(self) -> int:
        """Offset of what follows it."""
        return self.offset + self.length

    @property
    def content(self) -> int:
        """Offset of its content in the file."""
        return self.offset + HEAD_OCTETS + self.payload_length


class FileHead(Struct):
    """What a segment says of itself."""

    nonce: bytes
    blob: int
    created_ns: int
    queue_ms: int
    role: str
    slot: int
    pid: int


class Damaged(Struct):
    """A stretch of a segment that can't be read as records. id: of the message, if its header was whole."""

    offset: int
    end: int
    id: bytes = NO_ID
    kind: int = 0


def record_length(payload: int, content: int) -> int:
    """Octets of a record with these lengths."""
    return (HEAD_OCTETS + payload + content + 4 + 7) & ~7


def pack_file_head(head: FileHead) -> bytes:
    """The first 64 octets of a segment."""
    body = FILE_HEAD.pack(
        FILE_MAGIC,
        head.nonce,
        head.blob,
        head.created_ns,
        head.queue_ms,
        head.role.encode("ascii")[:12],
        head.slot,
        1,
        head.pid,
        0,
    )[:-4]
    checksum: int = crc32c(body)
    return body + checksum.to_bytes(4, "little")


#: The layout of segments and their records.
SEGMENT_FORMAT = 1


def segment_format(fd: int) -> int:
    """The format an open segment says it has, 0 if it is none or damaged."""
    data = os.pread(fd, FILE_OCTETS, 0)
    if len(data) < FILE_OCTETS or crc32c(data) != CRC_RESIDUE:
        return 0
    found = FILE_HEAD.unpack(data)
    return int(found[7]) if found[0] == FILE_MAGIC else 0


def read_file_head(fd: int) -> FileHead | None:
    """The head of an open segment, or None if it is not one or is damaged."""
    data = os.pread(fd, FILE_OCTETS, 0)
    if len(data) < FILE_OCTETS or crc32c(data) != CRC_RESIDUE:
        return None
    magic, nonce, blob, created_ns, queue_ms, role, slot, version, pid, _crc = FILE_HEAD.unpack(data)
    if magic != FILE_MAGIC or version != SEGMENT_FORMAT:
        return None
    return FileHead(
        nonce, blob, created_ns, queue_ms, role.rstrip(b"\0").decode("ascii", "replace"), slot, pid
    )


def unpack_head(data: bytes | memoryview, nonce: bytes, offset: int) -> Record | None:
    """The record whose 64 header octets these are, or None if they are no header standing at `offset`."""
    if len(data) != HEAD_OCTETS or crc32c(data) != CRC_RESIDUE:
        return None
    magic, kind, flags, generation, found, own, id, queue_ms, payload, content, _ = HEAD.unpack_from(data)
    if magic != HEAD_MAGIC or found != nonce or own != offset or payload > MAX_PART or content > MAX_PART:
        return None
    return Record(kind, flags, generation, offset, id, queue_ms, payload, content)


def read_payload(fd: int, record: Record) -> bytes:
    """The MessagePack part alone, not checked against the record's checksum."""
    return os.pread(fd, record.payload_length, record.offset + HEAD_OCTETS)


def intact(fd: int, record: Record) -> bool:
    """Whether payload and content match the record's checksum. Reads them whole."""
    crc = 0
    at = record.offset + HEAD_OCTETS
    left = record.payload_length + record.content_length + 4
    while left:
        piece = os.pread(fd, min(left, 1 << 20), at)
        if not piece:
            return False
        crc = crc32c(piece, crc)
        at += len(piece)
        left -= len(piece)
    return crc == CRC_RESIDUE


def file_crc(fd: int, length: int) -> int:
    """The CRC-32C of the first octets of a file, or of all if it is shorter."""
    crc = at = 0
    while at < length and (piece := os.pread(fd, min(length - at, 1 << 20), at)):
        crc = crc32c(piece, crc)
        at += len(piece)
    return crc


def blank(fd: int, start: int, end: int) -> bool:
    """Whether there is nothing but zeros between two offsets."""
    while start < end:
        piece = os.pread(fd, min(end - start, 1 << 18), start)
        if not piece:
            break
        if piece.count(0) != len(piece):
            return False
        start += len(piece)
    return True


def scan(fd: int, start: int, end: int, nonce: bytes, *, unsealed: bool = False) -> Iterator[Record | Damaged]:
    """Records between two offsets, each checked whole, and the stretches between them that are none.

    After damage the search goes on at the next place where a header with this nonce names its own offset. unsealed: the writer may have
    prepared room behind its last record, so zeros up to `end` are no damage; nothing is given for them.
    """
    at = start
    while at + HEAD_OCTETS <= end:
        record = unpack_head(os.pread(fd, HEAD_OCTETS, at), nonce, at)
        if record is None and unsealed and blank(fd, at, end):
            return
        if record is None or record.end > end:
            follows = resync(fd, at + 8, end, nonce)
            yield Damaged(at, follows, record.id if record else NO_ID, record.kind if record else 0)
            at = follows
        elif not intact(fd, record):
            # The header is whole, so the length can be trusted, unless what follows is no record: then look closer.
            follows = record.end
            if follows < end and unpack_head(os.pread(fd, HEAD_OCTETS, follows), nonce, follows) is None:
                follows = resync(fd, at + 8, end, nonce)
            yield Damaged(at, follows, record.id, record.kind)
            at = follows
        else:
            yield record
            at = record.end
    if at < end and not (unsealed and blank(fd, at, end)):
        yield Damaged(at, end)


def cut_zeros(path: Path, end: int) -> None:
    """Give back the room that a writer now gone had prepared behind its records, which end at `end`; others may be reading them.

    Failures don't matter: what is left is room. The time of the last write stays, as it tells when the last record was written.
    """
    try:
        found = os.stat(path)
        if found.st_size > end:
            os.truncate(path, end)
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    except OSError:
        pass


def resync(fd: int, start: int, end: int, nonce: bytes) -> int:
    """The offset of the next header at or after `start` (a multiple of 8), or `end`."""
    step = 1 << 20
    at = start
    while at < end:
        data = os.pread(fd, min(step + HEAD_OCTETS, end - at), at)
        if len(data) < HEAD_OCTETS:
            return end
        found = data.find(nonce)
        while found >= 0:
            head = found - 8
            if (
                head >= 0
                and not head % 8
                and unpack_head(data[head : head + HEAD_OCTETS], nonce, at + head) is not None
            ):
                return at + head
            found = data.find(nonce, found + 1)
        if len(data) < step + HEAD_OCTETS:
            return end
        at += step
    return end


def walk(fd: int, start: int, end: int, nonce: bytes) -> Iterator[Record]:
    """Records between two offsets by their headers alone; what they hold is not checked, damage is stepped over in silence."""
    at = start
    while at + HEAD_OCTETS <= end:
        record = unpack_head(os.pread(fd, HEAD_OCTETS, at), nonce, at)
        if record is None or record.end > end:
            at = resync(fd, at + 8, end, nonce)
        else:
            yield record
            at = record.end


def open_records(fd: int) -> tuple[FileHead, int, bool] | None:
    """(head, end of the records, whether sealed with a footer) of an open segment, or None if its head is damaged."""
    head = read_file_head(fd)
    if head is None:
        return None
    size = os.fstat(fd).st_size
    footer = read_footer(fd, size, head.nonce)
    return (head, footer[0], True) if footer else (head, size, False)


class Chains:
    """Tells which records count, as some do only together. Fed with all of a segment, in order."""

    def __init__(self) -> None:
        self._open: list[Record] = []

    def feed(self, found: Record | Damaged) -> tuple[list[Record], list[Record]]:
        """(records that count now, records that are found not to count)."""
        before, self._open = self._open, []
        if isinstance(found, Damaged):
            return [], before
        if not found.flags & FOLLOWS:
            if found.flags & CHAINED:
                self._open = [found]
                return [], before
            return [found], before
        if not before or before[-1].end != found.offset:
            return [], [*before, found]
        if found.flags & CHAINED:
            self._open = [*before, found]
            return [], []
        return [*before, found], []

    @property
    def pending(self) -> bool:
        """Whether a chain has begun and not ended."""
        return bool(self._open)

    def end(self) -> list[Record]:
        """What is left at the end of the segment and does not count."""
        left, self._open = self._open, []
        return left


def read_footer(fd: int, size: int, nonce: bytes) -> tuple[int, bytes] | None:
    """(offset of the footer, all headers before it) of a sealed segment, or None if there is none or it is damaged."""
    if size < FILE_OCTETS + HEAD_OCTETS + END_OCTETS:
        return None
    end = os.pread(fd, END_OCTETS, size - END_OCTETS)
    if len(end) < END_OCTETS or crc32c(end) != CRC_RESIDUE:
        return None
    magic, found, offset, _ = END.unpack_from(end)
    if magic != END_MAGIC or found != nonce:
        return None
    record = unpack_head(os.pread(fd, HEAD_OCTETS, offset), nonce, offset)
    if (
        record is None
        or record.kind != Kind.FOOTER
        or record.end > size - END_OCTETS
        or not intact(fd, record)
    ):
        return None
    return offset, read_payload(fd, record)


def footer_records(heads: bytes, nonce: bytes) -> list[Record]:
    """The records a footer lists."""
    view = memoryview(heads)
    found = []
    for at in range(0, len(heads), HEAD_OCTETS):
        offset = int.from_bytes(view[at + 16 : at + 24], "little")
        record = unpack_head(view[at : at + HEAD_OCTETS], nonce, offset)
        if record is not None:
            found.append(record)
    return found


def message_rope(blob: int, record: Record, head: MessageHead) -> Rope:
    """The rope of the message a MESSAGE record holds."""
    rope: Rope = []
    if record.content_length:
        rope.append(Extent(blob, record.content, record.content_length))
    return rope + head.rope
