"""The disk says EIO once (beyond.md 3, row 3): 451, the file is not trusted again, an alarm, and nothing acknowledged is lost.

After a failed flush the kernel marks the pages clean: a later flush of the same file goes well and says nothing about the octets of
the first. So a 250 may only follow a flush of another file.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from iems.perf.queue import until_drained
from tests.integration.faults.rig import FaultHome, noticed, until, variants
from tests.support.senders import Senders, delivered


def segments(home: FaultHome) -> set[str]:
    return {path.name for path in (home.path / "spool/segments").glob("*.seg")}


def written_by(home: FaultHome, role: str) -> str:
    """The segment that the one worker of `role` appends to; other roles flush their outcomes meanwhile."""
    (pid,) = home.pids(role)
    (name,) = {Path(os.readlink(fd)).name for fd in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(fd).endswith(".seg")}
    return name


@variants("ignore_flush_errors")
def test_a_flush_of_a_segment_fails_once(unsafe: str) -> None:
    """Checked with the errors of the committer ignored (unsafe.py): the client gets 250 for a message that was not flushed."""
    with FaultHome(shimmed=True, settings={"smtpd.workers": 1}, unsafe=unsafe) as home, noticed(unsafe):
        with home.smtp() as client:
            assert home.send("before", client=client).startswith(b"250")
            used = segments(home)
            home.fail("sync", errno.EIO, written_by(home, "smtpd"))
            reply = home.send("struck", client=client)
            assert home.hits(), "the fault was not met"
            assert reply.startswith(b"451 4.3.0")
            # The same session, at once: a fresh segment takes it.
            assert home.send("after", client=client).startswith(b"250")
        struck = Path(home.hits()[0].split()[2]).name
        assert struck in used and segments(home) - used, "nothing is written behind a failed flush"
        (alarm,) = home.events("spool_segment_failed")
        assert alarm["detail"]["segment"] == struck and "Input/output" in alarm["detail"]["reason"]
        until_drained(home.path)
        assert delivered(home.path) == {"before": 1, "after": 1}
        assert home.deaths() == []
        home.kill()
        (home.path / "spool/index/distrust").touch()  # built again from the segments: what failed must not come to life
        home.start()
        until(lambda: home.events("rebuilt"))
        until_drained(home.path)
        assert delivered(home.path) == {"before": 1, "after": 1}


@pytest.mark.parametrize("times", [8, pytest.param(20, marks=pytest.mark.long)])
def test_flushes_fail_again_and_again_under_load(times: int) -> None:
    """Flushes and writes fail at random moments: all that was acknowledged arrives, and nothing twice."""
    with FaultHome(4, shimmed=True) as home:
        senders = Senders(home.port("smtp"), [user.decode() for user in home.users()], count=6)
        try:
            for number in range(times):
                already = len(home.hits())
                acknowledged = len(senders.acknowledged)
                home.fail(("sync", "write")[number % 2], errno.EIO, "/segments/")
                until(lambda already=already: len(home.hits()) > already)
                until(lambda acknowledged=acknowledged: len(senders.acknowledged) > acknowledged + 20)
        finally:
            senders.stop()
        assert len(home.events("spool_segment_failed")) >= times * 3 // 4
        until_drained(home.path, 120)
        found = delivered(home.path)
        assert senders.acknowledged <= set(found), "acknowledged and lost"
        assert set(found.values()) == {1}
        # A refused message is the client's: none of them may arrive beside its repetition.
        assert set(found) == senders.acknowledged
        assert home.deaths() == []


@variants("trust_failed_commit")
def test_a_commit_of_the_store_fails_once(unsafe: str) -> None:
    """Row 3 in the store: the partition's process ends, another opens it anew; the mail stays queued and arrives once.

    Checked with a partition that takes the failed commit for done (unsafe.py).
    """
    with FaultHome(shimmed=True, unsafe=unsafe) as home, noticed(unsafe):
        assert home.send("before").startswith(b"250")
        until_drained(home.path)
        assert delivered(home.path) == {"before": 1}
        store = home.pids("store")
        home.fail("sync", errno.EIO, "store/p0/index/data.mdb")
        assert home.send("struck").startswith(b"250")
        until(home.hits)
        until_drained(home.path, 120)
        assert delivered(home.path) == {"before": 1, "struck": 1}
        assert home.pids("store") != store
        assert [e for e in home.events("error") if "partition" in e["detail"]["what"]]
        assert home.restarts() == 1
        session = home.imap()
        assert session.select()[1] == [b"2"]
        # A session's own write fails: NO or a resend that succeeds, never an OK for what is not there.
        home.fail("sync", errno.EIO, "store/p0/index/data.mdb")
        kind, _ = session.store("1", "+FLAGS", "\\Flagged")
        session.noop()
        again = home.imap()
        flagged = b"\\Flagged" in again.fetch("1", "(FLAGS)")[1][0]
        assert flagged == (kind == "OK")
        session.logout()
        again.logout()


def test_the_store_s_own_segment_fails_once() -> None:
    """`store.copy = always`: the flush of the copied octets fails; the mail stays queued and arrives once."""
    with FaultHome(shimmed=True, settings={"store.copy": "always"}) as home:
        home.fail("sync", errno.EIO, "store/p0/blobs/")
        for number in range(3):
            assert home.send(str(number)).startswith(b"250")
        until(home.hits)
        until_drained(home.path, 120)
        assert delivered(home.path) == {"0": 1, "1": 1, "2": 1}


def test_a_large_content_fails_once() -> None:
    """The flush of a large content's own file fails: 451, the file is gone, the next one is taken."""
    body = (b"x" * 78 + b"\r\n") * 20_000
    with FaultHome(shimmed=True, settings={"smtpd.workers": 1}) as home:
        for number in (errno.EIO, errno.ENOSPC):
            home.fail("sync", number, "/large/")
            reply = home.send("struck", body)
            assert reply.startswith(b"451 4.3.0" if number == errno.EIO else b"452 4.3.1"), reply
            home.fail("write", number, "/large/")
            assert home.send("struck", body)[:3] == reply[:3]
        assert len(home.hits()) == 4
        until(lambda: not os.listdir(home.path / "spool/large"))
        assert home.send("after", body).startswith(b"250")
        until_drained(home.path)
        assert delivered(home.path) == {"after": 1}


def test_the_queue_s_index_can_t_be_written_once() -> None:
    """EIO in a transaction of the index: the message waits for nothing, 451 at worst; acknowledged mail arrives once."""
    with FaultHome(shimmed=True) as home:
        got = []
        for number in range(12):
            if number % 3 == 0:
                home.fail("write", errno.EIO, "spool/index/data.mdb")
            got.append((str(number), home.send(str(number))))
        until(home.hits)
        home.heal()
        taken = {name for name, reply in got if reply.startswith(b"250")}
        assert all(reply[:3] in (b"250", b"451") for _, reply in got), got
        assert home.send("after").startswith(b"250")
        until_drained(home.path, 120)
        assert delivered(home.path) == dict.fromkeys(taken | {"after"}, 1)
