"""The file: what it finds is never too little, survives nothing it should not, and says what is wrong with it."""

import random
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.fulltext import building
from iems.fulltext.building import Build, Lock, entry_of, still_right
from iems.fulltext.index import Index, available, is_damage, remove
from iems.message.text import Searchable, fold
from tests.unit.fulltext import mail


def test_this_sqlite_will_do():
    assert available()


def test_without_trigrams(monkeypatch):
    def refuse(*args, **kinds):
        raise sqlite3.OperationalError("no such module: fts5")

    monkeypatch.setattr(sqlite3, "connect", refuse)
    assert not available()


def build(path, reader, number=1):
    index = Index(path, create=True)
    work = Build(index, reader, 1, reader.mailbox_by_id(1, number))
    assert not work.step(float("inf"))
    return index


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_no_message_is_missed(tmp_path_factory, seed):
    rng = random.Random(seed)
    reader = mail.FakeReader().box()
    texts = {}
    for _ in range(12):
        content = mail.message(rng)
        texts[reader.put(content)] = Searchable(content)
    index = build(tmp_path_factory.mktemp("index") / "1.sqlite", reader)
    everything = [found.header for found in texts.values()] + [found.body for found in texts.values()]
    for _ in range(25):
        key = fold(mail.keys(rng, everything))
        if len(key) < 3:
            continue
        assert {uid for uid, text in texts.items() if text.in_text(key)} <= set(
            index.find(1, key, False).tolist()
        ), key
        assert {uid for uid, text in texts.items() if text.in_body(key)} <= set(
            index.find(1, key, True).tolist()
        ), key
    assert index.find(1, "nowhere at all", False).tolist() == []
    index.close()


def test_surrogates_and_nul(tmp_path):
    index = Index(tmp_path / "1.sqlite", create=True)
    with index:
        index.add(1, 7, [building.Entry(5, b"o", "a\0bcd \udc80xy", "tail\0behind nul")], 5)
    assert index.find(1, "a\0bc", False).tolist() == [5]
    assert index.find(1, "\udc80xy", False).tolist() == [5]
    assert index.find(1, "behind", True).tolist() == [5]
    assert index.find(1, 'ab" OR "tail', True).tolist() == []
    index.close()


def test_mailboxes_apart(tmp_path):
    reader = mail.FakeReader().box(1).box(2)
    reader.put(b"Subject: here\r\n\r\ncommon words", 1)
    reader.put(b"Subject: there\r\n\r\ncommon words", 2)
    reader.put(b"Subject: common\r\n\r\nother", 2)
    build(tmp_path / "1.sqlite", reader, 1).close()
    index = build(tmp_path / "1.sqlite", reader, 2)
    assert index.find(1, "common", True).tolist() == [1]
    assert sorted(index.find(2, "common", False).tolist()) == [1, 2]
    assert index.find(2, "common", True).tolist() == [1]
    assert index.upto(2, 7) == 2 and index.upto(2, 8) == 0 and index.upto(3, 7) == 0
    index.close()


def test_long_and_unreadable_messages_are_always_read(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "MAX_TEXT_OCTETS", 200)
    monkeypatch.setattr(building, "MAX_CONTENT_OCTETS", 200_000)
    reader = mail.FakeReader().box()
    reader.put(b"Subject: short\r\n\r\nshort")
    reader.put(b"Subject: long\r\n\r\n" + b"word " * 100)
    reader.put(b"Subject: larger\r\n\r\n" + b"word " * 100_000)
    unreadable = reader.put(b"Subject: lost\r\n\r\nlost")
    del reader.contents[unreadable]
    attachment = b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: image/x\r\n\r\n'
    reader.put(attachment + b"A" * 100_000 + b"\r\n--b--\r\n")
    index = build(tmp_path / "1.sqlite", reader)
    assert index.long(1).tolist() == [2, 3, 4]
    assert index.upto(1, 7) == 5
    index.close()


