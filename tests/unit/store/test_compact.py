"""Rows written anew: nothing of deleted mail is left in them, all that lives is, and a kill leaves the old file or the new one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from iems.model import Extent
from iems.store import compact as module
from iems.store import fsck, keys, wire
from iems.store.compact import CompactRefusal, compact
from iems.store.partition import FRESH
from tests.unit.store.home import SEGMENT, STRUCTURE, Home, delivery, pack

MARK = b"a secret of long ago"
UNDELETE_S = 86_400


def rows(path: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(path / "store/p0/index"), map_size=1 << 30, readonly=True) as env, env.begin() as txn:
        return {bytes(key): bytes(value) for key, value in txn.cursor()}


def octets(path: Path) -> bytes:
    return b"".join(one.read_bytes() for one in sorted((path / "store").rglob("*")) if one.is_file())


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A home in which messages that lived side by side were expunged long ago; their subjects are in rows and in a file of contents."""
    home = Home(tmp_path)
    # In real time, as the command has no other clock.
    home.partition._clock = lambda: 1_600_000_000.0
    blob = SEGMENT + 1
    home.add_segment(blob, b"x" * 5_000 + MARK + b"x" * 5_000)
    summary = b'("d" "' + MARK + b"-%d" + b's" NIL NIL NIL NIL NIL NIL NIL NIL)'
    for number in range(1, 400):
        secret = number % 3 == 0
        rope = [Extent(blob, 5_000, len(MARK))] if secret else [Extent(blob, 0, 100)]
        home.deliver(delivery(number, 1 + number % 2, rope=rope, envelope=summary % number if secret else b"e" * 60, bodystructure=STRUCTURE))
    for account in (1, 2):
        selected = home.reader.select(account, 1)
        assert selected is not None
        gone = [uid for uid in selected.uids.tolist() if MARK in home.reader.message(account, 1, uid).envelope]  # type: ignore[union-attr]
        home.ask(wire.StoreFlags(account, 1, pack(*gone), "+", ["\\Deleted"]))
        home.ask(wire.Expunge(account, 1))
    home.deliver(delivery(900, 1))
    home.close()
    assert MARK in octets(tmp_path)
    return tmp_path


def test_nothing_is_left_of_deleted_rows_and_all_that_lives_is_there(used: Path) -> None:
    home = Home.__new__(Home)
    home.path, home.options, home.seq, home.segments = used, {}, 0, used / "spool/segments"
    import time

    home.clock = time.time  # type: ignore[assignment]
    home.open()
    while home.partition.housekeep():
        pass
    home.close()
    living = rows(used)
    assert not any(MARK in value for value in living.values())
    assert MARK in (used / "store/p0/index/data.mdb").read_bytes(), "without it the rows are still there"
    found = compact(used / "store/p0", used / "spool", UNDELETE_S)
    assert found.after < found.before
    now = rows(used)
    # The sweep that goes before may put contents elsewhere: blob rows, and ropes in message rows.
    moves = (keys.BLOB, keys.MESSAGE)
    assert {key for key in now if key[4] != keys.BLOB} == {key for key in living if key[4] != keys.BLOB}
    assert all(now[key] == value for key, value in living.items() if key[4] not in moves)
    assert MARK not in octets(used)
    assert fsck.look(used / "store/p0", 0).findings == []
    # It goes on as before.
    home.open()
    assert home.deliver(delivery(901, 1))[0].status == "ok"
    assert len(home.reader.select(1, 1).uids) > 100  # type: ignore[union-attr]
    home.close()
    assert compact(used / "store/p0", used / "spool", UNDELETE_S).after > 0


def test_what_can_be_undeleted_stays(used: Path) -> None:
    before = rows(used)
    compact(used / "store/p0", used / "spool", 10**9)
    # The time was set when they were expunged.
    assert len(rows(used)) < len(before)


STEPS = ("housekept", "copied", "replaced", "done")


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step_one_of_both_files_is_there(used: Path, step: str) -> None:
    script = (
        "import os, sys, signal; from pathlib import Path; from iems.store.compact import compact\n"
        "def step(name):\n    if name == sys.argv[2]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "compact(Path(sys.argv[1]) / 'store/p0', Path(sys.argv[1]) / 'spool', 86400, step)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(used), step], env=os.environ | {"PYTHONPATH": os.getcwd()}, check=False, timeout=60)
    assert done.returncode == -9
    home = Home.__new__(Home)
    home.path, home.options, home.seq, home.segments = used, {}, 0, used / "spool/segments"
    home.clock = lambda: 2_000_000_000.0  # type: ignore[assignment]
    home.open()
    assert not (used / "store/p0/index" / FRESH).exists(), "a copy does not outlive what is deleted"
    assert home.deliver(delivery(901, 1))[0].status == "ok"
    assert len(home.reader.select(1, 1).uids) > 100  # type: ignore[union-attr]
    home.close()
    compact(used / "store/p0", used / "spool", UNDELETE_S)
    assert MARK not in octets(used) and fsck.look(used / "store/p0", 0).findings == []


def test_it_needs_the_partition_alone(used: Path) -> None:
    before = rows(used)
    hold = "import fcntl, sys; file = open(sys.argv[1], 'a+'); fcntl.flock(file, 2); print(1, flush=True); sys.stdin.read()"
    read = "import lmdb, sys; env = lmdb.open(sys.argv[1], readonly=True, map_size=1 << 30); print(1, flush=True); sys.stdin.read()"
    for script, place, text in ((hold, "owner", "stop the server"), (read, "index", "being read")):
        other = subprocess.Popen([sys.executable, "-c", script, str(used / "store/p0" / place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert other.stdout is not None and other.stdout.readline()
        try:
            with pytest.raises(CompactRefusal, match=text):
                compact(used / "store/p0", used / "spool", UNDELETE_S)
        finally:
            other.kill()
            other.wait()
        assert not (used / "store/p0/index" / FRESH).exists()
    assert {key for key in rows(used) if key[4] != keys.BLOB} <= before.keys()


def test_a_copy_with_other_rows_is_refused(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = module._check
    monkeypatch.setattr(module, "_check", lambda fresh, entries: checked(fresh, entries + 1))
    with pytest.raises(CompactRefusal, match="other rows"):
        compact(used / "store/p0", used / "spool", UNDELETE_S)
    monkeypatch.setattr(module, "_check", checked)
    assert not (used / "store/p0/index" / FRESH).exists()
    assert compact(used / "store/p0", used / "spool", UNDELETE_S).after
