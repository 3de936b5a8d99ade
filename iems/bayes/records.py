"""Records of training: the journal (what is not yet in the tables), the last command (undo), and what waits.

A record: length of the rest and its CRC-32C (4 octets each), sequence, digest and size of the message (8 each), change (of
the counts, 4), side (0 good, 1 spam), lesson (+1 the first of this message, 0 one more, -1 taken back), version (2), an
octet 0, then features (uint32). Little-endian. Reading ends at the first record that is not whole: what a crash cut off was
not told to anyone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from iems._native import kernel
from iems.bayes import former

_crc = kernel("crc32c")
_FRAME = struct.Struct("<II")
_BODY = struct.Struct("<QQQiBbBx")
_FORMER = struct.Struct("<QQQbB6x")  # version 0: of 64-bit features, changes of 1
_VERSION = 2


class Record(Struct, frozen=True):
    """One message learnt or taken back, or one that waits."""

    sequence: int
    digest: int
    size: int
    change: int
    side: int
    lesson: int
    found: bytes

    def octets(self) -> bytes:
        """As it is written."""
        body = _BODY.pack(self.sequence, self.digest, self.size, self.change, self.side, self.lesson, _VERSION) + self.found
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
        if length < _BODY.size or len(body) < length or (length - _BODY.size) % 4 or _crc.crc32c(body) != crc:
            return
        sequence, digest, size, change, side, lesson, version = _BODY.unpack_from(body)
        if version == _VERSION:
            yield Record(sequence, digest, size, change, side, lesson, body[_BODY.size :])
        else:
            sequence, digest, size, change, side = _FORMER.unpack_from(body)
            yield Record(sequence, digest, size, change, side, change, former.features(body[_FORMER.size : length - length % 8]))
        at += _FRAME.size + length
