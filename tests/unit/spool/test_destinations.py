"""What waits by destination, and a destination with a long queue beside the others."""

from __future__ import annotations

import asyncio
import time

import pytest
from msgspec import structs

from iems.config import Smtpc
from iems.model import INPUT, Channel
from iems.spool import Spool, admin, keys, recovery
from iems.spool.admin import Selection
from iems.spool.destinations import destinations
from iems.spool.keys import HELD, RETRY
from iems.spool.weight import Weights
from tests.support.spool import Harness, routed

DEAD = 10_000


@pytest.fixture
def filled(harness: Harness) -> Harness:
    """10,000 items of a dead destination, half of them held, before one for LOCAL."""
    recovery.prepare(harness.path / "spool", map_octets=1 << 30)

    async def fill() -> None:
        spool = harness.open()
        await harness.accept(spool, b"remote")
        [item], _ = spool.take(INPUT, 1)
        spool.move([(item, [routed(item, Channel.SMTPC, "dead.test")])])
        [item], _ = spool.take(Channel.SMTPC, 1)
        hour_ms = spool.index.clock.now_ms() + 3_600_000
        for start in range(0, DEAD - 1, 200):
            with spool.index.change() as change:
                for number in range(start, min(start + 200, DEAD - 1)):
                    other = structs.replace(item, id=spool.new_id(), attempts=1, reason="451 4.4.1 mute")
                    change.put(other, HELD if number % 2 else RETRY, hour_ms)
        spool.give_back([item])
        spool.back_off(Channel.SMTPC, {"dead.test": (7200, "no route to host")})
        await harness.accept(spool, b"local")
        [item], _ = spool.take(INPUT, 1)
        spool.move([(item, [routed(item)])])
        spool.close()

    asyncio.run(fill())
    recovery.seal(harness.path / "spool", map_octets=1 << 30)
    return harness


def test_a_stuck_destination_slows_nobody(filled: Harness) -> None:
    begun = time.process_time()
    rows = destinations(filled.path)
    assert time.process_time() - begun < 1.0
    local, dead = rows
    assert (local["channel"], local["destination"], local["ready"]) == ("LOCAL", "", 1)
    assert (dead["channel"], dead["destination"]) == ("SMTPC", "dead.test")
    assert dead["ready"] + dead["deferred"] + dead["held"] == DEAD and dead["held"] == (DEAD - 1) // 2
    assert dead["reason"] == "no route to host" and dead["failures"] == 1
    # backed off for two hours; but what is ready has its turn when it is late
    late, soon = (admin.rfc3339(time.time_ns() + (keys.LATE_MS // 1000 + more) * 10**9) for more in (1, -60))
    assert soon < dead["next_attempt"] < late
    assert [row["channel"] for row in destinations(filled.path, Channel.LOCAL)] == ["LOCAL"]

    async def take(spool: Spool) -> None:
        begun = time.process_time()
        assert spool.take(Channel.SMTPC, 64)[0] == []
        [item], _ = spool.take(Channel.LOCAL, 64)
        assert time.process_time() - begun < 0.1
        spool.give_back([item])

    async def body() -> None:
        spool = filled.open(slot=2)
        await take(spool)
        spool.close()

    recovery.prepare(filled.path / "spool", map_octets=1 << 30)
    asyncio.run(body())
    recovery.seal(filled.path / "spool", map_octets=1 << 30)


def test_select_by_reason_and_age(filled: Harness) -> None:
    path = filled.path

    def number(chosen: Selection, command: str = "retry") -> int:
        return sum(1 for _ in admin.would_change(path, chosen, admin.CHANGES[command]))

    assert number(Selection(reason="NO ROUTE")) == DEAD - (DEAD - 1) // 2
    assert number(Selection(reason="4.4.1 mute"), "release") == (DEAD - 1) // 2
    assert number(Selection(reason="no such words"), "delete") == 0
    assert number(Selection(older_s=3600), "delete") == 0
    assert number(Selection(younger_s=3600), "delete") == DEAD + 1
    assert number(Selection(younger_s=3600, channel=Channel.LOCAL), "hold") == 1
    assert admin.counts(path)["SMTPC"]["held"] == (DEAD - 1) // 2  # nothing was changed
    admin.hold_channel(path, Channel.LOCAL, True)
    [row] = destinations(path, Channel.LOCAL)
    assert row["on_hold"] and (row["ready"], row["held"], row["next_attempt"]) == (0, 1, None)


def test_no_spool(harness: Harness) -> None:
    with pytest.raises(FileNotFoundError):
        destinations(harness.path)


def test_the_weight_of_what_leaves_first(harness: Harness) -> None:
    """The lightest of what waits; other channels, what is on hold, and a home without weights have none."""
    recovery.prepare(harness.path / "spool", map_octets=1 << 30)

    async def fill() -> None:
        spool = harness.open()
        for content in (b"Precedence: bulk\r\n\r\nx", b"Precedence: special-delivery\r\n\r\nx", b"Precedence: list\r\n\r\nx", b"\r\nx"):
            await harness.accept(spool, content)
        items, _ = spool.take(INPUT, 4)
        by_content = sorted(items, key=lambda item: item.id)
        for item, name in zip(by_content[:3], ("two.test", "two.test", "held.test"), strict=True):
            spool.move([(item, [routed(item, Channel.SMTPC, name)])])
        spool.move([(by_content[3], [routed(by_content[3])])])
        [(item, key)] = [(item, key) for _, _, item, key in spool.index.queued() if item is not None and item.destination == "held.test"]
        with spool.index.change() as change:
            change.remove(key, item)
            change.put(item, HELD)
        spool.close()

    asyncio.run(fill())
    recovery.seal(harness.path / "spool", map_octets=1 << 30)
    weights = Weights.of(Smtpc(weight_precedence=1))
    assert weights is not None and weights.words["special-delivery"] < weights.words["bulk"]
    rows = {row["destination"]: row["weight"] for row in destinations(harness.path, None, weights)}
    assert rows == {"": None, "two.test": weights.words["special-delivery"], "held.test": None}
    assert {row["weight"] for row in destinations(harness.path)} == {None}
