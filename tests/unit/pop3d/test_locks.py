"""One session a maildrop, over processes, and what a killed one leaves."""

import signal
import subprocess
import sys

from iems.pop3d.locks import MaildropLocks

HOLD = """
import sys, time, pathlib
from iems.pop3d.locks import MaildropLocks
locks = MaildropLocks(pathlib.Path(sys.argv[1]))
print(locks.take(5), flush=True)
time.sleep(60)
"""


def test_within_a_process(tmp_path):
    locks = MaildropLocks(tmp_path / "pop3.lock")
    assert locks.take(1)
    assert not locks.take(1)
    assert locks.take(2)
    assert locks.take((1 << 32) - 1)
    locks.release(1)
    locks.release(1)
    assert locks.take(1)
    other = MaildropLocks(tmp_path / "pop3.lock")
    assert not other.take(2)
    locks.close()
    assert other.take(2)
    other.close()


def test_a_killed_process_frees(tmp_path):
    path = tmp_path / "pop3.lock"
    locks = MaildropLocks(path)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"True\n"
        assert not locks.take(5)
        assert locks.take(6)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        process.stdout.close()
    assert locks.take(5)
    locks.close()
