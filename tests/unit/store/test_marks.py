"""Each member of a shared mailbox has its own \\Seen: a model of it, and what becomes of it where messages and members go."""

from __future__ import annotations

import random

import msgspec
import numpy as np

from iems.store import fsck, keys, wire
from iems.store.marks import MARK_UIDS, Glasses
from iems.store.rows import FLAGGED, SEEN, encode
from tests.unit.store.home import Home, delivery, message, pack

SHARED, ONE, TWO = 1, 7, 900_000


def store(home: Home, uids, mode, flags, member=ONE, box=1, **more):
    import struct

    return list(struct.iter_unpack("<IQQ", home.ask(wire.StoreFlags(SHARED, box, pack(*uids), mode, flags, member=member, **more))))


def seen(home: Home, member: int, box: int = 1) -> set[int]:
    selected = home.reader.select(SHARED, box, member)
    assert selected is not None
    found = {int(uid) for uid, flags in zip(selected.uids, selected.flags, strict=True) if int(flags) & SEEN}
    # All ways to read agree.
    rows = home.reader.messages(SHARED, box, selected.uids.tolist(), member)
    assert {row.uid for row in rows if row is not None and row.flags & SEEN} == found
    assert {uid for uid, flags, _ in home.reader.arrivals(SHARED, box, 1, member) if flags & SEEN} == found
    assert {uid for uid, flags, _ in home.reader.changes(SHARED, box, 0, 0, member)[0] if flags & SEEN} == found
    uids = np.array(selected.uids)
    told, _ = home.reader.fetch_summaries(SHARED, box, np.arange(1, len(uids) + 1), uids, [2, 1], 0, 1 << 20, member=member)
    lines = told.split(b"\r\n")[:-1]
    assert {int(uid) for uid, line in zip(uids, lines, strict=True) if b"\\Seen" in line} == found
    mailbox = home.reader.mailbox_by_id(SHARED, box)
    assert home.reader.unseen(SHARED, mailbox, member) == len(uids) - len(found)
    with home.partition.env.begin() as txn:
        glasses = Glasses(txn, SHARED, box, member)
        assert glasses.count(mailbox.uidnext) == glasses.count(1 << 31), "by look-ups, and by a walk"
    return found


def marks(home: Home) -> dict[bytes, bytes]:
    with home.partition.env.begin() as txn:
        return {bytes(key): bytes(value) for key, value in txn.cursor() if key[:5] == keys.head(SHARED, keys.MARK)}


def sound(home: Home) -> list[str]:
    home.close()
    found = fsck.look(home.path / "store/p0", 0, now_s=home.clock.now)
    home.open()
    return [one.what for one in found.findings]


def test_seen_is_each_members_own_and_other_flags_are_everybodys(home: Home) -> None:
    home.deliver(*(delivery(n) for n in range(1, 6)))
    modseq = home.reader.mailbox_by_id(SHARED, 1).highestmodseq
    changed = store(home, [2, 3], "+", ["\\Seen", "\\Flagged"])
    assert [(uid, flags) for uid, flags, _ in changed] == [(2, SEEN | FLAGGED), (3, SEEN | FLAGGED)]
    assert min(at for _, _, at in changed) > modseq
    assert seen(home, ONE) == {2, 3} and seen(home, TWO) == set() and seen(home, 0) == set()
    assert [row.flags for row in home.reader.messages(SHARED, 1, [2, 3], TWO)] == [FLAGGED, FLAGGED]
    # A client that keeps a copy hears of it: the message has a new mod-sequence.
    assert {uid for uid, _, _ in home.reader.changes(SHARED, 1, modseq, 6, ONE)[0]} == {2, 3}
    # "=" sets what the member names, for the others \Seen stays.
    store(home, [3], "+", ["\\Seen"], TWO)
    assert [flags for _, flags, _ in store(home, [3], "=", ["\\Answered"])] == [2]
    assert seen(home, ONE) == {2} and seen(home, TWO) == {3}
    store(home, [2], "-", ["\\Seen"])
    assert seen(home, ONE) == set()
    # Nothing changed: no new mod-sequence.
    before = home.reader.mailbox_by_id(SHARED, 1).highestmodseq
    store(home, [2], "-", ["\\Seen"])
    store(home, [3], "+", ["\\Seen"], TWO)
    assert home.reader.mailbox_by_id(SHARED, 1).highestmodseq == before
    assert sound(home) == []


def test_unchangedsince_counts_for_a_member(home: Home) -> None:
    home.deliver(delivery(1))
    at = home.reader.message(SHARED, 1, 1).modseq
    assert store(home, [1], "+", ["\\Seen"], unchangedsince=at)
    assert store(home, [1], "-", ["\\Seen"], TWO, unchangedsince=at) == []


def test_what_comes_as_seen_is_seen_for_all_until_one_says_otherwise(home: Home) -> None:
    home.deliver(delivery(1, flags=["\\Seen"]), delivery(2))
    assert seen(home, ONE) == {1}
    store(home, [1], "-", ["\\Seen"])
    assert seen(home, ONE) == set() and seen(home, TWO) == {1}
    # A member's own APPEND is new to the others.
    home.ask(wire.Append(SHARED, "INBOX", [message(0, ["\\Seen", "\\Flagged"]), message(1)], member=TWO))
    assert seen(home, TWO) == {1, 3} and seen(home, ONE) == set()
    assert home.reader.message(SHARED, 1, 3, ONE).flags == FLAGGED
    assert sound(home) == []


