"""Asks nobody who has not answered of late: after some failures in a row the way is closed for a while, then tried by one."""

from __future__ import annotations

import time
from collections.abc import Callable

from iems.errors import IemsError

FAILURES = 5
CLOSED_S = 30.0


class ScanFailure(IemsError):
    """The scanner did not answer, or nothing that can be believed."""


class Breaker:
    """One scanner's breaker. told: called with (open, reason) when it opens or closes."""

    def __init__(self, told: Callable[[bool, str], None] = lambda is_open, reason: None, clock: Callable[[], float] = time.monotonic) -> None:
        self._told = told
        self._clock = clock
        self._failures = 0
        self._closed_until = 0.0
        self._trying = False

    def check(self) -> None:
        """Raises ScanFailure while nobody should ask. Who gets through must tell how it went."""
        if self._failures < FAILURES:
            return
        if self._trying or self._clock() < self._closed_until:
            raise ScanFailure("it has not answered of late")
        self._trying = True

    def succeeded(self) -> None:
        """It answered."""
        self._trying = False
        if self._failures >= FAILURES:
            self._told(False, "")
        self._failures = 0

    def failed(self, reason: str) -> None:
        """It did not."""
        self._trying = False
        self._failures += 1
        if self._failures >= FAILURES:
            self._closed_until = self._clock() + CLOSED_S
            if self._failures == FAILURES:
                self._told(True, reason)
