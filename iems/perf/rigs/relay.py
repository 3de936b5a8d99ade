"""Relay: in by SMTP, out by SMTP to a sink that keeps nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from iems._native import loadgen
from iems.perf import machine, measure, messages, queue
from iems.perf.home import PrivateHome

NAME = "relay"
TITLE = "Relay in and out"
CASES = ((4_096, 20_000), (250_000, 2_000))


@contextmanager
def sink() -> Iterator[int]:
    """A process that takes mail and drops it; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    listener.setblocking(False)
    program = "import sys; from iems._native import loadgen; loadgen.sink(int(sys.argv[1]))"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(listener.fileno())], pass_fds=[listener.fileno()]
    ) as process:
        try:
            yield listener.getsockname()[1]
        finally:
            process.terminate()
            listener.close()


def measure_case(options: measure.Options, octets: int, count: int) -> dict[str, Any]:
    """Send to a foreign domain until all of it has left."""
    count = max(200, int(count * options.scale))
    pool = messages.pool(octets)
    repetitions = []
    with sink() as port:
        settings = {
            "smtpc.resolution": "relay",
            "smtpc.relay_hosts": [f"127.0.0.1:{port}"],
            "smtpd.trusted_networks": ["127.0.0.0/8"],
        }
        with PrivateHome(1, settings, folder=options.folder) as home:
            for number in range(options.repeats):
                cpu, flushes = machine.cpu_s([home.pid]), machine.disk_flushes()
                begun = time.monotonic()
                result = loadgen.smtp(
                    home.port("smtp"), pool, [b"user%d@relay.test" % i for i in range(50)], b"sender@load.test", sessions=10,
                    count=count, first_id=(number + 1) << 32,
                )  # fmt: skip
                queue.until_drained(home.path)
                seconds = time.monotonic() - begun
                if result["errors"]:
                    raise RuntimeError(f"relay: {result['complaint']}")
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
        record["module"] = "smtpc"
    return record


def run(options: measure.Options) -> Iterator[dict[str, Any]]:
    """Every case."""
    for octets, count in CASES:
        yield measure_case(options, octets, count)
