"""Measurements, one a file. A rig has `NAME`, `TITLE`, and one of two forms:

- `cases(options)` and `side(options, case, who)`: a started server in a `with` block that gives a function making one repetition. `who` is
  "iems" or a key of the rig's `PEERS`, whose values are the programs that side needs; sides take turns, repetition by repetition.
- `run(options)`: yields the records itself.

A record holds `rig`, `case`, what the case was (`octets`, `sessions`), and figures (median, min, max). Where it is the rate of a module
of the capacity calculator, `module` and `mb_per_min` stand beside them. A peer's record has `peer`; a comparison `versus` and `ratios`.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from iems.perf import measure
from iems.perf.measure import Case, Options, Reading

#: In the order of a message's path; then what holds while much else goes on, then cost as work grows.
NAMES = (
    "smtp_accept",
    "smtp_checked",
    "local_delivery",
    "filtered_delivery",
    "end_to_end",
    "relay",
    "imap_fetch",
    "imap_list",
    "pop3_retr",
    "imap_search",
    "imap_resync",
    "imap_login",
    "memory",
    "idle",
    "mixed_day",
    "slow_drip",
    "deferred",
    "restart",
    "rebuild",
    "mime",
    "grow_queue",
    "grow_mailbox",
    "grow_mailboxes",
    "grow_connections",
)
#: Figures that are better when smaller; of the others more is better.
SMALLER_IS_BETTER = frozenset({"cpu_us", "first_cpu_us", "p50_ms", "p99_ms", "visible_p50_ms", "visible_p99_ms", "octets_each"})
#: Figures of which a comparison gives ratios, ours better above 1.
COMPARED = ("per_s", "cpu_us", "first_cpu_us", "p50_ms", "p99_ms", "visible_p50_ms", "octets_each")


def rig(name: str) -> ModuleType:
    """The module of a rig. Raises KeyError for an unknown name."""
    if name not in NAMES:
        raise KeyError(name)
    return importlib.import_module(f"iems.perf.rigs.{name}")


def run(module: ModuleType, options: Options) -> Iterator[dict[str, Any]]:
    """The records of a rig: ours, then each peer's and the ratios, case by case."""
    if not hasattr(module, "side"):
        yield from module.run(options)
        return
    playing = [who for who, needs in getattr(module, "PEERS", {}).items() if options.peers and set(needs) <= set(options.peers)]
    for case in module.cases(options):
        yield from beside(module, case, options, playing)


def beside(module: ModuleType, case: Case, options: Options, peers: list[str]) -> Iterator[dict[str, Any]]:
    """One case of ours and of peers in turn. A peer that fails gives a record with `failed` and drops out; we may not fail."""
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        sides: dict[str, Callable[[], Reading]] = {"iems": stack.enter_context(module.side(options, case, "iems"))}
        for who in peers:
            try:
                sides[who] = stack.enter_context(module.side(options, case, who))
            except (RuntimeError, OSError, TimeoutError) as error:
                failed[who] = f"{type(error).__name__}: {error}"
        readings: dict[str, list[Reading]] = {who: [] for who in sides}
        for number in range(options.repeats):
            # whoever was second goes first, so that neither always finds what the other left
            for who in sorted(sides, reverse=bool(number % 2)):
                if who in failed:
                    continue
                try:
                    readings[who].append(sides[who]())
                except (RuntimeError, OSError, TimeoutError) as error:
                    if who == "iems":
                        raise
                    failed[who] = f"{type(error).__name__}: {error}"
    named = {"rig": module.NAME, "case": case.name} | case.values
    yield named | measure.figures(readings["iems"]) | ({"module": case.module} if case.module else {})
    for who in peers:
        if who in failed:
            yield {"rig": module.NAME, "case": case.name, "peer": who, "failed": failed[who]}
        else:
            yield named | {"peer": who} | measure.figures(readings[who])
            yield named | {"versus": who, "ratios": ratios(readings["iems"], readings[who])}


def ratios(ours: list[Reading], theirs: list[Reading]) -> dict[str, measure.Figure]:
    """Ours against theirs, pair by pair (median, least, greatest); above 1 ours is better, whatever the figure."""
    found = {}
    for key in COMPARED:
        pairs = [(a[key], b[key]) for a, b in zip(ours, theirs, strict=True) if key in a and key in b]
        if pairs and all(a > 0 and b > 0 for a, b in pairs):
            values = [{"ratio": b / a if key in SMALLER_IS_BETTER else a / b} for a, b in pairs]
            found[key] = measure.figures(values)["ratio"]
    return found
