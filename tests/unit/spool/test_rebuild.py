"""A lost index is built again from the segments: what has an outcome stays settled, all else is delivered once."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from iems.model import INPUT, Channel, Outcome, Recipient, Result, child_id
from iems.spool import Item, Message, Settlement, Spool, admin, keys, reclaim, records, recovery
from iems.spool.rebuild import rebuild
from tests.support.spool import Harness, envelope


def route(item: Item) -> list[Item]:
    """A repeatable routing: x.test is remote; `allN@` stands for N local ones; the rest is local."""
    local: list[Recipient] = []
    remote: list[Recipient] = []
    for recipient in item.envelope.recipients:
        name, _, domain = recipient.address.decode().partition("@")
        if domain == "x.test":
            remote.append(recipient)
        elif name.startswith("all"):
            local += [Recipient(b"%s%d@here.test" % (name.encode(), n)) for n in range(int(name[3:]))]
        else:
            local.append(recipient)
    new = []
    for channel, destination, recipients in ((Channel.LOCAL, "", local), (Channel.SMTPC, "x.test", remote)):
        if recipients:
            part = envelope("nobody@here.test")
            part.recipients = recipients
            part.reverse_path = item.envelope.reverse_path
            part.input_channel = item.envelope.input_channel
            new.append(Item(item.id, channel, destination, part, item.rope))
    return new


class World:
    """Random work on a spool, and what must have come of it. due: (id, address) -> times it may still be delivered."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.due: dict[tuple[bytes, bytes], int] = {}
        self.bodies: dict[bytes, bytes] = {}
        self.delivered: dict[tuple[bytes, bytes], int] = {}

    def expect(self, message: Message, body: bytes) -> None:
        self.bodies[message.id] = body
        item = Item(message.id, INPUT, "", message.envelope, [])
        for part in route(item):
            for recipient in part.envelope.recipients:
                self.due[message.id, recipient.address] = 1

    async def accept(self, spool: Spool) -> None:
        names = self.rng.choice(
            (
                ("b@here.test",),
                ("b@here.test", "c@x.test"),
                ("all3@here.test",),
                ("all2@here.test", "d@x.test", "e@here.test"),
            )
        )
        body = self.rng.randbytes(self.rng.randrange(1, 3000))
        message = Message(spool.new_id(), envelope(*names), [body])
        assert await spool.append([message]) == [None]
        self.expect(message, body)

    async def work(self, spool: Spool, drain: bool = False) -> bool:
        """One step of preprocessor and output channels; whether there was anything to do."""
        items, _ = spool.take(INPUT, self.rng.randrange(1, 5))
        busy = bool(items)
        spool.move([(item, route(item)) for item in items])
        for channel in (Channel.LOCAL, Channel.SMTPC):
            items, _ = spool.take(channel, self.rng.randrange(1, 5))
            busy = busy or bool(items)
            for item in items:
                assert spool.blobs.read(item.rope) == self.bodies[item.id]
                results = []
                failed = []
                for recipient in item.envelope.recipients:
                    roll = 1.0 if drain else self.rng.random()
                    if roll < 0.2:
                        results.append(Result(recipient, Outcome.DEFERRED))
                        continue
                    key = (item.id, recipient.address)
                    self.delivered[key] = self.delivered.get(key, 0) + 1
                    if roll < 0.3 and item.envelope.reverse_path:
                        failed.append(recipient)
                        results.append(Result(recipient, Outcome.FAILED))
                    else:
                        results.append(Result(recipient, Outcome.DELIVERED))
                settlement = Settlement(item, results)
                if failed:
                    notes = []
                    for n in range(self.rng.randrange(1, 3)):
                        id = child_id(item.id, b"%d" % n + failed[0].address)
                        note = Message(id, envelope("a@here.test", sender=b""), [b"note" * n], [settlement])
                        note.envelope.input_channel = Channel.MTA
                        self.expect(note, b"note" * n)
                        notes.append(note)
                    await spool.settle([], notes)
                else:
                    await spool.settle([settlement])
        return busy

    async def drain(self, spool: Spool) -> None:
        while await self.work(spool, drain=True):
            pass

    def check(self) -> None:
        assert self.delivered == self.due


def lose_index(path: Path) -> None:
    shutil.rmtree(path / "spool" / "index")
    found = recovery.prepare(path / "spool", map_octets=1 << 30)
    assert found.rebuild and not found.trusted


