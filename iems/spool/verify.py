"""Contents read with a look at the checksum of the record they stand in, so that a flipped bit is not delivered unseen.

A queue item names its content by (blob, offset, length) only. The record's header stands some hundred octets before the content (the
envelope lies between), names its own offset and the segment's nonce, and has its own checksum, so it is found by looking back.
The checksum of a content in a file of its own (spool/large) stands in the item.
"""

from __future__ import annotations

import errno
import os

from iems.blobs import Blobs
from iems.model import Extent, Rope
from iems.spool import records
from iems.spool.index import Change
from iems.spool.items import Item
from iems.spool.keys import QUARANTINED
from iems.spool.records import CRC_RESIDUE, HEAD_MAGIC, HEAD_OCTETS, crc32c, unpack_head

#: How far before a content its record's header is looked for at first, and at last (a thousand long recipients).
_NEAR, _FAR = 1024, 1 << 20
_MAX_NONCES = 4096


class ContentDamaged(OSError):
    """The octets are not those that were accepted."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EBADMSG, what)


class Verifier:
    """Reads contents through `blobs` and checks them. Used by one thread."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._marks: dict[int, bytes] = {}

    def read(self, item: Item) -> bytes:
        """The content of an item. Raises ContentDamaged; OSError, EOFError if it can't be read at all."""
        rope: Rope = item.rope
        if item.deaths < 0:
            return self._blobs.read(rope)  # an administrator released it from quarantine: as it is
        self._large(item)
        if len(rope) == 1:
            piece = rope[0]
            return piece if isinstance(piece, bytes) else self._extent(piece, item.home)
        return b"".join(piece if isinstance(piece, bytes) else self._extent(piece, item.home) for piece in rope)

    def check(self, item: Item) -> None:
        """As `read`, for who sends the content from its file."""
        if item.deaths < 0:
            return
        self._large(item)
        for piece in item.rope:
            if not isinstance(piece, bytes):
                if self._mark(piece.blob, item.home):
                    self._extent(piece, item.home)
                else:
                    self._blobs.fd(piece.blob)

    def extent(self, extent: Extent) -> None:
        """Look at one extent of a segment, whoever names it. Raises ContentDamaged; OSError, EOFError if it can't be read at all."""
        self._extent(extent, extent.blob)

    def _large(self, item: Item) -> None:
        """Check what stands in files of their own."""
        for blob, crc in item.sums:
            fd = self._blobs.fd(blob)
            if records.file_crc(fd, os.fstat(fd).st_size) != crc:
                raise ContentDamaged(f"the large content {blob:016x} does not match its checksum")

    def _mark(self, blob: int, home: int) -> bytes:
        """What all record headers of a segment begin with, but for kind and flags; b"" if the blob is no segment."""
        mark = self._marks.get(blob)
        if mark is None:
            head = records.read_file_head(self._blobs.fd(blob))
            if head is None and blob == home:
                raise ContentDamaged(f"the head of segment {blob:016x} is damaged")
            mark = head.nonce if head is not None else b""
            if len(self._marks) >= _MAX_NONCES:
                self._marks.clear()
            self._marks[blob] = mark
        return mark

    def _extent(self, extent: Extent, home: int) -> bytes:
        mark = self._mark(extent.blob, home)
        if not mark:
            return self._blobs.read([extent])
        start, length = extent.offset, extent.length
        fd = self._blobs.fd(extent.blob)
        for reach in (_NEAR, _FAR):
            before = min(start - records.FILE_OCTETS, reach)
            data = os.pread(fd, before + length + 4, start - before)
            if len(data) < before + length:
                raise EOFError(f"blob {extent.blob:016x} ends before octet {start + length}")
            at = before
            # The nearest header whose content is this one: mail that imitates a header does not know the nonce.
            while (at := data.rfind(mark, 0, at)) >= 8:
                found = at - 8
                if data[found : found + 4] != HEAD_MAGIC:
                    continue
                record = unpack_head(data[found : found + HEAD_OCTETS], mark, start - before + found)
                if record is None or record.content > start or record.content + record.content_length < start + length:
                    continue
                if record.content == start and record.content_length == length:
                    if len(data) == before + length + 4 and crc32c(memoryview(data)[found + HEAD_OCTETS :]) == CRC_RESIDUE:
                        return data[before : before + length]
                elif records.intact(fd, record):  # a part of a content
                    return data[before : before + length]
                raise ContentDamaged(f"the record at {record.offset} of {extent.blob:016x} does not match its checksum")
            if before < reach:
                break
        raise ContentDamaged(f"no record of {extent.blob:016x} has its content at {start}")


def quarantine(change: Change, item: Item, reason: str) -> bool:
    """Put a leased item aside, for a person to look at; False if the lease was lost."""
    if not change.unlease(item):
        return False
    item.reason = reason
    change.put(item, QUARANTINED, live=False)
    return True


__all__ = ["ContentDamaged", "Verifier", "quarantine"]
