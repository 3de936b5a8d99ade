"""Disk or inodes full, and read-only (beyond.md 3, rows 4 and 5), on small tmpfs mounts; skipped where mounting is not permitted."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from iems.perf.queue import until_drained
from tests.integration.faults.rig import BreakingDisk, FaultHome, noticed, until, variants
from tests.support.senders import delivered

BODY = (b"y" * 78 + b"\r\n") * 200


def fill_with_mail(home: FaultHome, most: int = 2000) -> tuple[list[str], bytes]:
    """Send until a message is refused: (what was acknowledged, the refusal)."""
    taken = []
    with home.smtp() as client:
        for number in range(most):
            reply = home.send(f"m{number}", BODY, client=client)
            if not reply.startswith(b"250"):
                return taken, reply
            taken.append(f"m{number}")
    raise AssertionError("the disk never filled")


@pytest.mark.parametrize("ballast", [0, 1 << 20], ids=["no-ballast", "ballast"])
def test_the_spool_fills(ballast: int) -> None:
    """452 4.3.1 while it is full; IMAP and POP3 go on, what is queued is delivered; it heals when room returns."""
    # With a ballast one worker: another would fill the room that it gives before it has looked, once a second, whether it is there.
    settings = {"spool.ballast_octets": ballast, "smtpd.workers": 1 if ballast else 2}
    with FaultHome(settings=settings, disks={"spool": ("8m", 0)}) as home:
        assert home.send("first").startswith(b"250")
        until_drained(home.path)
        reader = home.imap()
        home.ctl("queue", "hold", "--channel", "LOCAL")
        if ballast:
            until((home.path / "spool/ballast").exists)  # the janitor makes it
        home.disks["spool"].fill(leave=2 << 20)
        taken, refusal = fill_with_mail(home)
        assert refusal.startswith(b"452 4.3.1"), refusal
        assert taken
        if not ballast:
            home.disks["spool"].fill()  # to the last octet
        refused = 0
        while refused < 6:
            # The other worker may have room prepared in its segment: what fits there is taken.
            reply = home.send(f"late{len(taken)}", BODY)
            if reply.startswith(b"250"):
                taken.append(f"late{len(taken)}")
                assert len(taken) < 2000
                continue
            refused += 1
            assert reply.startswith(b"452 4.3.1")
        for _ in range(3):
            assert home.send("large", BODY * 100).startswith(b"452 4.3.1")  # a large content of its own
        assert reader.fetch("1", "(BODY[])")[0] == "OK"
        assert home.imap().select()[1] == [b"1"]
        with home.wire("pop3") as pop:
            pop.line()
            for command in (b"USER a1@load.test", b"PASS pw", b"STAT"):
                last = pop.ask(command)
            assert last.startswith(b"+OK 1 ")
        home.ctl("queue", "release", "--channel", "LOCAL")
        # Settling what is queued needs little room; a ballast gives it, else it waits for room.
        if ballast:
            until_drained(home.path)
        home.disks["spool"].empty()
        until(lambda: home.send("healed").startswith(b"250"))
        until_drained(home.path)
        found = delivered(home.path)
        found.pop("refused", None)  # what another worker had room for
        assert found == dict.fromkeys([*taken, "first", "healed"], 1)
        assert home.deaths() == []
        assert home.events("spool_segment_failed", "spool_refuses", "spool_index_fails")


def test_the_spool_fills_under_a_flow() -> None:
    """Room comes and goes five times while mail is sent and delivered: all acknowledged mail arrives once."""
    from tests.support.senders import Senders

    with FaultHome(2, settings={"spool.ballast_octets": 0}, disks={"spool": ("6m", 0)}) as home:
        senders = Senders(home.port("smtp"), [user.decode() for user in home.users()], count=4, body=BODY, pause_s=0.002)
        try:
            for round in range(5):
                acknowledged = len(senders.acknowledged)
                until(lambda acknowledged=acknowledged: len(senders.acknowledged) > acknowledged + 5)
                home.disks["spool"].fill(leave=round * 30_000)
                until(lambda: home.send("probe", BODY).startswith(b"452"))
                home.disks["spool"].empty()
        finally:
            senders.stop()
        until_drained(home.path)
        found = delivered(home.path)
        found.pop("probe", None)
        assert senders.acknowledged == set(found)
        assert set(found.values()) == {1}
        assert home.deaths() == []


def test_no_inode_is_left() -> None:
    """Inodes full: a new segment or large file can't be made; 452, and it heals."""
    with FaultHome(settings={"spool.segment_octets": 1 << 20, "smtpd.workers": 1}, disks={"spool": ("64m", 64)}) as home:
        assert home.send("first").startswith(b"250")
        home.disks["spool"].fill_inodes()
        assert home.send("large", BODY * 100).startswith(b"452 4.3.1")
        taken, refusal = fill_with_mail(home)
        assert refusal.startswith(b"452 4.3.1"), refusal
        assert home.imap().noop()[0] == "OK"
        home.disks["spool"].empty()
        until(lambda: home.send("healed").startswith(b"250"))
        until_drained(home.path)
        assert delivered(home.path) == dict.fromkeys([*taken, "first", "healed"], 1)
        assert home.deaths() == []