@pytest.mark.parametrize("seed", range(5))
def test_random_history(harness: Harness, run: Any, seed: int) -> None:
    world = World(random.Random(seed))
    files: list[int] = []

    async def busy() -> None:
        spool = harness.open(segment_octets=1 << 20)
        for _ in range(80):
            if world.rng.random() < 0.8:
                await world.accept(spool)
            if world.rng.random() < 0.3:
                await world.work(spool)
            if world.rng.random() < 0.1:
                spool.writer.retire()
        spool.close()

    async def mended() -> None:
        spool = harness.open(role="janitor")
        found = await rebuild(spool)
        assert found is not None and found.damaged == 0
        assert await rebuild(spool) is None
        # a second life's work, moving some of what is old to new segments, and giving up what nobody needs
        for _ in range(4):
            await world.work(spool)
            moved = await reclaim.move_old(spool, sparse_ms=0, all_ms=0, limit=world.rng.randrange(4))
            assert moved.damaged == 0
            await world.accept(spool)
            await world.work(spool)
            spool.writer.retire()
            await asyncio.sleep(0.02)
            files.append((await reclaim.reclaim(spool, linger_ms=-1)).files)
        spool.close()

    async def last() -> None:
        spool = harness.open(role="janitor")
        await rebuild(spool)
        await world.drain(spool)
        assert all(n == 0 for n in spool.index.counts().values())
        rows = spool.index.blob_rows()
        assert all(row.live == 0 for row in rows.values())
        spool.close()
        world.check()

    run(busy())
    for _ in range(3):
        lose_index(harness.path)
        run(mended())
    assert sum(files) > 0
    lose_index(harness.path)
    run(last())
    found = admin.audit(harness.path / "spool")
    assert found["missing"] == found["queued"] == found["quarantined"] == 0


