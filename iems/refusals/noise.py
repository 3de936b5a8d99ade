"""Refusals that say no more than that a command was malformed, unknown or untimely: kept, but never more of them than does good.

Whoever sends rubbish could otherwise push what matters out of the ring, or make the disk busy. So alike ones of one client share a record, and its
id, for a while; new records have a budget, and what is beyond it shares one record, whoever sent it. Every reply has an id that leads somewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from iems.model import Reply
from iems.refusals.ring import Ring

#: Seconds for which a record stands for replies alike.
ALIKE_S: Final = 60.0
#: Clients and replies that are told from each other at once.
MOST: Final = 4096
#: New records at once, and a second on average, of one worker.
BURST: Final = 200.0
PER_S: Final = 2.0


class Noise:
    """What a worker keeps of it. ring: where records go. clock: seconds that only go on."""

    __slots__ = ("_alike", "_budget", "_clock", "_filled_s", "_rest", "_ring")

    def __init__(self, ring: Ring, clock: Callable[[], float] = time.monotonic) -> None:
        self._ring = ring
        self._clock = clock
        self._alike: dict[tuple[str, str, Reply], tuple[float, bytes]] = {}
        self._rest: tuple[float, bytes] = (float("-inf"), b"")
        self._budget = BURST
        self._filled_s = clock()

    def note(self, listener: str, client: str, helo: bytes, user: str, reply: Reply) -> bytes:
        """The end of the reply, as `Ring.note` gives it; b"" only if nothing can be kept."""
        now_s = self._clock()
        key = client, listener, reply
        kept = self._alike.get(key)
        if kept is not None and kept[0] > now_s:
            return kept[1]
        self._budget = min(self._budget + (now_s - self._filled_s) * PER_S, BURST)
        self._filled_s = now_s
        if self._budget < 1.0:
            if self._rest[0] <= now_s:
                self._rest = now_s + ALIKE_S, self._ring.note(listener, "", b"", None, b"", 0, "", reply, "flood")
            return self._rest[1]
        self._budget -= 1.0
        end = self._ring.note(listener, client, helo, None, b"", 0, user, reply)
        if end:
            if len(self._alike) >= MOST:
                self._alike.clear()
            self._alike[key] = now_s + ALIKE_S, end
        return end
