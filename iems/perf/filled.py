"""A private home whose mailboxes hold mail before the clock starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iems._native import loadgen
from iems.perf import messages, queue
from iems.perf.home import PrivateHome


@contextmanager
def filled(accounts: int, octets: int, each: int, folder: Path | None) -> Iterator[PrivateHome]:
    """A home in which every account has `each` messages of `octets` in its INBOX."""
    with PrivateHome(accounts, folder=folder) as home:
        result = loadgen.smtp(
            home.port("smtp"), messages.pool(octets), home.users(), b"sender@load.test", sessions=20, count=accounts * each,
            first_id=1 << 40,
        )  # fmt: skip
        if result["errors"]:
            raise RuntimeError(f"filling mailboxes: {result['complaint']}")
        queue.until_drained(home.path)
        yield home
