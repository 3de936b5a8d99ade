"""CPU of DNS look-ups: `python perf/resolver.py [MESSAGES]` from the top of the tree.

A message is 25 look-ups (A, MX, TXT and names that don't exist, as for DNS-BL), asked together. Cold: no name was asked before; warm: all
are in the cache; shared: all were asked by another worker, but not by this one. The server is a process of its own on loopback, so what is shown is the resolver's share alone.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from iems.net.answers import Answers
from iems.net.resolver import Resolver
from tests.support.dnsserver import DnsServer

LOOKUPS = 25
KINDS = ("A", "MX", "TXT", "A", "A")


class Server(DnsServer):
    """Makes its records from the name asked for."""

    def _fill(self, reply, name, kind, chase):  # type: ignore[no-untyped-def]
        if name.startswith("gone"):
            self.records = {}
        else:
            data = {"A": "192.0.2.1", "MX": "10 mx.example.test.", "TXT": '"v=spf1 -all"'}
            self.records = {(name, kind): [data[kind]]}
        self.asked.clear()
        super()._fill(reply, name, kind, chase)


def serve(end: Connection) -> None:
    """The server's process."""

    async def main() -> None:
        async with Server({}) as server:
            end.send(server.port)
            await asyncio.sleep(3600)

    uvloop.run(main())


def names(message: int) -> list[tuple[str, str]]:
    """What one message asks for: every fifth name does not exist."""
    return [
        (f"{'gone' if n % 5 == 4 else 'n'}{n}.m{message}.test", KINDS[n % 5]) for n in range(LOOKUPS)
    ]


async def measure(port: int, messages: int) -> None:
    """Prints CPU and time a message."""
    table = Answers(64 << 20)
    resolver = Resolver([("127.0.0.1", port)], answers=table)

    async def one(message: int) -> None:
        await asyncio.gather(*(resolver.query(name, kind) for name, kind in names(message)))

    await one(-1)
    queries = 0
    for what in ("cold", "warm", "shared"):
        if what == "shared":
            queries, resolver = resolver.queries, Resolver([("127.0.0.1", port)], answers=table)
        cpu, wall = time.process_time(), time.perf_counter()
        for message in range(messages):
            await one(message)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        share = 1e6 / messages
        print(f"{what}: {cpu * share / 1000:.2f} ms CPU a message of {LOOKUPS}, {cpu * share / LOOKUPS:.1f} us a look-up, {wall * share / 1000:.2f} ms passed")
    print(f"{queries} queries sent by the first worker, {resolver.queries} by the second")


def main() -> None:
    """Starts the server, measures, ends it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        port = ours.recv()
        uvloop.run(measure(port, int(sys.argv[1]) if len(sys.argv) > 1 else 200))
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()
