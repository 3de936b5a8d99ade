"""Operations of a partition: delivery, flags, expunge, copy, mailboxes, stored answers, bytes."""

import errno
import os
from pathlib import Path

import msgspec
import pytest

from iems.model import Extent
from iems.store import keys, wire
from iems.store import partition as partition_module
from iems.store.partition import Job
from iems.store.rows import DEFAULT_MAILBOXES, DELETED, DISCARDED, FLAGGED, SEEN, Mailbox
from tests.unit.store.home import SEGMENT, STRUCTURE, Home, delivery, message, origin, pack, unpack

INBOX = 1


def uids(home: Home, mailbox_id: int = INBOX, account: int = 1) -> list[int]:
    selected = home.reader.select(account, mailbox_id)
    assert selected is not None
    return selected.uids.tolist()


def check_counts(home: Home, account: int = 1) -> None:
    """Counters say what the rows say."""
    octets = messages = 0
    for box in home.reader.mailboxes(account):
        rows = home.reader.messages(account, box.id, uids(home, box.id, account))
        assert None not in rows
        assert box.messages == len(rows)
        assert box.size == sum(row.size for row in rows)
        assert box.unseen == sum(not row.flags & SEEN for row in rows)
        assert box.deleted == sum(bool(row.flags & DELETED) for row in rows)
        assert all(row.uid < box.uidnext and row.modseq <= box.highestmodseq for row in rows)
        octets += box.size
        messages += box.messages
    assert home.reader.usage(account) == (octets, messages)


def test_delivery_makes_the_account_and_its_mailboxes(home: Home) -> None:
    [answer] = home.deliver(delivery(1))
    assert (answer.status, answer.uid, answer.mailbox_id) == ("ok", 1, INBOX)
    boxes = home.reader.mailboxes(1)
    assert [(box.name, box.special_use) for box in boxes] == [
        ("INBOX", ""), ("Archive", "\\Archive"), ("Drafts", "\\Drafts"), ("Sent", "\\Sent"), ("Spam", "\\Junk"),
        ("Trash", "\\Trash"),
    ]
    assert all(box.subscribed for box in boxes)
    assert len({box.uidvalidity for box in boxes}) == 6
    row = home.reader.message(1, INBOX, 1)
    assert row is not None
    assert row.rope == [b"Return-Path: <>\r\n", Extent(SEGMENT, 16, 100)]
    assert (row.size, row.flags, row.origin, row.bodystructure) == (117, 0, origin(1), STRUCTURE)
    check_counts(home)


def test_one_delivery_per_origin_and_account(home: Home) -> None:
    answers = home.deliver(delivery(1), delivery(1), delivery(2), delivery(1, account=2))
    assert [a.status for a in answers] == ["ok", "duplicate", "ok", "ok"]
    home.reopen()
    [again] = home.deliver(delivery(1))
    assert (again.status, again.uid) == ("duplicate", 1)
    home.ask(wire.Forget([(origin(1), 1)]))
    assert home.deliver(delivery(1))[0].status == "ok"
    assert uids(home) == [1, 2, 3]


def test_quota_mailbox_and_content_are_refused_by_value(home: Home) -> None:
    gone = delivery(5, rope=[Extent(77, 0, 10)])
    answers = home.deliver(
        delivery(1, quota_octets=116), delivery(2, quota_octets=117), delivery(3, quota_octets=117),
        delivery(4, mailbox="Nowhere"), gone, delivery(6, size=1), delivery(7, mailbox="inbox"),
    )
    assert [a.status for a in answers] == ["overquota", "ok", "overquota", "nomailbox", "error", "error", "ok"]
    assert "000000000000004d" in answers[4].text
    check_counts(home)


def test_segment_is_linked_before_the_row(home: Home) -> None:
    home.deliver(delivery(1))
    ours = home.path / "store/p0/blobs" / f"{SEGMENT:016x}.seg"
    assert ours.stat().st_ino == (home.segments / ours.name).stat().st_ino
    os.unlink(home.segments / ours.name)
    assert home.deliver(delivery(2))[0].status == "ok"


