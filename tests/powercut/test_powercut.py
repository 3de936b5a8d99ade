"""The power goes at any moment: the home opens by itself and holds every acknowledged message, once (beyond.md 3.2).

A server and its clients run under record.so; then the power is cut in the recording. Each cut lays out a home such as the disk
may hold (model.py), a server is started on it, finishes what is queued, and the mailboxes are counted.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from iems.perf import queue
from iems.perf.home import PrivateHome
from tests.powercut.model import Recording, Snapshot, build, environment
from tests.support.senders import delivered

CLIENT = Path(__file__).with_name("client.py")
#: Roles that a restored home needs to finish its queue.
NEEDED = {f"{role}.enabled": False for role in ("smtpd", "imapd", "pop3d", "smtpc", "sieved")}


class Case:
    """A recording of a busy server."""

    def __init__(self, top: Path, seconds: float, extra: dict[str, str] | None = None) -> None:
        self.top = top
        self.home = PrivateHome(3, folder=top)
        self.home._make()
        self.snapshot = Snapshot.take(self.home.path, top / "kept")
        library = build(top)
        recorded = environment(library, self.home.path, top / "log")
        self.home.environment = {k: v for k, v in recorded.items() if k.startswith(("LD_", "RECORD_"))} | (extra or {})
        self.home.start()
        done = subprocess.run(
            [sys.executable, str(CLIENT), str(self.home.path / "acks"), str(self.home.port("smtp")), str(self.home.port("imap")), str(seconds)],
            env=recorded, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        self.home.stop()
        self.recording = Recording(self.snapshot, top / "log")

    def damage(self, cut: int, seed: int) -> str:
        """What is wrong with the home after the power went at `cut`; '' if nothing is."""
        target = self.top / f"cut-{cut}-{seed}"
        acknowledged = set(self.recording.written("acks", cut).decode().split())
        self.recording.restore(cut, random.Random(seed), target / "home")
        (target / "home" / "acks").unlink(missing_ok=True)
        home = PrivateHome.over(target / "home", self.home.base)
        home.configure(NEEDED)
        home.environment = {}
        try:
            try:
                home.start()
                audit = json.loads(home.ctl("audit", "--json"))
                queue.until_drained(home.path, 120)
            except (RuntimeError, TimeoutError) as error:
                return f"cut {cut}, seed {seed}: {error}"
            finally:
                home.stop()
            try:
                found = delivered(home.path, every_mailbox=True)
            except (EOFError, FileNotFoundError) as error:  # a row that names octets the disk does not have
                return f"cut {cut}, seed {seed}: {error}"
        finally:
            shutil.rmtree(target)
        expected = Counter({name: 2 if name.endswith("+2") else 1 for name in acknowledged})
        lost = sorted(name for name in expected if found.get(name, 0) < expected[name])
        doubled = sorted(n for n, times in found.items() if times > (2 if n.endswith("+2") else 1))
        if lost or doubled or audit["missing"]:
            return f"cut {cut}, seed {seed}: lost {lost[:5]} of {len(expected)}, doubled {doubled[:5]}, audit {audit}"
        return ""

    def close(self) -> None:
        self.home.__exit__(None, None, None)


def cut_power(top: Path, seconds: float, cuts: int, seed: int, extra: dict[str, str] | None = None) -> list[str]:
    """Record, cut, and say what is damaged. With safeguards off (`extra`) the first damage is enough."""
    case = Case(top, seconds, extra)
    try:
        rng = random.Random(seed)
        assert len(case.recording.written("acks", len(case.recording.ops)).split()) > 50 * seconds
        damaged = []
        for cut in case.recording.cut_points(cuts, rng):
            if complaint := case.damage(cut, rng.randrange(1 << 30)):
                damaged.append(complaint)
                if extra:
                    break
        return damaged
    finally:
        case.close()


def test_power_cuts_short(tmp_path):
    assert cut_power(tmp_path, 1.5, cuts=5, seed=1) == []


@pytest.mark.long
def test_power_cuts_500(tmp_path):
    assert cut_power(tmp_path, 4, cuts=500, seed=int(os.environ.get("IEMS_SEED", "2"))) == []


@pytest.mark.parametrize(
    "off",
    [
        {"RECORD_NO_SYNC": ".seg"},  # mail is not flushed
        {"RECORD_LATE_SYNC": ".seg"},  # the 250 comes before the flush
        {"RECORD_NO_SYNC": "spool/segments"},  # a new segment's name is not flushed either
        {"RECORD_NO_SYNC": "store/p0"},  # mailboxes are not flushed
    ],
)
@pytest.mark.long
def test_power_cuts_show_a_missing_safeguard(tmp_path, off):
    assert cut_power(tmp_path, 2, cuts=60, seed=3, extra=off), "the test can't see a missing flush"


def test_power_cuts_short_show_a_missing_flush(tmp_path):
    assert cut_power(tmp_path, 1.5, cuts=12, seed=4, extra={"RECORD_NO_SYNC": ".seg"})
