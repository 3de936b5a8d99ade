"""Ends that wait for the other items of their message."""

import asyncio
from types import SimpleNamespace

from iems.model import Channel, Envelope, Outcome, Recipient, Result
from iems.smtpc import siblings
from iems.spool import Item, Settlement


def done(id=b"i" * 16, outcome=Outcome.FAILED, path=b"a@x.test"):
    item = Item(id, Channel.SMTPC, "x.test", Envelope(Channel.SMTPD, path, [Recipient(b"b@x.test")], 0), [])
    return SimpleNamespace(work=SimpleNamespace(item=item), settlement=Settlement(item, [Result(Recipient(b"b@x.test"), outcome)]))


def test_the_last_one_lets_the_others_go():
    async def scenario():
        released = []
        waiting = siblings.Siblings(asyncio.get_running_loop(), released.append)
        one, two, three = done(), done(), done()
        other = done(path=b"srs@me.test")  # of the same message, but with another sender to tell
        for end in (one, two, three, other):
            waiting.came(end.work.item)
        assert waiting
        waiting.left(other.work.item)
        assert not waiting.hold(other)
        waiting.left(one.work.item)
        assert waiting.hold(one)
        waiting.left(two.work.item)
        assert waiting.hold(two) and released == []
        waiting.left(three.work.item)
        assert released == [[one, two]] and not waiting.hold(three) and not waiting
        waiting.left(three.work.item)  # not known any more: nothing happens
        assert siblings.grouped([one, other, two]) == [[one, two], [other]]

    asyncio.run(scenario())


def test_nobody_waits_long(monkeypatch):
    monkeypatch.setattr(siblings, "WAIT_S", 0.01)

    async def scenario():
        told = asyncio.Event()
        released = []
        waiting = siblings.Siblings(asyncio.get_running_loop(), lambda ends: (released.append(ends), told.set()))
        ends = [done(), done(), done(b"j" * 16), done(b"j" * 16)]
        for end in ends:
            waiting.came(end.work.item)
        waiting.left(ends[0].work.item)
        assert waiting.hold(ends[0])
        await asyncio.wait_for(told.wait(), 60)
        assert released == [[ends[0]]] and waiting
        monkeypatch.setattr(siblings, "WAIT_S", 60.0)
        waiting.left(ends[2].work.item)
        assert waiting.hold(ends[2])
        waiting.let_all_go()  # the worker ends
        assert released[1:] == [[ends[2]]]

    asyncio.run(scenario())
