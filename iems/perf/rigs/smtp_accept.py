"""SMTPD reception: mail accepted into the durable queue, LOCAL on hold, so nothing but reception and routing runs.

Postfix puts what it accepts on hold, Exim queues it (`queue_only`): each has it on the disk before its 250, as by default.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from iems._native import loadgen
from iems.perf import measure, messages, peers
from iems.perf.home import PrivateHome
from iems.perf.measure import Case, Options, Reading

NAME = "smtp_accept"
TITLE = "SMTP accept"
PEERS = {"postfix": ("postfix",), "exim": ("exim",)}
CASES = ((4_096, 1), (4_096, 10), (4_096, 50), (50_000, 10), (250_000, 1), (250_000, 10), (250_000, 50))
BRIEF = ((4_096, 1), (4_096, 50), (250_000, 10))
ACCOUNTS = 50


def cases(options: Options) -> list[Case]:
    """Sizes and numbers of sessions."""
    return [
        Case(
            f"{octets}x{sessions}",
            {"octets": octets, "sessions": sessions},
            "smtpd" if (octets, sessions) == (250_000, 10) else None,
        )
        for octets, sessions in (BRIEF if options.brief else CASES)
    ]


@contextlib.contextmanager
def server(options: Options, who: str) -> Iterator[measure.Server]:
    """A server that accepts and keeps."""
    with contextlib.ExitStack() as stack:
        if who == "postfix":
            from iems.perf.peers.postfix import Postfix

            yield stack.enter_context(Postfix(ACCOUNTS, options.folder, peers.started("postfix", options), hold=True))
        elif who == "exim":
            from iems.perf.peers.exim import Exim

            yield stack.enter_context(Exim(ACCOUNTS, options.folder, peers.started("exim", options)))
        else:
            yield stack.enter_context(PrivateHome(ACCOUNTS, folder=options.folder, held=("LOCAL",)))


@contextlib.contextmanager
def side(options: Options, case: Case, who: str) -> Iterator[Callable[[], Reading]]:
    """Sessions that send message after message for a while."""
    pool = messages.pool(case["octets"])
    with server(options, who) as home:

        def load(mark: Callable[[str], None]) -> loadgen.Load:
            return loadgen.smtp(
                home.port("smtp"), pool, home.users(), b"sender@load.test", sessions=case["sessions"], first_id=time.time_ns(),
                warmup_s=options.warmup_s, run_s=options.run_s, on_mark=mark,
            )  # fmt: skip

        yield lambda: measure.repetition([home], load)