def test_large_content_is_linked(home: Home) -> None:
    home.add_segment(9, b"x" * 100, ".blob")
    assert home.deliver(delivery(1, rope=[Extent(9, 0, 100)]))[0].status == "ok"
    assert (home.path / "store/p0/blobs/0000000000000009.blob").exists()


@pytest.mark.parametrize("how", ["always", "refused"])
def test_content_is_copied_where_it_can_not_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "refused":
        def no(*_: object) -> None:
            raise OSError(errno.EXDEV, "cross-device link")
        monkeypatch.setattr(os, "link", no)
    home = Home(tmp_path, copy_always=how == "always")
    home.deliver(delivery(1), delivery(1, account=2))
    row = home.reader.message(1, INBOX, 1)
    other = home.reader.message(2, INBOX, 1)
    assert row and other and row.rope == other.rope, "one delivery is copied once"
    extent = row.rope[1]
    assert isinstance(extent, Extent) and extent.blob != SEGMENT
    [file] = (home.path / "store/p0/blobs").iterdir()
    assert file.read_bytes() == (bytes(range(256)) * 4096)[16:116]
    home.close()


def test_long_summary_is_kept_outside_the_row(home: Home) -> None:
    long = b"(" + b"x" * 3000 + b")"
    home.deliver(delivery(1, envelope=long))
    with home.partition.env.begin() as txn:
        assert len(txn.get(keys.message(1, INBOX, 1))) < 200
    files = [f for f in (home.path / "store/p0/blobs").iterdir() if f.name != f"{SEGMENT:016x}.seg"]
    assert files[0].read_bytes() == long + STRUCTURE


def test_flags(home: Home) -> None:
    home.deliver(delivery(1), delivery(2, flags=["\\Seen", "$Junk"]), delivery(3))
    before = home.reader.mailbox(1, "INBOX")
    assert before and before.keywords == ["$Junk"] and before.unseen == 2

    def store(mode: str, flags: list[str], *which: int, since: int | None = None) -> list[tuple[int, int, int]]:
        raw = home.ask(wire.StoreFlags(1, INBOX, pack(*which), mode, flags, since))
        return [tuple(raw[i : i + 20]) and _changed(raw[i : i + 20]) for i in range(0, len(raw), 20)]

    [(uid, bits, modseq)] = store("+", ["\\seen", "$Work"], 1)
    assert (uid, bits) == (1, SEEN | 1 << 17) and modseq > before.highestmodseq
    assert store("+", ["\\Seen"], 1) == [(1, bits, modseq)], "nothing changed, nothing counted"
    assert [f[:2] for f in store("=", ["\\Flagged"], 1, 2, 9)] == [(1, FLAGGED), (2, FLAGGED)]
    assert [f[:2] for f in store("-", ["\\Flagged", "$never"], 1)] == [(1, 0)]
    assert store("+", ["\\Deleted"], 1, 2, 3, since=before.highestmodseq)[0][0] == 3
    after = home.reader.mailbox(1, "INBOX")
    assert after and after.keywords == ["$Junk", "$Work"] and (after.unseen, after.deleted) == (3, 1)
    check_counts(home)
    assert home.ask(wire.StoreFlags(1, INBOX, pack(1), "+", ["\\Nonsense"]))[0] == "CANNOT"
    assert home.ask(wire.StoreFlags(1, INBOX, pack(1), "+", [f"k{i}" for i in range(39)]))[0] == "LIMIT"
    assert home.ask(wire.StoreFlags(1, INBOX, pack(1), "+", ["a b"]))[0] == "CANNOT"
    assert home.ask(wire.StoreFlags(1, 99, pack(1), "+", []))[0] == "NONEXISTENT"


def _changed(raw: bytes) -> tuple[int, int, int]:
    import struct

    return struct.unpack("<IQQ", raw)


