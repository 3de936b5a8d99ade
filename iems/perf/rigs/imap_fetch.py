"""IMAP download: connections that fetch message after message, one command in flight (the paper used 18)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from iems._native import loadgen
from iems.perf import measure, peers
from iems.perf.filled import filled, filled_dovecot
from iems.perf.home import PASSWORD
from iems.perf.measure import Case, Options, Reading

NAME = "imap_fetch"
TITLE = "IMAP FETCH BODY[]"
PEERS = {"dovecot sdbox": ("dovecot",), "dovecot mdbox": ("dovecot",)}
CASES = ((4_096, 18, 500), (250_000, 18, 100))


def cases(options: Options, module: str = "imap") -> list[Case]:
    """Two sizes."""
    return [
        Case(
            f"{octets}x{sessions}",
            {"octets": octets, "sessions": sessions, "messages": max(20, int(each * min(1.0, options.scale * 3)))},
            module if octets == 250_000 else None,
        )
        for octets, sessions, each in CASES
    ]


@contextlib.contextmanager
def side(options: Options, case: Case, who: str, pop3: bool = False) -> Iterator[Callable[[], Reading]]:
    """Fetch from filled mailboxes by IMAP or POP3."""
    sessions, octets, each = case["sessions"], case["octets"], case["messages"]
    place = (
        filled(sessions, octets, each, options.folder)
        if who == "iems"
        else filled_dovecot(sessions, octets, each, options.folder, peers.started("dovecot", options), who.split()[1])
    )
    with place as home:

        def load(mark: Callable[[str], None]) -> loadgen.Load:
            return loadgen.fetch(
                home.port("pop3" if pop3 else "imap"), home.users(), PASSWORD.encode(),
                b"RETR %ld" if pop3 else b"FETCH %ld BODY.PEEK[]", 1, each, sessions=sessions, pop3=pop3,
                warmup_s=options.warmup_s + 1, run_s=options.run_s, on_mark=mark,
            )  # fmt: skip

        yield lambda: measure.repetition([home], load)
