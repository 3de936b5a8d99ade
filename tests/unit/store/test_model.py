"""Random operations on mailboxes against a model made of dicts; the partition is reopened now and then."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from iems.store import partition as partition_module
from iems.store import wire
from iems.store.rows import DELETED, FLAGGED, SEEN
from tests.unit.store.home import Home, delivery, message, origin, pack, unpack

FLAG_BITS = {"\\Seen": SEEN, "\\Deleted": DELETED, "\\Flagged": FLAGGED}
DEFAULTS = ["INBOX", "Sent", "Drafts", "Trash", "Archive", "Spam"]


class Box:
    """What a mailbox should hold: uid -> (size, set of flags)."""

    def __init__(self) -> None:
        self.messages: dict[int, tuple[int, frozenset[str]]] = {}
        self.uidnext = 1
        self.validity = 0

    def add(self, size: int, flags: frozenset[str]) -> int:
        self.messages[self.uidnext] = (size, flags)
        self.uidnext += 1
        return self.uidnext - 1


class Model:
    """One account beside its model."""

    def __init__(self, home: Home, rng: random.Random) -> None:
        self.home, self.rng = home, rng
        self.boxes = {name: Box() for name in DEFAULTS}
        self.number = 0
        self.since: dict[str, tuple[int, int, set[int], int]] = {}
        home.ask(wire.Ensure(1))

    def id(self, name: str) -> int:
        box = self.home.reader.mailbox(1, name)
        assert box is not None
        return box.id

    def some(self, box: Box) -> list[int]:
        known = [*box.messages, 0, box.uidnext + 3]
        return self.rng.sample(known, self.rng.randrange(len(known) + 1))

    def step(self) -> None:
        rng, home = self.rng, self.home
        name = rng.choice(list(self.boxes))
        box = self.boxes[name]
        flags = rng.sample([*FLAG_BITS, "$k1", "Work", "zap"], rng.randrange(4))
        kind = rng.randrange(11)
        if kind <= 1:
            self.number += 1
            [answer] = home.deliver(delivery(self.number, flags=flags))
            assert (answer.status, answer.uid) == ("ok", self.boxes["INBOX"].add(117, frozenset(flags)))
            again = home.deliver(delivery(rng.randrange(1, self.number + 1)))
            assert again[0].status == "duplicate"
        elif kind == 2:
            size = rng.randrange(1, 500)
            assert home.append(1, name, message(rng.randrange(500), flags, size)) == [box.add(size, frozenset(flags))]
        elif kind <= 4:
            mode = rng.choice("+-=")
            uids = self.some(box)
            home.ask(wire.StoreFlags(1, self.id(name), pack(*uids), mode, flags))
            for uid in set(uids) & set(box.messages):
                size, old = box.messages[uid]
                new = old | set(flags) if mode == "+" else old - set(flags) if mode == "-" else frozenset(flags)
                box.messages[uid] = (size, new)
        elif kind == 5:
            uids = None if rng.random() < 0.5 else self.some(box)
            gone = unpack(home.ask(wire.Expunge(1, self.id(name), None if uids is None else pack(*uids))))
            expected = [u for u, (_, f) in box.messages.items() if "\\Deleted" in f and (uids is None or u in uids)]
            assert gone == sorted(expected)
            for uid in expected:
                del box.messages[uid]
        elif kind <= 7:
            other = rng.choice(list(self.boxes))
            move = rng.random() < 0.5
            uids = self.some(box)
            _, sources, targets = home.ask(wire.Copy(1, self.id(name), pack(*uids), other, move))
            expected = sorted(set(uids) & set(box.messages))
            assert unpack(sources) == expected
            added = [self.boxes[other].add(*box.messages[uid]) for uid in expected]
            assert unpack(targets) == added
            if move:
                for uid in expected:
                    del box.messages[uid]
        elif kind == 8:
            new = rng.choice("abcd") + rng.choice(["", "/e", "/f/g"])
            answer = home.ask(wire.Create(1, new))
            if new in self.boxes:
                assert answer[0] == "ALREADYEXISTS"
            else:
                for level in (new[: i] for i in range(1, len(new) + 1) if i == len(new) or new[i] == "/"):
                    self.boxes.setdefault(level, Box())
        elif kind == 9:
            if name != "INBOX" and not any(other.startswith(name + "/") for other in self.boxes):
                assert home.ask(wire.Delete(1, name)) is None
                del self.boxes[name]
        else:
            new = rng.choice("abcdh")
            if new not in self.boxes:
                home.ask(wire.Rename(1, name, new))
                if name == "INBOX":
                    target = self.boxes[new] = Box()
                    for uid in sorted(box.messages):
                        target.add(*box.messages[uid])
                    box.messages.clear()
                else:
                    for old in [o for o in self.boxes if o == name or o.startswith(name + "/")]:
                        self.boxes[new + old[len(name) :]] = self.boxes.pop(old)
        self.home.clock.now += rng.random()

    def check(self) -> None:
        reader = self.home.reader
        boxes = {box.name: box for box in reader.mailboxes(1)}
        assert set(boxes) == set(self.boxes)
        assert len({box.uidvalidity for box in boxes.values()}) == len(boxes)
        octets = messages = 0
        for name, model in self.boxes.items():
            box = boxes[name]
            selected = reader.select(1, box.id)
            assert selected is not None
            uids = selected.uids.tolist()
            assert uids == sorted(model.messages) and box.uidnext == model.uidnext
            for row in reader.messages(1, box.id, uids):
                assert row is not None
                size, flags = model.messages[row.uid]
                assert row.size == size and set(box.flag_names(row.flags)) == flags
            unseen = sum("\\Seen" not in flags for _, flags in model.messages.values())
            deleted = sum("\\Deleted" in flags for _, flags in model.messages.values())
            assert (box.messages, box.unseen, box.deleted) == (len(uids), unseen, deleted)
            octets += box.size
            messages += box.messages
            # What a client saw last time, brought up to date by changes and vanished, is what is there now.
            if name in self.since and self.since[name][0] == box.id:
                _, modseq, known, uidnext = self.since[name]
                changed, vanished, _ = reader.changes(1, box.id, modseq)
                noted = reader.noted(1, box.id, modseq, uidnext)
                if noted is not None:
                    assert sorted(noted[0]) == sorted(changed)
                    assert noted[1] == vanished
                if box.changed_modseq <= modseq:
                    # Nothing but new messages, says the mailbox: then these are all.
                    assert sorted(changed) == reader.arrivals(1, box.id, uidnext) and not vanished
                assert (known | {uid for uid, _, _ in changed}) - set(vanished) == set(uids)
            self.since[name] = (box.id, box.highestmodseq, set(uids), box.uidnext)
        assert reader.usage(1) == (octets, messages)


@pytest.mark.parametrize("seed", range(6))
def test_random_operations(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # With a journal of flag changes as only large mailboxes have it, short enough to be pruned.
    monkeypatch.setattr(partition_module, "JOURNAL_MIN", 3 * (seed % 2))
    monkeypatch.setattr(partition_module, "JOURNAL_MODSEQS", 100)
    monkeypatch.setattr(partition_module, "_JOURNAL_PRUNE", 4)
    rng = random.Random(seed)
    home = Home(tmp_path)
    model = Model(home, rng)
    for turn in range(1000):
        model.step()
        if turn % 10 == 0:
            model.check()
        if turn % 100 == 99:
            home.reopen()
    model.check()
    # All gone and the undelete time over: no octet is counted any more.
    for name in sorted(model.boxes, reverse=True):
        if name == "INBOX":
            box = home.reader.mailbox(1, name)
            home.ask(wire.StoreFlags(1, box.id, pack(*model.boxes[name].messages), "+", ["\\Deleted"]))
            home.ask(wire.Expunge(1, box.id, None))
        else:
            home.ask(wire.Delete(1, name))
    assert home.reader.usage(1) == (0, 0)
    home.clock.now += 100_000
    while home.partition.housekeep():
        pass
    assert list((tmp_path / "store/p0/blobs").iterdir()) == []
    assert home.deliver(delivery(1))[0].status in ("duplicate", "ok") and origin(1)
    home.close()
