"""Event lines: no forged line, one write a loop iteration, nothing lost in rotation."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from iems import log as logs
from iems.log import Log, events, read_line
from iems.model import id_text

ID = bytes(range(16))


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_line_says_what_was_given(tmp_path: Path, form: str) -> None:
    log = Log(tmp_path / "mail.log", "smtpd", form=form)
    log.event(
        "accepted", ID, recipient=b"a@b.example", size=17, helo=b"x\xff", who='a "b"\\n', nets=["a", "b"]
    )
    (line,) = lines(tmp_path / "mail.log")
    found = read_line(line)
    assert found is not None
    assert found["event"] == "accepted" and found["role"] == "smtpd" and found["pid"] == os.getpid()
    assert found["id"] == id_text(ID) and found["recipient"] == "a@b.example"
    assert found["detail"]["helo"] == "x\\xff" and found["detail"]["who"] == 'a "b"\\n'
    assert len(found["time"]) == 24 and found["time"].endswith("Z")


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_peer_forges_a_line(tmp_path: Path, form: str) -> None:
    log = Log(tmp_path / "mail.log", "smtpd", form=form)
    evil = 'x\r\n2026-01-01T00:00:00.000Z smtpd[1] accepted id=1\n{"time":"t","event":"accepted"}\x1b[2J\u2028\x85'
    log.event("refused", recipient=evil.encode(), helo=evil)
    (line,) = lines(tmp_path / "mail.log")
    found = read_line(line)
    assert found is not None and found["event"] == "refused"
    assert found["recipient"] == evil and found["detail"]["helo"] == evil
    assert not any(octet < 32 for octet in line[:-1])


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_value_is_too_odd(tmp_path: Path, form: str) -> None:
    log = Log(tmp_path / "mail.log", "smtpd", form=form)
    log.event("odd", ID, recipient="\ud800@x", huge=1 << 99, thing=object(), deep=[{b"k": {1, 2}}], none=None)
    found = read_line(lines(tmp_path / "mail.log")[0])
    assert found is not None and found["recipient"] == "\\ud800@x" and found["detail"]["huge"] == str(1 << 99)


def test_one_write_per_loop_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    real = os.write
    monkeypatch.setattr(logs.os, "write", lambda fd, data: (writes.append(len(data)), real(fd, data))[1])

    async def main() -> None:
        log = Log(tmp_path / "mail.log", "smtpd", loop=asyncio.get_running_loop())
        for _ in range(10):
            log.event("accepted", ID)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        log.event("done", ID)
        log.close()

    asyncio.run(main())
    assert len(writes) == 2 and len(lines(tmp_path / "mail.log")) == 11


def test_a_disk_that_takes_nothing_costs_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path / "mail.log", "smtpd")
    log.event("first")
    real = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs.os, "write", full)
    monkeypatch.setattr(logs, "PENDING_OCTETS", 5000)
    for _ in range(200):
        log.event("accepted", ID)
    assert log.lost > 100
    monkeypatch.setattr(
        logs.os, "write", lambda fd, data: real(fd, data[:7]) if len(data) > 7 else real(fd, data)
    )
    log.flush()
    monkeypatch.setattr(logs.os, "write", real)
    log.flush()
    log.refresh()
    found = [read_line(line) for line in lines(tmp_path / "mail.log")]
    assert all(found) and found[0]["event"] == "first"
    log._file_id = (0, 0)
    log.refresh()
    assert read_line(lines(tmp_path / "mail.log")[-1])["event"] == "log-lost"


def test_rotation_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "mail.log"
    master, worker = Log(path, "master"), Log(path, "smtpd")
    total = 0
    for round_ in range(6):
        for _ in range(20):
            worker.event("accepted", ID, number=total)
            total += 1
        assert master.rotate(1000, 3) is True
        worker.event("late", number=round_)
        worker.refresh()
    worker.event("accepted", number=total)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["mail.log", "mail.log.1", "mail.log.2", "mail.log.3"]
    found = [event["detail"]["number"] for event in events(tmp_path, lambda line: b'"accepted"' in line)]
    assert found == list(range(total - 60, total + 1))


def test_torn_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "mail.log").write_bytes(
        b'{"time":"t","event":"a"}\n{"time":"t","ev\nrubbish\n{"time":1}\n[1]\n'
    )
    assert [event["event"] for event in events(tmp_path, lambda line: True)] == ["a"]


def test_lines_of_two_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "mail.log"
    pids = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            log = Log(path, f"r{number}")
            for count in range(300):
                log.event("accepted", ID, count=count, filler="x" * 300)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    assert len([json.loads(line) for line in lines(path)]) == 1200
