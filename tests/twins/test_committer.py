"""The committer: the same octets, groups and failures from both sides."""

from __future__ import annotations

import errno
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iems._native import committer_py
from iems._native.buffer_py import Buffer as PythonBuffer

committer = pytest.importorskip("iems._native.committer")
buffer = pytest.importorskip("iems._native.buffer")

SIDES = pytest.mark.parametrize("side", [committer, committer_py], ids=["native", "python"])
NONCE = b"nonce..8"


class Open:
    """A committer on a file, with its notifications."""

    def __init__(self, side: Any, path: Path, delay_ms: int = 1000, ahead: int = 0) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.notify = os.eventfd(0)
        self.committer = side.Committer(self.fd, NONCE, 64, self.notify, delay_ms, ahead)

    def reap(self, enough: Callable[[list[Any], list[Any], int], bool]) -> tuple[list[Any], list[Any], int]:
        """Reap until `enough` says so."""
        good: list[Any] = []
        bad: list[Any] = []
        error = 0
        until = time.monotonic() + 60
        while not enough(good, bad, error):
            assert time.monotonic() < until
            os.eventfd_read(self.notify)
            more = self.committer.reap()
            good += more[0]
            bad += more[1]
            error = more[2]
        return good, bad, error

    def close(self) -> None:
        self.committer.close()
        os.close(self.fd)
        os.close(self.notify)


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Callable[..., Open]]:
    opened: list[Open] = []

    def opening(side: Any, name: str = "file", **changes: Any) -> Open:
        opened.append(Open(side, tmp_path / name, **changes))
        return opened[-1]

    yield opening
    for one in opened:
        one.close()


def script(rng: random.Random) -> list[tuple[int, int, int, bytes, int, bytes, list[bytes], bool]]:
    """Random records."""
    return [
        (
            rng.randrange(1, 7), rng.randrange(4), rng.randrange(9), rng.randbytes(16), rng.randrange(1 << 60),
            rng.randbytes(rng.randrange(300)), [rng.randbytes(rng.randrange(3000)) for _ in range(rng.choice((0, 1, 2, 5, 300)))],
            rng.random() < 0.5,
        )
        for _ in range(60)
    ]  # fmt: skip


def test_same_octets(opener: Callable[..., Open], tmp_path: Path) -> None:
    for seed in range(5):
        offsets = []
        for name, side in (("native", committer), ("python", committer_py)):
            one = opener(side, f"{name}{seed}")
            offsets.append(
                [
                    one.committer.submit(*record, number)
                    for number, record in enumerate(script(random.Random(seed)))
                ]
            )
            one.committer.kick()
            good, bad, error = one.reap(lambda good, bad, error: len(good) == 60)
            assert (good, bad, error) == (list(range(60)), [], 0)
            one.committer.seal()
            one.reap(lambda *_, one=one: one.committer.sealed)
            assert one.committer.written == one.committer.flushed == os.fstat(one.fd).st_size
        assert offsets[0] == offsets[1]
        assert (tmp_path / f"native{seed}").read_bytes() == (tmp_path / f"python{seed}").read_bytes()


@SIDES
def test_unflushed_octets_are_flushed_soon(side: Any, opener: Callable[..., Open]) -> None:
    one = opener(side, delay_ms=50)
    one.committer.submit(2, 0, 0, bytes(16), 0, b"x", [], False, "a")
    one.committer.kick()
    one.reap(lambda good, bad, error: good == ["a"])
    assert one.committer.written == one.committer.offset and one.committer.flushed == 64
    one.reap(lambda *_: one.committer.flushed == one.committer.offset)


@SIDES
@pytest.mark.parametrize(
    ("device", "number", "flush"),
    [
        ("/dev/full", errno.ENOSPC, False),
        ("/dev/full", errno.ENOSPC, True),
        ("/dev/null", errno.EINVAL, True),
    ],
)
def test_failures_stay(side: Any, device: str, number: int, flush: bool, opener: Callable[..., Open]) -> None:
    """The kernel refuses a write, or a flush: that record and all later ones fail, earlier ones are good."""
    one = opener(side)
    one.committer.submit(1, 0, 0, bytes(16), 0, b"x", [b"y"], True, "good")
    one.committer.kick()
    one.reap(lambda good, bad, error: good == ["good"])
    end = one.committer.offset
    other = os.open(device, os.O_RDWR)
    os.dup2(other, one.fd)
    os.close(other)
    one.committer.submit(1, 0, 0, bytes(16), 0, b"x", [b"y"], flush, "bad")
    one.committer.kick()
    one.committer.submit(1, 0, 0, bytes(16), 0, b"x", [b"y"], False, "later")
    one.committer.kick()
    assert one.reap(lambda good, bad, error: len(bad) == 2) == ([], ["bad", "later"], number)
    assert one.committer.failed == number
    assert one.committer.flushed == one.committer.written == end
    one.committer.seal()
    one.reap(lambda *_: one.committer.sealed)
    assert one.committer.written == end


