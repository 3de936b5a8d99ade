"""What a look at a partition is made of: findings, rows set aside, a message row taken apart, sums of a mailbox's rows. Values only."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from iems.model import Extent, Rope
from iems.store.rows import (
    DELETED,
    MESSAGE_HEAD,
    MESSAGE_VERSION,
    SEEN,
    SUMMARY_OUTSIDE,
    SUMMARY_PLACE,
    Mailbox,
    decode_rope,
)

#: What decoding a damaged row of MessagePack raises.
BAD = (msgspec.DecodeError, UnicodeDecodeError)


class Finding(Struct, kw_only=True):
    """Something wrong. where: the place in the store. account, mailbox, uid: 0 if it is not about one. name: of the mailbox.

    id: the 16 octets a message was accepted under. row: key and value looked at, for what may have gone meanwhile. mended: a repair can
    (after one: did) put it right.
    """

    what: str
    where: str = ""
    account: int = 0
    mailbox: int = 0
    name: str = ""
    uid: int = 0
    id: bytes = b""
    row: tuple[bytes, bytes] | None = None
    mended: bool = False


class Aside(Struct):
    """The rows of a message that can't be served, as a repair keeps them in a file."""

    account: int
    mailbox: int
    name: str
    uid: int
    why: str
    flags: bytes | None
    message: bytes | None


class Damaged(Exception):
    """The rows can't be read to their end: keys out of order."""


class Tally:
    """What the rows of one mailbox add up to: as they are (sound or not), and as they will be."""

    __slots__ = ("again", "box", "deleted", "gone", "id", "journal", "messages", "modseq", "size", "top", "unseen", "used")

    def __init__(self, box: Mailbox | None, mailbox_id: int) -> None:
        self.box = box
        self.id = mailbox_id
        self.messages = [0, 0]
        self.unseen = [0, 0]
        self.deleted = [0, 0]
        self.size = [0, 0]
        self.modseq = 0
        self.top = 0  # the highest uid named anywhere
        self.journal = True  # its rows of changed flags can be read
        self.used = False  # it has rows
        self.gone: list[int] = []
        self.again: list[tuple[int, int, int, bool]] = []  # uid, size, saved s, whether it had been expunged

    def add(self, size: int, flags: int, now: bool, after: bool) -> None:
        """Count a message among those there are now, and those after a repair."""
        for index, counts in enumerate((now, after)):
            if counts:
                self.messages[index] += 1
                self.size[index] += size
                self.unseen[index] += not flags & SEEN
                self.deleted[index] += bool(flags & DELETED)


class Parts(Struct):
    """A message row. summary: (blob, octets) of one kept outside, which ends at place_end; else empty."""

    rope: Rope
    summary: list[tuple[int, int]]
    place_end: int
    saved_s: int
    origin: bytes


def parts_of(value: bytes | None) -> Parts | None:
    """A message row taken apart; None if it is none."""
    if value is None or len(value) < MESSAGE_HEAD.size:
        return None
    version, bits, _, rope_octets, envelope, structure, saved, origin = MESSAGE_HEAD.unpack_from(value)
    end = MESSAGE_HEAD.size + rope_octets
    outside = bool(bits & SUMMARY_OUTSIDE)
    if version != MESSAGE_VERSION or len(value) != end + (SUMMARY_PLACE.size if outside else envelope + structure):
        return None
    try:
        rope = decode_rope(value[MESSAGE_HEAD.size : end])
    except BAD:
        return None
    if not outside:
        return Parts(rope, [], 0, saved, origin)
    blob, offset = SUMMARY_PLACE.unpack_from(value, end)
    return Parts(rope, [(blob, envelope + structure)], offset + envelope + structure, saved, origin)


def octets_of(rope: Rope) -> int:
    """The length of a content."""
    return sum(piece.length if isinstance(piece, Extent) else len(piece) for piece in rope)


def still_there(txn: Any, finding: Finding) -> bool:
    """Whether what a finding is about is still so in a younger transaction: its file may have gone after its row."""
    return finding.row is None or txn.get(finding.row[0]) == finding.row[1]
