"""One repetition and the middle of several: what a generator reached and what the server spent on it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iems.perf import machine

#: A figure is (median, min, max) of the repetitions.
Figure = tuple[float, float, float]


@dataclass(frozen=True)
class Options:
    """How thorough a run is. folder: whose disk is measured (None: the temporary folder's)."""

    folder: Path | None = None
    repeats: int = 3
    warmup_s: float = 1.0
    run_s: float = 3.0
    scale: float = 1.0

    @classmethod
    def quick(cls, folder: Path | None = None) -> Options:
        """One short repetition: to see that all runs, not to compare."""
        return cls(folder, 1, 0.3, 1.0, 0.1)


@dataclass
class Meter:
    """CPU, flushes and noise between the marks of a generator."""

    pids: Sequence[int]

    def __post_init__(self) -> None:
        self._at: dict[str, tuple[float, int, float]] = {}

    def mark(self, which: str) -> None:
        """Called with `start` and `end`."""
        self._at[which] = (machine.cpu_s(list(self.pids)), machine.disk_flushes(), machine.busy_cores_s())

    def spent(self) -> tuple[float, int, float]:
        """(server CPU seconds, disk flushes, CPU seconds of the whole machine) between the marks."""
        start, end = self._at["start"], self._at["end"]
        return end[0] - start[0], end[1] - start[1], end[2] - start[2]


def repetition(pids: Sequence[int], load: Callable[[Callable[[str], None]], Any]) -> dict[str, float]:
    """Run `load(on_mark)` once (a `loadgen` result comes back) and say what it reached and cost, per message.

    Raises RuntimeError if nothing got through: a rate of refusals is no rate.
    """
    meter = Meter(pids)
    result = load(meter.mark)
    done, seconds = result["done"], result["seconds"]
    if not done:
        raise RuntimeError(f"no message got through: {result['complaint'] or 'no answer'}")
    cpu, flushes, busy = meter.spent()
    latency = np.asarray(result["latency_s"])
    return {
        "per_s": done / seconds,
        "mb_per_min": result["octets"] / 1e6 * 60 / seconds,
        "cpu_us": cpu / done * 1e6,
        "server_cores": cpu / seconds,
        "machine_cores": busy / seconds,
        "flushes": flushes / done,
        "p50_ms": float(np.percentile(latency, 50)) * 1e3 if len(latency) else 0.0,
        "p99_ms": float(np.percentile(latency, 99)) * 1e3 if len(latency) else 0.0,
        "errors": float(result["errors"]),
    }


def figures(repetitions: Sequence[dict[str, float]]) -> dict[str, Figure]:
    """Median, least and greatest of each value over the repetitions."""
    return {
        key: (statistics.median(values), min(values), max(values))
        for key in repetitions[0]
        for values in [[one[key] for one in repetitions if key in one]]
    }
