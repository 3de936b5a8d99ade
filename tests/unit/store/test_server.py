"""The writer's server and its client over a real socket: answers, pushes, busy, resends after the store's death."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from iems.store import server as server_module
from iems.store import wire
from iems.store.client import StoreClient, StoreError, StoreUnavailable
from iems.store.server import Server
from tests.unit.store.home import Home, delivery, message

INBOX = 1


class Running:
    """A home with a served partition and a client."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.path = home.path / "run" / "store-p0.sock"
        self.path.parent.mkdir(exist_ok=True)
        self.errors: list[object] = []

    async def start(self) -> None:
        self.server = Server(
            asyncio.get_running_loop(), self.home.partition, self.path,
            broken=self.errors.append, log_error=self.errors.append,
        )
        await self.server.start()

    async def restart(self) -> None:
        await self.server.drain(1, 0)
        self.home.reader.close()
        self.home.open()
        await self.start()


def run(tmp_path: Path, test: Callable[[Running, StoreClient], Awaitable[None]]) -> None:
    async def main() -> None:
        running = Running(Home(tmp_path))
        await running.start()
        client = StoreClient(asyncio.get_running_loop(), running.path.parent, patience_s=2)
        try:
            await asyncio.wait_for(test(running, client), 60)
        finally:
            client.close()
            await running.server.drain(1, 0)
        assert not running.errors

    asyncio.run(main())


def test_all_calls(tmp_path: Path) -> None:
    async def test(running: Running, client: StoreClient) -> None:
        reader = running.home.reader
        assert oct(running.path.stat().st_mode & 0o777) == "0o600"
        answers = await client.deliver([delivery(i) for i in range(1, 6)])
        assert [(a.status, a.uid) for a in answers] == [("ok", i) for i in range(1, 6)]
        assert await client.deliver([]) == []
        await client.ensure(2)
        assert (await client.create(1, "work")).name == "work"
        with pytest.raises(StoreError) as refusal:
            await client.create(1, "work")
        assert refusal.value.code == "ALREADYEXISTS"
        uidvalidity, uids = await client.append(1, "work", [message(1), message(2, ["\\Seen"])])
        assert uids == [1, 2] and uidvalidity == reader.mailbox(1, "work").uidvalidity
        changed = await client.store_flags(1, INBOX, [1, 2], "+", ["\\Deleted"])
        assert [(uid, flags) for uid, flags, _ in changed] == [(1, 8), (2, 8)]
        assert await client.expunge(1, INBOX) == [1, 2]
        uidvalidity, sources, targets = await client.copy(1, INBOX, [3, 4], "work", move=True)
        assert (sources, targets) == ([3, 4], [3, 4])
        await client.rename(1, "work", "play")
        await client.subscribe(1, "play")
        await client.unsubscribe(1, "Spam")
        assert reader.mailbox(1, "play").subscribed and not reader.mailbox(1, "Spam").subscribed
        await client.delete(1, "play")
        assert await client.take_recent(1, INBOX) == 1
        await client.forget([(a.to_bytes(16, "big"), 1) for a in range(1, 6)])
        await client.drop(1)
        assert reader.mailboxes(1) == []

    run(tmp_path, test)


def test_who_watches_hears_of_each_commit(tmp_path: Path) -> None:
    async def test(running: Running, client: StoreClient) -> None:
        heard: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

        def inbox(modseq: int) -> None:
            heard.put_nowait(("inbox", modseq))

        client.watch(1, INBOX, inbox)
        await client.deliver([delivery(1), delivery(2, account=2)])
        assert await heard.get() == ("inbox", running.home.reader.mailbox(1, "INBOX").highestmodseq)
        client.watch(1, 0, lambda modseq: heard.put_nowait(("any", modseq)))
        await client.create(1, "x")
        assert (await heard.get())[0] == "any"
        await running.restart()
        assert {await heard.get(), await heard.get()} == {("inbox", 0), ("any", 0)}
        await client.deliver([delivery(3)])
        assert {(await heard.get())[0], (await heard.get())[0]} == {"inbox", "any"}
        client.unwatch(1, INBOX, inbox)
        client.unwatch(1, 0)
        await client.deliver([delivery(4)])
        assert heard.empty()
        await client.ensure(1)
        assert not running.server.watchers

    run(tmp_path, test)


def test_requests_outlive_the_store(tmp_path: Path) -> None:
    async def test(running: Running, client: StoreClient) -> None:
        await client.deliver([delivery(1)])
        # The connection breaks after the commit and before the answer.
        [connection] = running.server.connections
        send = connection.send
        connection.send = lambda data: connection.transport.abort()  # type: ignore[method-assign, union-attr]
        copied = await client.copy(1, INBOX, [1], "Sent")
        assert copied[1:] == ([1], [1]) and connection.send != send
        assert running.home.reader.mailbox(1, "Sent").messages == 1
        await running.server.drain(1, 0)
        waiting = asyncio.ensure_future(client.deliver([delivery(2)]))
        await asyncio.sleep(0.05)
        running.home.reader.close()
        running.home.open()
        await running.start()
        assert (await waiting)[0].status == "ok"

    run(tmp_path, test)


def test_a_store_that_stays_away_is_unavailable(tmp_path: Path) -> None:
    async def main() -> None:
        client = StoreClient(asyncio.get_running_loop(), tmp_path, patience_s=0.1)
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(client.ensure(1), 60)
        client.close()
        with pytest.raises(StoreUnavailable):
            await client.ensure(1)

    asyncio.run(main())


def test_a_full_lane_answers_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "DELIVERY_REQUESTS", 0)

    async def test(running: Running, client: StoreClient) -> None:
        running.server.deliveries.requests = 0
        with pytest.raises(StoreUnavailable):
            await client.deliver([delivery(1)])
        await client.ensure(1)

    run(tmp_path, test)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x05\0\0\0hello", b"\x02\0\0\0\x91\x01", b"GET / HTTP/1.0\r\n\r\n"])
def test_garbage_closes_one_connection_only(tmp_path: Path, garbage: bytes) -> None:
    async def main() -> None:
        running = Running(Home(tmp_path))
        await running.start()
        client = StoreClient(asyncio.get_running_loop(), running.path.parent)
        reader, writer = await asyncio.open_unix_connection(str(running.path))
        writer.write(garbage)
        try:
            assert await asyncio.wait_for(reader.read(), 60) == b""
        except ConnectionResetError:
            pass
        writer.close()
        await client.ensure(1)
        client.close()
        await running.server.drain(1, 0)
        assert len(running.errors) == 1

    asyncio.run(main())


def test_frames_at_every_cut() -> None:
    data = wire.frame((1, 2, None)) + wire.frame((3, 4, "x" * 300)) + wire.frame(())
    whole = wire.Frames().feed(data)
    assert len(whole) == 3
    for cut in range(len(data)):
        frames = wire.Frames()
        assert frames.feed(data[:cut]) + frames.feed(data[cut:]) == whole


def test_session_requests_come_before_deliveries() -> None:
    lane = server_module._Lane(10, 1 << 20)
    for weight in (100, 100, 100, 1000):
        lane.put(None, weight, weight, 10)  # type: ignore[arg-type]
    batch: list[tuple[object, object]] = []
    assert lane.take(256, batch) == 0 and len(batch) == 2  # type: ignore[arg-type]
    batch.clear()
    assert lane.take(256, batch) == 0 and len(batch) == 1  # type: ignore[arg-type]
    batch.clear()
    assert lane.take(256, batch) == 0 and len(batch) == 1, "a large one goes alone"  # type: ignore[arg-type]
