"""The role's worker: takes over from the one before, spreads partitions, ends when the disk fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

from iems.config import Config
from iems.store import wire
from iems.store.client import StoreClient
from iems.store.partition import Job, PartitionBroken
from iems.store.reader import Reader
from iems.store.worker import Worker
from tests.unit.store.home import SEGMENT, Home, delivery


def context(home: Path, index: int = 0, **store: Any) -> Any:
    config = Config(hostname="mx.test", store=Config().store.__class__(**store))
    log = SimpleNamespace(error=lambda *a, **k: None, close=lambda: None)
    return SimpleNamespace(
        home=home, config=config, index=index, loop=asyncio.get_running_loop(), log=log, count=lambda *a: None
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "spool/segments").mkdir(parents=True)
    (tmp_path / "spool/segments" / f"{SEGMENT:016x}.seg").write_bytes(bytes(1 << 20))
    return tmp_path


def test_the_next_generation_takes_over(path: Path) -> None:
    async def main() -> None:
        old = Worker(context(path))
        await old.start()
        client = StoreClient(asyncio.get_running_loop(), path / "run", patience_s=5)
        assert (await client.deliver([delivery(1)]))[0].status == "ok"
        new = Worker(context(path))
        await asyncio.wait_for(new.start(), 1)
        assert (await client.deliver([delivery(2)]))[0].uid == 2
        await old.drain(5)
        assert [a.status for a in await client.deliver([delivery(2), delivery(3)])] == ["duplicate", "ok"]
        client.close()
        await new.drain(5)

    asyncio.run(main())


def test_partitions_are_spread_over_workers(path: Path) -> None:
    async def main() -> None:
        workers = [Worker(context(path, index, workers=2, partitions=3)) for index in range(2)]
        for worker in workers:
            await worker.start()
        client = StoreClient(asyncio.get_running_loop(), path / "run", partition_of=lambda account: account % 3)
        batch = [delivery(i, account=i, partition=i % 3) for i in range(1, 8)]
        assert [a.status for a in await client.deliver(batch)] == ["ok"] * 7
        await client.forget([(d.origin, d.account) for d in batch])
        environments = {n: s.partition.env for w in workers for n, s in w._servers.items()}
        assert sorted(environments) == [0, 1, 2] and sorted(workers[0]._servers) == [0, 2]
        reader = Reader(path / "store", environments)
        assert [reader.usage(account)[1] for account in range(9)] == [0, 1, 1, 1, 1, 1, 1, 1, 0]
        assert reader.blobs.read(reader.message(5, 1, 1).rope[1:]) == bytes(100)
        reader.close()
        client.close()
        await asyncio.gather(*(worker.drain(5) for worker in workers))

    asyncio.run(main())


class Failing:
    """A transaction whose commit fails."""

    def __init__(self, txn: Any, error: Exception) -> None:
        self.txn, self.error = txn, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.txn, name)

    def commit(self) -> None:
        self.txn.abort()
        raise self.error


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (lmdb.Error("mdb_txn_commit: Input/output error"), True),
        (lmdb.PanicError("panic"), True),
        (lmdb.DiskError("mdb_txn_commit: No space left on device"), False),
        (lmdb.Error("mdb_txn_commit: Read-only file system"), False),
        (lmdb.MapFullError("full"), False),
    ],
)
def test_a_failed_commit_promises_nothing(home: Home, error: Exception, broken: bool) -> None:
    home.deliver(delivery(1))
    partition = home.partition
    env = partition.env
    partition.env = SimpleNamespace(  # type: ignore[assignment]
        begin=lambda write=False: Failing(env.begin(write=True), error) if write else env.begin()
    )
    try:
        jobs = [Job(0, 0, 0, wire.Deliver([delivery(2)])), Job(0, 0, 0, wire.Create(1, "x"))]
        if broken:
            with pytest.raises(PartitionBroken):
                partition.apply(jobs)
        else:
            assert [outcome.status for outcome in partition.apply(jobs)] == [wire.BUSY] * 2
        assert partition.touched == {}
    finally:
        partition.env = env
    assert home.reader.mailbox(1, "x") is None
    assert home.deliver(delivery(2))[0].uid == 2
    home.ask(wire.Create(1, "x"))
    assert home.reader.mailbox(1, "x")
