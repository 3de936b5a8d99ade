"""The spool's share of a message: checksum, append and index, the way through the queue.

    pytest perf/kernels/test_spool.py --benchmark-only

`accept` and `queue` print `cpu_us`, the processor time of all threads for one message, beside the elapsed time of a round.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from iems._native import committer_py, crc32c_py
from iems._native import kernel as native
from iems.model import INPUT, Channel, Envelope, Outcome, Recipient, Result
from iems.spool import Item, Message, Settlement, Spool, SpoolParams

MESSAGES = 2048
BODY = os.urandom(4096)

crc32c = native("crc32c")
committer = native("committer")


@pytest.mark.parametrize("octets", [256, 4096, 262_144])
@pytest.mark.parametrize("side", ["native", "table", "python"])
def test_crc32c(benchmark: Any, side: str, octets: int) -> None:
    data = os.urandom(octets)
    if side == "python":
        if octets > 4096:
            pytest.skip("minutes")
        benchmark(crc32c_py.crc32c, data)
    else:
        benchmark(crc32c.crc32c if side == "native" else crc32c.crc32c_table, data)


@pytest.mark.parametrize("side", [committer, committer_py], ids=["native", "python"])
def test_append_16_and_flush(benchmark: Any, side: Any, tmp_path: Path) -> None:
    """One group of 16 records of 4 KB, written and flushed."""
    fd = os.open(tmp_path / "segment", os.O_RDWR | os.O_CREAT)
    notify = os.eventfd(0)
    one = side.Committer(fd, b"nonce..8", 64, notify)

    def group() -> None:
        for number in range(16):
            one.submit(1, 0, 0, bytes(16), 0, b"e" * 150, [b"Received: by here\r\n", BODY], True, number)
        one.kick()
        done = 0
        while done < 16:
            os.eventfd_read(notify)
            done += len(one.reap()[0])

    try:
        benchmark(group)
    finally:
        one.close()
        os.close(fd)
        os.close(notify)


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as it:
        yield it


async def opened(path: Path) -> Spool:
    return Spool.open(SpoolParams(path / "spool", loop=asyncio.get_running_loop()))


async def accept(spool: Spool, group: int) -> None:
    """Submit all messages, so many at once."""
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    begun = done = 0

    def more() -> None:
        nonlocal begun
        for _ in range(min(group, MESSAGES - begun)):
            begun += 1
            content = spool.new_content()
            content.buffer.append(BODY)
            content.check_spill()
            recipients = [Recipient(b"user@example.test", b"user@example.test")]
            envelope = Envelope(
                Channel.SMTPD, b"sender@example.org", recipients, time.time_ns(), helo=b"client.example.org"
            )
            spool.submit(
                Message(spool.new_id(), envelope, [b"Received: from client by here\r\n", content]), one
            )

    def one(error: Exception | None) -> None:
        nonlocal done
        assert error is None
        done += 1
        if done == MESSAGES:
            finished.set_result(None)
        elif done % group == 0:
            loop.call_soon(more)

    more()
    more()
    await finished


async def pass_on(spool: Spool) -> None:
    """Take, move, take, settle everything."""
    while items := spool.take(INPUT, 64)[0]:
        spool.move([(i, [Item(i.id, Channel.LOCAL, "", i.envelope, i.rope)]) for i in items])
    while items := spool.take(Channel.LOCAL, 64)[0]:
        await spool.settle(
            [Settlement(i, [Result(r, Outcome.DELIVERED) for r in i.envelope.recipients]) for i in items]
        )


@pytest.mark.parametrize("group", [1, 16, 64])
def test_accept(benchmark: Any, group: int, tmp_path: Path, runner: asyncio.Runner) -> None:
    spool = runner.run(opened(tmp_path))
    used: list[float] = []

    def once() -> None:
        before = cpu_s()
        runner.run(accept(spool, group))
        used.append((cpu_s() - before) / MESSAGES * 1e6)

    benchmark.pedantic(once, rounds=3 if group > 1 else 1)
    benchmark.extra_info["cpu_us"] = round(min(used), 1)
    print(f"\naccept, {group} at once: {min(used):.1f} us of processor time a message")
    spool.close()


def test_queue(benchmark: Any, tmp_path: Path, runner: asyncio.Runner) -> None:
    spool = runner.run(opened(tmp_path))
    used: list[float] = []

    def once() -> None:
        before = cpu_s()
        runner.run(pass_on(spool))
        used.append((cpu_s() - before) / MESSAGES * 1e6)

    benchmark.pedantic(once, setup=lambda: runner.run(accept(spool, 64)), rounds=3)
    benchmark.extra_info["cpu_us"] = round(min(used), 1)
    print(f"\nqueue: {min(used):.1f} us of processor time a message")
    spool.close()