def test_marks_go_with_messages(home: Home) -> None:
    home.deliver(*(delivery(n) for n in range(1, 5)))
    store(home, [1, 2, 3], "+", ["\\Seen"])
    store(home, [2], "+", ["\\Seen"], TWO)
    archive = home.reader.mailbox(SHARED, "Archive").id
    home.ask(wire.Copy(SHARED, 1, pack(1, 2), "Archive"))
    home.ask(wire.Copy(SHARED, 1, pack(2, 4), "Archive", True))
    assert seen(home, ONE, archive) == {1, 2, 3} and seen(home, TWO, archive) == {2, 3}
    assert seen(home, ONE) == {1, 3} and seen(home, TWO) == set()
    store(home, [1, 3], "+", ["\\Deleted"])
    home.ask(wire.Expunge(SHARED, 1))
    assert not [key for key in marks(home) if key[5:9] == b"\0\0\0\1"], "a bit goes with its message"
    # A mailbox named anew keeps them; one that is deleted loses them with its rows.
    home.ask(wire.Rename(SHARED, "Archive", "Old"))
    assert seen(home, TWO, archive) == {2, 3}
    home.ask(wire.Delete(SHARED, "Old"))
    assert marks(home)
    home.clock.now += home.partition.undelete_s + 1
    while home.partition.housekeep():
        pass
    assert not marks(home)
    assert sound(home) == []


def test_a_member_that_left_leaves_nothing(home: Home) -> None:
    home.deliver(delivery(1))
    store(home, [1], "+", ["\\Seen"])
    store(home, [1], "+", ["\\Seen"], TWO)
    home.ask(wire.SetAcl(SHARED, 1, "one@x.test", ONE, "-"))
    home.ask(wire.SetAcl(SHARED, 1, "two@x.test", TWO, "lr"))
    before = home.reader.mailbox_by_id(SHARED, 1).highestmodseq
    assert home.ask(wire.Part(SHARED, ONE)) is None
    assert home.partition.touched[SHARED, 1] == 0, "who watches looks whether he still may"
    assert seen(home, ONE) == set() and seen(home, TWO) == {1}
    assert home.reader.acl(SHARED, 1) == {"two@x.test": (TWO, "lr")}
    assert home.reader.mailbox_by_id(SHARED, 1).highestmodseq == before
    assert home.ask(wire.Part(SHARED, ONE)) is None


def test_random_changes_agree_with_a_model(home: Home) -> None:
    """Uids on both sides of the end of a row of bits."""
    rng = random.Random(4314)
    home.deliver(delivery(1))
    with home.partition.env.begin(write=True) as txn:
        box = msgspec.msgpack.decode(txn.get(keys.mailbox(SHARED, 1)), type=type(home.reader.mailbox_by_id(SHARED, 1)))
        box.uidnext = MARK_UIDS - 6
        txn.put(keys.mailbox(SHARED, 1), encode(box))
    home.reopen()
    home.deliver(*(delivery(n) for n in range(2, 16)))
    there = set(home.reader.select(SHARED, 1).uids.tolist())
    assert min(there) == 1 and max(there) > MARK_UIDS
    model: dict[int, set[int]] = {ONE: set(), TWO: set()}
    for step in range(150):
        member = rng.choice((ONE, TWO))
        uids = set(rng.sample(sorted(there), min(len(there), rng.randrange(1, 5))))
        if rng.random() < 0.04 and len(there) > 6:
            gone = rng.choice(sorted(there))
            store(home, [gone], "+", ["\\Deleted"], member)
            home.ask(wire.Expunge(SHARED, 1))
            there.discard(gone)
        elif rng.random() < 0.5:
            store(home, uids, "+", ["\\Seen"], member)
            model[member] |= uids
        else:
            store(home, uids, "-", ["\\Seen"], member)
            model[member] -= uids
        if step % 10 == 0:
            home.reopen() if step % 50 == 0 else None
            for one in model:
                assert seen(home, one) == model[one] & there
    assert sound(home) == []


def test_marks_that_name_nothing_are_found_and_mended(home: Home) -> None:
    home.deliver(delivery(1))
    store(home, [1], "+", ["\\Seen"])
    bits = bytearray(marks(home)[keys.mark(SHARED, 1, 0, ONE)])
    bits[1] = 0xFF
    with home.partition.env.begin(write=True) as txn:
        txn.put(keys.mark(SHARED, 1, 0, ONE), bytes(bits))
        txn.put(keys.mark(SHARED, 1, 0, TWO), b"short")
        txn.put(keys.mark(SHARED, 77, 0, ONE), bytes(bits))
    assert len(sound(home)) == 3
    home.close()
    fsck.repair(home.path / "store/p0", 0, now_s=home.clock.now)
    home.open()
    assert sound(home) == [] and seen(home, ONE) == {1} and len(marks(home)) == 1
