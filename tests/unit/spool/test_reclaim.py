"""What may go, what moves, and that the audit still balances."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import Any

from iems.model import INPUT, Channel, Outcome, Result
from iems.spool import Message, Settlement, Spool, SpoolParams, admin, reclaim, recovery
from iems.spool.rebuild import rebuild
from tests.support.spool import Harness, envelope, routed


async def seal(spool: Spool) -> int:
    """Seal the current segment and wait for it; its blob."""
    segment = spool.writer.current
    assert segment is not None
    spool.writer.retire()
    while not (row := spool.index.blob_row(segment.blob)) or not row.sealed:
        await asyncio.sleep(0.005)
    return segment.blob


async def settle_one(spool: Spool, outcome: int = Outcome.DELIVERED) -> None:
    [item], _ = spool.take(INPUT, 1)
    await spool.settle([Settlement(item, [Result(r, outcome) for r in item.envelope.recipients])], flush=True)


def names(harness: Harness) -> set[int]:
    return {int(f.split(".")[0], 16) for f in os.listdir(harness.path / "spool" / "segments")}


def test_outcomes_stay_as_long_as_what_they_are_about(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        await harness.accept(spool, b"one", b"two")
        messages = await seal(spool)
        await settle_one(spool)
        outcomes = await seal(spool)
        # nothing lives in the outcomes' segment, but the other one still has a message
        assert (await reclaim.reclaim(spool, linger_ms=-1)).files == 0
        await settle_one(spool)
        last = await seal(spool)
        assert (await reclaim.reclaim(spool, linger_ms=60_000)).files == 0  # needed until just now
        found = await reclaim.reclaim(spool, linger_ms=-1)
        assert found.files == 3
        assert not {messages, outcomes, last} & names(harness)
        assert not {messages, outcomes, last} & spool.index.blob_rows().keys()
        spool.close()
        assert admin.audit(harness.path / "spool") == {
            "accepted": 2, "delivered": 2, "relayed": 0, "dsn": 0, "discarded": 0,
            "queued": 0, "quarantined": 0, "missing": 0,
        }  # fmt: skip

    run(body())


def test_segments_that_name_each_other_go_together(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        await harness.accept(spool, b"first")
        await harness.accept(spool, b"second")
        a = await seal(spool)
        await settle_one(spool)  # in b, about a
        await harness.accept(spool, b"third")
        b = await seal(spool)
        await settle_one(spool)  # in c, about a
        await settle_one(spool)  # in c, about b
        await seal(spool)
        assert spool.index.named()[b] == {a}
        with spool.index.change() as change:
            change.name(a, b)  # a ring
        assert (await reclaim.reclaim(spool, linger_ms=-1)).files == 3
        spool.close()

    run(body())


def test_ledger_is_finished_after_a_crash(harness: Harness, run: Any) -> None:
    """Died between the ledger and the unlinks: a lost index must not bring half of the outcomes back."""

    async def first(spool: Spool) -> None:
        await harness.accept(spool, b"one")
        await seal(spool)
        await settle_one(spool)
        await seal(spool)

        async def dies(*_: Any) -> None:
            os.kill(os.getpid(), 9)

        real, calls = reclaim._unlink_gone, 0

        async def once(*args: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                await dies()
            await real(*args)

        reclaim._unlink_gone = once
        await reclaim.reclaim(spool, linger_ms=-1)

    async def trusted() -> None:
        spool = harness.open()
        assert len(spool.index.blob_rows()) == 3
        assert (await reclaim.reclaim(spool)).files == 2
        spool.close()

    async def rebuilt() -> None:
        spool = harness.open()
        found = await rebuild(spool)
        assert found is not None and found.messages == 0
        assert spool.take(INPUT, 9) == ([], None)
        spool.close()

    harness.die_after(first)
    copy = harness.path / "copy"
    shutil.copytree(harness.path / "spool", copy)
    run(trusted())
    shutil.rmtree(harness.path / "spool")
    os.rename(copy, harness.path / "spool")
    # the message's segment went, the outcome's did not, or the other way round
    segments = sorted((harness.path / "spool" / "segments").iterdir())
    segments[1].unlink()
    recovery.prepare(harness.path / "spool", map_octets=1 << 30)
    run(rebuilt())
    assert admin.audit(harness.path / "spool")["delivered"] == 1


def test_last_messages_move(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        content = spool.new_content()
        content.buffer.append(b"L" * (2 << 20))
        content.check_spill()
        await harness.accept(spool, *[b"%d" % n * 100 for n in range(10)])
        assert await spool.append(
            [Message(spool.new_id(), envelope("a@x.test", "b@y.test"), [b"H", content])]
        ) == [None]
        old = await seal(spool)
        items, _ = spool.take(INPUT, 11)
        spool.move([(item, [routed(item)]) for item in items[:3]])
        big = items[10]
        parts = [routed(big), routed(big, Channel.SMTPC, "y.test")]
        parts[0].envelope, parts[1].envelope = envelope("a@x.test"), envelope("b@y.test")
        spool.move([(big, parts)])
        spool.give_back(items[3:9])
        await spool.settle(
            [Settlement(items[9], [Result(r, Outcome.DELIVERED) for r in items[9].envelope.recipients])]
        )
        leased, _ = spool.take(INPUT, 1)
        assert (await reclaim.move_old(spool, sparse_ms=10_000)).moved == 0  # too young
        moved = await reclaim.move_old(spool, sparse_ms=0, all_ms=1 << 50)
        assert (moved.moved, moved.damaged) == (9, 0)  # all but the leased one
        row = spool.index.blob_row(old)
        assert row is not None and row.live == 1
        local, _ = spool.take(Channel.LOCAL, 9)
        [remote], _ = spool.take(Channel.SMTPC, 9)
        assert spool.blobs.read(remote.rope) == b"H" + b"L" * (2 << 20)
        assert {(i.generation, i.fanout) for i in [*local, remote]} == {(1, 1), (1, 2)}
        assert [spool.blobs.read(i.rope)[:1] for i in local[:3]] == [b"0", b"1", b"2"]
        done = [*local, remote, *leased, *spool.take(INPUT, 9)[0]]
        await spool.settle(
            [Settlement(i, [Result(r, Outcome.DELIVERED) for r in i.envelope.recipients]) for i in done]
        )
        await seal(spool)
        found = await reclaim.reclaim(spool, linger_ms=-1)
        assert found.files == 3  # two segments and the large content
        assert os.listdir(harness.path / "spool" / "large") == []
        spool.close()

    run(body())


def test_damage_is_not_copied(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        [id] = await harness.accept(spool, b"x" * 100)
        blob = await seal(spool)
        file = spool.params.path / "segments" / f"{blob:016x}.seg"
        data = bytearray(file.read_bytes())
        data[data.index(b"x" * 100) + 5] ^= 1
        file.write_bytes(data)
        assert (await reclaim.move_old(spool, sparse_ms=0)).damaged == 1
        spool.close()
        [entry] = admin.list_items(harness.path / "spool")
        assert entry["state"] == "quarantined" and entry["reason"] == "its record is damaged"
        assert {f["id"] for f in admin.fsck(harness.path / "spool")} == {entry["id"]}
        assert admin.audit(harness.path / "spool")["quarantined"] == 1
        assert id

    run(body())


def test_orphans(harness: Harness, run: Any) -> None:
    async def dies(spool: Spool) -> None:
        content = spool.new_content()
        content.buffer.append(b"L" * (2 << 20))
        content.check_spill()
        while spool.staging.used:
            await asyncio.sleep(0.01)

    async def body() -> None:
        spool = Spool.open(SpoolParams(harness.path / "spool", loop=asyncio.get_running_loop()))
        content = spool.new_content()
        content.buffer.append(b"M" * (2 << 20))
        content.check_spill()
        while spool.staging.used:
            await asyncio.sleep(0.01)
        assert len(os.listdir(harness.path / "spool" / "large")) == 2
        assert reclaim.remove_orphans(spool) == 0
        assert reclaim.remove_orphans(spool, older_s=-1) == 1  # the other one is still being written
        content.discard()
        spool.close()
        assert os.listdir(harness.path / "spool" / "large") == []

    harness.die_after(dies)
    run(body())
