"""One of the two files of a folder, `good` or `spam`: a table of counts, and which messages are in it.

Layout, little-endian: a header of 64 octets (`_HEADER`), 2^bits buckets of 64 octets (`_native/bayes_py`), of the messages
learnt last the digests (8 octets each), then the weights of their lessons (2 octets each). The header holds a CRC-32C of
all of it, so a torn or cut file is noticed when it is opened. A file is never changed in place: a new one takes its name.
A file of the former layout is read as well (`former`), and written in this one.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import numpy as np

from iems._native import kernel
from iems.bayes import former
from iems.durable import write_durably

_bayes = kernel("bayes")
_crc = kernel("crc32c")

_HEADER = struct.Struct("<8sIIQQQQIIII")
_CRC_AT = _HEADER.size - 12
_MAGIC = b"IEMSbay2"
#: Messages whose digests are kept, the latest: learning one of them again is noticed.
MAX_DIGESTS = 16_384
#: The weight of one message's lessons that is remembered.
MAX_WEIGHT = 65_535
#: A table of 2^CAP_BITS buckets (4 MiB, 900,000 features) doesn't grow: what was seen once is forgotten instead.
CAP_BITS = 16


class Damaged(ValueError):
    """A file that is no whole table."""


class Side:
    """A table in memory, or mapped read-only.

    messages: learnt and in the counts. weight: of all their lessons together. former: of it, what `former` brought. given, given_octets: all that was offered,
    learnt or not. sequence: the last record of the journal that is in it. halved: how often all counts were halved.
    digests: of messages, and the weight of each.
    """

    def __init__(self, bits: int = _bayes.MIN_BITS) -> None:
        self.bits = bits
        self.messages = self.given = self.given_octets = self.sequence = self.halved = self.weight = self.former = 0
        self.table: bytearray | memoryview = bytearray(64 << bits)
        self.digests: dict[int, int] = {}

    # Files

    @classmethod
    def read(cls, octets: bytes | mmap.mmap | memoryview, writable: bool = False) -> Side:
        """From a file's content. Raises Damaged."""
        view = memoryview(octets)
        if len(view) < _HEADER.size:
            raise Damaged("cut short")
        magic, bits, count, messages, given, given_octets, sequence, halved, crc, weight, former_weight = _HEADER.unpack(view[: _HEADER.size])
        if magic not in (_MAGIC, former.MAGIC) or not _bayes.MIN_BITS <= bits <= _bayes.MAX_BITS or count > MAX_DIGESTS:
            raise Damaged("no table")
        end = _HEADER.size + (64 << bits)
        if len(view) != end + (10 if magic == _MAGIC else 8) * count:
            raise Damaged("of another length than it says")
        if _checksum(view) != crc:
            raise Damaged("its checksum is wrong")
        made = cls.__new__(cls)
        made.bits, made.messages, made.given, made.given_octets = bits, messages, given, given_octets
        made.sequence, made.halved, made.weight, made.former = sequence, halved, weight, former_weight
        if magic == former.MAGIC:
            made._take_over(view[_HEADER.size : end])
        else:
            made.table = bytearray(view[_HEADER.size : end]) if writable else view[_HEADER.size : end]
        made.digests = {}
        if writable:
            digests = struct.unpack(f"<{count}Q", view[end : end + 8 * count])
            weights = struct.unpack(f"<{count}H", view[end + 8 * count :]) if magic == _MAGIC else (1,) * count
            made.digests = dict(zip(digests, weights, strict=True))
        return made

    def _take_over(self, octets: memoryview) -> None:
        """The counts of a former table: each message in it was one lesson of weight 1."""
        keys, counts = former.items(octets, self.bits)
        self.table = bytearray(64 << self.bits)
        self.weight = self.former = self.messages
        for count in np.unique(counts).tolist():
            self.add(keys[counts == count], count, _bayes.MAX_BITS)

    @classmethod
    def map(cls, path: Path) -> Side:
        """Mapped read-only. Raises Damaged, or OSError if there is no such file."""
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise Damaged("empty")
            return cls.read(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def octets(self) -> bytes:
        """The content of the file."""
        kept = list(self.digests)[-MAX_DIGESTS:]
        head = _HEADER.pack(_MAGIC, self.bits, len(kept), self.messages, self.given, self.given_octets, self.sequence, self.halved, 0,
                            min(self.weight, 0xFFFFFFFF), min(self.former, 0xFFFFFFFF))  # fmt: skip
        weights = [min(self.digests[digest], MAX_WEIGHT) for digest in kept]
        whole = bytearray(head + self.table + struct.pack(f"<{len(kept)}Q", *kept) + struct.pack(f"<{len(kept)}H", *weights))
        struct.pack_into("<I", whole, _CRC_AT, _checksum(whole))
        return bytes(whole)

    def write(self, path: Path) -> None:
        """Give `path` the content of this table: whole or not at all, on the disk when it returns."""
        write_durably(path, self.octets())

    # Counts

    def add(self, keys: np.ndarray, change: int, cap_bits: int = CAP_BITS) -> None:
        """Add `change` to the counts of `keys` (uint32), growing up to `cap_bits`, then halving."""
        at = 0
        while (at := _bayes.add(self.table, self.bits, keys, at, change)) < len(keys):
            if self.bits < cap_bits:
                self._grow()
            else:
                _bayes.halve(self.table, self.bits)
                self.messages //= 2
                self.weight //= 2
                self.former //= 2
                self.digests = {digest: weight // 2 for digest, weight in self.digests.items()}
                self.halved += 1

    def _grow(self) -> None:
        bits = self.bits
        while True:
            bits += 1
            table = bytearray(64 << bits)
            if _bayes.grow(self.table, self.bits, table, bits):
                self.table, self.bits = table, bits
                return

    def items(self) -> np.ndarray:
        """(key, count) of all entries: uint32[n, 2]."""
        return np.frombuffer(_bayes.items(self.table, self.bits), np.uint32).reshape(-1, 2)

    def remember(self, digest: int, weight: int) -> None:
        """Note that a lesson of a message is in the counts, with this weight."""
        self.digests[digest] = min(MAX_WEIGHT, self.digests.pop(digest, 0) + weight)
        while len(self.digests) > MAX_DIGESTS:
            del self.digests[next(iter(self.digests))]


def _checksum(whole: bytes | bytearray | memoryview) -> int:
    """CRC-32C of a file with the header's own CRC taken as 0."""
    view = memoryview(whole)
    head = bytearray(view[: _HEADER.size])
    head[_CRC_AT : _CRC_AT + 4] = bytes(4)
    return int(_crc.crc32c(view[_HEADER.size :], _crc.crc32c(bytes(head))))


def keys_of(found: bytes) -> np.ndarray:
    """The keys of features: uint32, without the kinds."""
    keys: np.ndarray = np.frombuffer(found, np.uint32) >> np.uint32(3)
    return keys
