"""Queue time: milliseconds that only go forward, carried over restarts.

It is the boot clock (it counts while the machine sleeps) plus an offset kept in the index, so neither a step of the wall clock nor
a reboot makes mail old: time while the machine was off does not count.
"""

from __future__ import annotations

import time


def boot_ms() -> int:
    """Milliseconds since this machine was booted."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class QueueClock:
    """Gives queue time. offset_ms: queue time minus boot clock."""

    __slots__ = ("offset_ms",)

    def __init__(self, offset_ms: int) -> None:
        self.offset_ms = offset_ms

    def now_ms(self) -> int:
        """Queue time now."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 + self.offset_ms
