"""The worker with a fake spool, directory and store: settling, notices, busy, forgetting, draining."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

import iems.lmda.worker as module
from iems.config import Lmda, Spool, Store
from iems.errors import SpoolError, StoreUnavailable
from iems.lmda.worker import Worker
from iems.model import Channel, Envelope, Notify, Outcome, Recipient
from iems.spool.items import Item, Message, Settlement
from iems.store.wire import Delivered, Delivery
from tests.unit.lmda.test_delivery import look_up

CONTENT = b"Subject: x\r\n\r\nbody\r\n"


class FakeSpool:
    def __init__(self) -> None:
        self.queue: list[Item] = []
        self.settled: list[Settlement] = []
        self.messages: list[Message] = []
        self.back: list[Item] = []
        self.fail = 0
        self.flushes = 0
        self.blobs = SimpleNamespace(
            folders=[], read=lambda rope: b"".join(rope), read_range=lambda rope, a, n: b"".join(rope)[a : a + n]
        )

    def take(self, channel: int, limit: int) -> tuple[list[Item], float | None]:
        assert channel == Channel.LOCAL
        taken, self.queue = self.queue[:limit], self.queue[limit:]
        return taken, None

    def age_s(self, item: Item) -> float:
        return 0

    async def settle(self, settlements: list[Settlement], messages: list[Message], flush: bool = False) -> None:
        if self.fail:
            self.fail -= 1
            raise SpoolError("no")
        self.settled += settlements
        self.messages += messages

    async def flushed(self) -> None:
        self.flushes += 1

    def give_back(self, items: list[Item]) -> None:
        self.back += items
        self.queue += items

    def close(self) -> None:
        pass


class FakeStore:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.delivered: list[Delivery] = []
        self.busy = 0
        self.forgotten: list[tuple[bytes, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0

    async def deliver(self, batch: list[Delivery]) -> list[Delivered]:
        self.waiting += 1
        await self.gate.wait()
        if self.busy:
            self.busy -= 1
            raise StoreUnavailable("busy")
        self.delivered += batch
        return [Delivered("ok", len(self.delivered), 1) for _ in batch]

    async def forget(self, pairs: list[tuple[bytes, int]]) -> None:
        self.forgotten += pairs

    def close(self) -> None:
        pass


class FakeContext:
    def __init__(self, loop: asyncio.AbstractEventLoop, **lmda: Any) -> None:
        self.loop = loop
        self.config = SimpleNamespace(lmda=Lmda(**lmda), spool=Spool(), hostname="mx.test", domain="test", store=Store())
        self.home = __import__("pathlib").Path("/nowhere")
        self.draining = False
        self.events: list[tuple[Any, ...]] = []
        self.counts: dict[str, int] = {}
        self.parked = 0
        self.log = SimpleNamespace(
            event=lambda name, id=None, recipient=None, **detail: self.events.append((name, id, recipient)),
            error=lambda what, error=None, id=None, **detail: self.events.append(("error", id, what)),
        )

    def on_wake(self, callback: Callable[[], None]) -> None:
        self.wake = callback

    def park(self) -> None:
        self.parked += 1

    def unpark(self) -> None:
        self.parked -= 1

    def working_on(self, id: bytes | None) -> None:
        pass

    def count(self, name: str, n: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + n


def item(number: int, *addresses: bytes, reverse_path: bytes = b"from@y", notify: int = 0) -> Item:
    recipients = [Recipient(address, notify=notify) for address in addresses]
    return Item(number.to_bytes(16, "big"), Channel.LOCAL, "", Envelope(1, reverse_path, recipients, 10**18), [CONTENT])


def run(monkeypatch: pytest.MonkeyPatch, test: Callable[..., Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        spool = FakeSpool()
        store: list[FakeStore] = []

        def make_store(*a: Any, **k: Any) -> FakeStore:
            store.append(FakeStore())
            return store[0]

        monkeypatch.setattr(module, "StoreClient", make_store)
        monkeypatch.setattr(module.Spool, "open", classmethod(lambda cls, ctx: spool))
        monkeypatch.setattr(module, "Directory", lambda path: SimpleNamespace(account=look_up, close=lambda: None))
        monkeypatch.setattr(module, "BUSY_S", (0.001, 0.001))
        monkeypatch.setattr(module, "FORGET_S", 0.01)
        ctx = FakeContext(asyncio.get_running_loop(), **settings)
        worker = Worker(ctx)  # type: ignore[arg-type]
        await worker.start()
        await asyncio.wait_for(test(ctx, worker, spool, store[0]), 60)
        ctx.draining = True
        await worker.drain(1)

    asyncio.run(main())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def outcomes(settlements: list[Settlement]) -> dict[int, list[int]]:
    return {
        int.from_bytes(s.item.id, "big"): [r.outcome for r in s.results] for s in settlements
    }


def test_delivered_settled_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(ctx: FakeContext, worker: Worker, spool: FakeSpool, store: FakeStore) -> None:
        await until(lambda: ctx.parked == 1)
        spool.queue = [item(i, b"a@x", b"b@x") for i in range(1, 200)]
        ctx.wake()
        await until(lambda: len(spool.settled) == 199)
        assert len(store.delivered) == 398
        assert set(map(tuple, outcomes(spool.settled).values())) == {(Outcome.DELIVERED, Outcome.DELIVERED)}
        await until(lambda: len(store.forgotten) == 398)
        assert spool.flushes >= 1 and ctx.counts["messages_delivered_total"] == 398
        names = [name for name, _, _ in ctx.events]
        assert names.count("leased") == 199 and names.count("delivered") == 398

    run(monkeypatch, test)


def test_unknown_recipient_gets_a_notice_but_no_notice_about_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(ctx: FakeContext, worker: Worker, spool: FakeSpool, store: FakeStore) -> None:
        spool.queue = [item(1, b"a@x", b"no@x"), item(2, b"no@x", reverse_path=b""), item(3, b"a@x", notify=Notify.SUCCESS)]
        ctx.wake()
        await until(lambda: len(spool.settled) == 1 and len(spool.messages) == 2)
        assert outcomes(spool.settled) == {2: [Outcome.FAILED]}
        assert all(message.envelope.reverse_path == b"" for message in spool.messages)
        assert outcomes(spool.messages[0].settled) == {1: [Outcome.DELIVERED, Outcome.FAILED]}
        assert outcomes(spool.messages[1].settled) == {3: [Outcome.DELIVERED]}
        assert ("discarded", (2).to_bytes(16, "big"), b"no@x") in ctx.events
        assert ctx.counts["dsn_total"] == 2

    run(monkeypatch, test)


def test_several_batches_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(ctx: FakeContext, worker: Worker, spool: FakeSpool, store: FakeStore) -> None:
        store.gate.clear()
        spool.queue = [item(i, b"a@x") for i in range(20)]
        ctx.wake()
        await until(lambda: store.waiting == 4)
        await asyncio.sleep(0.01)
        assert store.waiting == 4 and len(spool.queue) == 12
        store.gate.set()
        await until(lambda: len(spool.settled) == 20)

    run(monkeypatch, test, batch=2)


def test_busy_store_is_asked_again_and_mail_stays_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(ctx: FakeContext, worker: Worker, spool: FakeSpool, store: FakeStore) -> None:
        store.busy = 2
        spool.queue = [item(1, b"a@x")]
        ctx.wake()
        await until(lambda: spool.settled)
        assert not spool.back
        store.busy = 3
        spool.queue = [item(2, b"a@x")]
        ctx.wake()
        await until(lambda: len(spool.settled) == 2)
        assert [entry.id for entry in spool.back] == [(2).to_bytes(16, "big")]

    run(monkeypatch, test)


def test_unrecorded_outcomes_go_back_to_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(ctx: FakeContext, worker: Worker, spool: FakeSpool, store: FakeStore) -> None:
        spool.fail = 1
        spool.queue = [item(1, b"a@x")]
        ctx.wake()
        await until(lambda: spool.settled)
        assert len(spool.back) == 1 and len(store.delivered) == 2, "delivered again: the store knows the origin"

    run(monkeypatch, test)


def test_drain_gives_back_what_it_can_not_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(ctx: FakeContext, worker: Worker, spool: FakeSpool, store: FakeStore) -> None:
        store.gate.clear()
        spool.queue = [item(1, b"a@x")]
        ctx.wake()
        await until(lambda: store.waiting == 1)
        ctx.draining = True
        await worker.drain(0.6)
        assert len(spool.back) == 1 and not spool.settled

    run(monkeypatch, test)


def test_many_recipients_go_in_requests_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace as Account

    async def test(ctx: FakeContext, worker: Worker, spool: FakeSpool, store: FakeStore) -> None:
        worker._directory.account = lambda address: Account(  # type: ignore[assignment, method-assign]
            number=int(address.split("@")[0]), enabled=True, may_receive=True, quota_octets=None, domain="x", domain_quota_octets=None, partition=0, filtered=False,
            bayes=None,
        )
        sizes: list[int] = []
        deliver = store.deliver

        async def noted(batch: list[Delivery]) -> list[Delivered]:
            sizes.append(len(batch))
            return await deliver(batch)

        store.deliver = noted  # type: ignore[method-assign]
        spool.queue = [item(1, *[b"%d@x" % i for i in range(1, 1001)])]
        ctx.wake()
        await until(lambda: spool.settled)
        assert sum(sizes) == 1000 and max(sizes) == module.REQUEST_DELIVERIES

    run(monkeypatch, test)


def test_content_that_can_not_be_read_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(ctx: FakeContext, worker: Worker, spool: FakeSpool, store: FakeStore) -> None:
        def gone(item: Any) -> bytes:
            raise FileNotFoundError("gone")

        monkeypatch.setattr(worker._verifier, "read", gone)
        spool.queue = [item(1, b"a@x")]
        ctx.wake()
        await until(lambda: spool.settled)
        assert outcomes(spool.settled) == {1: [Outcome.DEFERRED]}
        assert ("error", (1).to_bytes(16, "big"), "the content can't be read") in ctx.events

    run(monkeypatch, test)