def test_expunge_tells_what_went_and_later_what_vanished(home: Home) -> None:
    home.deliver(*[delivery(i) for i in range(1, 7)])
    home.ask(wire.StoreFlags(1, INBOX, pack(2, 3, 5), "+", ["\\Deleted"]))
    start = home.reader.mailbox(1, "INBOX").highestmodseq
    assert unpack(home.ask(wire.Expunge(1, INBOX, pack(1, 3)))) == [3]
    middle = home.reader.mailbox(1, "INBOX").highestmodseq
    assert unpack(home.ask(wire.Expunge(1, INBOX, None))) == [2, 5]
    assert unpack(home.ask(wire.Expunge(1, INBOX, None))) == []
    assert uids(home) == [1, 4, 6]
    assert home.reader.message(1, INBOX, 2) is None
    assert home.reader.changes(1, INBOX, start)[1] == [2, 3, 5]
    assert home.reader.changes(1, INBOX, middle)[1] == [2, 5]
    check_counts(home)
    [answer] = home.deliver(delivery(9))
    assert answer.uid == 7, "uids never come back"
    changed, vanished, box = home.reader.changes(1, INBOX, middle)
    assert [uid for uid, _, _ in changed] == [7] and vanished == [2, 5] and box.uidnext == 8


def test_vanished_beyond_the_horizon_names_all_absent(home: Home) -> None:
    home.deliver(*[delivery(i) for i in range(1, 5)])
    start = home.reader.mailbox(1, "INBOX").highestmodseq
    for uid in (1, 2):
        home.ask(wire.StoreFlags(1, INBOX, pack(uid), "+", ["\\Deleted"]))
        home.ask(wire.Expunge(1, INBOX, None))
        home.clock.now += 31 * 86_400
    home.ask(wire.StoreFlags(1, INBOX, pack(3), "+", ["\\Deleted"]))
    home.ask(wire.Expunge(1, INBOX, None))
    box = home.reader.mailbox(1, "INBOX")
    assert box.vanished_floor > start
    assert home.reader.vanished(1, INBOX, start) == [1, 2, 3]
    assert home.reader.vanished(1, INBOX, box.vanished_floor) == [3]


def test_copy_and_move(home: Home) -> None:
    home.deliver(*[delivery(i, flags=["\\Seen", "Work"]) for i in range(1, 4)])
    archive = home.reader.mailbox(1, "Archive")
    home.append(1, "Archive", message(1, ["Other"]))
    uidvalidity, source, target = home.ask(wire.Copy(1, INBOX, pack(3, 1, 9), "Archive"))
    assert (uidvalidity, unpack(source), unpack(target)) == (archive.uidvalidity, [1, 3], [2, 3])
    row = home.reader.message(1, archive.id, 2)
    assert row and row.origin == origin(1) and home.reader.mailbox(1, "Archive").flag_names(row.flags) == ["\\Seen", "Work"]
    before = home.reader.mailbox(1, "INBOX").highestmodseq
    _, source, target = home.ask(wire.Copy(1, INBOX, pack(2, 3), "Trash", True))
    assert (unpack(source), unpack(target)) == ([2, 3], [1, 2])
    assert uids(home) == [1] and home.reader.vanished(1, INBOX, before) == [2, 3]
    assert unpack(home.ask(wire.Copy(1, INBOX, pack(1), "INBOX", True))[2]) == [4]
    assert home.ask(wire.Copy(1, INBOX, pack(4), "Nowhere"))[0] == "TRYCREATE"
    assert home.ask(wire.Copy(1, INBOX, pack(4), "Sent", False, 100))[0] == "OVERQUOTA"
    check_counts(home)


def test_append_is_all_or_nothing(home: Home) -> None:
    assert home.append(1, "Drafts", message(1, ["\\Draft"]), message(2)) == [1, 2]
    assert home.ask(wire.Append(1, "Nowhere", [message(1)]))[0] == "TRYCREATE"
    assert home.ask(wire.Append(1, "Drafts", [message(1), message(2)], 399))[0] == "OVERQUOTA"
    assert home.ask(wire.Append(1, "Drafts", [message(1), message(2, ["\\Bad"])]))[0] == "CANNOT"
    assert home.append(1, "Drafts") == []
    assert uids(home, home.reader.mailbox(1, "Drafts").id) == [1, 2]
    check_counts(home)


