"""SEARCH in a large mailbox for a word that is nowhere: SUBJECT, and TEXT; figures are of one search.

A mailbox is looked at for the first time by a server that has just started (ours; a peer starts a process for each session): `first_ms`,
`first_cpu_us`, least of the repetitions. `never_ms`, `never_cpu_us`: by a server that has never searched it, once: a peer has no cache yet and
we no full-text index. The rest is of one session that searches again and again.
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

NAME = "imap_search"
TITLE = "SEARCH in a large mailbox"
PEERS = {"dovecot sdbox": ("dovecot",)}
MESSAGES = 10_000
WORD = "zzqqxx"
#: Starts of the server, of whose first searches the cheapest counts: other work on the machine only ever adds.
STARTS = 3
#: A full-text index that is not made by then will not be.
INDEX_S = 300.0


def cases(options: Options) -> list[Case]:
    """SUBJECT and TEXT in one mailbox."""
    count = options.count(MESSAGES, 1_000)
    also = ["first_ms", "first_cpu_us", "never_ms", "never_cpu_us"]
    return [Case(f"{key} {count} messages", {"key": key, "messages": count, "also": also}) for key in ("SUBJECT", "TEXT")]


@contextlib.contextmanager
def side(options: Options, case: Case, who: str) -> Iterator[Callable[[], Reading]]:
    """One connection, the same search again and again."""
    key, messages = case["key"], case["messages"]
    place = (
        filled(1, 4_096, messages, options.folder)
        if who == "iems"
        else filled_dovecot(1, 4_096, messages, options.folder, peers.started("dovecot", options), who.split()[1])
    )
    with place as home:

        def load(mark: Callable[[str], None]) -> loadgen.Load:
            return loadgen.fetch(
                home.port("imap"), home.users(), PASSWORD.encode(), f"SEARCH {key} {WORD}".encode(), 1, 1, sessions=1,
                warmup_s=options.warmup_s + 0.5, run_s=max(1.0, options.run_s), on_mark=mark,
            )  # fmt: skip

        def again() -> Reading:
            if isinstance(home, PrivateHome):
                home.stop()
                home.start()
            return searched(home, key)

        never = searched(home, key)
        if isinstance(home, PrivateHome) and key == "TEXT":
            _indexed(home)
        firsts = [again() for _ in range(1 if options.brief else STARTS)]
        fixed = {f"first_{name}": min(one[name] for one in firsts) for name in never}
        fixed |= {f"never_{name}": value for name, value in never.items()}
        yield lambda: measure.repetition([home], load) | fixed


def searched(home: Server, key: str) -> Reading:
    """What one search takes in a session that has just selected the mailbox."""
    with imaplib.IMAP4("127.0.0.1", home.port("imap")) as session:
        session.login(home.users()[0].decode(), PASSWORD)
        session.select("INBOX")
        time.sleep(0.1)  # what a login leaves to be done is done
        cpu, begun = home.cpu_s(), time.monotonic()
        answer, found = session.search(None, key, WORD)
        spent = {"ms": (time.monotonic() - begun) * 1e3, "cpu_us": (home.cpu_s() - cpu) * 1e6}
        if answer != "OK" or found[0]:
            raise RuntimeError(f"SEARCH {key}: {answer} {found!r}")
    return spent


def _indexed(home: PrivateHome) -> None:
    """Wait until the index that the first search asked for is made."""
    log, until = home.path / "log/mail.log", time.monotonic() + INDEX_S
    while '"search-index"' not in log.read_text("utf-8"):
        if time.monotonic() > until:
            raise RuntimeError("no full-text index was made")
        time.sleep(0.1)
