"""What a module costs, and that it is counted under its name."""

from __future__ import annotations

import asyncio
import time

import pytest

from iems.master.board import MODULES
from iems.model import Channel, Envelope, Recipient
from iems.preprocessor.batch import Plan
from iems.preprocessor.matrix import Matrices
from iems.preprocessor.meter import Metered
from iems.preprocessor.modules import NAMES, Verdict
from iems.preprocessor.pipeline import examine
from iems.preprocessor.route import Part
from iems.spool import Item


def burn(ms):
    until = time.thread_time_ns() + ms * 1_000_000
    while time.thread_time_ns() < until:
        pass


def test_cpu_of_its_own_steps():
    async def work(ms, turn, others):
        burn(ms)
        turn.set()
        await others.wait()
        return ms

    async def main():
        first, second = asyncio.Event(), asyncio.Event()
        small, large = Metered(work(2, first, second)), Metered(work(40, second, first))
        assert await asyncio.gather(small, large) == [2, 40]
        assert 2e6 <= small.cpu_ns < 40e6 and large.cpu_ns >= 40e6 and small.took_ns >= 40e6

    asyncio.run(main())


def test_errors_pass_through():
    async def main():
        async def fails():
            await asyncio.sleep(0)
            raise KeyError("x")

        with pytest.raises(KeyError):
            await Metered(fails())
        ended = []

        async def waits():
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await Metered(waits())
        assert ended
        given = Metered(waits()).__await__()
        next(given)
        given.close()
        assert len(ended) == 2

    asyncio.run(main())


class Fake:
    """A module."""

    on_tags = False

    def __init__(self, name, verdict):
        self.name, self.verdict = name, verdict

    def wants(self, envelope):
        return True

    async def examine(self, work):
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict


def test_counted():
    counted = {}

    def count(name, number):
        counted[name] = counted.get(name, 0) + number

    def run(*modules):
        recipient = Recipient(b"a@x")
        envelope = Envelope(Channel.SMTPD, b"s@t", [recipient], 0, dot_free=True)
        plan = Plan(Item(bytes(16), 0, "", envelope, [b"\r\n"]), [Part(Channel.LOCAL, "", [recipient], [recipient])], [])
        named = {module.name: module for module in modules}
        asyncio.run(examine(plan, Matrices(tuple(named), {}), named, None, None, count))
        return envelope

    assert run(Fake("tnef", Verdict()), Fake("content", Verdict(failures=1)), Fake("unknown", Verdict())).dot_free
    with pytest.raises(KeyError):
        run(Fake("content", KeyError("x")))
    assert counted["module_tnef_messages_total"] == 1 and counted["module_content_messages_total"] == counted["module_content_failures_total"] == 2
    assert counted["module_tnef_us_total"] >= counted["module_tnef_cpu_us_total"] >= 0
    assert "module_tnef_failures_total" not in counted
    assert not run(Fake("tnef", Verdict(rope=[b"\r\n.\r\n"]))).dot_free, "what a module writes may have lines that begin with a dot"


def test_every_module_is_counted():
    assert set(MODULES) == set(NAMES) - {"loopdetection"}
