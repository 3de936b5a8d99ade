"""One repetition and the middle of several: what a generator reached and what the server spent on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from iems.perf import machine

#: A figure is (median, min, max) of the repetitions.
Figure = tuple[float, float, float]
#: What one repetition says: figures by name, and the parts `figures` knows how to gather: `latency_s` (array), `cpu_us_by_role` (by name).
Reading = dict[str, Any]
#: Points of the latency distribution that a record keeps, in percent.
PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)


@dataclass(frozen=True)
class Options:
    """How thorough a run is.

    folder: whose disk is measured (None: the temporary folder's). repeats, warmup_s, run_s: repetitions and their length. scale: on
    counts and sizes of what a rig fills or sends. growth: on the largest queue, mailbox, number of mailboxes or connections. brief: only
    the cases that matter most. peers: name -> program (None: the one on the path) of peers to run beside IEMS.
    """

    folder: Path | None = None
    repeats: int = 3
    warmup_s: float = 1.0
    run_s: float = 3.0
    scale: float = 1.0
    growth: float = 1.0
    brief: bool = False
    peers: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def quick(cls, folder: Path | None = None) -> Options:
        """One short repetition of the cases that matter most: to see that all runs, not to compare."""
        return cls(folder, 1, 0.2, 0.6, 0.1, 0.1, True)

    @classmethod
    def full(cls, folder: Path | None = None) -> Options:
        """Five long repetitions, and growth up to a million messages."""
        return cls(folder, 5, 2.0, 6.0, growth=10.0)

    def steps(self, top: int, count: int = 3) -> list[int]:
        """Sizes up to `top` at this growth, each ten times the one before."""
        largest = max(10, round(top * self.growth))
        return sorted({max(10, largest // 10**n) for n in range(count)})

    def count(self, full: int, least: int = 1) -> int:
        """`full` at this scale."""
        return max(least, round(full * self.scale))


@dataclass(frozen=True)
class Case:
    """One line of a rig's table. values: what the case is, as its record says it. module: whose rate it is, for the calculator."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    module: str | None = None

    def __getitem__(self, key: str) -> Any:
        return self.values[key]


class Server(Protocol):
    """What rigs ask of a private server, ours or a peer's."""

    def port(self, name: str) -> int:
        """Of a listener."""
    def users(self) -> list[bytes]:
        """The addresses."""
    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far."""
    def cpu_by_role(self) -> dict[str, float]:
        """The same by role; empty where it can't be told."""
    def waiting(self) -> int:
        """Messages it still has to do something with."""


@dataclass
class Meter:
    """CPU, flushes and noise between two marks. own_s: CPU seconds of ours to take for load rather than noise, such as a sink's."""

    servers: Sequence[Server]
    own_s: Callable[[], float] = lambda: 0.0
    _at: dict[str, tuple[float, float, int, float, float, dict[str, float], int | None]] = field(default_factory=dict)

    def mark(self, which: str) -> None:
        """Called with `start` and `end`."""
        roles: dict[str, float] = {}
        for server in self.servers:
            for role, seconds in server.cpu_by_role().items():
                roles[role] = roles.get(role, 0.0) + seconds
        cpu = sum(server.cpu_s() for server in self.servers)
        own = time.process_time() + self.own_s()
        told = [server.flushes() for server in self.servers if hasattr(server, "flushes")]
        flushes = sum(told) if told else None
        self._at[which] = (time.monotonic(), cpu, machine.disk_flushes(), machine.busy_cores_s(), own, roles, flushes)

    def spent(self, messages: int) -> Reading:
        """CPU, flushes, noise per message between the marks.

        `flushes` are the disks', whoever asked for them; `own_flushes` the server's, where it tells.
        """
        began, ended = self._at["start"], self._at["end"]
        seconds, cpu, flushes, busy, own = (b - a for a, b in zip(began[:5], ended[:5], strict=True))
        seconds = max(seconds, 1e-9)
        roles = {role: max(0.0, value - began[5].get(role, 0.0)) for role, value in ended[5].items()}
        if (gone := cpu - sum(roles.values())) > cpu * 0.02:
            roles["ended processes"] = gone
        return {
            "cpu_us": cpu / messages * 1e6,
            "client_us": own / messages * 1e6,
            "server_cores": cpu / seconds,
            "other_cores": max(0.0, (busy - cpu - own) / seconds),
            "flushes": flushes / messages,
            "cpu_us_by_role": {role: value / messages * 1e6 for role, value in roles.items()},
        } | ({} if began[6] is None or ended[6] is None else {"own_flushes": (ended[6] - began[6]) / messages})


def repetition(servers: Sequence[Server], load: Callable[[Callable[[str], None]], Any]) -> Reading:
    """Run `load(on_mark)` once (a `loadgen` result comes back) and say what it reached and cost, per message.

    Raises RuntimeError if nothing got through: a rate of refusals is no rate.
    """
    meter = Meter(servers)
    result = load(meter.mark)
    done, seconds = result["done"], result["seconds"]
    if not done:
        raise RuntimeError(f"no message got through: {result['complaint'] or 'no answer'}")
    return rates(done, result["octets"], seconds) | meter.spent(done) | latencies(result["latency_s"]) | {"errors": float(result["errors"])}


def counted(servers: Sequence[Server], count: int, octets: float, work: Callable[[], Any], own_s: Callable[[], float] = lambda: 0.0) -> Reading:
    """Do `work` (all of `count` messages of `octets`) and say how fast it was and what it cost, per message."""
    meter = Meter(servers, own_s)
    meter.mark("start")
    begun = time.monotonic()
    work()
    seconds = time.monotonic() - begun
    meter.mark("end")
    return rates(count, count * octets, seconds) | meter.spent(count)


def rates(done: int, octets: float, seconds: float) -> Reading:
    """Messages a second and 10^6 octets a minute."""
    return {"per_s": done / seconds, "mb_per_min": octets / 1e6 * 60 / seconds}


def latencies(seconds: Sequence[float]) -> Reading:
    """p50, p99 in ms and the samples themselves; nothing if there are none."""
    samples = np.asarray(seconds, dtype=np.float64)
    if not len(samples):
        return {}
    return {"p50_ms": percentile_ms(samples, 50), "p99_ms": percentile_ms(samples, 99), "latency_s": samples}


def percentile_ms(seconds: Any, percent: float) -> float:
    """A percentile of samples in seconds, in milliseconds."""
    return float(np.percentile(seconds, percent)) * 1e3


def figures(repetitions: Sequence[Reading]) -> dict[str, Any]:
    """Median, least and greatest of each value over the repetitions.

    Samples of latency become `latency_ms`, the pooled values at PERCENTILES; CPU by role the median of each role.
    """
    gathered: dict[str, Any] = {}
    for key, first in repetitions[0].items():
        values = [one[key] for one in repetitions if key in one]
        if key == "latency_s":
            pooled = np.percentile(np.concatenate(values), PERCENTILES) * 1e3
            gathered["latency_ms"] = [round(float(value), 4) for value in pooled]
        elif isinstance(first, dict):
            names = {name for value in values for name in value}
            gathered[key] = {
                name: round(statistics.median(value.get(name, 0.0) for value in values), 3) for name in sorted(names)
            }
        else:
            gathered[key] = (statistics.median(values), min(values), max(values))
    return gathered