def test_a_step_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "COMMIT", 3)
    reader = mail.FakeReader().box()
    for number in range(8):
        reader.put(b"Subject: %d\r\n\r\nword%d" % (number, number))
    index = Index(tmp_path / "1.sqlite", create=True)
    work = Build(index, reader, 1, reader.mailbox_by_id(1, 1))
    del reader.boxes[1][1][8]
    steps = 1
    while work.step(0.0):
        steps += 1
        assert index.upto(1, 7) == (steps - 1) // 3 * 3
    assert index.upto(1, 7) == 8 and work.taken == 7
    again = Build(index, reader, 1, reader.mailbox_by_id(1, 1))
    assert not again.step(0.0) and again.taken == 0
    index.close()


def test_uids_given_twice_are_noticed(tmp_path):
    reader = mail.FakeReader().box()
    for number in range(5):
        reader.put(b"Subject: %d\r\n\r\nbody" % number)
    index = build(tmp_path / "1.sqlite", reader)
    box, rows = reader.boxes[1]
    assert still_right(index, reader, 1, box)
    del rows[5]
    assert still_right(index, reader, 1, box)  # expunged
    box.uidnext = 5
    assert not still_right(index, reader, 1, box)  # its commit was undone
    reader.put(b"Subject: another\r\n\r\nbody")
    reader.put(b"Subject: and more\r\n\r\nbody")
    assert not still_right(index, reader, 1, box)
    rows.clear()
    assert still_right(index, reader, 1, box)
    index.close()


def test_one_writes(tmp_path):
    first = Lock(tmp_path / "search" / "1.lock")
    second = Lock(tmp_path / "search" / "1.lock")
    assert first.taken and not second.taken
    second.close()
    first.close()
    third = Lock(tmp_path / "search" / "1.lock")
    assert third.taken
    third.close()


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.9])
def test_cut_short(tmp_path, keep):
    path = tmp_path / "1.sqlite"
    reader = mail.FakeReader().box()
    rng = random.Random(1)
    for _ in range(60):
        reader.put(mail.message(rng) + rng.randbytes(2000).hex().encode())
    index = build(path, reader)
    whole = set(index.find(1, "example", False).tolist())
    index.close()
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    try:
        index = Index(path, create=False)
        assert set(index.find(1, "example", False).tolist()) == whole
    except FileNotFoundError:
        assert keep == 0  # an empty file is of no format
    except sqlite3.Error as fault:
        assert is_damage(fault)
    remove(path)
    assert not path.exists()
    remove(path)


def test_a_lock_is_no_damage(tmp_path, monkeypatch):
    monkeypatch.setattr("iems.fulltext.index.BUSY_S", 0.0)
    one, other = Index(tmp_path / "1.sqlite", create=True), Index(tmp_path / "1.sqlite", create=False)
    with one:
        with pytest.raises(sqlite3.OperationalError) as raised:
            other.__enter__()
        assert not is_damage(raised.value)
    one.close()
    other.close()


def test_a_failed_transaction_leaves_nothing(tmp_path):
    index = Index(tmp_path / "1.sqlite", create=True)

    def broken():
        yield entry_of(b"Subject: a\r\n\r\nbody", 1, b"o")
        raise OSError("away")

    with pytest.raises(OSError, match="away"), index:
        index.add(1, 7, broken(), 9)
    assert index.upto(1, 7) == 0 and index.messages() == 0
    index.close()


def test_another_format_is_made_anew(tmp_path):
    path = tmp_path / "1.sqlite"
    index = Index(path, create=True)
    with index:
        index.add(1, 7, [entry_of(b"Subject: a\r\n\r\nbody", 1, b"o")], 1)
    index._database.execute("pragma user_version=99")
    index.close()
    with pytest.raises(FileNotFoundError):
        Index(path, create=False)
    index = Index(path, create=True)
    assert index.messages() == 0
    index.close()
