"""Items of the output channels, handed to the clients that wait for some: first come, first served.

A channel is looked at when a client asks, when its next item is due, and when somebody who queued one wakes this worker. Parked only
while somebody waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from iems.spool.items import Item

#: Wait after a look that failed.
PAUSE_S = 1.0


class Queue(Protocol):
    """What is asked of the spool."""

    def take(self, channel: int, limit: int) -> tuple[list[Item], float | None]:
        """As `Spool.take`."""

    def give_back(self, items: Iterable[Item]) -> None:
        """As `Spool.give_back`."""


class Offers:
    """Who waits for what. park, unpark: of the worker. failed: told of a look that failed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        queue: Queue,
        park: Callable[[], None],
        unpark: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._loop = loop
        self._queue = queue
        self._park = park
        self._unpark = unpark
        self._failed = failed
        self._waiting: dict[int, deque[tuple[int, asyncio.Future[list[Item]]]]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}

    async def want(self, channel: int, limit: int, wait_s: float, gone: asyncio.Event) -> list[Item]:
        """Up to `limit` leased items; none if none came in `wait_s`, or the client has `gone`."""
        future: asyncio.Future[list[Item]] = self._loop.create_future()
        entry = (limit, future)
        self._waiting.setdefault(channel, deque()).append(entry)
        self.look(channel)
        try:
            if not future.done() and wait_s > 0:
                over = asyncio.ensure_future(gone.wait())
                await asyncio.wait((future, over), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                over.cancel()
        except BaseException:
            if future.done() and not future.cancelled():
                self.give_back(future.result())
            raise
        finally:
            if not future.done():
                future.cancel()
                self._waiting[channel].remove(entry)
                self._idle()
        return [] if future.cancelled() else future.result()

    def give_back(self, items: list[Item]) -> None:
        """Items nobody works on any more: offered to the next client at once."""
        if items:
            self._queue.give_back(items)
            for channel in {item.channel for item in items}:
                self.look(channel)

    def look_everywhere(self) -> None:
        """Somebody has woken this worker."""
        for channel, waiting in self._waiting.items():
            if waiting:
                self.look(channel)

    def look(self, channel: int) -> None:
        """Serve those who wait for a channel as far as its queue goes."""
        timer = self._timers.pop(channel, None)
        if timer is not None:
            timer.cancel()
        waiting = self._waiting.get(channel)
        try:
            parked = False
            while waiting:
                limit, future = waiting[0]
                items, due_s = self._queue.take(channel, limit)
                if not items and not parked:
                    # Parked first, looked again second: what is posted between the two wakes us.
                    self._park()
                    parked = True
                    items, due_s = self._queue.take(channel, limit)
                if not items:
                    if due_s is not None:
                        self._later(channel, max(due_s, 0.001))
                    return
                waiting.popleft()
                future.set_result(items)
        except Exception as error:
            self._failed(error)
            self._later(channel, PAUSE_S)
        self._idle()

    def _later(self, channel: int, seconds: float) -> None:
        self._timers[channel] = self._loop.call_later(seconds, self.look, channel)

    def _idle(self) -> None:
        if not any(self._waiting.values()):
            self._unpark()
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    def close(self) -> None:
        """Nobody is served any more."""
        for waiting in self._waiting.values():
            while waiting:
                waiting.popleft()[1].cancel()
        self._idle()
