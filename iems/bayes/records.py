"""Records of training: the journal (what is not yet in the tables), the last command (undo), and what waits.

A record: length of the rest and its CRC-32C (4 octets each), sequence, digest and size of the message (8 each), change
(+1 learnt, -1 taken back), side (0 good, 1 spam), six octets 0, then features (uint64). Little-endian. Reading ends at
the first record that is not whole: what a crash cut off was not told to anyone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from iems._native import kernel

_crc = kernel("crc32c")
_FRAME = struct.Struct("<II")
_BODY = struct.Struct("<QQQbB6x")


class Record(Struct, frozen=True):
    """One message learnt or taken back, or one that waits."""

    sequence: int
    digest: int
    size: int
    change: int
    side: int
    found: bytes

    def octets(self) -> bytes:
        """As it is written."""
        body = _BODY.pack(self.sequence, self.digest, self.size, self.change, self.side) + self.found
        return _FRAME.pack(len(body), _crc.crc32c(body)) + body


def read(path: Path) -> Iterator[Record]:
    """The whole records of a file; none if there is no file."""
    try:
        octets = path.read_bytes()
    except FileNotFoundError:
        return
    at = 0
    while at + _FRAME.size + _BODY.size <= len(octets):
        length, crc = _FRAME.unpack_from(octets, at)
        body = octets[at + _FRAME.size : at + _FRAME.size + length]
        if length < _BODY.size or len(body) < length or (length - _BODY.size) % 8 or _crc.crc32c(body) != crc:
            return
        sequence, digest, size, change, side = _BODY.unpack_from(body)
        yield Record(sequence, digest, size, change, side, body[_BODY.size :])
        at += _FRAME.size + length
