"""LMDA and store: a filled shared queue is released and drains into mailboxes.

Dovecot has no queue to drain; what stands beside is its LMTP service, fed as fast as it answers over 10 connections.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from iems._native import loadgen
from iems.perf import measure, messages, peers
from iems.perf.drain import drain
from iems.perf.home import PrivateHome
from iems.perf.measure import Case, Options, Reading

NAME = "local_delivery"
TITLE = "Local delivery (drain of a filled queue)"
PEERS = {"dovecot sdbox": ("dovecot",)}
CASES = ((4_096, 20_000, 2_000), (250_000, 2_000, 600))
#: A drain takes a good part of a second even in the short form, or its ends would count more than its middle.
LEAST = {4_096: 5_000, 250_000: 1_000}
ACCOUNTS = 50


def cases(options: Options) -> list[Case]:
    """Two sizes. `peer_messages`: how many a peer gets, which takes longer over each."""
    return [
        Case(
            f"{octets}",
            {"octets": octets, "messages": options.count(count, LEAST[octets]), "peer_messages": options.count(few, 100)},
            "lmda" if octets == 250_000 else None,
        )
        for octets, count, few in CASES
    ]


@contextlib.contextmanager
def side(options: Options, case: Case, who: str) -> Iterator[Callable[[], Reading]]:
    """Fill, release, wait until empty; the queue is filled anew for each repetition."""
    pool = messages.pool(case["octets"])
    if who == "iems":
        with PrivateHome(ACCOUNTS, folder=options.folder) as home:
            yield lambda: drain(home, case["octets"], case["messages"])
        return
    from iems.perf.peers.dovecot import Dovecot

    with Dovecot(ACCOUNTS, options.folder, peers.started("dovecot", options)) as peer:

        def load(mark: Callable[[str], None]) -> loadgen.Load:
            return loadgen.smtp(
                peer.port("lmtp"), pool, peer.users(), b"sender@load.test", sessions=10, lmtp=True, count=case["peer_messages"],
                first_id=time.time_ns(), on_mark=mark,
            )  # fmt: skip

        yield lambda: measure.repetition([peer], load)
