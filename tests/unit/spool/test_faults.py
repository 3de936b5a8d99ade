"""A write, a flush, the index or the making of a file fails: what was promised stays, the rest is refused and never comes back."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lmdb
import pytest

from iems.errors import SpoolError, SpoolFull
from iems.model import INPUT, Channel, Outcome, Result
from iems.spool import ContentWriter, Item, Message, Settlement, Spool, admin, keys, recovery
from iems.spool.rebuild import rebuild, repair
from iems.spool.verify import ContentDamaged, Verifier
from tests.support.spool import Harness, envelope, routed


def done(item: Item, outcome: int = Outcome.DELIVERED) -> Settlement:
    return Settlement(item, [Result(r, outcome) for r in item.envelope.recipients])


def break_segment(spool: Spool, device: str) -> None:
    """From now on the current segment's descriptor leads to a device that refuses writes (full) or flushes (null)."""
    segment = spool.writer.current
    assert segment is not None
    fd = os.open(device, os.O_RDWR)
    os.dup2(fd, segment.fd)
    os.close(fd)


async def submit(spool: Spool, content: bytes) -> SpoolError | None:
    [error] = await spool.append([Message(spool.new_id(), envelope(), [content])])
    return error


async def contents(spool: Spool) -> list[bytes]:
    seen = []
    while items := spool.take(INPUT, 50)[0]:
        seen += [spool.blobs.read(item.rope) for item in items]
    return sorted(seen)


def after_power_cut(harness: Harness, run: Any) -> list[bytes]:
    """What a new index, built from the segments, has in the queue."""
    shutil.rmtree(harness.path / "spool" / "index")
    recovery.prepare(harness.path / "spool", map_octets=1 << 30)
    seen: list[bytes] = []

    async def body() -> None:
        spool = harness.open()
        await rebuild(spool)
        seen.extend(await contents(spool))
        spool.close()

    run(body())
    return seen


@pytest.mark.parametrize(("device", "kind"), [("/dev/full", SpoolFull), ("/dev/null", SpoolError)])
def test_failed_write_or_flush(harness: Harness, run: Any, device: str, kind: type[SpoolError]) -> None:
    async def body() -> None:
        spool = harness.open()
        assert await submit(spool, b"before") is None
        old = spool.writer.current
        assert old is not None
        break_segment(spool, device)
        errors = await asyncio.gather(*(submit(spool, b"refused %d" % n) for n in range(5)))
        assert all(type(error) is kind for error in errors)
        assert await submit(spool, b"after") is None
        row = spool.index.blob_row(old.blob)
        assert row is not None and row.sealed and row.length == old.good
        assert ("spool_segment_failed") in [name for name, _ in harness.events]
        spool.close()
        assert admin.audit(harness.path / "spool")["missing"] == 0

    run(body())
    assert after_power_cut(harness, run) == [b"after", b"before"]


def test_refused_mail_is_void_even_if_it_was_written(harness: Harness, run: Any) -> None:
    """The flush failed, but the octets are in the file: they must not come back."""

    async def body() -> None:
        spool = harness.open()
        assert await submit(spool, b"before") is None
        segment = spool.writer.current
        assert segment is not None
        path = spool.params.path / "segments" / f"{segment.blob:016x}.seg"
        break_segment(spool, "/dev/null")
        error = await submit(spool, b"refused")
        assert isinstance(error, SpoolError)
        # what the failed flush left behind, found after all
        from iems.spool.segments import Committer

        head = path.read_bytes()
        fd = os.open(path, os.O_RDWR)
        ghost = Committer(fd, head[8:16], segment.good, spool.writer._notify)
        whole = (harness.path / "spool" / "segments").iterdir()
        assert len(list(whole)) == 2
        from iems.spool import records

        ghost.submit(
            records.Kind.MESSAGE,
            0,
            0,
            b"g" * 16,
            1,
            records.encode(records.MessageHead(envelope(), [])),
            [b"refused"],
            True,
            None,
        )
        ghost.close()
        os.close(fd)
        spool.close()

    run(body())
    assert after_power_cut(harness, run) == [b"before"]


