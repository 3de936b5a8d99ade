"""Listing a large mailbox: FETCH 1:* (FLAGS ENVELOPE BODYSTRUCTURE) over 10,000 messages; figures are of one listing.

`first_ms` and `first_cpu_us`: of the first listing by a server that has just started (ours), or has never made one (a peer's mailbox).
"""

from __future__ import annotations

import contextlib
import imaplib
import time
from collections.abc import Callable, Iterator

from iems._native import loadgen
from iems.perf import measure, peers
from iems.perf.filled import filled, filled_dovecot
from iems.perf.home import PASSWORD, PrivateHome
from iems.perf.measure import Case, Options, Reading, Server

NAME = "imap_list"
TITLE = "FETCH 1:* (FLAGS ENVELOPE BODYSTRUCTURE)"
PEERS = {"dovecot sdbox": ("dovecot",)}
MESSAGES = 10_000


def cases(options: Options) -> list[Case]:
    """One mailbox."""
    count = options.count(MESSAGES, 500)
    return [Case(f"{count} messages", {"messages": count, "also": ["first_ms", "first_cpu_us"]})]


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

        if isinstance(home, PrivateHome):
            home.stop()
            home.start()
        first = _first(home)
        yield lambda: measure.repetition([home], load) | first


def _first(home: Server) -> Reading:
    with imaplib.IMAP4("127.0.0.1", home.port("imap")) as session:
        session.login(home.users()[0].decode(), PASSWORD)
        session.select("INBOX")
        cpu, begun = home.cpu_s(), time.monotonic()
        session.fetch("1:*", "(FLAGS ENVELOPE BODYSTRUCTURE)")
        return {"first_ms": (time.monotonic() - begun) * 1e3, "first_cpu_us": (home.cpu_s() - cpu) * 1e6}
