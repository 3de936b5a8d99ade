"""kill -9 of any process of the spool at any moment: what was acknowledged is there once, what was settled never comes again."""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from iems.errors import SpoolError
from iems.model import INPUT, Channel, Outcome, Result
from iems.spool import Message, Settlement, Spool, admin, reclaim, recovery
from tests.support.spool import Harness, envelope, routed


class Notes:
    """Lines a process writes down at once, for those who live longer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, ids: list[bytes]) -> None:
        # the first line feed ends what a kill may have cut
        os.write(self.fd, b"\n" + b"".join(id.hex().encode() + b"\n" for id in ids))

    def read(self) -> list[bytes]:
        # a line cut by the kill is none
        return [
            bytes.fromhex(line.decode()) for line in self.path.read_bytes().splitlines() if len(line) == 32
        ]


class Crowd:
    """Processes that accept, route, deliver and keep order on one spool, killed and replaced."""

    def __init__(self, harness: Harness, hasty: bool) -> None:
        self.harness = harness
        self.hasty = hasty
        self.acknowledged = Notes(harness.path / "acknowledged")
        self.delivered = Notes(harness.path / "delivered")
        self.settled = Notes(harness.path / "settled")
        #: slot -> generation of the living process, 0: none
        self.board = mmap.mmap(-1, 64)
        self.pids: dict[int, int] = {}
        self.generation = 0

    def alive(self, slot: int, generation: int) -> bool:
        return int.from_bytes(self.board[slot * 4 : slot * 4 + 4], "little") == generation

    def spawn(self, slot: int) -> None:
        self.generation += 1
        self.board[slot * 4 : slot * 4 + 4] = self.generation.to_bytes(4, "little")
        pid = os.fork()
        if pid:
            self.pids[slot] = pid
            return
        try:
            body = (self.accept, self.route, self.deliver, self.keep_order)[slot]
            asyncio.run(self.life(slot, body))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)

    async def life(self, slot: int, body: Callable[[Spool], Coroutine[Any, Any, None]]) -> None:
        spool = self.harness.open(
            slot=slot, generation=self.generation, role="janitor" if slot == 3 else "test", flush_ms=20
        )
        await body(spool)

    def kill(self, slot: int) -> None:
        os.kill(self.pids[slot], signal.SIGKILL)
        _, status = os.waitpid(self.pids.pop(slot), 0)
        assert os.WIFSIGNALED(status), "a process ended by itself"
        self.board[slot * 4 : slot * 4 + 4] = bytes(4)

    async def accept(self, spool: Spool) -> None:
        async def one() -> None:
            while True:
                message = Message(spool.new_id(), envelope(), [os.urandom(random.randrange(1, 6000))])
                if self.hasty:
                    self.acknowledged.add([message.id])
                if await spool.append([message]) == [None] and not self.hasty:
                    self.acknowledged.add([message.id])
                if random.random() < 0.02:
                    spool.writer.retire()
                await asyncio.sleep(random.random() * 0.005)

        await asyncio.gather(*(one() for _ in range(6)))

    async def route(self, spool: Spool) -> None:
        while True:
            items, _ = spool.take(INPUT, 16)
            spool.move([(item, [routed(item)]) for item in items])
            await asyncio.sleep(0.002)

    async def deliver(self, spool: Spool) -> None:
        while True:
            items, _ = spool.take(Channel.LOCAL, 16)
            self.delivered.add([item.id for item in items])
            try:
                await spool.settle(
                    [
                        Settlement(i, [Result(r, Outcome.DELIVERED) for r in i.envelope.recipients])
                        for i in items
                    ]
                )
            except SpoolError:
                os._exit(1)
            self.settled.add([item.id for item in items])
            await asyncio.sleep(0.002)

    async def keep_order(self, spool: Spool) -> None:
        while True:
            await recovery.recover(spool, self.alive, {})
            await reclaim.move_old(spool, sparse_ms=200, all_ms=500, limit=20)
            await reclaim.reclaim(spool, linger_ms=100)
            await asyncio.sleep(0.01)

    def close(self) -> None:
        for slot in list(self.pids):
            os.kill(self.pids[slot], signal.SIGKILL)
            os.waitpid(self.pids.pop(slot), 0)
        for notes in (self.acknowledged, self.delivered, self.settled):
            os.close(notes.fd)


def kill_at_random(harness: Harness, kills: int, seed: int, hasty: bool = False) -> dict[str, Any]:
    """Kill processes at random, then finish what is queued; what was lost, and what came again after it was settled."""
    rng = random.Random(seed)
    recovery.prepare(harness.path / "spool", map_octets=1 << 30)
    crowd = Crowd(harness, hasty)
    try:
        for slot in range(4):
            crowd.spawn(slot)
        time.sleep(0.3)
        for _ in range(kills):
            time.sleep(rng.uniform(0.005, 0.12))
            slot = rng.choice((0, 0, 1, 2, 2, 3))
            crowd.kill(slot)
            crowd.spawn(slot)
    finally:
        crowd.close()
    settled = Counter(crowd.settled.read())
    last: Counter[bytes] = Counter()

    async def finish() -> None:
        spool = harness.open(slot=9)
        await recovery.recover(spool, lambda slot, generation: False, {})
        while items := spool.take(INPUT, 64)[0]:
            for item in items:
                spool.blobs.read(item.rope)
            spool.move([(item, [routed(item)]) for item in items])
        while items := spool.take(Channel.LOCAL, 64)[0]:
            last.update(item.id for item in items)
            for item in items:
                spool.blobs.read(item.rope)
            await spool.settle(
                [Settlement(i, [Result(r, Outcome.DELIVERED) for r in i.envelope.recipients]) for i in items]
            )
        counts = {key: number for key, number in spool.index.counts().items() if number}
        live = sum(row.live for row in spool.index.blob_rows().values())
        spool.close()
        assert (counts, live) == ({}, 0)

    asyncio.run(finish())
    acknowledged = crowd.acknowledged.read()
    delivered = set(crowd.delivered.read()) | set(last)
    return {
        "acknowledged": len(acknowledged),
        "lost": [id.hex() for id in acknowledged if id not in delivered],
        "again": [id.hex() for id, number in (settled + last).items() if number > 1],
        "missing": admin.audit(harness.path / "spool")["missing"],
    }


def test_kills(harness: Harness) -> None:
    found = kill_at_random(harness, 30, seed=1)
    assert found["acknowledged"] > 100
    assert found | {"acknowledged": 0} == {"acknowledged": 0, "lost": [], "again": [], "missing": 0}


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_many_kills(harness: Harness, seed: int) -> None:
    found = kill_at_random(harness, 400, seed=seed)
    assert found | {"acknowledged": 0} == {"acknowledged": 0, "lost": [], "again": [], "missing": 0}


def test_kills_show_an_early_answer(harness: Harness) -> None:
    """With the answer before the flush, the test sees lost mail: it has eyes."""
    assert kill_at_random(harness, 20, seed=2, hasty=True)["lost"]