def test_create_delete_and_rename(home: Home) -> None:
    made = msgspec.msgpack.decode(home.job(wire.Create(1, "a/b/c/")).value, type=Mailbox)
    assert made.name == "a/b/c"
    names = [box.name for box in home.reader.mailboxes(1)]
    assert {"a", "a/b", "a/b/c"} <= set(names)
    assert home.ask(wire.Create(1, "a/b"))[0] == "ALREADYEXISTS"
    for bad in ("", "/", "a//b", "a\nb", "x*", "/x", "\ud800"):
        assert home.ask(wire.Create(1, bad))[0] == "CANNOT", bad
    assert home.ask(wire.Create(1, "x" * 2000))[0] == "LIMIT"
    home.append(1, "a/b", message(1), message(2))
    b = home.reader.mailbox(1, "a/b")
    assert home.ask(wire.Delete(1, "a/b")) is None
    left = home.reader.mailbox(1, "a/b")
    assert left.noselect and left.uidvalidity != b.uidvalidity and left.has_children
    assert home.reader.select(1, b.id) is None
    assert home.reader.usage(1) == (0, 0)
    assert home.ask(wire.Delete(1, "a/b"))[0] == "HASCHILDREN"
    assert home.ask(wire.Append(1, "a/b", [message(1)]))[0] == "TRYCREATE"
    home.ask(wire.Create(1, "a/b"))
    again = home.reader.mailbox(1, "a/b")
    assert not again.noselect and again.uidvalidity > b.uidvalidity and again.uidnext == 1
    assert home.ask(wire.Rename(1, "a", "n/a")) is None
    assert home.reader.mailbox(1, "n/a/b/c").id == made.id and home.reader.mailbox(1, "a") is None
    assert home.ask(wire.Rename(1, "n", "n/x"))[0] == "CANNOT"
    assert home.ask(wire.Rename(1, "n", "Sent"))[0] == "ALREADYEXISTS"
    assert home.ask(wire.Rename(1, "zz", "y"))[0] == "NONEXISTENT"
    assert home.ask(wire.Delete(1, "inbox"))[0] == "CANNOT"
    check_counts(home)


def test_a_name_never_shows_a_lower_uidvalidity(home: Home) -> None:
    home.ask(wire.Create(1, "old"))
    home.ask(wire.Create(1, "new"))
    shown = home.reader.mailbox(1, "new").uidvalidity
    home.ask(wire.Delete(1, "new"))
    home.ask(wire.Rename(1, "old", "new"))
    assert home.reader.mailbox(1, "new").uidvalidity > shown
    kept = home.reader.mailbox(1, "new").uidvalidity
    home.ask(wire.Rename(1, "new", "third"))
    home.ask(wire.Rename(1, "third", "new"))
    assert home.reader.mailbox(1, "new").uidvalidity == kept, "nothing else was called so: the same mailbox"


def test_renaming_inbox_moves_its_messages(home: Home) -> None:
    home.deliver(delivery(1), delivery(2))
    before = home.reader.mailbox(1, "INBOX")
    assert home.ask(wire.Rename(1, "Inbox", "Old/mail")) is None
    inbox = home.reader.mailbox(1, "INBOX")
    assert (inbox.id, inbox.uidvalidity, inbox.uidnext, inbox.messages) == (before.id, before.uidvalidity, 3, 0)
    assert uids(home, home.reader.mailbox(1, "Old/mail").id) == [1, 2]
    check_counts(home)


def test_subscriptions_outlive_mailboxes(home: Home) -> None:
    home.ask(wire.Ensure(1))
    home.ask(wire.Subscribe(1, "later"))
    home.ask(wire.Subscribe(1, "Sent", False))
    home.ask(wire.Delete(1, "Trash"))
    assert home.reader.subscriptions(1) == ["INBOX", "Drafts", "Trash", "Archive", "Spam", "later"]
    assert not home.reader.mailbox(1, "Sent").subscribed


