"""SMTPD reception: mail accepted into the durable queue, LOCAL on hold, so nothing but reception and routing runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from iems._native import loadgen
from iems.perf import measure, messages
from iems.perf.home import PrivateHome

NAME = "smtp_accept"
TITLE = "SMTP accept"
CASES = ((4_096, 1), (4_096, 10), (4_096, 50), (250_000, 1), (250_000, 10), (250_000, 50))


def measure_case(options: measure.Options, octets: int, sessions: int) -> dict[str, Any]:
    """One size and number of sessions, in a home of its own."""
    pool = messages.pool(octets)
    with PrivateHome(50, folder=options.folder, held=("LOCAL",)) as home:

        def load(mark: Callable[[str], None]) -> loadgen.Load:
            return loadgen.smtp(
                home.port("smtp"), pool, home.users(), b"sender@load.test", sessions=sessions, first_id=time.time_ns(),
                warmup_s=options.warmup_s, run_s=options.run_s, on_mark=mark,
            )  # fmt: skip

        repetitions = [measure.repetition([home.pid], load) for _ in range(options.repeats)]
    record: dict[str, Any] = {"rig": NAME, "case": f"{octets}x{sessions}", "octets": octets, "sessions": sessions}
    record |= measure.figures(repetitions)
    if octets == 250_000 and sessions == 10:
        record["module"] = "smtpd"
    return record


def run(options: measure.Options) -> Iterator[dict[str, Any]]:
    """Every case."""
    for octets, sessions in CASES:
        yield measure_case(options, octets, sessions)
