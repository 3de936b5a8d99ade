"""Tables and records as they were written before each lesson had a weight: keys of 32 bits, features of 64, counts of messages.

They are read, never written. What they know goes on to count, as lessons of the weight 1. They were not learnt to be summed:
the linear sum counts for as much as there is of newer lessons (`filter.read`). Features that are no longer made are
forgotten as others come.
"""

from __future__ import annotations

import numpy as np

MAGIC = b"IEMSbay1"


def items(octets: memoryview, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The keys (as they are now) and counts of a table of 2^bits buckets of 16 slots."""
    slots = np.frombuffer(octets, np.uint32)
    counts = slots >> np.uint32(33 - bits)
    at = np.flatnonzero(counts)
    slots, counts = slots[at], counts[at]
    rest = slots & np.uint32((1 << (32 - bits)) - 1)
    home = (at >> 4).astype(np.uint32)
    apart = (rest * np.uint32(0x9E3779B1)) >> np.uint32(32 - bits) | np.uint32(1)
    home = np.where(slots >> np.uint32(32 - bits) & np.uint32(1), home ^ apart, home)
    return (home << np.uint32(32 - bits) | rest) >> np.uint32(3), counts


def features(found: bytes) -> bytes:
    """Features of 64 bits as they are now."""
    wide = np.frombuffer(found, np.uint64)
    return ((wide >> np.uint64(32)).astype(np.uint32) & ~np.uint32(7) | (wide & np.uint64(7)).astype(np.uint32)).tobytes()
