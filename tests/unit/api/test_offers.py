"""Who waits for an item gets one, and nobody who has gone."""

from __future__ import annotations

import asyncio

from iems.api.offers import Offers
from iems.model import Channel, Envelope, Recipient
from iems.spool.items import Item


def item(number: int) -> Item:
    return Item(bytes([number]) * 16, Channel.CCMAIL, "PO", Envelope(1, b"", [Recipient(b"a@b")], 0), [])


class FakeQueue:
    def __init__(self) -> None:
        self.items: list[Item] = []
        self.due_s: float | None = None
        self.fails = 0

    def take(self, channel, limit):
        if self.fails:
            self.fails -= 1
            raise OSError("no index")
        found, self.items = self.items[:limit], self.items[limit:]
        return found, self.due_s

    def give_back(self, items):
        self.items = [*items, *self.items]


def run(body):
    async def main():
        queue = FakeQueue()
        parked = [False]
        failed: list[BaseException] = []
        offers = Offers(
            asyncio.get_running_loop(), queue, lambda: parked.__setitem__(0, True), lambda: parked.__setitem__(0, False), failed.append
        )
        await body(queue, offers, parked, failed)
        offers.close()
        assert not parked[0]

    asyncio.run(asyncio.wait_for(main(), 60))


def test_first_come_first_served():
    async def body(queue, offers, parked, failed):
        gone = asyncio.Event()
        first = asyncio.ensure_future(offers.want(Channel.CCMAIL, 2, 5, gone))
        second = asyncio.ensure_future(offers.want(Channel.CCMAIL, 2, 5, gone))
        await asyncio.sleep(0)
        assert parked[0]
        queue.items = [item(1), item(2), item(3)]
        offers.look_everywhere()
        assert await first == [item(1), item(2)] and await second == [item(3)]
        assert not parked[0]
        assert await offers.want(Channel.CCMAIL, 1, 0, gone) == []

    run(body)


def test_who_goes_gets_nothing():
    async def body(queue, offers, parked, failed):
        gone = asyncio.Event()
        waits = asyncio.ensure_future(offers.want(Channel.CCMAIL, 1, 5, gone))
        await asyncio.sleep(0)
        gone.set()
        assert await waits == []
        cancelled = asyncio.ensure_future(offers.want(Channel.CCMAIL, 1, 5, asyncio.Event()))
        await asyncio.sleep(0)
        queue.items = [item(1)]
        offers.look_everywhere()
        cancelled.cancel()
        await asyncio.wait((cancelled,))
        assert queue.items == [item(1)]  # came with the cancellation: given back

    run(body)


def test_what_is_due_later_and_a_queue_that_fails(monkeypatch):
    monkeypatch.setattr("iems.api.offers.PAUSE_S", 0.01)

    async def body(queue, offers, parked, failed):
        queue.due_s = 0.01
        queue.fails = 1
        waits = asyncio.ensure_future(offers.want(Channel.CCMAIL, 1, 5, asyncio.Event()))
        await asyncio.sleep(0)
        assert len(failed) == 1
        queue.items = [item(1)]
        assert await waits == [item(1)]

    run(body)
