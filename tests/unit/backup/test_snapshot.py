"""Contents that are copied into a backup while they are being written."""

from __future__ import annotations

import os
from pathlib import Path

from iems.backup import snapshot

BLOB = 0x0123456789ABCDEF
OWN = 1 << 63 | BLOB


def test_zeros_that_become_records_are_not_kept(tmp_path: Path) -> None:
    """A segment of the spool with room prepared behind its last record: what is written there later is copied by the next snapshot."""
    held, target = tmp_path / "held", tmp_path / "target"
    held.mkdir()
    target.mkdir()
    segment = held / f"{BLOB:016x}.seg"
    segment.write_bytes(b"first" + b"CRC1" + bytes(64 << 10))
    files: dict[str, snapshot.File] = {}
    assert snapshot._take_blob(BLOB, 5, held, target, files) == (True, 9)
    assert (target / segment.name).read_bytes() == b"firstCRC1"
    with open(segment, "r+b") as file:
        file.seek(16)
        file.write(b"second" + b"CRC2")
    assert snapshot._take_blob(BLOB, 22, held, target, files) == (True, 26)
    assert (target / segment.name).read_bytes() == b"firstCRC1" + bytes(7) + b"secondCRC2"
    assert files[segment.name] == snapshot._checksum(target / segment.name)
    assert snapshot._take_blob(BLOB, 5, held, target, files) == (True, 0)


def test_others_are_copied_whole(tmp_path: Path) -> None:
    held, target = tmp_path / "held", tmp_path / "target"
    held.mkdir()
    target.mkdir()
    for blob, suffix in ((OWN, "seg"), (BLOB, "blob")):
        (held / f"{blob:016x}.{suffix}").write_bytes(os.urandom(10_000))
        assert snapshot._take_blob(blob, 5, held, target, {}) == (True, 10_000)