def test_interrupted_rebuild_goes_on(harness: Harness, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fill() -> None:
        spool = harness.open()
        for n in range(3):
            await harness.accept(spool, *[b"%d %d" % (n, k) for k in range(40)])
            spool.writer.retire()
            await asyncio.sleep(0.05)
        spool.close()

    async def interrupted() -> None:
        spool = harness.open()
        commits = 0
        original = spool.index.change

        def limited() -> Any:
            nonlocal commits
            commits += 1
            if commits > 3:
                raise OSError("interrupted")
            return original()

        monkeypatch.setattr(spool.index, "change", limited)
        with pytest.raises(OSError, match="interrupted"):
            await rebuild(spool)
        monkeypatch.undo()
        spool.close()

    async def finished() -> None:
        spool = harness.open()
        found = await rebuild(spool)
        assert found is not None
        seen = []
        while items := spool.take(INPUT, 50)[0]:
            seen += [spool.blobs.read(item.rope) for item in items]
        assert sorted(seen) == sorted(b"%d %d" % (n, k) for n in range(3) for k in range(40))
        spool.close()

    run(fill())
    lose_index(harness.path)
    run(interrupted())
    assert recovery.prepare(harness.path / "spool", map_octets=1 << 30).rebuild
    run(finished())


def test_mail_is_accepted_meanwhile(harness: Harness, run: Any) -> None:
    async def fill() -> None:
        spool = harness.open()
        await harness.accept(spool, *[b"old"] * 100)
        spool.close()

    async def body() -> None:
        spool = harness.open()
        task = asyncio.ensure_future(rebuild(spool))
        await harness.accept(spool, *[b"new"] * 10)
        await task
        seen: list[bytes] = []
        while items := spool.take(INPUT, 50)[0]:
            seen += [spool.blobs.read(item.rope) for item in items]
        assert sorted(seen) == [b"new"] * 10 + [b"old"] * 100
        spool.close()

    run(fill())
    lose_index(harness.path)
    run(body())


def test_damage_costs_one_record(harness: Harness, run: Any) -> None:
    """Bits flip in a header, in a payload, in content; mail that imitates records is none; a torn end is cut."""
    places: list[tuple[int, int, int]] = []

    async def fill() -> None:
        spool = harness.open()
        await harness.accept(spool, b"before")
        segment = spool.writer.current
        assert segment is not None
        fd = os.open(spool.params.path / "segments" / f"{segment.blob:016x}.seg", os.O_RDONLY)
        whole = os.pread(fd, 4096, 64)  # octets of a real record, nonce and all
        os.close(fd)
        for n in range(6):
            start = segment.committer.offset
            await harness.accept(spool, b"%d" % n + whole * 3)
            places.append((segment.blob, start, segment.committer.offset))
        spool.close()

    run(fill())
    file = harness.path / "spool" / "segments" / f"{places[0][0]:016x}.seg"
    data = bytearray(file.read_bytes())
    data[places[1][1] + 30] ^= 1  # the id in a header
    data[places[3][1] + 64 + 20] ^= 4  # in a payload
    data[places[4][2] - 100] ^= 128  # in content
    file.write_bytes(data)
    lose_index(harness.path)

    async def body() -> None:
        spool = harness.open()
        found = await rebuild(spool)
        assert found is not None and found.damaged == 3
        seen = []
        while items := spool.take(INPUT, 50)[0]:
            seen += [spool.blobs.read(item.rope)[:1] for item in items]
        assert sorted(seen) == [b"0", b"2", b"5", b"b"]
        spool.close()

    run(body())
    found = admin.fsck(harness.path / "spool")
    assert len([f for f in found if f["what"] == "a record is damaged"]) == 3
    assert sum(f["id"] is not None for f in found if f["what"] == "a record is damaged") == 2


def test_scan_finds_its_way(tmp_path: Path) -> None:
    """Whatever 100 random flips do to a segment, every record without one is found."""
    from iems.spool.segments import Committer, create_segment

    rng = random.Random(5)
    (tmp_path / "segments").mkdir()
    _, fd, nonce = create_segment(tmp_path / "segments", "test", 0, 0)
    notify = os.eventfd(0)
    committer = Committer(fd, nonce, 64, notify)
    spans = []
    for n in range(200):
        start = committer.submit(
            records.Kind.CONTENT,
            0,
            0,
            b"%016d" % n,
            0,
            rng.randbytes(40),
            [rng.randbytes(rng.randrange(2000))],
            True,
            None,
        )
        spans.append((start, committer.offset))
    committer.close()
    size = os.fstat(fd).st_size
    hurt = set()
    for _ in range(100):
        at = rng.randrange(64, size)
        octet = os.pread(fd, 1, at)[0] ^ 1 << rng.randrange(8)
        os.pwrite(fd, bytes((octet,)), at)
        padding = [n for n, (start, end) in enumerate(spans) if start <= at < end]
        hurt.update(padding)
    found = {r.offset for r in records.scan(fd, 64, size, nonce) if isinstance(r, records.Record)}
    for n, (start, _) in enumerate(spans):
        assert start in found or n in hurt
    os.close(fd)
    os.close(notify)


def test_holds_survive(harness: Harness, run: Any) -> None:
    """A held item that was moved to a new segment is held after a rebuild as well."""

    async def fill() -> None:
        spool = harness.open()
        await harness.accept(spool, b"x")
        [item], _ = spool.take(INPUT, 1)
        with spool.index.change() as change:
            assert change.unlease(item)
            change.put(item, keys.HELD, live=False)
        spool.writer.retire()
        while not (found := await reclaim.move_old(spool, sparse_ms=0, all_ms=0)).moved:
            await asyncio.sleep(0.01)  # until the segment is closed
        assert found.moved == 1
        spool.close()

    async def body() -> None:
        spool = harness.open()
        await rebuild(spool)
        assert spool.index.counts()[INPUT, keys.HELD] == 1
        assert spool.take(INPUT, 1)[0] == []
        spool.close()

    run(fill())
    lose_index(harness.path)
    run(body())


def test_a_torn_end_is_no_missing_message(harness: Harness, run: Any) -> None:
    """The power tore the last record of a segment and the index is lost: nobody had its 250, so the audit does not miss it."""

    async def fill(spool: Spool) -> None:
        await harness.accept(spool, b"a" * 1000, b"b" * 1000, b"c" * 1000)

    async def mend() -> dict[str, int]:
        assert admin.rebuilding(harness.path / "spool")
        spool = harness.open(role="janitor")
        await rebuild(spool)
        await settle(spool)
        spool.close()
        assert not admin.rebuilding(harness.path / "spool")
        return admin.audit(harness.path / "spool")

    async def settle(spool: Spool) -> None:
        items, _ = spool.take(INPUT, 9)
        await spool.settle(
            [Settlement(i, [Result(r, Outcome.DELIVERED) for r in i.envelope.recipients]) for i in items]
        )

    harness.die_after(fill)
    [segment] = (harness.path / "spool/segments").glob("*.seg")
    data = segment.read_bytes()
    torn = data.index(b"c" * 1000) + 500
    segment.write_bytes(data[:torn] + bytes(len(data) - torn))
    lose_index(harness.path)
    found = run(mend())
    assert (found["accepted"], found["delivered"]) == (2, 2)
    assert found["missing"] == found["queued"] == found["quarantined"] == 0


def test_who_takes_from_a_new_index_lets_go_of_what_the_old_one_knew(harness: Harness, run: Any) -> None:
    """Else the rebuild waits for this process's segment in vain, and delivers again what stands in it as delivered."""

    async def body() -> None:
        worker = harness.open()
        await harness.accept(worker, b"x")
        assert worker.writer.current is not None
        # as another process does it (`recovery.replace_index`)
        old, path = worker.index, worker.params.path
        recovery._new_index(path, worker.params.map_octets, old.run + 1, old.clock.offset_ms, recovery._blob_files(path))
        old.next_epoch()
        assert worker.take(INPUT, 1)[0] == []  # opens the new index
        worker._look()
        assert worker.writer.current is None
        worker.close()

    run(body())
