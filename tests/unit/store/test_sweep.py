"""Dead space goes back to the file system, living octets never do."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iems.model import Extent
from iems.store import keys, sweep, wire
from iems.store.fsck import look
from iems.store.rows import BLOB_OWN, BLOB_ROW, Account
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


def test_gaps() -> None:
    assert sweep.gaps([], 10_000) == [(0, 10_000)]
    assert sweep.gaps([(0, 10)], 10_000) == [(10, 9_990)]
    rng = random.Random(1)
    for _ in range(300):
        extents = [(rng.randrange(2000), rng.randrange(1, 300)) for _ in range(rng.randrange(12))]
        named = {at for offset, length in extents for at in range(offset, offset + length)}
        assert {at for offset, length in sweep.gaps(extents, 2100) for at in range(offset, offset + length)} == set(range(2100)) - named


@pytest.mark.parametrize("can_punch", [True, False])
def test_erase_touches_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_punch: bool) -> None:
    if not can_punch:
        monkeypatch.setattr(sweep, "punch", lambda fd, offset, length: False)
    rng = random.Random(2)
    for _ in range(60):
        data = bytearray(rng.randbytes(20_000))
        (tmp_path / "x").write_bytes(data)
        offset = rng.randrange(20_000)
        length = rng.randrange(1, 20_001 - offset)
        with open(tmp_path / "x", "r+b") as file:
            sweep.erase(file.fileno(), offset, length)
        data[offset : offset + length] = bytes(length)
        assert (tmp_path / "x").read_bytes() == data


MARK = b"a secret of long ago"


def raw(home: Home) -> bytes:
    """All octets of contents in the home."""
    return b"".join(path.read_bytes() for folder in ("store/p0/blobs", "spool") for path in sorted((home.path / folder).rglob("*")) if path.is_file())


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("times", [1, 3])
def test_octets_of_expunged_mail_are_gone_a_day_after_the_undelete_time(tmp_path: Path, copy: bool, times: int) -> None:
    """However few, among mail that stays in the same file and block; on to the file of long summaries."""
    home = Home(tmp_path, copy_always=copy)
    blob = SEGMENT + 1
    filler = bytes(random.Random(3).randbytes(5_000)).replace(MARK[:1], b"-")
    home.add_segment(blob, filler + MARK + filler)
    summary = b'("d" "' + MARK + b"-summary" + b"s" * 2_500 + b'" NIL NIL NIL NIL NIL NIL NIL NIL)'
    for account in range(1, times + 1):
        home.deliver(delivery(account, account, rope=[Extent(blob, 4_000, 1_000 + len(MARK))], envelope=summary))
    home.deliver(delivery(50, 9, rope=[Extent(blob, 0, 4_000)]), delivery(51, 9, rope=[Extent(blob, 5_000 + len(MARK), 5_000)]))
    os.unlink(home.segments / f"{blob:016x}.seg")  # the queue is done with it
    before = [home.reader.blobs.read(home.reader.message(9, 1, uid).rope) for uid in (1, 2)]
    assert MARK in raw(home)
    for account in range(1, times + 1):
        home.ask(wire.StoreFlags(account, 1, pack(1), "+", ["\\Deleted"]))
        home.ask(wire.Expunge(account, 1))
    home.clock.now += 86_400 - 10
    while home.partition.housekeep():
        pass
    assert len(home.reader.trash(1)) == 1 and MARK in raw(home), "it can be brought back until then"
    home.clock.now += 20
    while home.partition.housekeep():
        pass
    home.ask(wire.Ensure(1))
    home.partition._reclaim._sweep_next = 0.0  # a day later
    for _ in range(2):  # this round, and the next half a minute after it
        while home.partition.housekeep():
            pass
    assert MARK not in raw(home)
    assert [home.reader.blobs.read(home.reader.message(9, 1, uid).rope) for uid in (1, 2)] == before
    home.ask(wire.Ensure(1))
    assert not home.partition.sweep.begin(), "nothing is left to do"
    home.close()
    assert look(home.path / "store/p0", 0).findings == []


def test_one_copy_in_a_partition_however_many_have_it(tmp_path: Path) -> None:
    """Octets on the disk: those of one message, linked or copied, delivered in one request or in many, copied on, after a sweep."""
    octets = 1 << 20
    for copy in (False, True):
        home = Home(tmp_path / str(copy), copy_always=copy)
        blob = SEGMENT + 2
        home.add_segment(blob, os.urandom(octets), ".blob")
        for first in range(0, 100, 20):
            home.deliver(*[delivery(7, 1 + first + i, rope=[b"Delivered-To: u%d\r\n" % i, Extent(blob, 0, octets)]) for i in range(20)])
        for account in (1, 50):
            home.ask(wire.Copy(account, 1, pack(1), "Archive"))
        os.unlink(home.path / "spool/large" / f"{blob:016x}.blob")
        for _ in range(2):
            used = sum(path.stat().st_blocks * 512 for path in (home.path / "store/p0/blobs").iterdir())
            assert octets <= used <= octets + 64 * 1024
            assert usages(home.partition.env)[1] > 100 * octets
            home.clock.now += 200_000
            run(home)
        home.close()


def usages(env: Any) -> tuple[int, int]:
    """(accounts, octets they are told they have)."""
    with env.begin() as txn:
        rows = [msgspec.msgpack.decode(value, type=Account) for key, value in txn.cursor() if key[4] == keys.ACCOUNT and key[:4] != bytes(4)]
    return len(rows), sum(row.octets for row in rows)
