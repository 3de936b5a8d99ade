"""A lost queue index is built again from the segments while mail is accepted: messages a second, and how soon a sender gets a 250."""

from __future__ import annotations

import shutil
import smtplib
import time
from collections.abc import Iterator
from typing import Any

from iems.perf import measure, queue
from iems.perf.home import PrivateHome
from iems.perf.measure import Options, Reading
from iems.perf.rigs.restart import fill

NAME = "rebuild"
TITLE = "Building a lost queue index again"
MESSAGES = 100_000


def run(options: Options) -> Iterator[dict[str, Any]]:
    """One queue. The index is removed while the server is stopped."""
    count = options.count(MESSAGES, 1_000)
    # a channel on hold is a mark in the index that goes too: without its role mail stays as well
    with PrivateHome(20, {"lmda.enabled": False}, folder=options.folder) as home:
        fill(home, count)
        readings = []
        for number in range(options.repeats):
            readings.append(_rebuild(home, count + number))
    yield (
        {"rig": NAME, "case": f"{count} queued", "queued": count, "also": ["accept_ms", "rebuilt_ms"]} | measure.figures(readings)
    )


def _rebuild(home: PrivateHome, expected: int) -> Reading:
    home.stop()
    shutil.rmtree(home.path / "spool/index")
    begun = time.monotonic()
    meter = measure.Meter([home])
    home.start()
    meter.mark("start")
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as session:
        session.sendmail("sender@load.test", [home.users()[0].decode()], b"Subject: meanwhile\r\n\r\nhello\r\n")
        accepted = time.monotonic()
    until = begun + 600
    while _queued(home) < expected + 1:
        if time.monotonic() > until:
            raise RuntimeError(f"{_queued(home)} of {expected + 1} messages are back after ten minutes")
        time.sleep(0.02)
    seconds = time.monotonic() - begun
    meter.mark("end")
    return {"per_s": expected / seconds, "rebuilt_ms": seconds * 1e3, "accept_ms": (accepted - begun) * 1e3} | meter.spent(expected)


def _queued(home: PrivateHome) -> int:
    try:
        return queue.queued(home.path)
    except FileNotFoundError:  # there is no index yet
        return 0
