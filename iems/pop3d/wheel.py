"""Deadlines of many sessions by one timer: nothing is done when a session is active, only when a deadline is met."""

from __future__ import annotations

from typing import Protocol


class Timed(Protocol):
    """What waits in the wheel."""

    def due(self, now: float) -> float:
        """When it expires unless something happens, in seconds of the same clock; asked when the old time is up."""

    def expire(self) -> None:
        """The time is up."""


class Wheel:
    """Buckets of `tick_s` seconds. Call `turn` once a tick; an entry expires at most one tick late."""

    def __init__(self, tick_s: float = 1.0) -> None:
        self.tick_s = tick_s
        self._buckets: dict[int, set[Timed]] = {}
        self._where: dict[Timed, int] = {}
        self._turned = -1

    def __len__(self) -> int:
        return len(self._where)

    def add(self, entry: Timed, now: float) -> None:
        """Put an entry in, or where its deadline now says."""
        self.remove(entry)
        bucket = max(int(entry.due(now) / self.tick_s), self._turned + 1)
        self._buckets.setdefault(bucket, set()).add(entry)
        self._where[entry] = bucket

    def remove(self, entry: Timed) -> None:
        """Take an entry out; nothing if it is not there."""
        bucket = self._where.pop(entry, None)
        if bucket is not None:
            found = self._buckets[bucket]
            found.discard(entry)
            if not found:
                del self._buckets[bucket]

    def turn(self, now: float) -> None:
        """Expire what is due; what was active since goes to its new place."""
        upto = int(now / self.tick_s) - 1
        if len(self._buckets) < upto - self._turned:
            ready = sorted(bucket for bucket in self._buckets if bucket <= upto)
        else:
            ready = [bucket for bucket in range(self._turned + 1, upto + 1) if bucket in self._buckets]
        self._turned = max(self._turned, upto)
        for bucket in ready:
            for entry in list(self._buckets.get(bucket, ())):
                if entry.due(now) <= now:
                    self.remove(entry)
                    entry.expire()
                else:
                    self.add(entry, now)
