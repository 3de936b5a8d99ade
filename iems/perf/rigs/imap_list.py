"""Listing a large mailbox: FETCH 1:* (FLAGS ENVELOPE BODYSTRUCTURE) over 10,000 messages; figures are of one listing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from iems._native import loadgen
from iems.perf import measure, peers
from iems.perf.filled import filled, filled_dovecot
from iems.perf.home import PASSWORD
from iems.perf.measure import Case, Options, Reading

NAME = "imap_list"
TITLE = "FETCH 1:* (FLAGS ENVELOPE BODYSTRUCTURE)"
PEERS = {"dovecot sdbox": ("dovecot",)}
MESSAGES = 10_000


def cases(options: Options) -> list[Case]:
    """One mailbox."""
    count = options.count(MESSAGES, 500)
    return [Case(f"{count} messages", {"messages": count})]


@contextlib.contextmanager
def side(options: Options, case: Case, who: str) -> Iterator[Callable[[], Reading]]:
    """One connection, the whole listing again and again."""
    place = (
        filled(1, 4_096, case["messages"], options.folder)
        if who == "iems"
        else filled_dovecot(1, 4_096, case["messages"], options.folder, peers.started("dovecot", options), who.split()[1])
    )
    with place as home:

        def load(mark: Callable[[str], None]) -> loadgen.Load:
            return loadgen.fetch(
                home.port("imap"), home.users(), PASSWORD.encode(), b"FETCH 1:* (FLAGS ENVELOPE BODYSTRUCTURE)", 1, 1, sessions=1,
                warmup_s=options.warmup_s, run_s=max(1.0, options.run_s), on_mark=mark,
            )  # fmt: skip

        yield lambda: measure.repetition([home], load)
