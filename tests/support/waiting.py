"""Waiting for what happens in other processes: for a condition, never for a time."""

from __future__ import annotations

import asyncio
import contextlib
import imaplib
import json
import os
import poplib
import signal
import smtplib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from iems.cli.run import status_of
from iems.master.board import Board
from iems.master.supervisor import running_pid

#: What a machine that is busy with other things may take; nothing should ever need it.
LIMIT_S = 120.0
PAUSE_S = 0.02
#: A server that is not there yet, or not any more, says no by one of these.
NOT_YET = (OSError, EOFError, smtplib.SMTPException, imaplib.IMAP4.error, poplib.error_proto)


def until(found: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """What `found` gives, once it gives something true; what a server away raises counts as not yet."""
    end = time.monotonic() + limit_s
    while True:
        last: Any
        try:
            if last := found():
                return last
        except NOT_YET as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"did not happen in {limit_s} s; last: {last!r}")
        time.sleep(PAUSE_S)


async def soon(found: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """As `until`, for what happens in the loop of the test itself; whatever is raised is an error."""
    async with asyncio.timeout(limit_s):
        while not (answer := found()):
            await asyncio.sleep(0.003)
    return answer


def _states(pid: int) -> set[str]:
    """The states of a process's threads; none if it is gone."""
    found = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found.add((task / "stat").read_text().rsplit(")", 1)[1].split()[0])
    return found


def freeze(*pids: int) -> None:
    """Stop processes; returns when no thread of theirs runs any more. `kill` returns long before that."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        until(lambda pid=pid: _states(pid) <= set("TtZX"))


def thaw(*pids: int) -> None:
    """Undo `freeze`. Those that are gone stay gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def come_round(pids: Iterable[int]) -> None:
    """Wait until each of these processes has rested once, so that what it puts off to the end of a turn of its loop is done."""
    for pid in pids:
        until(lambda pid=pid: not (state := _main_state(pid)) or state in "SZXTt")


def _main_state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def _workers(path: Path) -> list[int]:
    """The workers of a running home."""
    if running_pid(path) is None:
        return []
    board = Board.open(path / "run" / "board")
    try:
        return [row.pid for row in board.rows()]
    finally:
        board.map.close()


def events(home: Any, *names: str) -> list[dict[str, Any]]:
    """The lines of a home's log with these events, all of them if none is named; rotated files come last.

    home: a `PrivateHome` or another with `path`. Workers write their lines when their loop comes round, which may be after the
    answer that a client has: those of a running server are waited for.
    """
    come_round(_workers(home.path))
    found = []
    for path in sorted((home.path / "log").glob("mail.log*")):
        data = path.read_bytes()
        for line in data[: data.rfind(b"\n") + 1].splitlines():  # of a line that is being written, nothing yet
            event = json.loads(line)
            if not names or event["event"] in names:
                found.append(event)
    return found


def status(home: Any) -> dict[str, Any]:
    """What `iemsctl status --json` says of a running home, without a process of its own."""
    found = status_of(home.path)
    assert found is not None, "the server does not run"
    return found