def test_what_an_old_index_refused_is_not_in_the_new_one(
    harness: Harness, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VOID of a refused message stands in a segment of the new index's life."""

    async def body() -> None:
        spool = harness.open()
        assert await submit(spool, b"before") is None

        def damaged() -> Any:
            raise lmdb.CorruptedError("a bad page")

        monkeypatch.setattr(spool.index, "change", damaged)
        task = asyncio.ensure_future(submit(spool, b"refused"))
        while not any(name == "spool_segment_failed" for name, _ in harness.events):
            await asyncio.sleep(0.001)
        monkeypatch.undo()
        recovery.replace_index(spool)
        assert isinstance(await task, SpoolError)
        assert await submit(spool, b"after") is None
        await rebuild(spool)
        assert await contents(spool) == [b"after", b"before"]
        spool.close()

    run(body())


def test_failed_index(harness: Harness, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        spool = harness.open()
        assert await submit(spool, b"before") is None
        real = spool.index.change
        fails = 1

        def failing() -> Any:
            nonlocal fails
            if fails:
                fails -= 1
                raise lmdb.MapFullError("no room")
            return real()

        monkeypatch.setattr(spool.index, "change", failing)
        errors = await asyncio.gather(*(submit(spool, b"refused") for _ in range(3)))
        assert all(isinstance(error, SpoolFull) for error in errors)
        assert await submit(spool, b"after") is None
        spool.close()

    run(body())
    assert after_power_cut(harness, run) == [b"after", b"before"]


@pytest.mark.parametrize("flush", [False, True])
def test_outcomes_are_written_again(harness: Harness, run: Any, flush: bool) -> None:
    async def body() -> None:
        spool = harness.open()
        for content in (b"one", b"two", b"three"):
            assert await submit(spool, content) is None
        [one, two, _], _ = spool.take(INPUT, 3)
        await spool.settle([done(one)])  # written, not flushed
        break_segment(spool, "/dev/null" if flush else "/dev/full")
        await spool.settle([done(two)], flush=flush)
        await spool.flushed()
        spool.close()

    run(body())
    assert after_power_cut(harness, run) == [b"three"]


def test_delayed_flush_fails(harness: Harness, run: Any) -> None:
    """Nobody waits for the flush of an outcome; when it fails, the outcome is written elsewhere all the same."""

    async def body() -> None:
        spool = harness.open(flush_ms=20)
        assert await submit(spool, b"one") is None
        [one], _ = spool.take(INPUT, 3)
        await spool.settle([done(one)])
        break_segment(spool, "/dev/null")
        await spool.flushed()
        assert spool.writer.current is not None
        spool.close()

    run(body())
    assert after_power_cut(harness, run) == []


def test_no_segment_can_be_made(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        folder = spool.writer.folder
        spool.writer.folder = Path("/nowhere/at/all")
        assert isinstance(await submit(spool, b"refused"), SpoolError)
        spool.writer.folder = folder
        assert await submit(spool, b"accepted") is None
        [item], _ = spool.take(INPUT, 1)
        # the segment fails, and for a while no other can be made: the outcome waits for better times
        spool.writer.folder = Path("/nowhere/at/all")
        break_segment(spool, "/dev/full")
        task = asyncio.ensure_future(spool.settle([done(item)], flush=True))
        await asyncio.sleep(0.15)
        assert not task.done()
        spool.writer.folder = folder
        await task
        spool.close()

    run(body())
    assert after_power_cut(harness, run) == []


def test_failed_message_with_its_cause(harness: Harness, run: Any) -> None:
    """A DSN that can't be written settles nothing."""

    async def body() -> None:
        spool = harness.open()
        assert await submit(spool, b"cause") is None
        [item], _ = spool.take(INPUT, 1)
        break_segment(spool, "/dev/full")
        notes = [
            Message(bytes([n]) * 16, envelope(sender=b""), [b"note"], [done(item, Outcome.FAILED)])
            for n in (1, 2)
        ]
        with pytest.raises(SpoolFull):
            await spool.settle([], notes)
        spool.give_back([item])
        [item], _ = spool.take(INPUT, 1)
        assert spool.blobs.read(item.rope) == b"cause"
        spool.close()

    run(body())
    assert after_power_cut(harness, run) == [b"cause"]


def test_large_content_fails(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        folder = spool.staging.folder
        spool.staging.folder = Path("/nowhere/at/all")
        content = spool.new_content()
        content.buffer.append(b"x" * (2 << 20))
        content.check_spill()
        [error] = await spool.append([Message(spool.new_id(), envelope(), content)])
        assert isinstance(error, SpoolError)
        spool.staging.folder = folder
        content = spool.new_content()
        content.buffer.append(b"x" * (2 << 20))
        content.check_spill()
        content.discard()
        while spool.staging.used:
            await asyncio.sleep(0.01)
        spool.close()
        assert os.listdir(folder) == []

    run(body())


def test_staging_budget(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open(staging_octets=4 << 20)
        held = []
        # above half of the budget smaller contents go to files
        for _ in range(12):
            content = spool.new_content()
            content.buffer.append(b"x" * 400_000)
            content.check_spill()
            held.append(content)
            while spool.staging.used > 3 << 20:
                await asyncio.sleep(0.005)
        assert any(content.file for content in held)
        assert spool.staging.used <= 4 << 20
        messages = [Message(spool.new_id(), envelope(), [b"H", content]) for content in held]
        assert await spool.append(messages) == [None] * 12
        assert await contents(spool) == [b"H" + b"x" * 400_000] * 12
        assert spool.staging.used == 0
        spool.executor.submit(__import__("time").sleep, 0.3)
        for _ in range(3):
            spool.executor.submit(__import__("time").sleep, 0.3)
        with pytest.raises(SpoolFull):
            for _ in range(8):
                content = spool.new_content()
                held.append(content)
                content.buffer.append(b"y" * 1_000_000)
                content.check_spill()
        spool.close()

    run(body())


def test_ballast(harness: Harness, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        spool = harness.open(ballast_octets=1 << 20)
        spool.ballast.restore()
        assert spool.ballast.path.stat().st_size == 1 << 20
        assert await submit(spool, b"x") is None
        [item], _ = spool.take(INPUT, 1)
        break_segment(spool, "/dev/full")
        assert isinstance(await submit(spool, b"x"), SpoolFull)
        assert not spool.ballast.path.exists()
        monkeypatch.setattr(spool.ballast, "_free", lambda: 1 << 20)
        spool.ballast._looked = -1.0
        assert isinstance(await submit(spool, b"x"), SpoolFull)  # the room is for settling
        await spool.settle([done(item)], flush=True)
        monkeypatch.setattr(spool.ballast, "_free", lambda: 1 << 30)
        spool.ballast._looked = -1.0
        assert await submit(spool, b"x") is None
        spool.ballast.restore()
        assert spool.ballast.path.exists()
        spool.close()

    run(body())


def test_large_content_is_damaged(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        for _ in range(2):
            content = spool.new_content()
            for _ in range(3):
                content.buffer.append(os.urandom(700_000))
                content.check_spill()
            assert await spool.append([Message(spool.new_id(), envelope(), [b"H", content])]) == [None]
        [good, bad], _ = spool.take(INPUT, 2)
        assert len(Verifier(spool.blobs).read(good)) == 2_100_001
        path = spool.params.path / "large" / f"{bad.sums[0][0]:016x}.blob"
        with open(path, "r+b") as file:
            file.seek(1_000_000)
            octet = file.read(1)
            file.seek(1_000_000)
            file.write(bytes((octet[0] ^ 1,)))
        with pytest.raises(ContentDamaged):
            Verifier(spool.blobs).check(bad)
        spool.move([(bad, [routed(bad)]), (good, [routed(good)])])
        spool.close()
        assert [f["what"] for f in admin.fsck(harness.path / "spool")] == ["content is damaged"]

    run(body())
    shutil.rmtree(harness.path / "spool" / "index")
    recovery.prepare(harness.path / "spool", map_octets=1 << 30)

    async def after() -> None:
        spool = harness.open()
        await rebuild(spool)
        assert all(len(item.sums) == 1 for item in spool.take(INPUT, 9)[0])
        spool.close()

    run(after())


def test_append_content(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        writer = ContentWriter(spool)
        small = writer.new_content()
        small.buffer.append(b"small")
        large = writer.new_content()
        large.buffer.append(b"L" * (3 << 20))
        large.check_spill()
        large.buffer.append(b"end")
        extents = await asyncio.gather(writer.append(small), writer.append(large), writer.append(b"bytes"))
        assert [spool.blobs.read([e]) for e in extents] == [b"small", b"L" * (3 << 20) + b"end", b"bytes"]
        assert spool.staging.used == 0
        spool.close()

    run(body())
    assert after_power_cut(harness, run) == []


def test_damaged_row_is_set_aside(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        for content in (b"one", b"two", b"three"):
            assert await submit(spool, content) is None
        with spool.index.env.begin(write=True) as txn:
            [_, (key, value), _] = list(txn.cursor(spool.index.db["queue"]))
            value = bytearray(value)
            value[30] ^= 1
            txn.put(key, bytes(value), db=spool.index.db["queue"])
        assert await contents(spool) == [b"one", b"three"]
        assert len(spool.index.damages()) == 1
        spool.close()
        assert admin.audit(harness.path / "spool")["quarantined"] == 1
        [found] = admin.fsck(harness.path / "spool")
        assert found["where"] == "index" and found["id"]

    run(body())


def test_damaged_row_is_mended(harness: Harness, run: Any) -> None:
    """From its record; recipients that are settled, or stand in other rows, are left out."""

    async def body() -> None:
        spool = harness.open()
        message = Message(spool.new_id(), envelope("a@x.test", "b@y.test", "c@z.test"), [b"octets"])
        assert await spool.append([message]) == [None]

        def split(item: Item) -> list[Item]:
            return [
                Item(item.id, Channel.SMTPC, r.address.decode()[2:], envelope(r.address.decode()), item.rope)
                for r in item.envelope.recipients
            ]

        [item], _ = spool.take(INPUT, 1)
        spool.move([(item, split(item))])
        taken, _ = spool.take(Channel.SMTPC, 9)
        by_host = {item.destination: item for item in taken}
        await spool.settle([done(by_host["x.test"])])
        spool.give_back([by_host["y.test"], by_host["z.test"]])
        for mended in (1, 2):
            with spool.index.env.begin(write=True) as txn:
                for key, value in list(txn.cursor(spool.index.db["queue"])):
                    if b"b@y.test" in value:
                        txn.put(key, value[:-1] + bytes((value[-1] ^ 1,)), db=spool.index.db["queue"])
            assert [i.destination for i in spool.take(Channel.SMTPC, 9)[0]] == (
                ["z.test"] if mended == 1 else []
            )
            assert await repair(spool) == (1, 0)
            assert await repair(spool) == (0, 0) and not spool.index.damages()
            [item], _ = spool.take(INPUT, 9)
            assert spool.blobs.read(item.rope) == b"octets"
            spool.move([(item, split(item))])
        [item], _ = spool.take(Channel.SMTPC, 9)
        assert item.destination == "y.test"
        with spool.index.env.begin() as txn:
            leases = [keys.decode_item(value) for _, value in txn.cursor(spool.index.db["lease"])]
        assert sorted(i.destination for i in leases) == ["y.test", "z.test"]
        for key, found in list(spool.index.leased()):
            assert found is not None and key
            await spool.settle([done(found)])
        assert [row.live for row in spool.index.blob_rows().values()] == [0]
        spool.close()
        assert admin.audit(harness.path / "spool")["missing"] == 0

    run(body())


def test_index_is_replaced_while_everybody_works(harness: Harness, run: Any) -> None:
    """A writer in another process notices, lets go of its segment, and nothing it promised is lost."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:

        async def other() -> None:
            spool = harness.open(slot=1)
            number = 0
            while True:
                if await submit(spool, b"other %d" % number) is None:
                    os.write(tell, b"other %d\n" % number)
                number += 1
                await asyncio.sleep(0.002)

        asyncio.run(other())
        os._exit(1)
    os.close(tell)
    assert os.read(ready, 1 << 16)

    async def body() -> list[bytes]:
        spool = harness.open(slot=2)
        mine = [b"mine %d" % n for n in range(5)]
        for content in mine:
            assert await submit(spool, content) is None
        [kept, settled], _ = spool.take(INPUT, 2)
        await spool.settle([done(settled)])
        gone = spool.blobs.read(settled.rope)
        recovery.replace_index(spool)
        assert spool.index.is_rebuilding()
        # what was leased before is settled after: the lease is lost, the outcome is not
        late = spool.blobs.read(kept.rope)
        await spool.settle([done(kept)])
        found = await rebuild(spool)
        assert found is not None and found.segments >= 2
        assert await submit(spool, b"mine 5") is None
        await asyncio.sleep(0.05)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        await recovery.recover(spool, lambda slot, generation: slot == 2, {})
        seen: list[bytes] = []
        while items := spool.take(INPUT, 50)[0]:
            for item in items:
                again = [item] if item.envelope.recipients else []
                spool.move([(item, [routed(i) for i in again])])
        while items := spool.take(Channel.LOCAL, 50)[0]:
            seen += [spool.blobs.read(item.rope) for item in items]
        promised = [line for line in os.read(ready, 1 << 20).splitlines()]
        spool.close()
        assert gone not in seen
        expected = Counter([*mine, b"mine 5"])
        expected.subtract([gone])
        if late in expected and seen.count(late) == 0:
            expected.subtract([late])
        assert Counter(s for s in seen if s.startswith(b"mine")) == +expected
        others = Counter(s for s in seen if s.startswith(b"other"))
        assert set(promised) <= {*others, gone, late}
        assert all(number == 1 for number in others.values())
        return seen

    run(body())


def test_outcome_of_a_new_lease_ends_it(harness: Harness, run: Any) -> None:
    """A worker takes from the new index before its tick has let go of its old segment: the outcome still ends the lease."""
    hear_child, tell_parent = os.pipe()
    hear_parent, tell_child = os.pipe()
    pid = os.fork()
    if pid == 0:

        async def worker() -> None:
            spool = harness.open(slot=1)
            spool._tick.cancel()
            assert await submit(spool, b"old") is None
            [old], _ = spool.take(INPUT, 9)
            await spool.settle([done(old)])
            os.write(tell_parent, b"1")
            os.read(hear_parent, 1)
            [fresh], _ = spool.take(INPUT, 9)
            await spool.settle([done(fresh)])
            os.write(tell_parent, b"2")
            os.read(hear_parent, 1)
            spool.close()
            os._exit(0)

        asyncio.run(worker())

    async def body() -> None:
        assert os.read(hear_child, 1) == b"1"
        spool = harness.open(slot=2)
        recovery.replace_index(spool)
        assert await submit(spool, b"fresh") is None
        os.write(tell_child, b"1")
        assert os.read(hear_child, 1) == b"2"
        os.write(tell_child, b"2")
        assert os.waitpid(pid, 0)[1] == 0
        assert await rebuild(spool) is not None
        assert not list(spool.index.leased())
        assert not any(spool.index.counts().values())
        spool.close()

    run(body())


def test_what_can_not_be_given_back_is_given_back_later(harness: Harness, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index's disk is full: the lease ends once there is room, in a worker that lives on, and somebody is woken."""

    async def body() -> None:
        spool = harness.open()
        assert await submit(spool, b"kept") is None
        [item], _ = spool.take(INPUT, 1)

        def full() -> Any:
            raise lmdb.DiskError("no space left on device")

        monkeypatch.setattr(spool.index, "change", full)
        spool.give_back([item])
        assert [name for name, _ in harness.events] == ["spool_index_fails"]
        monkeypatch.undo()
        assert spool.take(INPUT, 1)[0] == []
        await harness.quiet(spool)
        async with asyncio.timeout(60):
            while not harness.woken:
                await asyncio.sleep(0.02)
        [again], _ = spool.take(INPUT, 1)
        assert again.id == item.id and harness.woken == ["preprocessor"]
        spool.close()

    run(body())


def test_a_record_written_while_its_segment_is_sealed_is_answered(harness: Harness, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committer writes a last record and seals while the loop is at work on those before; its client was left without an answer."""

    async def body() -> None:
        spool = harness.open()
        assert await submit(spool, b"opens the segment") is None
        writer = spool.writer
        segment = writer.current
        assert segment is not None
        apply = writer._apply
        late = True

        def slowly(of: Any, posts: Any) -> Any:
            nonlocal late
            if late:
                late = False
                spool.submit(message, answered.set_result)
                writer.retire()
                while not segment.committer.sealed:
                    time.sleep(0.001)
            return apply(of, posts)

        answered: asyncio.Future[SpoolError | None] = asyncio.get_running_loop().create_future()
        message = Message(spool.new_id(), envelope(), [b"last"])
        monkeypatch.setattr(writer, "_apply", slowly)
        assert await submit(spool, b"before") is None
        assert await asyncio.wait_for(answered, 10) is None
        spool.close()

    run(body())
