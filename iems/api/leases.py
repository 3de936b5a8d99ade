"""Items one client has in hand, each with the time at which it is taken from it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from iems.api.wire import Refused
from iems.spool.items import Item


class Lease:
    """One item in hand. settling: its outcome is being written; it can't be lost any more."""

    __slots__ = ("item", "settling", "timer", "token")

    def __init__(self, token: str, item: Item) -> None:
        self.token = token
        self.item = item
        self.settling = False
        self.timer: asyncio.TimerHandle | None = None


class Leases:
    """The leases of one connection. expired: called with a lease that was held too long, and is held no longer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[Lease], None]) -> None:
        self._loop = loop
        self._expired = expired
        self._held: dict[str, Lease] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._held.values())

    def add(self, token: str, item: Item, seconds: float) -> Lease:
        """Note an item in hand."""
        lease = self._held[token] = Lease(token, item)
        lease.timer = self._loop.call_later(seconds, self._over, lease)
        return lease

    def find(self, token: str) -> Lease:
        """The lease of that name. Raises Refused if it is not held (any more)."""
        lease = self._held.get(token)
        if lease is None or lease.settling:
            raise Refused("lease", f"{token!a} is no lease of this connection, or its time is over: the item is offered again")
        return lease

    def renew(self, lease: Lease, seconds: float) -> None:
        """From now on it may be held so long."""
        self._stop(lease)
        lease.timer = self._loop.call_later(seconds, self._over, lease)

    def settle(self, lease: Lease) -> None:
        """Its outcome is known: time no longer runs."""
        self._stop(lease)
        lease.settling = True

    def resume(self, lease: Lease, seconds: float) -> None:
        """Its outcome could not be written after all."""
        lease.settling = False
        self.renew(lease, seconds)

    def drop(self, lease: Lease) -> None:
        """It is held no longer."""
        self._stop(lease)
        self._held.pop(lease.token, None)

    def clear(self) -> list[Item]:
        """Give up all but those that are being settled; their items."""
        given = [lease for lease in self._held.values() if not lease.settling]
        for lease in given:
            self.drop(lease)
        return [lease.item for lease in given]

    def _stop(self, lease: Lease) -> None:
        if lease.timer is not None:
            lease.timer.cancel()
            lease.timer = None

    def _over(self, lease: Lease) -> None:
        self.drop(lease)
        self._expired(lease)
