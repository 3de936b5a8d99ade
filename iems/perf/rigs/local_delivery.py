"""LMDA and store: a filled shared queue is released and drains into mailboxes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from iems._native import loadgen
from iems.perf import machine, measure, messages, queue
from iems.perf.home import PrivateHome

NAME = "local_delivery"
TITLE = "Local delivery (drain of a filled queue)"
CASES = ((4_096, 20_000), (250_000, 2_000))


def measure_case(options: measure.Options, octets: int, count: int) -> dict[str, Any]:
    """Fill, release, wait until empty; the queue is filled anew for each repetition."""
    count = max(200, int(count * options.scale))
    pool = messages.pool(octets)
    repetitions = []
    with PrivateHome(50, folder=options.folder) as home:
        for number in range(options.repeats):
            home.ctl("queue", "hold", "--channel", "LOCAL")
            loadgen.smtp(
                home.port("smtp"), pool, home.users(), b"sender@load.test", sessions=20, count=count, first_id=(number + 1) << 32
            )
            queue.until_drained(home.path, look=queue.unrouted)
            cpu, flushes = machine.cpu_s([home.pid]), machine.disk_flushes()
            home.ctl("queue", "release", "--channel", "LOCAL")
            begun = time.monotonic()
            queue.until_drained(home.path)
            seconds = time.monotonic() - begun
            repetitions.append(
                {
                    "per_s": count / seconds,
                    "mb_per_min": count * octets / 1e6 * 60 / seconds,
                    "cpu_us": (machine.cpu_s([home.pid]) - cpu) / count * 1e6,
                    "flushes": (machine.disk_flushes() - flushes) / count,
                }
            )
    record: dict[str, Any] = {"rig": NAME, "case": f"{octets}", "octets": octets, "messages": count}
    record |= measure.figures(repetitions)
    if octets == 250_000:
        record["module"] = "lmda"
    return record


def run(options: measure.Options) -> Iterator[dict[str, Any]]:
    """Every case."""
    for octets, count in CASES:
        yield measure_case(options, octets, count)
