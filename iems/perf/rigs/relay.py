"""Relay: in by SMTP, out by SMTP to a sink that keeps nothing, until all of it has left."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from iems._native import loadgen
from iems.perf import machine, measure, messages, peers, queue
from iems.perf.home import PrivateHome
from iems.perf.measure import Case, Options, Reading

NAME = "relay"
TITLE = "Relay in and out"
PEERS = {"postfix": ("postfix",), "exim": ("exim",)}
CASES = ((4_096, 20_000, 2_000), (250_000, 2_000, 500))
_SINK = "import sys; from iems._native import loadgen; loadgen.sink(int(sys.argv[1]))"


@contextlib.contextmanager
def sink() -> Iterator[tuple[int, int]]:
    """A process that takes mail and drops it; gives its port and pid."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    listener.setblocking(False)
    with subprocess.Popen([sys.executable, "-c", _SINK, str(listener.fileno())], pass_fds=[listener.fileno()]) as process:
        try:
            yield listener.getsockname()[1], process.pid
        finally:
            process.terminate()
            listener.close()


def cases(options: Options) -> list[Case]:
    """Two sizes."""
    return [
        Case(
            f"{octets}",
            {"octets": octets, "messages": options.count(count, 200), "peer_messages": options.count(few, 100)},
            "smtpc" if octets == 250_000 else None,
        )
        for octets, count, few in CASES
    ]


@contextlib.contextmanager
def server(options: Options, who: str, port: int) -> Iterator[measure.Server]:
    """A server that sends everything on to `port`."""
    with contextlib.ExitStack() as stack:
        if who == "postfix":
            from iems.perf.peers.postfix import Postfix

            yield stack.enter_context(Postfix(1, options.folder, peers.started("postfix", options), next_hop=("smtp", port)))
        elif who == "exim":
            from iems.perf.peers.exim import Exim

            yield stack.enter_context(Exim(1, options.folder, peers.started("exim", options), next_hop=port))
        else:
            settings = {
                "smtpc.resolution": "relay",
                "smtpc.relay_hosts": [f"127.0.0.1:{port}"],
                "smtpd.trusted_networks": ["127.0.0.0/8"],
            }
            yield stack.enter_context(PrivateHome(1, settings, folder=options.folder))


@contextlib.contextmanager
def side(options: Options, case: Case, who: str) -> Iterator[Callable[[], Reading]]:
    """Send to a foreign domain until all of it has left."""
    pool = messages.pool(case["octets"])
    count = case["messages" if who == "iems" else "peer_messages"]
    recipients = [b"user%d@relay.test" % i for i in range(50)]
    with sink() as (port, pid), server(options, who, port) as home:

        def work() -> None:
            result = loadgen.smtp(
                home.port("smtp"), pool, recipients, b"sender@load.test", sessions=10, count=count, first_id=time.time_ns()
            )
            if result["errors"]:
                raise RuntimeError(f"relay: {result['complaint']}")
            queue.drained(home)

        yield lambda: measure.counted([home], count, case["octets"], work, lambda: machine.process_cpu_s(pid))
