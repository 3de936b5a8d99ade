"""The model keeps what was promised and drops what was not."""

import random
import subprocess
import sys

import pytest

from tests.powercut.model import Recording, Snapshot, build, environment

PROGRAM = """
import os, sys
os.chdir(sys.argv[1])
old = os.open("old", os.O_WRONLY)
os.pwrite(old, b"N" * 2048, 0)
os.fdatasync(old)
os.pwrite(old, b"U" * 2048, 2048)
fresh = os.open("fresh", os.O_WRONLY | os.O_CREAT, 0o600)
os.write(fresh, b"synced, but not its name")
os.fsync(fresh)
named = os.open("named", os.O_WRONLY | os.O_CREAT | os.O_DSYNC, 0o600)
os.write(named, b"synced by its descriptor")
ahead = os.open("ahead", os.O_RDWR | os.O_CREAT, 0o600)
os.pwrite(ahead, b"R" * 1024 + bytes(3072), 0)
os.fdatasync(ahead)
os.pwrite(ahead, b"T" * 1024, 1024)
os.posix_fallocate(ahead, 0, 8192)
folder = os.open(".", os.O_RDONLY)
os.fsync(folder)
os.link("named", "second")
os.rename("old", "renamed")
os.write(os.open("acks", os.O_WRONLY | os.O_CREAT, 0o600), b"noted\\n")
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    top = tmp_path_factory.mktemp("model")
    root = top / "root"
    root.mkdir()
    (root / "old").write_bytes(b"o" * 4096)
    (root / "sub").mkdir()
    (root / "sub" / "still").write_bytes(b"untouched")
    snapshot = Snapshot.take(root, top / "kept")
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root)], env=environment(build(top), root, top / "log"), check=True
    )
    return Recording(snapshot, top / "log")


def test_states_at_the_end(recording, tmp_path):
    seen = {"tail": set(), "names": set(), "ahead": set()}
    end = len(recording.ops)
    assert recording.written("acks", end) == b"noted\n"
    for seed in range(150):
        target = tmp_path / str(seed)
        recording.restore(end, random.Random(seed), target)
        names = {p.name for p in target.iterdir()}
        old = target / ("renamed" if "renamed" in names else "old")
        assert old.read_bytes()[:2048] == b"N" * 2048, "a covered write is never lost"
        assert (target / "named").read_bytes() == b"synced by its descriptor"
        assert (target / "fresh").read_bytes() == b"synced, but not its name", "named by the later folder sync"
        assert (target / "sub" / "still").read_bytes() == b"untouched"
        ahead = (target / "ahead").read_bytes()
        assert ahead[:1024] == b"R" * 1024 and len(ahead) in (4096, 8192)
        assert not any(ahead[2048:]) and set(ahead[1024:2048]) <= {0, ord("T")}
        seen["ahead"].add((ahead[1024:2048], len(ahead)))
        tail = old.read_bytes()[2048:]
        seen["tail"].add(tail)
        seen["names"].add(frozenset(names))
    assert b"o" * 2048 in seen["tail"] and b"U" * 2048 in seen["tail"] and len(seen["tail"]) > 4, "torn states too"
    assert {length for _, length in seen["ahead"]} == {4096, 8192} and len(seen["ahead"]) > 4, "torn over zeros, and lengths lost"
    assert len(seen["names"]) > 3, "unsynced names come and go"


def test_unsynced_name_may_vanish_with_its_synced_file(recording, tmp_path):
    folder_sync = max(i for i, op in enumerate(recording.ops) if op.path == str(recording.snapshot.root))
    lost = 0
    for seed in range(60):
        target = tmp_path / str(seed)
        recording.restore(folder_sync - 1, random.Random(seed), target)
        lost += not (target / "fresh").exists()
    assert 0 < lost < 60
