"""Notes of what a worker had at hand, and what the next one makes of them."""

import asyncio
import time
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from iems.imapd import warming
from iems.imapd.columns import Columns
from iems.imapd.kept import KeptViews
from iems.imapd.view import View
from iems.imapd.warming import Held
from iems.store import partition, wire
from tests.unit.store.home import Home, message, pack


class Reader:
    """Counts what is asked of a reader."""

    def __init__(self, reader):
        self.reader = reader
        self.asked = []

    def __getattr__(self, name):
        self.asked.append(name)
        return getattr(self.reader, name)


def services(home):
    return SimpleNamespace(reader=Reader(home.reader), columns=Columns(), views=KeptViews(), now=time.monotonic)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(partition, "JOURNAL_MIN", 5)
    monkeypatch.setattr(warming, "KEPT_FROM", 10)
    home = Home(tmp_path)
    home.ask(wire.Append(1, "INBOX", [message() for _ in range(12)]))
    home.ask(wire.Append(1, "Sent", [message() for _ in range(3)]))
    home.ask(wire.StoreFlags(1, 1, pack(1), "+", ["\\Seen"]))  # begins the journal of changes
    return home


def looked_at(services):
    """As two sessions would."""
    for mailbox_id, names in ((1, ["SUBJECT", "FROM"]), (2, ["SUBJECT"])):
        view = View(1, services.reader.select(1, mailbox_id), True, 1 << 32)
        asyncio.run(services.columns.of(warming._Quiet(services, view), view, names))
        if mailbox_id == 1:
            services.views.keep(view)
    return services


def test_the_next_worker_has_it_at_hand(home, tmp_path):
    before = looked_at(services(home))
    (tmp_path / "run").mkdir()
    warming.note(tmp_path / "run", 0, before)
    found = warming.noted(tmp_path / "run")
    assert found == [Held(1, 1, ["SUBJECT", "FROM"], True), Held(1, 2, ["SUBJECT"], False)]
    after = services(home)
    assert asyncio.run(warming.warm(after, found)) == 2
    assert after.columns.held() == before.columns.held() and after.views.held() == [(1, 1)]
    home.ask(wire.StoreFlags(1, 1, pack(3), "+", ["\\Flagged"]))
    after.reader.asked.clear()
    view = View(1, after.views.select(after.reader, 1, 1), True, 1 << 32)
    values = asyncio.run(after.columns.of(warming._Quiet(after, view), view, ["SUBJECT"]))["SUBJECT"]
    assert set(after.reader.asked) == {"noted"}, "mailbox and subjects were there already"
    held = values.holding(np.frombuffer(view.uids, np.uint32), "s")
    assert held.tolist() == [True] * 12 and view.flags[2] == 4


def test_notes_are_hints(home, tmp_path):
    """Whatever stands in them, nothing is read that is not there."""
    (tmp_path / "imapd.0.warm").write_bytes(b"\xff no note")
    (tmp_path / "imapd.1.warm").write_bytes(b"")
    (tmp_path / "imapd.2.warm").mkdir()
    assert warming.noted(tmp_path) == []
    note = [Held(1, 2, ["NO SUCH", "SUBJECT"], True), Held(9, 9, ["SUBJECT"], True)]
    (tmp_path / "imapd.3.warm").write_bytes(msgspec.msgpack.encode(note))
    found = warming.noted(tmp_path)
    assert found == [Held(1, 2, ["SUBJECT"], True), Held(9, 9, ["SUBJECT"], True)]
    one = services(home)
    assert asyncio.run(warming.warm(one, [*found, Held(1, 77, [], True)])) == 1
    assert one.views.held() == [], "a small mailbox is read as fast as it is looked up"


def test_notes_have_bounds(home, tmp_path, monkeypatch):
    monkeypatch.setattr(warming, "MOST", 2)
    one = services(home)
    for mailbox_id in range(1, 6):
        view = View(1, one.reader.select(1, 1), True, 1 << 32)
        view.mailbox_id = mailbox_id
        one.views.keep(view)
    warming.note(tmp_path, 0, one)
    assert [item.mailbox_id for item in warming.noted(tmp_path)] == [4, 5]
