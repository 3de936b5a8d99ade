"""Asks nobody who has not answered of late: after some failures in a row the way is closed for a while, then tried by one.

`Guard` is what each client asks through: so many at once, so long each, and the breaker is told how it went.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from iems.errors import IemsError

FAILURES = 5
CLOSED_S = 30.0


class NoAnswer(IemsError):
    """A service did not answer, or nothing that can be believed."""


class Breaker:
    """One service's breaker. told: called with (open, reason) when it opens or closes."""

    def __init__(self, told: Callable[[bool, str], None] = lambda is_open, reason: None, clock: Callable[[], float] = time.monotonic) -> None:
        self._told = told
        self._clock = clock
        self._failures = 0
        self._closed_until = 0.0
        self._trying = False

    def check(self) -> None:
        """Raises NoAnswer while nobody should ask. Who gets through must tell how it went."""
        if self._failures < FAILURES:
            return
        if self._trying or self._clock() < self._closed_until:
            raise NoAnswer("it has not answered of late")
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


class Guard:
    """The way to one service. name: for people. timeout_s: for one question, None where the block has limits of its own. at_once: questions at the
    same time."""

    def __init__(self, name: str, *, timeout_s: float | None, at_once: int, breaker: Breaker) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._room = asyncio.Semaphore(at_once)
        self._breaker = breaker

    @asynccontextmanager
    async def asking(self, *faults: type[Exception]) -> AsyncIterator[None]:
        """A block in which the service is asked. It raises NoAnswer, whatever it was that could not be had or believed.

        faults: what else of the block means an answer that can't be believed.
        """
        expected: tuple[type[Exception], ...] = (OSError, EOFError, TimeoutError, ValueError, NoAnswer, *faults)
        async with self._room:
            self._breaker.check()
            try:
                async with asyncio.timeout(self._timeout_s):
                    yield
            except expected as error:
                reason = str(error) or type(error).__name__
                self._breaker.failed(reason)
                raise NoAnswer(f"{self._name}: {reason}") from error
            except BaseException:
                self._breaker.failed("cut off")
                raise
            self._breaker.succeeded()
