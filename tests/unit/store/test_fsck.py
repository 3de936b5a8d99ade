"""Damage planted in a partition is named, and mended without touching what is sound."""

from __future__ import annotations

import fcntl
import os
import random

import lmdb
import msgspec
import pytest

from iems.blobs import segment_name
from iems.model import Extent
from iems.store import fsck, keys, wire
from iems.store.findings import Aside
from iems.store.reader import Reader
from iems.store.rows import BLOB_ROW, DEDUP_ROW, FLAGS_ROW, Account, Mailbox, encode
from tests.unit.store.home import SEGMENT, Home, delivery, message, pack

OTHER = SEGMENT + 1
decode_box = msgspec.msgpack.Decoder(Mailbox).decode
decode_account = msgspec.msgpack.Decoder(Account).decode


@pytest.fixture
def full(home: Home) -> Home:
    """Two accounts; 6 messages in INBOX of the first, one of them expunged, one discarded; a deleted mailbox; copies."""
    home.add_segment(OTHER, b"x" * 5_000)
    home.deliver(*(delivery(n) for n in range(1, 6)), delivery(6, discard=True), delivery(7, 2))
    home.deliver(delivery(8, rope=[Extent(OTHER, 0, 300)], envelope=b"e" * 3_000, bodystructure=b"s"))
    home.ask(wire.StoreFlags(1, 1, pack(1), "+", ["\\Seen"]))
    home.ask(wire.StoreFlags(1, 1, pack(2), "+", ["\\Deleted"]))
    home.ask(wire.Expunge(1, 1))
    home.ask(wire.StoreFlags(1, 1, pack(5), "+", ["\\Deleted", "\\Seen", "word"]))
    home.ask(wire.Copy(1, 1, pack(1, 3), "Archive"))
    home.ask(wire.Create(1, "Gone"))
    home.append(1, "Gone", message(1), message(2))
    home.ask(wire.Delete(1, "Gone"))
    assert home.ask(wire.SetMetadata(1, 1, {"/private/comment": b"x"})) is None
    assert home.ask(wire.SetAcl(1, 1, "b@x.test", 2, "lr")) is None
    assert home.ask(wire.SetShared(2, 1, True)) is None
    home.deliver(delivery(9, 3))
    home.ask(wire.Drop(3))
    home.close()
    return home


def look(home: Home, **options):
    return fsck.look(home.path / "store/p0", 0, now_s=home.clock.now, **options)


def repair(home: Home, **options):
    return fsck.repair(home.path / "store/p0", 0, now_s=home.clock.now, **options)


def rows(home: Home) -> dict[bytes, bytes]:
    with lmdb.open(str(home.path / "store/p0/index"), map_size=1 << 30, readonly=True) as env, env.begin() as txn:
        return {bytes(key): bytes(value) for key, value in txn.cursor()}


def put(home: Home, *changes: tuple[bytes, bytes | None]) -> None:
    with lmdb.open(str(home.path / "store/p0/index"), map_size=1 << 30) as env, env.begin(write=True) as txn:
        for key, value in changes:
            if value is None:
                txn.delete(key)
            else:
                txn.put(key, value)


def box_with(home: Home, mailbox_id: int = 1, **fields) -> tuple[bytes, bytes]:
    key = keys.mailbox(1, mailbox_id)
    box = decode_box(rows(home)[key])
    for name, value in fields.items():
        setattr(box, name, value)
    return key, encode(box)


def account_with(home: Home, **fields) -> tuple[bytes, bytes]:
    row = decode_account(rows(home)[keys.account(1)])
    for name, value in fields.items():
        setattr(row, name, value)
    return keys.account(1), encode(row)


def uids(home: Home, mailbox: str = "INBOX") -> list[int]:
    reader = Reader(home.path / "store")
    try:
        box = reader.mailbox(1, mailbox)
        assert box is not None
        selected = reader.select(1, box.id)
        assert selected is not None
        assert all(reader.messages(1, box.id, selected.uids.tolist()))
        return selected.uids.tolist()
    finally:
        reader.close()


def test_sound(full):
    check = look(full)
    assert check.findings == [] and check.puts == {} and check.accounts == [1, 2]
    before = rows(full)
    assert repair(full).findings == []
    assert rows(full) == before
    assert fsck.partitions(full.path / "store") == [0]


