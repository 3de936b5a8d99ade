"""Large mailboxes selected again: what is kept and brought up to date is what the rows say."""

import random

import pytest

from iems.imapd import kept as kept_module
from iems.imapd.kept import KeptViews
from iems.imapd.view import View
from iems.store import partition, wire
from tests.unit.store.home import Home, message, pack


@pytest.mark.parametrize("seed", range(4))
def test_brought_up_to_date(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(partition, "JOURNAL_MIN", 5)
    rng = random.Random(seed)
    home = Home(tmp_path)
    kept = KeptViews()
    shortcuts = 0
    home.ask(wire.Append(1, "INBOX", [message() for _ in range(30)]))
    for _ in range(60):
        for _ in range(rng.randrange(4)):
            present = home.reader.select(1, 1).uids.tolist()
            some = rng.sample(present, min(len(present), rng.randrange(1, 5)))
            kind = rng.randrange(4)
            if kind == 0:
                home.ask(wire.Append(1, "INBOX", [message() for _ in range(rng.randrange(1, 4))]))
            elif kind == 1:
                home.ask(wire.StoreFlags(1, 1, pack(*some), rng.choice("+-="), rng.choice([["\\Seen"], ["\\Deleted"], ["x"]])))
            elif kind == 2:
                home.ask(wire.Expunge(1, 1))
            else:
                home.ask(wire.Copy(1, 1, pack(*some), "Trash", True))
        wanted = home.reader.select(1, 1)
        shortcuts += kept._kept.get((1, 1)) is not None and home.reader.noted(
            1, 1, kept._kept[1, 1].modseq, kept._kept[1, 1].uidnext
        ) is not None
        found = kept.select(home.reader, 1, 1)
        assert found.mailbox.highestmodseq == wanted.mailbox.highestmodseq
        for name in ("uids", "flags", "modseq"):
            assert getattr(found, name).tolist() == getattr(wanted, name).tolist()
        view = View(1, found, False, 1)
        view.told = len(view)
        kept.keep(view)
        assert kept.octets == 20 * len(view)
    assert shortcuts > 40


def test_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_module, "MAX_OCTETS", 20 * 25)
    home = Home(tmp_path)
    kept = KeptViews()
    for name, count in (("INBOX", 10), ("Trash", 10), ("Sent", 10), ("Drafts", 26)):
        home.ask(wire.Append(1, name, [message() for _ in range(count)]))
        box = home.reader.mailbox(1, name)
        kept.keep(View(1, home.reader.select(1, box.id), False, 1))
    assert kept.octets == 20 * 20
    assert len(kept._kept) == 2


def test_what_is_kept_is_not_changed_by_who_gets_it(tmp_path, monkeypatch):
    """The arrays are lent: a session that goes on from them leaves them as they were."""
    monkeypatch.setattr(partition, "JOURNAL_MIN", 5)
    home = Home(tmp_path)
    kept = KeptViews()
    home.ask(wire.Append(1, "INBOX", [message() for _ in range(30)]))
    home.ask(wire.StoreFlags(1, 1, pack(1), "+", ["\\Seen"]))  # begins the journal of changes
    kept.keep(View(1, home.reader.select(1, 1), False, 1))
    before = [array[:] for array in (kept._kept[1, 1].uids, kept._kept[1, 1].flags, kept._kept[1, 1].modseqs)]
    for change in (None, wire.StoreFlags(1, 1, pack(2), "+", ["\\Seen"]), wire.Append(1, "INBOX", [message()]), wire.Copy(1, 1, pack(4), "Trash", True)):
        if change is not None:
            home.ask(change)
        view = View(1, kept.select(home.reader, 1, 1), False, 1)
        view.absorb([(1, 4, 1 << 40), (99, 0, 1 << 40)], [3], view_box(home))
        view.updates(True)
        held = kept._kept[1, 1]
        assert [held.uids, held.flags, held.modseqs] == before


def view_box(home):
    return home.reader.mailbox_by_id(1, 1)
