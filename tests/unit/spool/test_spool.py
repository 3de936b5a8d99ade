"""The path of a message through the spool: submit, take, move, settle."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from iems.model import INPUT, Channel, Outcome, Recipient, Reply, Result
from iems.spool import Item, Message, Settlement, keys
from iems.spool.keys import destination_hash
from tests.support.spool import Harness, envelope, routed


def done(item: Item, outcome: int = Outcome.DELIVERED) -> Settlement:
    return Settlement(item, [Result(r, outcome) for r in item.envelope.recipients])


def test_whole_path(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        ids = await harness.accept(spool, b"one\r\n", b"two\r\n" * 1000)
        await harness.heard()
        assert harness.woken == ["preprocessor"], "once for both"
        items, due = spool.take(INPUT, 10)
        assert [i.id for i in items] == ids and due is None
        assert spool.blobs.read(items[1].rope) == b"two\r\n" * 1000
        assert items[1].envelope.size == 5000
        assert spool.take(INPUT, 10) == ([], None)
        spool.move([(item, [routed(item)]) for item in items])
        assert harness.woken[-1] == "lmda"
        local, _ = spool.take(Channel.LOCAL, 10)
        assert [i.id for i in local] == ids
        await spool.settle([done(item) for item in local])
        assert all(n == 0 for n in spool.index.counts().values())
        await spool.flushed()
        rows = spool.index.blob_rows()
        assert [row.live for row in rows.values()] == [0]
        spool.close()

    run(body())


def test_a_stream_of_messages_is_announced_together(harness: Harness, run: Any) -> None:
    """The first at once, those that follow it closely after a while; none is forgotten at the end."""

    async def body() -> None:
        spool = harness.open()
        calls: list[float] = []
        later = spool.loop.call_later
        for last_s, gathered in ((0.0, False), (spool.loop.time() + 1000, True)):
            calls.clear()
            harness.woken.clear()
            spool._announced_s = last_s
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(spool, "loop", SimpleNamespace(time=spool.loop.time, call_soon=spool.loop.call_soon,
                              call_later=lambda s, f: (calls.append(s), later(s, f))))  # fmt: skip
                for _ in range(3):
                    spool.announce_soon()
            await harness.heard()
            assert harness.woken == ["preprocessor"] and bool(calls) == gathered
        spool._announced_s = spool.loop.time() + 1000
        harness.woken.clear()
        spool.announce_soon()
        spool.close()
        assert harness.woken == ["preprocessor"], "not forgotten at the end"

    run(body())


def test_nobody_is_woken_for_a_channel_on_hold(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        await harness.accept(spool, b"one", b"two")
        await harness.heard()
        [one, two], _ = spool.take(INPUT, 2)
        harness.woken.clear()
        spool.index.hold_channel(Channel.LOCAL, True)
        spool.move([(one, [routed(one)])])
        assert harness.woken == []
        spool.index.hold_channel(Channel.LOCAL, False)
        spool.move([(two, [routed(two)])])
        assert harness.woken == ["lmda"]
        spool.close()

    run(body())


def test_deferred_recipients_stay(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        message = Message(spool.new_id(), envelope("b@x.test", "c@x.test"), [b"x\r\n"])
        assert await spool.append([message]) == [None]
        [item], _ = spool.take(INPUT, 1)
        spool.move([(item, [routed(item, Channel.SMTPC, "x.test")])])
        [item], due = spool.take(Channel.SMTPC, 5)
        assert due is None
        b, c = item.envelope.recipients
        reply = Reply(451, 4, 0, "later")
        await spool.settle(
            [
                Settlement(
                    item,
                    [Result(b, Outcome.RELAYED), Result(c, Outcome.DEFERRED, reply, next_attempt_s=0.05)],
                )
            ]
        )
        items, due = spool.take(Channel.SMTPC, 5)
        assert items == [] and due is not None and 0 < due <= 0.05
        await asyncio.sleep(due + 0.01)
        [item], _ = spool.take(Channel.SMTPC, 5)
        assert [r.address for r in item.envelope.recipients] == [b"c@x.test"]
        assert item.attempts == 1 and item.envelope.recipients[0].reply == reply
        spool.give_back([item])
        [item], _ = spool.take(Channel.SMTPC, 5)
        await spool.settle([done(item)], flush=True)
        assert all(n == 0 for n in spool.index.counts().values())
        spool.close()

    run(body())


def test_message_settles_its_cause(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        await harness.accept(spool, b"x\r\n")
        [item], _ = spool.take(INPUT, 1)
        settled = done(item, Outcome.FAILED)
        notes = [
            Message(bytes([n]) * 16, envelope("a@example.org", sender=b""), [b"note\r\n"], [settled])
            for n in (1, 2)
        ]
        await spool.settle([settled], notes)
        items, _ = spool.take(INPUT, 10)
        assert [i.id for i in items] == [m.id for m in notes]
        assert spool.take(INPUT, 10) == ([], None)
        spool.close()

    run(body())


def test_large_content_has_its_own_file(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        content = spool.new_content()
        piece = bytes(range(256)) * 1024
        for _ in range(20):
            content.buffer.append(piece)
            content.check_spill()
        message = Message(spool.new_id(), envelope(), [b"Received: here\r\n", content])
        assert await spool.append([message]) == [None]
        [item], _ = spool.take(INPUT, 1)
        assert spool.blobs.read(item.rope) == b"Received: here\r\n" + piece * 20
        assert len(item.rope) == 2
        assert spool.staging.used == 0
        assert spool.blobs.read_range(item.rope, 10, 20) == (b"Received: here\r\n" + piece)[10:30]
        rows = spool.index.blob_rows()
        assert sorted(row.large for row in rows.values()) == [False, True]
        assert all(row.live == 1 for row in rows.values())
        spool.close()

    run(body())


def test_destinations_take_turns(harness: Harness, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        spool = harness.open()
        ids = await harness.accept(spool, *[b"x"] * 12)
        items, _ = spool.take(INPUT, 20)
        by_id = {item.id: item for item in items}
        hosts = ["big.test"] * 10 + ["small.test", "tiny.test"]
        spool.move(
            [
                (by_id[id], [routed(by_id[id], Channel.SMTPC, host)])
                for id, host in zip(ids, hosts, strict=True)
            ]
        )
        others = {destination_hash("small.test"), destination_hash("tiny.test"), destination_hash("big.test")}
        assert spool.take(Channel.SMTPC, 6, others) == ([], None)
        first, due = spool.take(Channel.SMTPC, 1, others - {destination_hash("tiny.test")})
        assert [i.destination for i in first] == ["tiny.test"]
        spool.give_back(first)
        first, due = spool.take(Channel.SMTPC, 6)
        assert sorted({i.destination for i in first}) == ["big.test", "small.test", "tiny.test"]
        assert due == 0
        spool.back_off(Channel.SMTPC, {"big.test": (60, "refused")})
        rest, due = spool.take(Channel.SMTPC, 20)
        assert rest == [] and due is not None and 59 < due <= 60
        assert spool.destination(Channel.SMTPC, "big.test").failures == 1
        monkeypatch.setattr(keys, "LATE_MS", 20)
        await asyncio.sleep(0.05)
        spool.back_off(Channel.SMTPC, {"big.test": (60, "refused")})
        late, due = spool.take(Channel.SMTPC, 2)  # backed off, and all the same
        assert [i.destination for i in late] == ["big.test"] * 2 and due == 0
        spool.give_back(late)
        spool.back_off(Channel.SMTPC, {"big.test": (0, "refused")})
        probes, _ = spool.take(Channel.SMTPC, 20)  # its time is over: enough to try it with
        assert probes and spool.destination(Channel.SMTPC, "big.test").leased == keys.PROBES and not spool.take(Channel.SMTPC, 20)[0]
        spool.give_back(probes)
        spool.succeeded(Channel.SMTPC, ["big.test"])
        spool.limit_destination(Channel.SMTPC, "big.test", 5)
        rest, due = spool.take(Channel.SMTPC, 20)
        leased = spool.destination(Channel.SMTPC, "big.test").leased
        assert leased == 5 and due is None
        await spool.settle([done(i) for i in rest if i.destination == "big.test"])
        more, _ = spool.take(Channel.SMTPC, 20)
        assert len(more) == len([i for i in rest if i.destination == "big.test"])
        spool.close()

    run(body())


def test_held_channel_gives_nothing(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        await harness.accept(spool, b"x")
        spool.index.hold_channel(INPUT, True)
        assert spool.take(INPUT, 1) == ([], None)
        spool.index.hold_channel(INPUT, False)
        assert len(spool.take(INPUT, 1)[0]) == 1
        spool.close()

    run(body())


def test_lost_lease_settles_nothing(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        await harness.accept(spool, b"x")
        [item], _ = spool.take(INPUT, 1)
        spool.give_back([item])
        [again], _ = spool.take(INPUT, 1)
        spool.give_back([again])
        await spool.settle([done(item)])
        assert len(spool.take(INPUT, 1)[0]) == 1
        spool.close()

    run(body())


def test_expansion_dedups_and_counts(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        message = Message(spool.new_id(), envelope("all@x.test", "b@x.test"), [b"x"])
        await spool.append([message])
        [item], _ = spool.take(INPUT, 1)
        env = item.envelope
        new = []
        for names in (("b@x.test", "c@x.test"), ("d@x.test",)):
            part = Item(item.id, Channel.LOCAL, "", envelope(*names), item.rope)
            new.append(part)
        new.append(Item(item.id, Channel.SMTPC, "y.test", envelope("e@y.test"), item.rope))
        spool.move([(item, new)])
        local, _ = spool.take(Channel.LOCAL, 10)
        assert {(i.part, i.fanout) for i in local} == {(0, 4), (1, 4)}
        assert env.recipients and isinstance(env.recipients[0], Recipient)
        spool.close()

    run(body())
