"""Bits flip in the index: found when it is read, or when it is met; the queue comes out whole either way."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iems.errors import SpoolError
from iems.model import INPUT, Channel, Outcome, Result
from iems.spool import Item, Settlement, Spool, recovery, soundness
from iems.spool.index import Index
from iems.spool.rebuild import rebuild, repair
from tests.support.spool import Harness, routed

MESSAGES = 200


def filled(harness: Harness) -> Path:
    """A copy of a spool with messages in many places of the queue."""

    async def fill(spool: Spool) -> None:
        await harness.accept(spool, *[b"%d" % n for n in range(MESSAGES)])
        items, _ = spool.take(INPUT, 150)
        spool.move([(i, [routed(i, Channel.SMTPC, f"h{n % 30}.test")]) for n, i in enumerate(items)])
        spool.take(Channel.SMTPC, 20)

    harness.die_after(fill)
    kept = harness.path / "kept"
    os.rename(harness.path / "spool", kept)
    return kept


def flip(harness: Harness, kept: Path, rng: random.Random) -> None:
    """Lay the spool out again with a page of its index damaged, and trusted all the same."""
    spool = harness.path / "spool"
    shutil.rmtree(spool, ignore_errors=True)
    shutil.copytree(kept, spool)
    file = spool / "index" / "data.mdb"
    data = bytearray(file.read_bytes())
    page = rng.randrange(len(data) // 4096)
    for _ in range(3):
        data[page * 4096 + rng.choice((rng.randrange(16), rng.randrange(200), rng.randrange(4096)))] ^= (
            1 << rng.randrange(8)
        )
    file.write_bytes(data)
    found = os.stat(file)
    boot = recovery.Boot(recovery.boot_id(), found.st_dev, found.st_ino)
    (spool / "index" / "boot").write_bytes(msgspec.json.encode(boot))


async def finish(harness: Harness, report: int) -> None:
    """A life of everybody: the janitor's part beside one who empties the queue."""
    path = harness.path / "spool"
    if await soundness.sound(path, 5):
        recovery.distrust(path)
    prepared = recovery.prepare(path, map_octets=1 << 30)
    spool = harness.open()
    if prepared.rebuild:
        await rebuild(spool)

    async def janitor() -> None:
        while True:
            await asyncio.sleep(0.02)
            if recovery.distrusted(path):
                recovery.replace_index(spool)
                await rebuild(spool)

    order = asyncio.ensure_future(janitor())
    idle = 0
    recovered = False
    while idle < 3:
        try:
            if not recovered:
                await recovery.recover(spool, lambda slot, generation: False, {})
                recovered = True
            await repair(spool)
            busy = await empty(spool, report)
        except (SpoolError, ValueError, __import__("lmdb").Error):
            busy = True
            await asyncio.sleep(0.05)
        idle = 0 if busy or spool.index.is_rebuilding() or recovery.distrusted(path) else idle + 1
        if idle == 3 and await soundness.sound(path, 5):  # the janitor looks every ten minutes
            recovery.distrust(path)
            idle = 0
        if order.done():
            order.result()
    order.cancel()
    os._exit(0)


async def empty(spool: Spool, report: int) -> bool:
    busy = False
    while items := spool.take(INPUT, 64)[0]:
        busy = True
        spool.move([(i, [routed(i)]) for i in items])
    for channel in (Channel.LOCAL, Channel.SMTPC):
        while items := spool.take(channel, 64)[0]:
            busy = True
            os.write(report, b"".join(spool.blobs.read(i.rope) + b" " for i in items))
            await spool.settle([delivered(i) for i in items])
    return busy


def delivered(item: Item) -> Settlement:
    return Settlement(item, [Result(r, Outcome.DELIVERED) for r in item.envelope.recipients])


def outcome(harness: Harness) -> str:
    """What comes of a damaged spool, in up to four lives."""
    notes = os.open(harness.path / "seen", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    status = -1
    for life in range(4):
        pid = os.fork()
        if pid == 0:
            signal.alarm(12)
            try:
                asyncio.run(finish(harness, notes))
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            break
        if life == 2:
            recovery.distrust(harness.path / "spool")  # as the janitor's reader would find
    seen = Counter(os.pread(notes, 1 << 20, 0).split())
    os.close(notes)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    if os.WIFSIGNALED(status):
        return "dies of it"
    if set(seen) != {b"%d" % n for n in range(MESSAGES)}:
        return f"lost: {MESSAGES - len(seen)}"
    return "whole" if set(seen.values()) == {1} else "again"


def outcomes(harness: Harness, flips: int, seed: int) -> Counter[str]:
    kept = filled(harness)
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    for _ in range(flips):
        flip(harness, kept, rng)
        found[outcome(harness)] += 1
    return found


def test_flips(harness: Harness) -> None:
    found = outcomes(harness, 6, seed=1)
    assert set(found) <= {"whole", "again"}, found


@pytest.mark.long
def test_many_flips(harness: Harness) -> None:
    found = outcomes(harness, 300, seed=2)
    # Whoever dies between a delivery and its settlement delivers again; the store knows it by its origin.
    assert set(found) <= {"whole", "again"} and found["again"] <= 10, found


def test_sound(harness: Harness, run: Any) -> None:
    kept = filled(harness)
    shutil.copytree(kept, harness.path / "spool")

    async def body() -> None:
        path = harness.path / "spool"
        assert await soundness.sound(path) == ""
        spool = harness.open()
        with spool.index.change() as change:
            change.count(INPUT, 0, 1)
        spool.close()
        assert await soundness.sound(path) == "the counters don't fit the rows"
        assert "reader ended" in await soundness.sound(path / "nowhere") or await soundness.sound(
            path / "nowhere"
        )

    run(body())


def test_a_damaged_list_of_free_pages_is_found(harness: Harness, run: Any) -> None:
    """No reader looks at it, and each writer dies of it: the janitor, too, which would else never come to build another index."""

    async def body() -> None:
        spool = harness.open()
        for _ in range(5):
            await harness.accept(spool, *[b"x"] * 20)
        spool.close()
        assert await soundness.sound(harness.path / "spool") == ""
        data = harness.path / "spool/index/data.mdb"
        with open(data, "r+b") as file:
            content = file.read()
            # of both meta pages (MDB_meta behind a header of 16 octets) the root of the free list: dbs[0].md_root
            for root in {int.from_bytes(content[at + 80 : at + 88], "little") for at in (0, 4096)}:
                if 0 < root < len(content) // 4096:
                    file.seek(root * 4096 + 16)
                    file.write(b"\xa5" * (4096 - 16))
        index = Index(harness.path / "spool/index", readonly=True)
        assert soundness.check(index) == "", "readers see nothing"
        index.close()
        assert "writer" in await soundness.sound(harness.path / "spool")

    run(body())
