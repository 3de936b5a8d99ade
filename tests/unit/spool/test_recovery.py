"""What a dead worker leaves, and whether an index is trusted."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

from iems.model import INPUT, Channel, Outcome, Result
from iems.spool import Item, Message, Settlement, Spool, keys, recovery
from tests.support.spool import Harness, envelope, routed


def done(item: Item, outcome: int = Outcome.DELIVERED) -> Settlement:
    return Settlement(item, [Result(r, outcome) for r in item.envelope.recipients])


def nobody(slot: int, generation: int) -> bool:
    return False


def rewind(spool: Spool, blob: int, offset: int) -> None:
    """Make the index forget what it knew of a segment past an offset: as if its writer had died before the transaction."""
    with spool.index.change() as change:
        change.edit_blob(blob, sealed=False)
    with spool.index.env.begin(write=True) as txn:
        key = blob.to_bytes(8, "big")
        row = keys.decode_blob(txn.get(key, db=spool.index.db["blob"]))
        row.indexed = offset
        txn.put(key, keys.encode(row), db=spool.index.db["blob"])


def test_leases_of_the_dead_return(harness: Harness, run: Any) -> None:
    async def first(spool: Spool) -> None:
        await harness.accept(spool, b"one", b"two")
        items, _ = spool.take(INPUT, 1)
        assert len(items) == 1

    async def body() -> None:
        spool = harness.open(slot=2)
        mine, _ = spool.take(INPUT, 1)
        assert len(mine) == 1 and spool.take(INPUT, 9)[0] == []
        found = await recovery.recover(spool, lambda slot, generation: slot == 2, {})
        assert (found.segments, found.returned, found.voided) == (1, 1, 0)
        again, _ = spool.take(INPUT, 9)
        assert len(again) == 1 and again[0].id != mine[0].id
        assert (await recovery.recover(spool, lambda slot, generation: slot == 2, {})) == recovery.Recovered()
        spool.close()

    harness.die_after(first, slot=1)
    run(body())


def test_blame_quarantines_after_three_deaths(harness: Harness, run: Any) -> None:
    ids: list[bytes] = []

    async def body() -> None:
        spool = harness.open(slot=2)
        items, _ = spool.take(INPUT, 9)
        ids.extend(item.id for item in items)
        found = await recovery.recover(spool, nobody, {ids[0]: 2, ids[1]: 3})
        assert (found.returned, found.quarantined) == (1, 1)
        [left], _ = spool.take(INPUT, 9)
        assert left.id == ids[0] and left.deaths == 2
        assert spool.index.counts()[INPUT, keys.QUARANTINED] == 1
        spool.close()

    async def first(spool: Spool) -> None:
        await harness.accept(spool, b"one", b"two")

    harness.die_after(first, slot=1)
    run(body())


def test_unindexed_messages_are_voided_and_outcomes_applied(harness: Harness, run: Any) -> None:
    """The tail of a dead writer: a message nobody got a 250 for, an outcome, and a DSN with its cause."""

    async def first(spool: Spool) -> None:
        await harness.accept(spool, b"kept", b"settled", b"bounced")
        items, _ = spool.take(INPUT, 9)
        spool.move([(item, [routed(item)]) for item in items])
        items, _ = spool.take(Channel.LOCAL, 9)
        mark = spool.writer.current.committer.offset  # type: ignore[union-attr]
        with spool.index.env.begin() as txn:
            saved = {
                name: list(txn.cursor(db))
                for name, db in spool.index.db.items()
                if name in ("queue", "lease", "count")
            }
        await harness.accept(spool, b"never acknowledged")
        await spool.settle([done(items[1])], flush=True)
        note = Message(
            b"n" * 16, envelope("a@example.org", sender=b""), [b"note"], [done(items[2], Outcome.FAILED)]
        )
        await spool.settle([], [note])
        with spool.index.env.begin(write=True) as txn:
            for name, rows in saved.items():
                txn.drop(spool.index.db[name], delete=False)
                for key, value in rows:
                    txn.put(key, value, db=spool.index.db[name])
        rewind(spool, spool.writer.current.blob, mark)  # type: ignore[union-attr]

    async def body() -> None:
        spool = harness.open(slot=2)
        found = await recovery.recover(spool, nobody, {})
        assert (found.segments, found.settled, found.messages, found.voided, found.returned) == (
            1,
            2,
            1,
            1,
            1,
        )
        inputs, _ = spool.take(INPUT, 9)
        assert [i.id for i in inputs] == [b"n" * 16]
        assert spool.blobs.read(inputs[0].rope) == b"note"
        local, _ = spool.take(Channel.LOCAL, 9)
        assert [spool.blobs.read(i.rope) for i in local] == [b"kept"]
        spool.close()

    harness.die_after(first, slot=1)
    run(body())


def test_trust(harness: Harness, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = harness.path / "spool"

    async def fill(spool: Spool) -> None:
        await harness.accept(spool, b"x")

    assert recovery.prepare(path, map_octets=1 << 30) == recovery.Prepared(True, False, False)
    harness.die_after(fill)
    again = recovery.prepare(path, map_octets=1 << 30)
    assert again.trusted and not again.rebuild  # the process died, the machine did not

    monkeypatch.setattr(recovery, "boot_id", lambda: "another boot")
    recovery.seal(path, map_octets=1 << 30)
    assert (path / "index" / "clean").exists()
    assert recovery.prepare(path, map_octets=1 << 30).trusted
    assert not (path / "index" / "clean").exists()

    monkeypatch.setattr(recovery, "boot_id", lambda: "a third boot")
    lost = recovery.prepare(path, map_octets=1 << 30)
    assert not lost.trusted and lost.rebuild

    monkeypatch.undo()
    copy = path / "index.copy"
    shutil.copytree(path / "index", copy)
    shutil.rmtree(path / "index")
    os.rename(copy, path / "index")
    assert not recovery.prepare(path, map_octets=1 << 30).trusted  # another file: restored from somewhere

    recovery.distrust(path)
    assert not recovery.prepare(path, map_octets=1 << 30).trusted


def test_queue_time_goes_on_over_a_reboot(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    path = harness.path / "spool"
    recovery.prepare(path, map_octets=1 << 30)
    monkeypatch.setattr(recovery, "boot_ms", lambda: 10_000_000)

    def now() -> int:
        index = recovery.Index(path / "index", map_octets=1 << 30)
        try:
            return index.clock.offset_ms
        finally:
            index.close()

    before = now()
    recovery.seal(path, map_octets=1 << 30)
    index = recovery.Index(path / "index", map_octets=1 << 30)
    saved = int.from_bytes(index.meta(keys.META_QUEUE_MS) or b"", "big")
    index.close()
    monkeypatch.setattr(recovery, "boot_id", lambda: "another boot")
    monkeypatch.setattr(recovery, "boot_ms", lambda: 5_000)
    assert recovery.prepare(path, map_octets=1 << 30).trusted
    assert now() == saved - 5_000 and now() != before
