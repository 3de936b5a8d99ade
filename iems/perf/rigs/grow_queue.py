"""Cost as the queue grows: reception and delivery while mail for another channel, at random destinations, waits on hold."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

from iems._native import loadgen
from iems.perf import machine, measure, messages, queue
from iems.perf.home import PrivateHome
from iems.perf.measure import Options

NAME = "grow_queue"
TITLE = "Cost as the queue grows"
LARGEST = 100_000
DESTINATIONS = 2_000
SENT = 5_000


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Queue lengths, each ten times the one before; rate and CPU are of a message taken in and delivered beside it."""
    chance = random.Random(5321)
    settings = {"smtpd.trusted_networks": ["127.0.0.0/8"]}
    count = options.count(SENT, 500)
    with PrivateHome(50, settings, folder=options.folder, held=("SMTPC",)) as home:

        def work() -> None:
            result = loadgen.smtp(
                home.port("smtp"), messages.pool(4_096), home.users(), b"sender@load.test", sessions=10, count=count,
                first_id=time.time_ns(),
            )  # fmt: skip
            if result["errors"]:
                raise RuntimeError(f"beside a long queue: {result['complaint']}")
            queue.drained(home)

        work()  # warm
        there = 0
        for wanted in options.steps(LARGEST):
            recipients = [b"u%d@d%d.test" % (chance.randrange(10**6), chance.randrange(DESTINATIONS)) for _ in range(10_000)]
            loadgen.smtp(
                home.port("smtp"), messages.pool(600), recipients, b"sender@load.test", sessions=20, count=wanted - there,
                first_id=time.time_ns(),
            )  # fmt: skip
            there = wanted
            queue.until_drained(home.path, look=queue.unrouted)
            readings = [measure.counted([home], count, 4_096, work) for _ in range(options.repeats)]
            if queue.queued(home.path) != wanted:
                raise RuntimeError(f"{queue.queued(home.path)} messages are queued, not {wanted}")
            yield (
                {"rig": NAME, "case": f"{wanted} queued", "queued": wanted, "octets": 4_096, "also": ["server_mb"]}
                | measure.figures(readings)
                | {"server_mb": (machine.memory_octets([home.pid])["pss"] / 1e6,) * 3}
            )
