"""Dead space goes back to the file system, living octets never do."""

from __future__ import annotations

import os
import random

import pytest

from iems.model import Extent
from iems.store import keys, sweep, wire
from iems.store.rows import BLOB_OWN, BLOB_ROW
from tests.unit.store.home import SEGMENT, Home, delivery, pack

SIZE = 1 << 20


@pytest.fixture
def home_with_mail(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """16 messages of 64 KB that fill the segment."""
    monkeypatch.setattr(sweep, "DEAD_OCTETS", 1)
    home.deliver(*[delivery(i, rope=[Extent(SEGMENT, i * 65536, 65536)]) for i in range(16)])
    return home


def remove(home: Home, *uids: int) -> None:
    home.ask(wire.StoreFlags(1, 1, pack(*uids), "+", ["\\Deleted"]))
    home.ask(wire.Expunge(1, 1, None))
    home.clock.now += 90_000
    while home.partition.housekeep():
        pass


def run(home: Home) -> bool:
    home.ask(wire.Ensure(1))  # the time of the partition is that of its last transaction
    begun = home.partition.sweep.begin()
    while home.partition.sweep.step():
        pass
    return begun


def contents(home: Home) -> dict[bytes, bytes]:
    found = {}
    for box in home.reader.mailboxes(1):
        for row in home.reader.messages(1, box.id, home.reader.select(1, box.id).uids.tolist()):
            found[row.origin] = home.reader.blobs.read(row.rope)
    return found


def test_dead_ranges_of_a_sole_file_are_punched_out(home_with_mail: Home) -> None:
    home = home_with_mail
    before = contents(home)
    os.unlink(home.segments / f"{SEGMENT:016x}.seg")
    remove(home, *range(2, 13))
    path = home.partition.content.path(SEGMENT)
    assert path and path.stat().st_blocks * 512 >= SIZE
    assert run(home)
    assert path.stat().st_size == SIZE and path.stat().st_blocks * 512 <= 5 * 65536 + 65536
    after = contents(home)
    assert len(after) == 5 and all(after[origin] == before[origin] for origin in after)
    assert not run(home), "nothing is left to do"


def test_a_file_of_two_owners_is_not_punched_but_left(home_with_mail: Home) -> None:
    home = home_with_mail
    before = contents(home)
    remove(home, *range(2, 13))
    home.ask(wire.Copy(1, 1, pack(1), "Sent"))
    assert run(home)
    spools = home.segments / f"{SEGMENT:016x}.seg"
    assert spools.read_bytes() == bytes(range(256)) * 4096
    while home.partition.housekeep():
        pass
    assert spools.stat().st_nlink == 1 and home.partition.content.path(SEGMENT) is None
    after = contents(home)
    assert len(after) == 5 and all(after[origin] == before[origin] for origin in after)
    with home.partition.env.begin() as txn:
        live, _, _, bits = BLOB_ROW.unpack(txn.get(keys.blob(home.partition.content.current)))
    assert live == 6 * 65536 and bits == BLOB_OWN, "the copy still shares its octets"


def test_a_young_file_of_two_owners_is_let_be(home_with_mail: Home) -> None:
    assert not run(home_with_mail)


def test_what_moves_past_the_reading_point_lives(home_with_mail: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home = home_with_mail
    monkeypatch.setattr(sweep, "ROWS", 2)
    before = contents(home)
    os.unlink(home.segments / f"{SEGMENT:016x}.seg")
    home.ask(wire.Copy(1, 1, pack(*range(1, 17)), "Archive", True))
    archive = home.reader.mailbox(1, "Archive").id
    home.ask(wire.StoreFlags(1, archive, pack(*range(1, 9)), "+", ["\\Deleted"]))
    home.ask(wire.Expunge(1, archive, None))
    home.clock.now += 90_000
    while home.partition.housekeep():
        pass
    assert home.partition.sweep.begin()
    rng = random.Random(1)
    turn = 0
    left = list(range(9, 17))
    while home.partition.sweep.step():
        turn += 1
        if left:
            home.ask(wire.Copy(1, archive, pack(left.pop(rng.randrange(len(left)))), "INBOX", True))
    assert turn > 3
    after = contents(home)
    assert len(after) == 8 and all(after[origin] == before[origin] for origin in after)


def test_holes() -> None:
    assert sweep.holes([], 10_000) == [(0, 8192)]
    assert sweep.holes([(0, 10)], 10_000) == [(4096, 4096)]
    assert sweep.holes([(8000, 500), (8100, 100), (30_000, 1)], 50_000) == [(0, 4096), (12288, 16384), (32768, 16384)]
    rng = random.Random(2)
    for _ in range(500):
        extents = [(rng.randrange(100_000), rng.randrange(1, 9_000)) for _ in range(rng.randrange(12))]
        touched = {block for o, n in extents for block in range(o // 4096, (o + n - 1) // 4096 + 1)}
        punched = {block for o, n in sweep.holes(extents, 110_000) for block in range(o // 4096, (o + n) // 4096)}
        assert not touched & punched and touched | punched >= set(range(110_000 // 4096)) - touched
