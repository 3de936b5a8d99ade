"""Making what waits for a destination due; messages that enter the queue on hold, and a new index."""

from typing import Any

import pytest

from iems.model import INPUT, Channel, Outcome, Result
from iems.spool import Message, recovery, requeue
from iems.spool.items import Settlement
from iems.spool.rebuild import rebuild
from tests.support.spool import Harness, envelope, routed

SMTPC = int(Channel.SMTPC)


async def deferred(harness: Harness, spool: Any, destination: str, count: int) -> None:
    """Put items of a destination off for an hour, and the destination itself."""
    await harness.accept(spool, *[b"x"] * count, to=f"b@{destination}")
    items, _ = spool.take(INPUT, count)
    spool.move([(item, [routed(item, SMTPC, destination)]) for item in items])
    items, _ = spool.take(SMTPC, count)
    settlements = [
        Settlement(i, [Result(r, Outcome.DEFERRED, None, 3600.0) for r in i.envelope.recipients]) for i in items
    ]
    await spool.settle(settlements)
    spool.back_off(SMTPC, {destination: (3600.0, "away")})


def test_make_due(harness: Harness, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        spool = harness.open()
        await deferred(harness, spool, "one.test", 10)
        await deferred(harness, spool, "two.test", 3)
        assert spool.take(SMTPC, 20)[0] == []
        monkeypatch.setattr(requeue, "SLICE", 4)
        await harness.quiet(spool)
        assert await requeue.make_due(spool, SMTPC, ["one.test", "none.test"]) == 10
        assert harness.woken == ["smtpc"]
        items, _ = spool.take(SMTPC, 20)
        assert {item.destination for item in items} == {"one.test"} and len(items) == 10
        assert requeue.known_destinations(spool, SMTPC, ".test", 9) and len(
            requeue.known_destinations(spool, SMTPC, ".test", 1)
        ) == 1
        assert requeue.known_destinations(spool, SMTPC, "wo.test", 9) == ["two.test"]
        assert await requeue.make_due(spool, SMTPC, ["none.test"]) == 0
        spool.close()

    run(body())


@pytest.mark.parametrize("crash", [False, True])
def test_held_on_entry(harness: Harness, run: Any, crash: bool) -> None:
    """It is in no worker's reach until it is released, and a new index keeps it so."""

    async def body() -> None:
        spool = harness.open()
        held = envelope("b@example.test")
        held.held = "sender x is on hold: because"
        free = envelope("c@example.test")
        assert await spool.append(
            [Message(spool.new_id(), held, [b"held"]), Message(spool.new_id(), free, [b"free"])]
        ) == [None, None]
        if crash:
            spool.close()
            recovery.distrust(harness.path / "spool")
            recovery.prepare(harness.path / "spool", map_octets=1 << 30)
            spool = harness.open()
            await rebuild(spool)
        items, _ = spool.take(INPUT, 10)
        assert [item.envelope.recipients[0].address for item in items] == [b"c@example.test"]
        [reason] = [item.reason for class_, _, item, _ in spool.index.queued() if class_ == 200]
        assert reason == "sender x is on hold: because"
        spool.close()

    run(body())


def test_any_queue_can_be_kept_on_hold(tmp_path: Any) -> None:
    """The input queue too, though it is no channel."""
    for channel in (INPUT, SMTPC):
        recovery.keep_hold(tmp_path, channel, True)
    assert sorted(recovery.channels_on_hold(tmp_path)) == [INPUT, SMTPC]
    recovery.keep_hold(tmp_path, INPUT, False)
    assert recovery.channels_on_hold(tmp_path) == [SMTPC]
