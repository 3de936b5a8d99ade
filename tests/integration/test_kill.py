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
from tests.support.waiting import until

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


def gone(pids):
    """Wait until none of the processes lives."""
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


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
                    gone(workers)  # they leave by themselves
                    home.start()
                else:
                    workers = children(home.pid)
                    if workers:
                        os.kill(rng.choice(workers), signal.SIGKILL)
            already = len(senders.acknowledged)
            until(lambda: len(senders.acknowledged) > already + 20)
        finally:
            senders.stop()
        queue.until_drained(home.path)
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