#: name -> (damage, words of the findings, uids of INBOX afterwards)
SOUND = [1, 3, 4, 5, 7]
DAMAGE = {
    "counters": (lambda h: [box_with(h, messages=9, unseen=0, deleted=4, size=1)], ["counters: messages 9", "rows say 5"], SOUND),
    "uidnext": (lambda h: [box_with(h, uidnext=2)], ["uidnext 2 (uid 7 was given)"], SOUND),
    "highestmodseq": (lambda h: [box_with(h, highestmodseq=2)], ["highestmodseq 2"], SOUND),
    "account": (lambda h: [account_with(h, octets=1, messages=99)], ["counts 1 octets", "counts 99 messages"], SOUND),
    "account numbers": (lambda h: [account_with(h, modseq=1, next_mailbox=2, uidvalidity=5)], ["modseq is 1", "next mailbox is 2", "uidvalidity is 5"], SOUND),
    "account gone": (lambda h: [(keys.account(1), None)], ["row of the account is missing"], SOUND),
    "account damaged": (lambda h: [(keys.account(1), b"\xff\xff")], ["row of the account is damaged"], SOUND),
    "no message row": (lambda h: [(keys.message(1, 1, 3), None)], ["INBOX", "message row is missing"], [1, 4, 5, 7]),
    "damaged message row": (lambda h: [(keys.message(1, 1, 3), rows(h)[keys.message(1, 1, 3)][:-7])], ["message row is damaged"], [1, 4, 5, 7]),
    "message row of octets": (lambda h: [(keys.message(1, 1, 3), os.urandom(200))], ["message row is damaged"], [1, 4, 5, 7]),
    "no flags row": (lambda h: [(keys.flags(1, 1, 3), None)], ["flags row is missing"], SOUND),
    "damaged flags row": (lambda h: [(keys.flags(1, 1, 3), b"short")], ["flags row is damaged"], SOUND),
    "flags row of another": (lambda h: [(keys.flags(1, 1, 3), FLAGS_ROW.pack(4, 100, 0, 5, 0))], ["flags row is damaged"], SOUND),
    "size": (lambda h: [(keys.flags(1, 1, 3), FLAGS_ROW.pack(3, 7, 0, 2, 0))], ["the size is 7, the content has 117"], SOUND),
    "no mailbox row": (lambda h: [(keys.mailbox(1, 5), None)], ["row of mailbox 5 is missing"], SOUND),
    "damaged mailbox row": (lambda h: [(keys.mailbox(1, 5), b"x")], ["row of mailbox 5 is damaged"], SOUND),
    "one name": (lambda h: [box_with(h, 2, name="Trash")], ["have one name"], SOUND),
    "no INBOX": (lambda h: [box_with(h, 1, name="Inb")], ["there is no INBOX"], None),
    "blob count": (lambda h: [(keys.blob(SEGMENT), BLOB_ROW.pack(1, 0, 5, 0))], [f"{SEGMENT:016x} is counted with 1 octets"], SOUND),
    "blob row": (lambda h: [(keys.blob(OTHER), None)], [f"{OTHER:016x} has no row"], SOUND),
    "blob of nobody": (lambda h: [(keys.blob(77), BLOB_ROW.pack(50, 0, 5, 0))], ["messages name 0"], SOUND),
    "dedup of nothing": (lambda h: [(keys.dedup(b"o" * 16, 1), DEDUP_ROW.pack(1, 999, 5))], ["a delivery to account 1 is noted that did not happen"], SOUND),
    "dedup damaged": (lambda h: [(keys.dedup(b"o" * 16, 1), b"x")], ["a delivery to account 1"], SOUND),
    "trash of nothing": (lambda h: [(keys.trash(1_800_000_000, 1, 1, 3000), FLAGS_ROW.pack(3000, 1, 0, 1, 1))], ["trash names a message of account 1"], SOUND),
    "trash damaged": (lambda h: [(next(k for k in rows(h) if k[:5] == keys.head(0, keys.TRASH)), b"bad")], ["a trash row of account 1 is damaged"], SOUND),
    "trash row gone": (lambda h: [(k, None) for k in rows(h) if k[:5] == keys.head(0, keys.TRASH) and k[-4:] == b"\0\0\0\2"], ["flags row is missing"], SOUND),
    "vanished damaged": (lambda h: [(keys.vanished(1, 1, 3), b"x")], ["a row of expunged uids is damaged"], SOUND),
    "vanished of nobody": (lambda h: [(keys.vanished(1, 77, 3), b"x" * 8)], ["mailbox 77, which is not there"], SOUND),
    "subscriptions": (lambda h: [(keys.subscribed(1), b"\xff")], ["list of subscriptions is damaged"], SOUND),
    "annotations": (lambda h: [(keys.metadata(1, 1), b"\xff")], ["annotations can't be read"], SOUND),
    "rights": (lambda h: [(keys.acl(1, 1), b"\x01")], ["access rights can't be read"], SOUND),
    "sharing": (lambda h: [(keys.shared(1), b"\x81")], ["list of those who share can't be read"], SOUND),
    "journal": (lambda h: [(keys.journal(1, 1, 5), b"x")], ["a row of changed flags is damaged"], SOUND),
    "meta": (lambda h: [(keys.META_KEY, b"\xff")], ["partition's format is damaged"], SOUND),
    "meta gone": (lambda h: [(keys.META_KEY, None)], ["partition's number is missing"], SOUND),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_planted_damage(full, name):
    changes, words, inbox = DAMAGE[name]
    put(full, *changes(full))
    planted = rows(full)
    found = look(full).findings
    text = "\n".join(f"{f.name} {f.what}" for f in found)
    assert all(word in text for word in words), text
    assert rows(full) == planted, "looking changes nothing"
    mended = repair(full)
    assert all(finding.mended for finding in mended.findings), mended.findings
    assert len(mended.findings) == len(found)
    assert look(full).findings == []
    if inbox is not None:
        assert uids(full) == inbox
    # and the writer goes on with it
    full.open()
    [answer] = full.deliver(delivery(50))
    assert answer.status == "ok" and answer.uid >= (8 if inbox else 1)
    full.clock.now += 3 * 86_400
    for _ in range(1_000):
        if not full.partition.housekeep():
            break
    full.close()
    assert look(full).findings == []


def test_a_message_set_aside_is_kept_and_vanishes(full):
    raw = rows(full)[keys.message(1, 1, 3)][:-7]
    put(full, (keys.message(1, 1, 3), raw))
    before = decode_box(rows(full)[keys.mailbox(1, 1)]).highestmodseq
    repair(full)
    [path] = (full.path / "store/p0/aside").iterdir()
    kept = msgspec.msgpack.decode(path.read_bytes(), type=Aside)
    assert (kept.account, kept.name, kept.uid, kept.message) == (1, "INBOX", 3, raw) and kept.flags is not None
    assert path.stat().st_mode & 0o777 == 0o600
    full.open()
    assert full.reader.changes(1, 1, before)[1] == [3], "clients with QRESYNC hear of it"
    assert full.reader.mailbox(1, "INBOX").messages == 4


def test_an_expunged_message_does_not_come_back(full):
    changes, _, _ = DAMAGE["trash row gone"]
    put(full, *changes(full))
    repair(full)
    full.open()
    assert sorted(trashed.row.uid for trashed in full.reader.trash(1) if trashed.mailbox_id == 1) == [2, 6]


def test_a_row_of_a_newer_version_stays(full):
    strange = [(keys.head(1, 0x77) + b"x", b"x"), (keys.head(0, 0x77), b"x")]
    put(full, *strange)
    assert [finding.mended for finding in repair(full).findings] == [False, False]
    assert dict(strange).items() <= rows(full).items()


def test_lost_content(full):
    path = full.path / "store/p0/blobs" / segment_name(OTHER)
    kept = path.read_bytes()
    path.unlink()
    for damage in (lambda: None, lambda: path.write_bytes(kept[:299])):
        damage()
        [finding] = look(full).findings
        assert (finding.uid, finding.name, int.from_bytes(finding.id, "big"), finding.mended) == (7, "INBOX", 8, False)
        assert "not there" in finding.what or "cut short" in finding.what
        [finding] = repair(full).findings
        assert not finding.mended and uids(full) == SOUND, "it may come back with its file"
    path.write_bytes(kept)
    assert look(full).findings == []
    path.unlink()
    [finding] = repair(full, lost=True).findings
    assert finding.mended and uids(full) == [1, 3, 4, 5]
    assert look(full).findings == []


def test_content_with_a_checksum(full):
    """A segment that is none has no record for what is named."""
    assert look(full, content=True).findings, "the segments of these tests have no records"


def test_a_repair_needs_the_partition_alone(full):
    fd = os.open(full.path / "store/p0/owner", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(fsck.InUse):
        repair(full)
    with pytest.raises(fsck.InUse, match="stop the server"):
        list(fsck.run(full.path / "store", 0, ["--repair"]))
    os.close(fd)
    assert list(fsck.run(full.path / "store", 0, [])) == [[1, 2]]


def test_rows_that_kill_the_reader(full):
    data = full.path / "store/p0/index/data.mdb"
    octets = bytearray(data.read_bytes())
    octets[2 * 4096 :] = random.Random(5).randbytes(len(octets) - 2 * 4096)
    data.write_bytes(octets)
    found = list(fsck.run(full.path / "store", 0, []))
    assert any("backup" in finding.what for finding in found if not isinstance(finding, list))


def test_random_damage_is_survived(full):
    """Whatever octets of a row change: it is named or harmless, and one repair makes all sound."""
    rng = random.Random(11)
    sound = rows(full)
    for _ in range(40):
        changes = []
        for key in rng.sample(sorted(sound), 3):
            value = bytearray(sound[key])
            if value and rng.random() < 0.7:
                value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
                changes.append((key, bytes(value)))
            else:
                changes.append((key, None))
        put(full, *changes)
        left = [finding for finding in repair(full, lost=True).findings if not finding.mended]
        assert left == [], (changes, left)
        put(full, *((key, None) for key in rows(full).keys() - sound.keys()), *sound.items())
