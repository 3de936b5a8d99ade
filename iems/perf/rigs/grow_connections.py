"""Cost as connections grow in number: 10 sessions that work beside idle ones that have the same mailboxes selected."""

from __future__ import annotations

import random
import smtplib
import time
from collections.abc import Iterator
from typing import Any

from iems._native import loadgen
from iems.perf import machine, measure
from iems.perf.filled import filled
from iems.perf.home import PASSWORD, PrivateHome
from iems.perf.measure import Options, Reading
from iems.perf.rigs.memory import Held, memory

NAME = "grow_connections"
TITLE = "Cost as connections grow in number"
LARGEST = 9_000
ACCOUNTS = 100
MESSAGES = 50
SESSIONS = 10
TRIES = 20


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Numbers of idle connections, each ten times the one before; rate and CPU are of random FETCHes by 10 sessions beside them."""
    with machine.descriptors() as most, filled(ACCOUNTS, 4_096, MESSAGES, options.folder) as home:
        top = min(LARGEST, most - 500)
        held: list[Held] = []
        there = 0
        before = memory(home)
        try:
            for wanted in options.steps(top) if options.growth <= 1 else [top // 100, top // 10, top]:
                held.append(Held(home, False, wanted - there))
                there = wanted
                readings = [_work(home, options) for _ in range(options.repeats)]
                grown = (memory(home)["own"] - before["own"]) / wanted
                yield (
                    {"rig": NAME, "case": f"{wanted} connections", "connections": wanted, "octets": 4_096,
                     "also": ["accepted_ms", "since_start_each"]}
                    | measure.figures(readings)
                    | {"since_start_each": (grown,) * 3}
                )  # fmt: skip
        finally:
            for one in held:
                one.close()


def _work(home: PrivateHome, options: Options) -> Reading:
    reading = measure.repetition(
        [home],
        lambda mark: loadgen.fetch(
            home.port("imap"), home.users(), PASSWORD.encode(), b"FETCH %ld BODY.PEEK[]", 1, MESSAGES, sessions=SESSIONS, shuffle=True,
            warmup_s=options.warmup_s, run_s=options.run_s, on_mark=mark,
        ),
    )  # fmt: skip
    # each delivery is news for every session that has the mailbox selected
    chance = random.Random(5321)
    taken = []
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as sender:
        for _ in range(options.count(TRIES, 5)):
            begun = time.perf_counter()
            sender.sendmail("sender@load.test", [chance.choice(home.users()).decode()], b"Subject: news\r\n\r\nhello\r\n")
            taken.append(time.perf_counter() - begun)
    return reading | {"accepted_ms": measure.percentile_ms(taken, 50)}
