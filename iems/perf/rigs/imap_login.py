"""Logins: connect, LOGIN, SELECT of a mailbox of 200 messages, and away; figures are of one.

`first_cpu_us`: the first login of each account after a start, which checks a password for good. Then each worker of ours has seen
it and remembers that for `auth.cache_s`; the peer as configured takes any password, so it never computes anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from iems._native import loadgen
from iems.perf import measure, peers
from iems.perf.filled import filled, filled_dovecot
from iems.perf.home import PASSWORD
from iems.perf.measure import Case, Options, Reading

NAME = "imap_login"
TITLE = "LOGIN and SELECT"
PEERS = {"dovecot sdbox": ("dovecot",), "dovecot mdbox": ("dovecot",)}
ACCOUNTS, MESSAGES = 20, 200
#: Logins of a repetition, and how many are there at a time.
LOGINS, AT_ONCE = 400, 40
#: Rounds after which each worker has seen each account, whatever the chance.
ROUNDS = 8


def cases(options: Options) -> list[Case]:
    """One size."""
    return [Case(f"{MESSAGES} messages", {"logins": options.count(LOGINS, AT_ONCE), "also": ["first_cpu_us"]})]


@contextlib.contextmanager
def side(options: Options, case: Case, who: str) -> Iterator[Callable[[], Reading]]:
    """Logins in lots, each of which ends before the next."""
    place = (
        filled(ACCOUNTS, 1_000, MESSAGES, options.folder)
        if who == "iems"
        else filled_dovecot(ACCOUNTS, 1_000, MESSAGES, options.folder, peers.started("dovecot", options), who.split()[1])
    )
    with place as home:

        def lot(count: int) -> None:
            result = loadgen.fetch(home.port("imap"), home.users(), PASSWORD.encode(), None, 1, 1, sessions=count, idle_s=0.01)
            if result["done"] < count:
                raise RuntimeError(f"{count - result['done']} logins of {count} failed: {result['complaint']}")

        def all_of(count: int, at_once: int) -> Reading:
            def work() -> None:
                for done in range(0, count, at_once):
                    lot(min(at_once, count - done))

            return measure.counted([home], count, 0, work)

        first = all_of(ACCOUNTS, ACCOUNTS)["cpu_us"]
        for _ in range(ROUNDS):
            lot(ACCOUNTS)
        yield lambda: all_of(case["logins"], AT_ONCE) | {"first_cpu_us": first}
