"""`make run`: a demo server whose printed lines work when pasted, and that comes back with the same passwords."""

from __future__ import annotations

import re
import signal
import stat
import subprocess
import sys

from iems.perf.ports import free_base
from tests.support.waiting import until


def start(folder, base):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "iems.cli.demo", str(folder), "--port-base", str(base)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = []
    while True:
        line = process.stdout.readline()
        assert line, "".join(lines)
        lines.append(line.rstrip("\n"))
        if line.startswith("Ctrl-C"):
            return process, lines


def accounts(lines):
    return dict(m.groups() for line in lines if (m := re.fullmatch(r"account (\S+) (\S+)", line)))


def test_demo(tmp_path):
    base = free_base()
    process, lines = start(tmp_path / "demo", base)
    try:
        people = accounts(lines)
        assert len(people) == 2 and all(address.endswith("@example.test") for address in people)
        secret = [p for p in (tmp_path / "demo").rglob("*") if p.is_file() and next(iter(people.values())).encode() in p.read_bytes()]
        assert secret and all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in secret)
        pasted = [line for line in lines if line.startswith("python3 -c") or line.endswith("status --watch")]
        assert len(pasted) == 3, lines
        send, read, watch = pasted
        assert subprocess.run(send, shell=True, timeout=60, capture_output=True, text=True).returncode == 0
        until(lambda: "Subject" in subprocess.run(read, shell=True, timeout=60, capture_output=True, text=True).stdout)
        watching = subprocess.Popen(f"exec {watch}", shell=True, stdout=subprocess.PIPE, text=True)
        assert any("smtpd" in line for line in watching.stdout)
        watching.kill()
        watching.communicate()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    again, lines = start(tmp_path / "demo", base)
    again.send_signal(signal.SIGINT)
    assert again.wait(60) == 0
    assert accounts(lines) == people
