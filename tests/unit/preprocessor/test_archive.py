"""Archives for mail that is not delivered: what stands in them, together with others who write, and after a crash at any point."""

from __future__ import annotations

import fcntl
import mailbox
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from iems.preprocessor import archive

MAIL = b"Subject: one\r\n\r\nFrom me\r\n>From you\r\nFromage\r\nno end"


def subjects(path):
    """As Python's mailbox reads them; each must be whole."""
    found = []
    for message in mailbox.mbox(path, create=False):
        assert message.get_payload().rstrip().endswith("no end")
        found.append(message["Subject"])
    return found


def test_mbox(tmp_path):
    path = tmp_path / "new" / "spam"
    archive.mbox(path, MAIL)
    archive.mbox(path, MAIL.replace(b"one", b"two") + b"\r\n")
    octets = path.read_bytes()
    lines = octets.split(b"\n")
    assert lines[0].startswith(b"From iems-") and lines[1:8] == [b"Subject: one", b"", b">From me", b">>From you", b"Fromage", b"no end", b""]
    assert octets.endswith(b"no end\n\n") and b"\r" not in octets and subjects(path) == ["one", "two"]
    assert [p.name for p in path.parent.iterdir()] == ["spam"] and path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("left", [b"x", b"x\n", b"x\n\n"])
def test_mbox_of_others(tmp_path, left):
    path = tmp_path / "spam"
    path.write_bytes(b"From a@b Mon Jan  2 03:04:05 2006\nSubject: old\n\nno end" [:-1] + b"d" + left.replace(b"x", b""))
    archive.mbox(path, MAIL)
    assert subjects(path) == ["old", "one"]


def test_mbox_waits_for_those_who_lock_it(tmp_path):
    path = tmp_path / "spam"
    archive.mbox(path, MAIL)
    for lock in (fcntl.flock, fcntl.lockf):
        with open(path, "r+b") as file:
            lock(file, fcntl.LOCK_EX)
            process = multiprocessing.get_context("spawn").Process(target=archive.mbox, args=(path, MAIL))
            process.start()
            process.join(1.0)
            assert process.is_alive()
        process.join(60)
        assert process.exitcode == 0
    assert subjects(path) == ["one"] * 3


def test_mbox_locked_for_ever(tmp_path, monkeypatch):
    path = tmp_path / "spam"
    archive.mbox(path, MAIL)
    monkeypatch.setattr(archive, "LOCK_S", 0.1)
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="has locked"):
            archive.mbox(path, MAIL)
    assert subjects(path) == ["one"]


def test_mbox_from_many_threads(tmp_path):
    path = tmp_path / "spam"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: archive.mbox(path, MAIL.replace(b"one", b"%d" % number)), range(60)))
    assert sorted(subjects(path), key=int) == [str(number) for number in range(60)]


def die(path, calls, at):
    """Archive a message, killed at the n-th call of the system."""
    left = at

    def counted(call):
        def run(*args, **given):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if call is real["pwrite"]:
                return call(args[0], bytes(args[1])[:20], args[2])  # in small pieces
            return call(*args, **given)

        return run

    real = {name: getattr(os, name) for name in calls}
    for name in calls:
        setattr(os, name, counted(real[name]))
    archive.mbox(path, MAIL)
    os._exit(7)


def test_mbox_killed_at_any_point(tmp_path):
    path = tmp_path / "spam"
    archive.mbox(path, MAIL.replace(b"one", b"first"))
    calls = ("pwrite", "write", "fsync", "unlink", "rename", "open")
    expected = ["first"]
    for at in range(60):
        process = multiprocessing.get_context("fork").Process(target=die, args=(path, calls, at))
        process.start()
        process.join()
        if process.exitcode == 7:
            break
        # The message comes again, as its queue still has it.
        archive.mbox(path, MAIL.replace(b"one", b"again %d" % at))
        found = subjects(path)
        assert found[: len(expected)] == expected and found[len(expected) :] in ([f"again {at}"], ["one", f"again {at}"]), at
        assert not path.with_name("spam.end").exists()
        expected = found
    assert at > 10 and process.exitcode == 7


def test_mbox_with_a_note_about_what_is_gone(tmp_path):
    """Who has taken the mail out meanwhile, or written his own, loses nothing by an old note."""
    path = tmp_path / "spam"
    archive.mbox(path, MAIL)
    size = path.stat().st_size
    for number in (0, size, 10_000):
        path.with_name("spam.end").write_bytes(b"%d From iems-0000000000000000@localhost Mon Jan  2 03:04:05 2006\n" % number)
        archive.mbox(path, MAIL)
    assert subjects(path) == ["one"] * 4


def test_full_disk_leaves_nothing_half(tmp_path, monkeypatch):
    path = tmp_path / "spam"
    archive.mbox(path, MAIL)
    before = path.read_bytes()
    real = os.pwrite

    def full(fd, octets, at):
        if at > len(before) + 10:
            raise OSError(28, "no space")
        return real(fd, bytes(octets)[:20], at)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="no space"):
            archive.mbox(path, MAIL)
    assert path.read_bytes() == before
    archive.mbox(path, MAIL)
    assert subjects(path) == ["one", "one"]


def test_maildir(tmp_path):
    archive.maildir(tmp_path / "spam", MAIL)
    [message] = mailbox.Maildir(tmp_path / "spam", create=False)
    assert message["Subject"] == "one" and len(list((tmp_path / "spam/new").iterdir())) == 1
