"""Room that is prepared behind the last record of an open segment: zeros are the end, and nothing else passes for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from iems.model import INPUT
from iems.spool import Spool, admin, records, recovery
from iems.spool.rebuild import rebuild
from iems.spool.records import Damaged, Record
from iems.spool.segments import AHEAD_OCTETS
from tests.support.spool import Harness


def nobody(slot: int, generation: int) -> bool:
    return False


def segments(harness: Harness) -> list[Path]:
    return sorted((harness.path / "spool" / "segments").glob("*.seg"))


def ends(path: Path) -> tuple[int, int]:
    """(end of the last whole record, octets of the file) of an open segment."""
    fd = os.open(path, os.O_RDONLY)
    try:
        head = records.read_file_head(fd)
        assert head is not None
        size = os.fstat(fd).st_size
        found = list(records.walk(fd, records.FILE_OCTETS, size, head.nonce))
        return found[-1].end, size
    finally:
        os.close(fd)


def scanned(path: Path, **how: Any) -> list[Record | Damaged]:
    fd = os.open(path, os.O_RDONLY)
    try:
        head = records.read_file_head(fd)
        assert head is not None
        return list(records.scan(fd, records.FILE_OCTETS, os.fstat(fd).st_size, head.nonce, **how))
    finally:
        os.close(fd)


async def accept_two(harness: Harness, spool: Spool) -> None:
    await harness.accept(spool, b"one" * 100)
    await harness.accept(spool, b"two" * 100)


def dead(harness: Harness) -> Path:
    """The segment of a writer that died after two messages."""

    async def first(spool: Spool) -> None:
        await accept_two(harness, spool)

    harness.die_after(first, slot=1)
    [path] = segments(harness)
    return path


async def contents(spool: Spool) -> list[bytes]:
    return sorted([spool.blobs.read(item.rope) for item in spool.take(INPUT, 9)[0]])


def rebuilt(harness: Harness, run: Any) -> tuple[list[bytes], int]:
    """What a new index, built from the segments, has in the queue; and the damage found."""
    shutil.rmtree(harness.path / "spool" / "index")
    recovery.prepare(harness.path / "spool", map_octets=1 << 30)
    seen: list[bytes] = []
    damaged = 0

    async def body() -> None:
        nonlocal damaged
        spool = harness.open(slot=2)
        found = await rebuild(spool)
        assert found is not None
        damaged = found.damaged
        seen.extend(await contents(spool))
        spool.close()

    run(body())
    return seen, damaged


def test_sealing_cuts_the_zeros_off(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        await accept_two(harness, spool)
        [path] = segments(harness)
        end, size = ends(path)
        assert size - end > AHEAD_OCTETS // 2 and records.blank(spool.writer.current.fd, end, size)  # type: ignore[union-attr]
        blob = spool.writer.current.blob  # type: ignore[union-attr]
        spool.close()
        spool = harness.open()
        row = spool.index.blob_row(blob)
        assert row is not None and row.sealed and row.length == path.stat().st_size < 4096
        assert [type(found) for found in scanned(path)[:3]] == [Record] * 3
        spool.close()
        assert list(admin.fsck(harness.path / "spool")) == []

    run(body())


def test_large_groups_are_appended(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        await harness.accept(spool, b"x" * (AHEAD_OCTETS // 8))
        [path] = segments(harness)
        end, size = ends(path)
        assert size == end
        spool.close()

    run(body())


def test_nothing_is_prepared_where_that_is_off(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open(ahead_octets=0)
        await accept_two(harness, spool)
        [path] = segments(harness)
        end, size = ends(path)
        assert size == end
        spool.close()

    run(body())


def test_recovery_takes_zeros_for_the_end(harness: Harness, run: Any) -> None:
    path = dead(harness)
    end, size = ends(path)
    assert size > end
    assert list(admin.fsck(harness.path / "spool")) == []
    totals = admin.audit(harness.path / "spool")
    assert (totals["accepted"], totals["queued"], totals["missing"]) == (2, 2, 0)
    os.utime(path, ns=(10**18, 10**18))

    async def body() -> None:
        spool = harness.open(slot=2)
        found = await recovery.recover(spool, nobody, {})
        assert (found.segments, found.voided) == (1, 0)
        [row] = spool.index.blob_rows().values()
        assert row.sealed and row.length == row.indexed == end == path.stat().st_size
        assert path.stat().st_mtime_ns == 10**18, "queue time is told from it"
        assert await contents(spool) == [b"one" * 100, b"two" * 100]
        spool.close()

    run(body())
    assert list(admin.fsck(harness.path / "spool")) == []


def test_rebuild_takes_zeros_for_the_end(harness: Harness, run: Any) -> None:
    path = dead(harness)
    end, size = ends(path)
    assert size > end
    assert rebuilt(harness, run) == ([b"one" * 100, b"two" * 100], 0)
    assert path.stat().st_size == end
    assert list(admin.fsck(harness.path / "spool")) == []


@pytest.mark.parametrize("lost", ["end", "begin", "middle"])
def test_a_torn_record_before_zeros_is_torn(harness: Harness, run: Any, lost: str) -> None:
    """The last record reached the disk in part: what is missing are zeros, as is all behind it."""
    path = dead(harness)
    [_, last] = scanned(path, unsealed=True)
    at, octets = {"end": (last.end - 200, 200), "begin": (last.offset, 64), "middle": (last.offset + 100, 100)}[lost]
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes(octets))
    first, damage = scanned(path, unsealed=True)
    assert isinstance(first, Record) and isinstance(damage, Damaged) and damage.offset == last.offset
    assert rebuilt(harness, run) == ([b"one" * 100], 0)  # the end of a power cut, not a disk that forgets


def test_what_stands_behind_zeros_is_not_passed_over(harness: Harness, run: Any) -> None:
    path = dead(harness)
    end, size = ends(path)
    with open(path, "r+b") as file:
        file.seek(size - 4096)
        file.write(b"rubbish")
    *_, damage = scanned(path, unsealed=True)
    assert damage == Damaged(end, size)
    assert rebuilt(harness, run) == ([b"one" * 100, b"two" * 100], 0)
    assert path.stat().st_size == size, "only zeros are cut off"


def test_a_whole_record_behind_lost_octets_counts(harness: Harness, run: Any) -> None:
    path = dead(harness)
    [first, _] = scanned(path, unsealed=True)
    with open(path, "r+b") as file:
        file.seek(first.offset)
        file.write(bytes(first.end - first.offset))
    damage, whole = scanned(path, unsealed=True)
    assert damage == Damaged(first.offset, first.end) and isinstance(whole, Record)
    assert rebuilt(harness, run) == ([b"two" * 100], 1)


def test_zeros_in_a_sealed_segment_are_damage(harness: Harness, run: Any) -> None:
    async def body() -> None:
        spool = harness.open()
        await accept_two(harness, spool)
        spool.close()

    run(body())
    [path] = segments(harness)
    with open(path, "r+b") as file:
        [_, last] = [found for found in scanned(path) if isinstance(found, Record) and found.kind == records.Kind.MESSAGE]
        file.seek(last.offset)
        file.write(bytes(last.end - last.offset))
    assert [found["what"] for found in admin.fsck(harness.path / "spool")] == ["a record is damaged"]
    assert rebuilt(harness, run) == ([b"one" * 100], 1)
