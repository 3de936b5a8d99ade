"""DNS answers that all workers of a server share: a table in memory, mapped by the master before it forks.

It stands behind the cache of each `Resolver`: what one worker has learnt no other need ask. There is no lock, so nobody waits, and a process may
be killed or stopped at any instruction: a record carries a checksum of itself, and one that two writers tore, that was cut short or written over
is no record. Nothing is kept beyond the life of the master. No I/O; what an answer means is the resolver's.

    table of SLOT octets. A record begins at one of the two slots that its key picks and may run on over those behind it:
    check u32 (CRC-32 of what follows), length u32 (of the octets), until f64 (s of CLOCK_MONOTONIC), key 16 octets (a hash), octets
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from typing import Final

#: Octets of a slot: most records fit into one.
SLOT: Final = 256
#: Slots that a record may take; a longer one is not shared.
SPAN: Final = 17
_HEAD: Final = struct.Struct("<IId16s")
#: Octets of one record's content.
MOST: Final = SPAN * SLOT - _HEAD.size
_KEY: Final = struct.Struct("<II16s")


class Answers:
    """The table. octets: its size, rounded down to whole slots; memory is used as it fills. Usable in every process forked after it was made."""

    __slots__ = ("_map", "_places", "_secret")

    def __init__(self, octets: int) -> None:
        slots = max(octets // SLOT, 2 * SPAN)
        self._map = mmap.mmap(-1, slots * SLOT)
        self._places = slots - SPAN + 1  # a record that begins at the last of these still ends inside
        # Strangers choose the names: without the secret they can't aim at the place of another's answer.
        self._secret = os.urandom(16)

    def get(self, key: bytes, now_s: float) -> tuple[float, bytes] | None:
        """(until when, octets) of what was put under a key; None if there is nothing, or its time is over. now_s: of CLOCK_MONOTONIC."""
        table = self._map
        first, second, name = _KEY.unpack(hashlib.blake2b(self._secret + key, digest_size=24).digest())
        for place in (first % self._places, second % self._places):
            at = place * SLOT
            if table[at + 16 : at + 32] != name:
                continue
            # One copy, judged as it is: what the table holds may be another record by now.
            length = int.from_bytes(table[at + 4 : at + 8], "little")
            if length > MOST:
                continue
            record = table[at : at + _HEAD.size + length]
            check, again, until_s, found = _HEAD.unpack_from(record)
            if again == length and found == name and until_s > now_s and zlib.crc32(memoryview(record)[4:]) == check:
                return until_s, record[_HEAD.size :]
        return None

    def put(self, key: bytes, until_s: float, octets: bytes, now_s: float) -> bool:
        """Share octets until a moment, in the place of what is over or ends first; False if they are too many."""
        if len(octets) > MOST:
            return False
        table = self._map
        first, second, name = _KEY.unpack(hashlib.blake2b(self._secret + key, digest_size=24).digest())
        chosen, least_s = -1, float("inf")
        for place in (first % self._places, second % self._places):
            _, _, there_s, found = _HEAD.unpack_from(table, place * SLOT)
            if found == name:
                chosen = place
                break
            ends_s = there_s if there_s > now_s else 0.0  # also what is no number
            if ends_s < least_s:
                chosen, least_s = place, ends_s
        body = _HEAD.pack(0, len(octets), until_s, name)[4:] + octets
        at = chosen * SLOT
        table[at : at + 4 + len(body)] = zlib.crc32(body).to_bytes(4, "little") + body
        return True


__all__ = ["MOST", "SLOT", "Answers"]