@SIDES
def test_buffers_are_locked_until_reaped(side: Any, opener: Callable[..., Open]) -> None:
    one = opener(side)
    for kind in (buffer.Buffer, PythonBuffer):
        held = kind()
        held.append(b"content")
        one.committer.submit(1, 0, 0, bytes(16), 0, b"", [held], True, held)
        with pytest.raises(BufferError):
            held.append(b"more" * 5000)
        one.committer.kick()
        one.reap(lambda good, bad, error, held=held: good == [held])
        held.append(b"more")


@SIDES
def test_bad_arguments(side: Any, opener: Callable[..., Open]) -> None:
    one = opener(side)
    with pytest.raises(ValueError, match="16"):
        one.committer.submit(1, 0, 0, b"short", 0, b"", [], True, None)
    with pytest.raises(TypeError):
        one.committer.submit(1, 0, 0, bytes(16), 0, "text", [], True, None)
    with pytest.raises(TypeError):
        one.committer.submit(1, 0, 0, bytes(16), 0, b"", [b"ok", 7], True, None)
    assert one.committer.offset == 64
    one.committer.close()
    with pytest.raises(ValueError, match="closed"):
        one.committer.submit(1, 0, 0, bytes(16), 0, b"", [], True, None)
    with pytest.raises(ValueError, match="8 octets"):
        side.Committer(one.fd, b"short", 64, one.notify)
    with pytest.raises(ValueError, match="4 MiB"):
        side.Committer(one.fd, NONCE, 64, one.notify, 1000, (4 << 20) + 1)


@SIDES
def test_close_writes_what_waits(side: Any, opener: Callable[..., Open], tmp_path: Path) -> None:
    one = opener(side)
    for number in range(100):
        one.committer.submit(1, 0, 0, bytes(16), 0, b"p", [b"c" * 100], False, number)
    one.committer.close()
    assert one.committer.flushed == one.committer.offset == (tmp_path / "file").stat().st_size
    assert one.committer.reap()[0] == list(range(100))


def test_tokens_are_released() -> None:
    import sys

    token = object()
    before = sys.getrefcount(token)
    fd = os.open("/dev/full", os.O_RDWR)
    notify = os.eventfd(0)
    one = committer.Committer(fd, NONCE, 64, notify)
    for _ in range(10):
        one.submit(1, 0, 0, bytes(16), 0, b"p", [b"c"], True, token)
    del one  # never reaped
    assert sys.getrefcount(token) == before
    os.close(fd)
    os.close(notify)


AHEAD = 256 << 10


def one_by_one(one: Open, sizes: list[int]) -> list[int]:
    """Write records with contents of these sizes, each a group; octets of the file after each."""
    lengths = []
    for number, size in enumerate(sizes):
        one.committer.submit(1, 0, 0, bytes(16), 0, b"p", [b"c" * size], True, number)
        one.committer.kick()
        one.reap(lambda good, bad, error, number=number: good == [number])
        lengths.append(os.fstat(one.fd).st_size)
    return lengths


def test_same_room_is_prepared(opener: Callable[..., Open], tmp_path: Path) -> None:
    sizes = [4000, 20_000, 40_000, 40_000, *[30_000] * 4, 4000, 40_000, 200_000, 4000]
    lengths = {}
    for name, side in (("native", committer), ("python", committer_py)):
        one = opener(side, name, ahead=AHEAD)
        lengths[name] = one_by_one(one, sizes)
        end = one.committer.written
        data = (tmp_path / name).read_bytes()
        assert end < len(data) and not any(data[end:]) and any(data[end - 8 : end])
        one.committer.seal()
        one.reap(lambda *_, one=one: one.committer.sealed)
        assert os.fstat(one.fd).st_size == one.committer.written == one.committer.flushed
    plain = opener(committer, "plain")
    one_by_one(plain, sizes)
    plain.committer.seal()
    plain.reap(lambda *_: plain.committer.sealed)
    assert lengths["native"] == lengths["python"]
    # Once for the first, not again until a small group leaves what is prepared; large ones are appended.
    assert sorted(set(lengths["native"])) == [lengths["native"][0], *lengths["native"][-2:]]
    octets = {(tmp_path / name).read_bytes() for name in ("native", "python", "plain")}
    assert len(octets) == 1, "a sealed segment does not show how it was written"


@SIDES
def test_no_room_to_prepare(side: Any, opener: Callable[..., Open]) -> None:
    """The records fit and the zeros don't: nothing fails, and no more is tried in this file."""
    one = opener(side, ahead=AHEAD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        lengths = one_by_one(one, [4000, 4000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lengths == [100_000, 100_000]
    assert one_by_one(one, [20_000] * 6)[-1] == one.committer.offset
    one.committer.seal()
    one.reap(lambda *_: one.committer.sealed)
    assert one.committer.failed == 0
    assert os.fstat(one.fd).st_size == one.committer.written
