"""Mail that has been in its mailbox too long: found by when it came there, expunged whatever its flags."""

from __future__ import annotations

import asyncio

from iems.store import expire, wire
from tests.unit.store.home import Home, delivery, message, pack, unpack

DAY_S = 86_400


class Store:
    """The partition as a client sees it."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.requests = 0

    async def ask(self, account: int, body) -> bytes:
        self.requests += 1
        return self.home.job(body).value


def run(home: Home, days: dict[str, int]) -> tuple[int, int]:
    store = Store(home)
    accounts = [(1, "a@x.test"), (2, "b@x.test"), (9, "nobody@x.test")]
    count = asyncio.run(expire.expire(home.reader, store, accounts, lambda address, name: days.get(name, 0), home.clock.now))
    return count, store.requests


def test_expire(home: Home, monkeypatch):
    monkeypatch.setattr(expire, "SLICE", 2)
    home.deliver(*(delivery(n) for n in range(1, 6)), delivery(6, discard=True), delivery(7, 2))
    home.append(1, "Sent", message(1))
    home.clock.now += 10 * DAY_S
    home.append(1, "INBOX", message(2))
    # moved now: it starts anew
    home.ask(wire.Copy(1, 1, pack(2), "Trash", True))
    assert run(home, {}) == (0, 0)
    assert run(home, {"INBOX": 11, "Trash": 1}) == (0, 0)
    before = home.reader.mailbox(1, "INBOX").highestmodseq
    assert run(home, {"INBOX": 9, "Trash": 9}) == (5, 3)
    assert home.reader.select(1, 1).uids.tolist() == [7]
    assert home.reader.changes(1, 1, before)[1] == [1, 3, 4, 5]
    assert home.reader.mailbox(1, "Trash").messages == 1 and home.reader.mailbox(1, "Sent").messages == 1
    assert len(home.reader.trash(1)) >= 4, "it can be undeleted"
    assert run(home, {"INBOX": 9}) == (0, 0)


def test_expire_of_what_is_gone(home: Home):
    home.deliver(delivery(1))
    assert unpack(home.ask(wire.Expire(1, 1, pack(1, 2, 3)))) == [1]
    assert unpack(home.ask(wire.Expire(1, 1, pack(1)))) == []
    assert home.ask(wire.Expire(1, 99, pack(1)))[0] == "NONEXISTENT"
