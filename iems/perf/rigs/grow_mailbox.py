"""Cost as one mailbox grows: SELECT, random FETCH, a delivery and a flag in it."""

from __future__ import annotations

import imaplib
import random
import smtplib
import time
from collections.abc import Iterator
from typing import Any

from iems._native import loadgen
from iems.perf import measure
from iems.perf.filled import SENT, fill, multiply
from iems.perf.home import PASSWORD, PrivateHome
from iems.perf.measure import Options, Reading

NAME = "grow_mailbox"
TITLE = "Cost as a mailbox grows"
LARGEST = 100_000
SESSIONS = 10
#: SELECTs, flags and deliveries of a repetition.
TRIES = 20


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Mailbox sizes, each ten times the one before; rate and CPU are of random FETCHes by 10 sessions."""
    tries = options.count(TRIES, 5)
    with PrivateHome(1, folder=options.folder) as home:
        user = home.users()[0]
        there = 0
        for wanted in options.steps(LARGEST):
            if not there:
                there = min(wanted, SENT)
                fill(home, 4_096, there)
            multiply(home, user, there, wanted)
            there = wanted
            readings = []
            for number in range(options.repeats):
                reading = _sessions(home, user.decode(), wanted, tries, number)
                there += tries
                readings.append(reading | _fetches(home, user, wanted, options))
            yield (
                {"rig": NAME, "case": f"{wanted} messages", "messages": wanted, "octets": 4_096,
                 "also": ["select_ms", "store_ms", "deliver_ms"]}
                | measure.figures(readings)
            )  # fmt: skip


def _sessions(home: PrivateHome, user: str, size: int, tries: int, number: int) -> Reading:
    """Medians in ms of SELECT, of a flag set on a random message, and from a 250 until a session sees the message."""
    chance = random.Random(number)
    selects, stores, deliveries = [], [], []
    with imaplib.IMAP4("127.0.0.1", home.port("imap")) as session, smtplib.SMTP("127.0.0.1", home.port("smtp")) as sender:
        session.login(user, PASSWORD)
        present = 0
        for _ in range(tries):
            begun = time.perf_counter()
            present = int(session.select("INBOX")[1][0] or b"0")
            selects.append(time.perf_counter() - begun)
        for _ in range(tries):
            begun = time.perf_counter()
            session.store(str(chance.randrange(1, size + 1)), "+FLAGS", "\\Flagged")
            stores.append(time.perf_counter() - begun)
        for n in range(tries):
            sender.sendmail("sender@load.test", [user], b"Subject: one more\r\n\r\nhello\r\n")
            begun = time.perf_counter()
            while True:
                session.noop()
                found = session.response("EXISTS")[1]
                if found and found[-1] and int(found[-1]) > present + n:
                    break
                time.sleep(0.001)
            deliveries.append(time.perf_counter() - begun)
    return {
        "select_ms": measure.percentile_ms(selects, 50),
        "store_ms": measure.percentile_ms(stores, 50),
        "deliver_ms": measure.percentile_ms(deliveries, 50),
    }


def _fetches(home: PrivateHome, user: bytes, size: int, options: Options) -> Reading:
    return measure.repetition(
        [home],
        lambda mark: loadgen.fetch(
            home.port("imap"), [user], PASSWORD.encode(), b"FETCH %ld BODY.PEEK[]", 1, size, sessions=SESSIONS, shuffle=True,
            seed=time.time_ns() % 2**32, warmup_s=options.warmup_s, run_s=options.run_s, on_mark=mark,
        ),
    )  # fmt: skip