def test_resend_gets_the_stored_answer(home: Home) -> None:
    home.deliver(delivery(1))
    body = wire.Copy(1, INBOX, pack(1), "Sent")
    first = home.job(body, client=7, seq=5, acked=5)
    home.reopen()
    assert home.job(body, client=7, seq=5, acked=5) == first
    assert uids(home, home.reader.mailbox(1, "Sent").id) == [1]
    refusal = home.job(wire.Create(1, "Sent"), client=7, seq=6, acked=5)
    assert refusal.status == wire.REFUSED
    assert home.job(wire.Create(1, "Sent"), client=7, seq=6, acked=5) == refusal
    home.job(wire.Ensure(1), client=7, seq=7, acked=7)
    with home.partition.env.begin() as txn:
        assert txn.get(keys.answer(7, 5)) is None and txn.get(keys.answer(7, 6)) is None
    assert home.job(body, client=7, seq=8, acked=8) != first


def test_one_bad_request_does_not_spoil_the_batch(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    insert = home.partition._insert

    def fail_after_writes(state, box, entry, origin_, modseq):  # type: ignore[no-untyped-def]
        uid = insert(state, box, entry, origin_, modseq)
        if origin_ == origin(2):
            raise RuntimeError("unforeseen")
        return uid

    monkeypatch.setattr(home.partition, "_insert", fail_after_writes)
    outcomes = home.partition.apply([
        Job(0, 0, 0, wire.Deliver([delivery(1), delivery(2), delivery(3)])),
        Job(0, 0, 0, wire.Create(1, "x")),
        Job(0, 0, 0, "nonsense"),
    ])
    statuses = [d[0] for d in msgspec.msgpack.decode(outcomes[0].value)]
    assert statuses == ["ok", "error", "ok"]
    assert outcomes[1].status == wire.DONE and outcomes[2].status == wire.REFUSED
    assert uids(home) == [1, 2] and home.reader.mailbox(1, "x")
    check_counts(home)


def test_recent_is_taken_once(home: Home) -> None:
    home.deliver(delivery(1), delivery(2))
    assert home.ask(wire.Recent(1, INBOX)) == 1
    assert home.ask(wire.Recent(1, INBOX)) == 3


def test_dropped_account_is_empty_and_starts_anew(home: Home) -> None:
    home.deliver(delivery(1))
    shown = home.reader.mailbox(1, "INBOX")
    home.ask(wire.Drop(1))
    assert home.reader.mailboxes(1) == [] and home.reader.usage(1) == (0, 0)
    assert home.ask(wire.Drop(1)) is None
    home.clock.now += 10
    home.deliver(delivery(2))
    assert home.reader.mailbox(1, "INBOX").uidvalidity > shown.uidvalidity


def live(home: Home, blob: int) -> int | None:
    with home.partition.env.begin() as txn:
        raw = txn.get(keys.blob(blob))
    return int.from_bytes(raw[:8], "little") if raw else None


def housekeep(home: Home) -> None:
    for _ in range(100):
        if not home.partition.housekeep():
            return
    raise AssertionError("housekeeping does not end")


def test_bytes_go_after_the_undelete_time(home: Home) -> None:
    home.deliver(delivery(1), delivery(2))
    home.ask(wire.Copy(1, INBOX, pack(1), "Sent"))
    assert live(home, SEGMENT) == 300
    home.ask(wire.StoreFlags(1, INBOX, pack(1, 2), "+", ["\\Deleted"]))
    home.ask(wire.Expunge(1, INBOX, None))
    home.ask(wire.Delete(1, "Sent"))
    housekeep(home)
    assert live(home, SEGMENT) == 300
    home.clock.now += 86_401
    housekeep(home)
    assert live(home, SEGMENT) is None
    assert list((home.path / "store/p0/blobs").iterdir()) == []
    with home.partition.env.begin() as txn:
        kinds = {key[4] for key in txn.cursor().iternext(values=False)}
    assert not kinds & {keys.FLAGS, keys.MESSAGE, keys.TRASH, keys.PURGE, keys.BLOB}
    # The name in the spool is still there: a late delivery takes it up again.
    assert home.deliver(delivery(3))[0].status == "ok"


def test_large_mailboxes_are_purged_in_slices(home: Home) -> None:
    home.ask(wire.Create(1, "big"))
    for _ in range(3):
        home.append(1, "big", *[message(i) for i in range(256)])
    home.ask(wire.StoreFlags(1, home.reader.mailbox(1, "big").id, pack(1), "+", ["\\Deleted"]))
    home.ask(wire.Expunge(1, home.reader.mailbox(1, "big").id, None))
    home.ask(wire.Delete(1, "big"))
    home.clock.now += 86_401
    housekeep(home)
    assert live(home, SEGMENT) is None


def test_old_answers_and_dedup_rows_go(home: Home) -> None:
    home.deliver(delivery(1))
    home.job(wire.Create(1, "x"), client=3, seq=1, acked=1)
    home.clock.now += 31 * 86_400
    housekeep(home)
    with home.partition.env.begin() as txn:
        kinds = {key[4] for key in txn.cursor().iternext(values=False)}
    assert not kinds & {keys.ANSWER, keys.DEDUP}


def test_full_disk_answers_busy_and_heals(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        assert home.job(wire.Deliver([delivery(1)])).status == wire.BUSY
    assert home.deliver(delivery(1))[0].status == "ok"


def test_keys_sort_as_numbers() -> None:
    assert keys.flags(1, 2, 255) < keys.flags(1, 2, 256) < keys.flags(1, 3, 0) < keys.message(1, 2, 1)
    assert keys.trash(5, 1, 2, 3) < keys.trash(6, 0, 0, 0) < keys.purge(0, 1, 1) < keys.account(1)


def test_discarded_mail_can_be_brought_back(home: Home) -> None:
    before = home.reader.usage(1)
    [answer] = home.deliver(delivery(1, discard=True, quota_octets=1))
    assert answer.status == "ok" and uids(home) == [] and home.reader.usage(1) == before
    assert home.deliver(delivery(1, discard=True))[0].status == "duplicate"
    home.deliver(delivery(2))
    check_counts(home)
    [trashed] = home.reader.trash(1)
    assert trashed.row.flags & DISCARDED and trashed.row.origin == origin(1)
    row = (trashed.due_s, trashed.mailbox_id, trashed.row.uid)
    _, new = home.ask(wire.Undelete(1, [row, (1, 2, 3)]))
    assert unpack(new) == [3] and uids(home) == [2, 3] and home.reader.trash(1) == []
    found = home.reader.message(1, INBOX, 3)
    assert found is not None and found.flags == 0 and found.origin == origin(1)
    assert unpack(home.ask(wire.Undelete(1, [row]))[1]) == []
    check_counts(home)
    home.ask(wire.StoreFlags(1, INBOX, pack(2, 3), "+", ["\\Deleted", "\\Flagged"]))
    home.ask(wire.Expunge(1, INBOX, None))
    rows = [(t.due_s, t.mailbox_id, t.row.uid) for t in home.reader.trash(1)]
    assert len(rows) == 2
    home.clock.now += 90_000
    while home.partition.housekeep():
        pass
    assert unpack(home.ask(wire.Undelete(1, rows))[1]) == [] and uids(home) == []
    check_counts(home)


def test_delivery_makes_its_mailbox(home: Home) -> None:
    assert home.deliver(delivery(1, mailbox="A/B"))[0].status == "nomailbox"
    [answer] = home.deliver(delivery(1, mailbox="A/B", create=True))
    box = home.reader.mailbox(1, "A/B")
    assert answer.status == "ok" and box is not None and box.id == answer.mailbox_id and box.messages == 1
    assert home.reader.mailbox(1, "A") is not None
    assert home.deliver(delivery(2, mailbox="bad\x01name", create=True))[0].status == "nomailbox"
    assert home.deliver(delivery(3, mailbox="A/B", create=True))[0].mailbox_id == answer.mailbox_id
    check_counts(home)


def test_a_delivery_to_several_mailboxes(home: Home) -> None:
    places = [wire.Place("Made/Below", ["\\Seen"], True), wire.Place("Archive"), wire.Place("archive-not-there"), wire.Place("Archive", ["x"])]
    entry = delivery(1, mailbox="Spam", flags=["kw"], or_inbox=True, also=places)
    assert [answer.status for answer in home.deliver(entry, entry)] == ["ok", "duplicate"]
    found = {box.name: (box.messages, box.unseen, box.subscribed) for box in home.reader.mailboxes(1) if box.messages}
    assert found == {"Spam": (1, 1, True), "Made/Below": (1, 0, True), "Archive": (1, 1, True), "INBOX": (1, 1, True)}
    check_counts(home)


def test_a_delivery_whose_mailbox_is_not_there(home: Home) -> None:
    assert home.deliver(delivery(1, mailbox="No"))[0].status == "nomailbox"
    assert home.deliver(delivery(2, mailbox="No", or_inbox=True))[0].mailbox_id == INBOX
    made = home.deliver(delivery(3, mailbox="No", create=True))[0]
    assert made.status == "ok" and home.reader.mailbox(1, "No").messages == 1  # type: ignore[union-attr]
    assert home.deliver(delivery(4, mailbox="a//b", create=True, or_inbox=True))[0].mailbox_id == INBOX
    assert home.deliver(delivery(5, mailbox="a*b", create=True))[0].status == "nomailbox"
    full = delivery(6, also=[wire.Place("Archive")], quota_octets=4 * 117 + 50)
    assert home.deliver(full)[0].status == "overquota"
    check_counts(home)


def test_undelete_keeps_keywords_by_name(home: Home) -> None:
    """Bits of keywords belong to a mailbox: they are translated, also those of a mailbox that was deleted."""
    home.append(1, "INBOX", message(flags=["other", "work"]))
    home.append(1, "Sent", message(flags=["first"]))
    home.ask(wire.Create(1, "Gone"))
    home.append(1, "Gone", message(flags=["x", "Kept", "\\Flagged", "\\Deleted"]))
    gone = home.reader.mailbox(1, "Gone").id
    home.ask(wire.StoreFlags(1, 1, pack(1), "+", ["\\Deleted"]))
    home.ask(wire.Expunge(1, 1))
    home.ask(wire.Expunge(1, gone))
    home.ask(wire.Delete(1, "Gone"))
    rows = [(one.due_s, one.mailbox_id, one.row.uid) for one in home.reader.trash(1)]
    assert len(rows) == 2
    _, uids = home.ask(wire.Undelete(1, rows, "Sent"))
    sent = home.reader.mailbox(1, "Sent")
    flags = [set(sent.flag_names(home.reader.message(1, sent.id, uid).flags)) for uid in unpack(uids)]
    assert flags == [{"other", "work"}, {"x", "Kept", "\\Flagged"}]


def test_mailboxes_have_a_limit(home: Home) -> None:
    """10,000 an account: the one too many is refused by whatever would make it, and all that was there is as it was."""
    have = len(home.reader.mailboxes(1)) or len(DEFAULT_MAILBOXES)
    for number in range(partition_module.MAILBOXES_MAX - have - 1):
        home.ask(wire.Create(1, f"m{number}"))
    too_many = ["LIMIT", "an account has at most 10,000 mailboxes"]
    assert home.ask(wire.Create(1, "deep/er"))[:2] == too_many
    home.ask(wire.Create(1, "last"))
    assert home.ask(wire.Create(1, "more"))[:2] == too_many
    assert home.ask(wire.Rename(1, "last", "above/last"))[:2] == too_many
    assert home.ask(wire.Rename(1, "INBOX", "old"))[:2] == too_many
    names = [box.name for box in home.reader.mailboxes(1)]
    assert len(names) == partition_module.MAILBOXES_MAX and "last" in names and not {"deep", "above", "more", "old"} & set(names)
    assert home.ask(wire.Append(1, "m9", [message()])) and home.reader.mailbox(1, "m9").messages == 1
    home.ask(wire.Delete(1, "m0"))
    home.ask(wire.Create(1, "more"))
    assert home.ask(wire.Create(1, "again"))[:2] == too_many
