"""Stopping and starting with mail in the queue: after a clean stop, and after every process was killed at once.

`ready_ms`: from the start until the server says that all ports listen; `accept_ms`: until it has answered 250 to a new message. No
message may be missing afterwards; if one is, the rig fails.
"""

from __future__ import annotations

import smtplib
import time
from collections.abc import Callable, Iterator
from typing import Any

from iems._native import loadgen
from iems.perf import measure, messages, queue
from iems.perf.home import PrivateHome
from iems.perf.measure import Options, Reading

NAME = "restart"
TITLE = "Restart and recovery by queue length"
LARGEST = 100_000


def fill(home: PrivateHome, count: int) -> None:
    """Queue `count` small messages for a channel on hold. Raises RuntimeError."""
    result = loadgen.smtp(
        home.port("smtp"), messages.pool(600), home.users(), b"sender@load.test", sessions=20, count=count, first_id=time.time_ns()
    )
    if result["errors"]:
        raise RuntimeError(f"filling the queue: {result['complaint']}")
    queue.until_drained(home.path, look=queue.unrouted)


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Queue lengths, each ten times the one before."""
    with PrivateHome(20, folder=options.folder, held=("LOCAL",)) as home:
        there = 0
        for wanted in options.steps(LARGEST, 1 if options.brief else 3):
            fill(home, wanted - there)
            there = wanted
            for how, end in (("clean stop", home.stop), ("kill", home.crash)):
                readings = []
                for _ in range(options.repeats):
                    readings.append(_again(home, end))
                    there += 1
                    left = queue.queued(home.path)
                    if left != there:
                        raise RuntimeError(f"{there - left} of {there} messages are missing after a {how}")
                yield (
                    {"rig": NAME, "case": f"{wanted} queued, {how}", "queued": wanted, "also": ["ready_ms", "accept_ms", "stop_ms"]}
                    | measure.figures(readings)
                )


def _again(home: PrivateHome, end: Callable[[], None]) -> Reading:
    begun = time.monotonic()
    end()
    stopped = time.monotonic()
    home.start()
    ready = time.monotonic()
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as session:
        session.sendmail("sender@load.test", [home.users()[0].decode()], b"Subject: after the start\r\n\r\nhello\r\n")
        accepted = time.monotonic()
    queue.until_drained(home.path, look=queue.unrouted)
    return {
        "stop_ms": (stopped - begun) * 1e3,
        "ready_ms": (ready - stopped) * 1e3,
        "accept_ms": (accepted - stopped) * 1e3,
    }
