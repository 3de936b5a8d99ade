"""The memory of what was refused or discarded: bounded, whole, without text."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from iems.lmda import unkept
from iems.lmda.unkept import Unkept, keep, packed, read
from iems.model import Verdict


def note(number: int, time_s: int = 1_000, head: bytes = b"Subject: x\r\n\r\n") -> Unkept:
    tags = (Verdict("dnsbl", "bl.test", "127.0.0.2"),)
    return Unkept(1, number.to_bytes(16, "big"), time_s, 99, b"a@b", b"me@x", "192.0.2.1", tags, (), "to (refused)", 0.25, packed(head))


def numbers(place: Path, since_s: float = 0) -> list[int]:
    return [int.from_bytes(each.origin, "big") for each in read(place, since_s)]


def test_kept_once_and_as_it_was(tmp_path: Path) -> None:
    assert read(tmp_path / "none", 0) == []
    place = tmp_path / "sieve.1"
    keep(place, [note(1), note(2, 2_000)], 0)
    keep(place, [note(1)], 0)
    assert read(place, 0) == [note(1), note(2, 2_000)] and read(place, 0)[0].head == b"Subject: x\r\n\r\n"
    assert numbers(place, 1_500) == [2]


@pytest.mark.parametrize(
    ("content", "head"),
    [
        (b"A: 1\r\nB: 2\r\n\r\ntext\r\n", b"A: 1\r\nB: 2\r\n\r\n"),
        (b"\r\ntext", b"\r\n"),
        (b"", b""),
        (b"A: 1\r\n" * 3_000 + b"\r\ntext", b"A: 1\r\n" * 1_365 + b"\r\n"),
        (b"A: 1\r\nB: " + b"x\r\n " * 9_000, b"A: 1\r\n\r\n"),
    ],
    ids=["header", "none", "empty", "long", "a field that never ends"],
)
def test_whole_fields_and_no_text(content: bytes, head: bytes) -> None:
    assert note(1, head=content).head == head


def test_damage_hides_no_other(tmp_path: Path) -> None:
    for number in range(5):
        keep(tmp_path, [note(number)], 0)
    file = tmp_path / "unkept"
    data = file.read_bytes()
    size = len(data) // 5
    for at in (0, 2 * size + 5, 2 * size + 40, 5 * size - 1):
        broken = bytearray(data)
        broken[at] ^= 0x55
        file.write_bytes(broken)
        assert numbers(tmp_path) == [number for number in range(5) if number != at // size]
    file.write_bytes(data[: 3 * size + 7])
    keep(tmp_path, [note(9)], 0)
    assert numbers(tmp_path) == [0, 1, 2, 9]


def test_the_older_half_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unkept, "OCTETS_MAX", 10_000)
    for number in range(1_000):
        keep(tmp_path, [note(number, number)], 999)
        assert (tmp_path / "unkept").stat().st_size < 10_500
    kept = numbers(tmp_path)
    assert kept == list(range(kept[0], 1_000)) and len(kept) > 20
    keep(tmp_path, [note(5_000, 40 * 86_400)] * 200, 40 * 86_400)
    keep(tmp_path, [note(5_001, 40 * 86_400)], 40 * 86_400)
    assert numbers(tmp_path) == [5_000, 5_001], "a month is enough"


def test_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of one account add at the same time, while the file is made shorter."""
    monkeypatch.setattr(unkept, "OCTETS_MAX", 40_000)
    threads = [threading.Thread(target=lambda n=n: [keep(tmp_path, [note(n * 1_000 + i)], 0) for i in range(200)]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = numbers(tmp_path)
    assert len(kept) == len(set(kept)) > 60
    assert {number // 1_000 for number in kept} <= {0, 1, 2, 3} and (tmp_path / "unkept").stat().st_size < 41_000
