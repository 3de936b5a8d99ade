"""Items of one message that are in hand together, so that one report tells the sender of all of them.

A message for several destinations is several items here, and each of them ends in its own time. An item whose end is to be told
waits a moment for the others in hand; what ends later, or in another role, has a report of its own (RFC 3464 allows both).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from iems.model import Outcome

if TYPE_CHECKING:
    from iems.smtpc.worker import Done
    from iems.spool.items import Item

#: How long an end waits for the others. With a recipient that was relayed the time in which a crash sends him a second copy
#: must stay short.
WAIT_S: Final = 2.0
WAIT_RELAYED_S: Final = 0.1


def key(item: Item) -> tuple[bytes, bytes]:
    """What items of one report have in common: the message, and the sender (a forward may have another)."""
    return item.id, item.envelope.reverse_path


def grouped(batch: list[Done]) -> list[list[Done]]:
    """A batch divided by report, in order."""
    found: dict[tuple[bytes, bytes], list[Done]] = {}
    for done in batch:
        found.setdefault(key(done.work.item), []).append(done)
    return list(found.values())


class Siblings:
    """release: called with ends that wait no longer. It is true while any message has several items in hand."""

    def __init__(self, loop: asyncio.AbstractEventLoop, release: Callable[[list[Done]], None]) -> None:
        self._loop = loop
        self._release = release
        self._open: dict[tuple[bytes, bytes], int] = {}
        self._held: dict[tuple[bytes, bytes], tuple[list[Done], asyncio.TimerHandle]] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def came(self, item: Item) -> None:
        """An item of a message with further recipients is in hand."""
        name = key(item)
        self._open[name] = self._open.get(name, 0) + 1

    def left(self, item: Item) -> None:
        """An item has ended (or went back); when it was the last one, what waited for it waits no longer."""
        name = key(item)
        number = self._open.get(name)
        if number is None:
            return
        if number > 1:
            self._open[name] = number - 1
            return
        del self._open[name]
        self._let_go(name)

    def hold(self, done: Done) -> bool:
        """Whether an end (its item has `left`) waits for others; `release` is called later, then."""
        name = key(done.work.item)
        if name not in self._open:
            return False
        if name in self._held:
            self._held[name][0].append(done)
            return True
        relayed = any(result.outcome == Outcome.RELAYED for result in done.settlement.results)
        timer = self._loop.call_later(WAIT_RELAYED_S if relayed else WAIT_S, self._let_go, name)
        self._held[name] = [done], timer
        return True

    def let_all_go(self) -> None:
        """Nothing waits any longer."""
        for name in list(self._held):
            self._let_go(name)

    def _let_go(self, name: tuple[bytes, bytes]) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            held[1].cancel()
            self._release(held[0])
