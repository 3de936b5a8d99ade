"""Making records durable: 64 at a time, on a file below the temporary folder. A record is a packed envelope and its content.

Rival: each record by itself, `os.writev` and `os.fdatasync`, as a server without group commit does it. `envelope` is the packing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iems._native import committer_py, kernel
from iems.model import Channel, Envelope, Recipient
from perf.kernels.inputs import CONTENT, SIZES

GROUP = 64
ENVELOPE = Envelope(
    input_channel=1, reverse_path=b"sender@load.test", received_ns=1_790_000_000_000_000_000, size=4096, client_ip="192.0.2.1",
    helo=b"relay.load.test",
    recipients=[Recipient(b"a1@load.test", original=b"a1@load.test", channel=Channel.LOCAL)],
)  # fmt: skip
PAYLOAD = msgspec.msgpack.encode(ENVELOPE)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "segment", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def grouped(module: Any, fd: int, content: bytes) -> tuple[Callable[[], int], Callable[[], None]]:
    notify = os.eventfd(0)
    committer = module.Committer(fd, b"nonce..8", 64, notify)

    def commit() -> int:
        for number in range(GROUP):
            committer.submit(1, 0, 0, bytes(16), 0, PAYLOAD, [content], True, number)
        committer.kick()
        done = 0
        while done < GROUP:
            os.eventfd_read(notify)
            good, bad, _ = committer.reap()
            assert not bad
            done += len(good)
        return done

    def close() -> None:
        committer.close()
        os.close(notify)

    return commit, close


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", ["native", "twin", "writev and fdatasync each"])
def test_64_records(benchmark: Any, place: int, case: str, size: int) -> None:
    content = CONTENT[size]
    if case.startswith("writev"):

        def commit() -> int:
            for _ in range(GROUP):
                os.writev(place, [bytes(64), PAYLOAD, content])
                os.fdatasync(place)
            return GROUP

        assert benchmark.pedantic(commit, rounds=5) == GROUP
        return
    commit_group, close = grouped(kernel("committer") if case == "native" else committer_py, place, content)
    try:
        assert benchmark.pedantic(commit_group, rounds=15, warmup_rounds=1) == GROUP
    finally:
        close()


def test_envelope(benchmark: Any) -> None:
    encode = msgspec.msgpack.Encoder().encode
    assert len(benchmark(encode, ENVELOPE)) == len(PAYLOAD)
