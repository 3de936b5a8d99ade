"""How much a server still has to do: read from a private home's index without asking it, or from a peer's queue."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from iems.perf.measure import Server
from iems.spool import admin

#: Pause between two looks. One look costs about a millisecond.
PAUSE_S = 0.01


def waiting(home: Path) -> int:
    """Messages ready or leased in any channel."""
    return sum(count["ready"] + count["leased"] for count in _counts(home).values())


def _counts(home: Path) -> dict[str, dict[str, Any]]:
    """The queue's counts; an empty queue whose index is being built anew has one message that waits."""
    with contextlib.suppress(FileNotFoundError):
        found = admin.counts(home / "spool")
        if any(count["ready"] + count["leased"] for count in found.values()) or not admin.rebuilding(home / "spool"):
            return found
    return {"INPUT": {"ready": 1, "leased": 0, "deferred": 0, "held": 0}}


def queued(home: Path, states: Collection[str] = ("ready", "leased", "deferred", "held")) -> int:
    """Messages in any channel in one of `states`."""
    return sum(count[state] for count in _counts(home).values() for state in states)


def until_drained(home: Path, timeout_s: float = 300.0, look: Callable[[Path], int] = waiting) -> float:
    """Wait until nothing waits in a home; seconds it took. Raises TimeoutError."""
    return _until(lambda: look(home), timeout_s)


def drained(server: Server, timeout_s: float = 300.0) -> float:
    """Wait until nothing waits in a server, ours or a peer's; seconds it took. Raises TimeoutError."""
    return _until(server.waiting, timeout_s)


def _until(left: Callable[[], int], timeout_s: float) -> float:
    begun = time.monotonic()
    while count := left():
        if time.monotonic() - begun > timeout_s:
            raise TimeoutError(f"{count} messages are still queued after {timeout_s:g} s")
        time.sleep(PAUSE_S)
    return time.monotonic() - begun


def unrouted(home: Path) -> int:
    """Messages the preprocessor has still to route."""
    count = _counts(home).get("INPUT")
    return 0 if count is None else count["ready"] + count["leased"]
