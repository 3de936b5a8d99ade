"""kill -9 of any process at any point under load: every 250 is in a mailbox exactly once (beyond.md 3.1)."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from iems.perf import queue
from iems.perf.home import PrivateHome
from tests.support.senders import Senders, delivered

RECIPIENTS = [f"a{i}@load.test" for i in range(1, 6)]


def children(pid):
    """Living children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def gone(pids, timeout_s):
    """Wait until none of the processes lives."""
    until = time.monotonic() + timeout_s
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def kill_at_random(kills, seed, masters):
    """Kill `kills` random workers, every `masters`th time the master; nothing acknowledged may be lost or doubled."""
    rng = random.Random(seed)
    # A worker killed within its first seconds is respawned after a growing pause; here it should come back at once.
    with PrivateHome(5) as home:
        senders = Senders(home.port("smtp"), RECIPIENTS, body=b"x" * 2000)
        try:
            for number in range(kills):
                time.sleep(rng.uniform(0.05, 0.5))
                if masters and number % masters == masters - 1:
                    workers = children(home.pid)
                    os.kill(home.pid, signal.SIGKILL)
                    home._process.wait()
                    assert not gone(workers, 8), "workers leave within 5 s of their master's death"
                    home.start()
                else:
                    workers = children(home.pid)
                    if workers:
                        os.kill(rng.choice(workers), signal.SIGKILL)
            time.sleep(1)
        finally:
            senders.stop()
        queue.until_drained(home.path, 90)
        home.stop()
        found = delivered(home.path)
        lost = senders.acknowledged - found.keys()
        doubled = {n for n, times in found.items() if times > 1}
        assert not lost, f"{len(lost)} of {len(senders.acknowledged)} acknowledged messages are lost: {sorted(lost)[:5]}"
        assert not doubled, f"{len(doubled)} messages are there more than once: {sorted(doubled)[:5]}"
        assert found.keys() <= senders.attempted
        assert len(senders.acknowledged) > kills, "mail went on flowing"


def test_kill_short():
    kill_at_random(12, seed=1, masters=6)


@pytest.mark.long
def test_kill_200():
    kill_at_random(200, seed=2, masters=25)
