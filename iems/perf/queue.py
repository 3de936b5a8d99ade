"""How much is queued in a private home, read from its index without asking the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from iems.spool import admin


def waiting(home: Path) -> int:
    """Messages ready or leased in any channel."""
    return sum(count["ready"] + count["leased"] for count in admin.counts(home / "spool").values())


def until_drained(home: Path, timeout_s: float = 300.0, look: Callable[[Path], int] = waiting) -> float:
    """Wait until nothing waits; seconds it took. Raises TimeoutError."""
    begun = time.monotonic()
    while look(home):
        if time.monotonic() - begun > timeout_s:
            raise TimeoutError(f"{look(home)} messages are still queued after {timeout_s:g} s")
        time.sleep(0.01)
    return time.monotonic() - begun


def unrouted(home: Path) -> int:
    """Messages the preprocessor has still to route."""
    count = admin.counts(home / "spool").get("INPUT")
    return 0 if count is None else count["ready"] + count["leased"]
