"""Fresh mail beside a queue full of mail for dead hosts: how long until the first try of a fresh message has arrived.

Dead hosts that refuse connections, then dead hosts that never answer; retries are due every few seconds, far more often than any site has them,
so the deferred mail is busy all the time. Fresh mail goes to one live host at a steady rate; latency is from its 250 to its arrival.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

from iems._native import loadgen
from iems.perf import machine, measure, messages, queue
from iems.perf.home import PrivateHome
from iems.perf.measure import Options, Reading

NAME = "deferred"
TITLE = "Fresh mail beside 50,000 messages for dead hosts"
DEAD_MESSAGES = 50_000
DEAD_DOMAINS = 400
#: Fresh messages a second.
RATE = 50.0
#: Retries of the dead come round this often.
RETRY_S = 10.0
#: Fresh messages that have not arrived by then are no longer waited for.
LONGEST_S = 60.0
_SINK = """
import mmap, sys
from iems._native import loadgen
room = int(sys.argv[3])
came = memoryview(mmap.mmap(int(sys.argv[2]), 8 * room)).cast("d")
loadgen.sink(int(sys.argv[1]), came, int(sys.argv[4]))
"""


class ClockedSink:
    """A process that takes mail, drops it, and notes when message first_id + n had come, at n of `came`."""

    def __init__(self, room: int, first_id: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self._fd = os.memfd_create("iems-perf-came")
        os.ftruncate(self._fd, 8 * room)
        self.came = np.frombuffer(mmap.mmap(self._fd, 8 * room), dtype=np.float64)
        fds = [self._listener.fileno(), self._fd]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SINK, *map(str, fds), str(room), str(first_id)], pass_fds=fds
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def cpu_s(self) -> float:
        """CPU seconds it has taken."""
        return machine.process_cpu_s(self._process.pid)

    def __enter__(self) -> ClockedSink:
        return self

    def __exit__(self, *of: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._listener.close()
        os.close(self._fd)


@contextlib.contextmanager
def dead_ports() -> Iterator[tuple[int, int]]:
    """(a port that refuses, a port that never answers)."""
    with socket.socket() as refusing, socket.socket() as silent, contextlib.ExitStack() as stack:
        refusing.bind(("127.0.0.1", 0))  # bound and not listening
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(4):  # its backlog is full from now on
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(silent.getsockname())
        yield refusing.getsockname()[1], silent.getsockname()[1]


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Idle, then beside the dead, for hosts that refuse and hosts that are mute; the ratio of the 99th percentiles is what counts."""
    with dead_ports() as ports:
        for kind, port in zip(("refusing", "mute"), ports, strict=True):
            yield from _run(options, kind, port)


def _run(options: Options, kind: str, dead_port: int) -> Iterator[dict[str, Any]]:
    dead = options.count(DEAD_MESSAGES, 2_000)
    seconds = max(2.0, options.run_s * 2)
    each = round(RATE * seconds)
    first_id = 1 << 40
    with ClockedSink(each * (options.repeats * 2 + 1), first_id) as sink:
        settings = {
            "smtpc.resolution": "hosts", "smtpc.host_table": "conf/hosts", "smtpc.retry_s": RETRY_S, "smtpc.retry_max_s": RETRY_S,
            "smtpd.trusted_networks": ["127.0.0.0/8"],
        }  # fmt: skip
        table = f"fresh.test 127.0.0.1:{sink.port}\n" + "".join(
            f"dead{number}.test 127.0.0.1:{dead_port}\n" for number in range(DEAD_DOMAINS)
        )
        with PrivateHome(1, settings, folder=options.folder, files={"conf/hosts": table}) as home:

            def fresh(number: int) -> Reading:
                settled = array("d", bytes(8 * each))
                start = number * each
                meter = measure.Meter([home], sink.cpu_s)
                meter.mark("start")
                result = loadgen.smtp(
                    home.port("smtp"), messages.pool(4_096), [b"user%d@fresh.test" % i for i in range(50)], b"sender@load.test",
                    sessions=10, count=each, rate=RATE, first_id=first_id + start, settled=settled,
                )  # fmt: skip
                if result["errors"]:
                    raise RuntimeError(f"fresh mail: {result['complaint']}")
                until = time.monotonic() + LONGEST_S
                while not (came := sink.came[start : start + each]).all() and time.monotonic() < until:
                    time.sleep(0.01)
                meter.mark("end")
                # one that has not come yet counts as if it came now: the least it can take
                arrived = np.where(came > 0, came, time.monotonic())
                late = {"missing": float((came == 0).sum())}
                return measure.latencies(np.maximum(arrived - np.asarray(settled), 0.0)) | meter.spent(each) | late

            fresh(0)  # warm
            idle = [fresh(number + 1) for number in range(options.repeats)]
            chance = random.Random(5321)
            recipients = [b"user%d@dead%d.test" % (n, chance.randrange(DEAD_DOMAINS)) for n in range(5_000)]
            loadgen.smtp(
                home.port("smtp"), messages.pool(1_000), recipients, b"sender@load.test", sessions=20, count=dead, first_id=1
            )
            queue.until_drained(home.path, look=queue.unrouted)
            time.sleep(min(RETRY_S, options.run_s * 2))
            busy = [fresh(options.repeats + 1 + number) for number in range(options.repeats)]
            left = queue.queued(home.path)
    values = {"octets": 4_096, "rate_per_s": RATE, "dead_messages": dead, "dead_domains": DEAD_DOMAINS}
    yield {"rig": NAME, "case": f"idle, {kind}"} | values | measure.figures(idle)
    ratios = [b["p99_ms"] / a["p99_ms"] for a, b in zip(idle, busy, strict=True) if a["p99_ms"]]
    yield (
        {"rig": NAME, "case": f"{dead} {kind}", "still_queued": left, "also": ["p99_ratio", "still_queued", "missing"]}
        | values
        | measure.figures(busy)
        | ({"p99_ratio": measure.figures([{"r": ratio} for ratio in ratios])["r"]} if ratios else {})
    )