@variants("full_store_is_final")
@pytest.mark.parametrize("kind", ["octets", "inodes"])
def test_the_store_alone_fills(kind: str, unsafe: str) -> None:
    """Mail is accepted and stays queued, reading goes on, and all of it is delivered once when room returns.

    Checked with a store that answers a full disk with a final refusal (unsafe.py).
    """
    size = ("2m", 0) if kind == "octets" else ("64m", 48)
    with FaultHome(disks={"store": size}, settings={"store.copy": "always"}, unsafe=unsafe) as home, noticed(unsafe):
        assert home.send("first").startswith(b"250")
        until_drained(home.path)
        reader = home.imap()
        disk = home.disks["store"]
        if kind == "octets":
            disk.fill()
        else:
            # A fresh writer needs a file of its own.
            disk.fill_inodes()
            (store,) = home.pids("store")
            os.kill(store, signal.SIGKILL)
            until(lambda: store not in home.pids("store") and home.status()["roles"]["store"]["state"] == "running")
        names = [f"m{number}" for number in range(30)]
        for name in names:
            assert home.send(name, BODY).startswith(b"250")
        until(lambda: home.events("error"))
        until(lambda: sum(home.status()["channels"]["LOCAL"][what] for what in ("ready", "leased", "deferred")) == len(names))
        assert set(delivered(home.path)) == {"first"}
        assert reader.fetch("1", "(BODY[])")[0] == "OK"
        assert reader.store("1", "+FLAGS", "\\Flagged")[0] == ("NO" if kind == "octets" else "OK")
        assert reader.noop()[0] == "OK"
        disk.empty()
        until_drained(home.path)
        assert delivered(home.path) == dict.fromkeys(["first", *names], 1)
        assert home.imap().store("1", "+FLAGS", "\\Flagged")[0] == "OK"
        assert home.restarts() == (0 if kind == "octets" else 1)


@pytest.mark.parametrize("folder", ["spool", "store"])
def test_read_only(folder: str) -> None:
    """The disk goes read-only (as ext4 does after an error): 451, reading goes on, no crash loop; mended, all is there.

    Only the operator can mend such a disk, with the server stopped.
    """
    with FaultHome(disks={folder: ("ext4", 0)}, settings={"spool.ballast_octets": 0}) as home:
        disk = home.disks[folder]
        assert isinstance(disk, BreakingDisk)
        assert home.send("first").startswith(b"250")
        until_drained(home.path)
        reader = home.imap()
        taken = [f"t{number}" for number in range(5)]
        home.ctl("queue", "hold", "--channel", "LOCAL")
        for name in taken:
            assert home.send(name).startswith(b"250")
        disk.break_it()
        for number in range(5):
            reply = home.send(f"m{number}")
            if folder == "spool":
                assert reply.startswith(b"451 4.3.0"), reply
            else:
                assert reply.startswith(b"250")
                taken.append(f"m{number}")
        if folder == "store":
            home.ctl("queue", "release", "--channel", "LOCAL")
            assert reader.store("1", "+FLAGS", "\\Flagged")[0] == "NO"
        assert reader.fetch("1", "(BODY[])")[0] == "OK"
        assert home.imap().noop()[0] == "OK"
        with home.wire("pop3") as pop:
            assert pop.line().startswith(b"+OK")
        time.sleep(0.5)
        cpu, restarts = home.cpu_s(), home.restarts()
        time.sleep(3.0)
        assert home.cpu_s() - cpu < 1.0, "workers spin"
        assert home.restarts() - restarts <= 1, "a crash loop"
        assert home.events("error", "spool_segment_failed", "spool_refuses", "spool_index_fails")
        home.stop()
        disk.mend()
        home.start()
        with contextlib.suppress(RuntimeError):
            home.ctl("queue", "release", "--channel", "LOCAL")
        assert home.send("healed").startswith(b"250")
        until_drained(home.path)
        assert delivered(home.path) == dict.fromkeys(["first", "healed", *taken], 1)
