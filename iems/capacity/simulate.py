"""A day played message by message, to check the closed formulas where they are least sure: near the knee.

Messages come in at random times (a Poisson process whose rate follows the day, with one peak hour) and need service at SMTPD,
LMDA and the readers. Service times are drawn around the measured means; all stages of one machine share its cores and its one disk, first
come first served. Nothing here calls `forecast`: only the site and the constants are common.
"""

from __future__ import annotations

import heapq

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from iems.capacity.constants import Constants, M
from iems.capacity.site import Site

#: More messages than this are not played one by one: the middle of the day around the peak hour is, for as long as they last.
MOST_MESSAGES = 120_000
#: Stages in the order of a message's path, and the share of a service spent on the disk rather than on a core.
STAGES = (("smtpd", 0.2), ("lmda", 0.2), ("imap", 0.5))
#: Spread of service times (coefficient of variation of a gamma distribution): sizes vary more than code.
SPREAD = 0.8


class Simulation(Struct, frozen=True, kw_only=True):
    """Outcome of one simulated day. Delays are seconds from arrival to a message's being in its mailbox."""

    messages: int
    simulated_s: float
    busy_percent: dict[str, float]
    delay_p50_s: float
    delay_p95_s: float
    delay_p99_s: float
    delay_max_s: float
    longest_queue: int
    drained_s: float


def simulate(site: Site, constants: Constants | None = None, *, seed: int = 2003, stages_apart: bool = True) -> Simulation:
    """Play a working day of `site`.

    stages_apart: each module's rate was measured with nothing else running (as the paper's were), so each is a station of its own;
    False: all stages share `site.cores` cores and one disk. Raises ValueError for a site without inbound mail or rates.
    """
    c = constants or Constants()
    if site.users * site.messages_in <= 0:
        raise ValueError("nothing to simulate: users and messages_in must be above 0")
    random = np.random.default_rng(seed)
    arrivals, length_s = _arrivals(site, c, random)
    services: list[tuple[str, NDArray[np.float64], float]] = []
    for name, disk_share in STAGES:
        rate = getattr(c, f"{name}_mb_per_min")
        if rate is None or (name != "smtpd" and not site.local_store):
            continue
        octets = float(site.size)
        if name == "imap":
            if site.client_bytes_per_day is not None:
                octets = site.client_bytes_per_day / (site.users * site.messages_in)
            octets *= site.imap_share
        if name == "lmda":
            octets /= 1 - site.mailsort_slowdown
        machines = site.relays if name == "smtpd" else site.stores
        mean = octets / (rate * M / 60) / machines
        shape = 1 / SPREAD**2
        services.append((name, random.gamma(shape, mean / shape, len(arrivals)), disk_share))
    if not services:
        raise ValueError("nothing to simulate: no module has a rate")
    done, busy, longest = (_apart if stages_apart else _together)(arrivals, services, max(1, site.cores))
    delays = done[:, min(1, done.shape[1] - 1)] - arrivals
    p50, p95, p99 = np.percentile(delays, [50, 95, 99])
    return Simulation(
        messages=len(arrivals),
        simulated_s=length_s,
        busy_percent={k: round(v / length_s * 100, 2) for k, v in busy.items()},
        delay_p50_s=float(p50),
        delay_p95_s=float(p95),
        delay_p99_s=float(p99),
        delay_max_s=float(delays.max()),
        longest_queue=longest,
        drained_s=float(max(0.0, done.max() - length_s)),
    )


def _arrivals(site: Site, c: Constants, random: np.random.Generator) -> tuple[NDArray[np.float64], float]:
    """Sorted arrival times in seconds. One hour in the middle carries `peak_hour_factor` times the mean; the rest is even."""
    hours = c.working_day_h
    total = site.users * site.messages_in * (1 + site.passthrough_share)
    mean_per_hour = total / hours
    peak = min(site.peak_hour_factor, hours) * mean_per_hour
    quiet = (total - peak) / (hours - 1) if hours > 1 else peak
    middle = hours / 2 - 0.5
    spans = [(0.0, middle, quiet), (middle, middle + 1, peak), (middle + 1, hours, quiet)] if hours > 1 else [(0.0, hours, peak)]
    if total > MOST_MESSAGES:
        # as much of the day around its peak as can be played
        half = hours / 2 * MOST_MESSAGES / total
        spans = [(max(a, hours / 2 - half), min(b, hours / 2 + half), r) for a, b, r in spans]
        spans = [(a, b, r) for a, b, r in spans if b > a]
    times = [random.uniform(a, b, random.poisson(r * (b - a))) for a, b, r in spans]
    start, end = spans[0][0], spans[-1][1]
    return np.sort(np.concatenate(times) - start) * 3600, (end - start) * 3600


def _apart(
    arrivals: NDArray[np.float64], services: list[tuple[str, NDArray[np.float64], float]], _cores: int
) -> tuple[NDArray[np.float64], dict[str, float], int]:
    """Stations one after the other, each with one server (Lindley's recursion, exact)."""
    ready = arrivals
    columns = []
    busy = {}
    longest = 0
    for name, service, _disk in services:
        order = np.argsort(ready, kind="stable")
        came, need = ready[order], service[order]
        worked = np.cumsum(need)
        left = worked + np.maximum.accumulate(came - (worked - need))
        longest = max(longest, int((np.arange(1, len(came) + 1) - np.searchsorted(left, came, "right")).max()))
        finished = np.empty_like(left)
        finished[order] = left
        columns.append(finished)
        busy[name] = float(need.sum())
        ready = finished
    return np.column_stack(columns), busy, longest


def _together(
    arrivals: NDArray[np.float64], services: list[tuple[str, NDArray[np.float64], float]], cores: int
) -> tuple[NDArray[np.float64], dict[str, float], int]:
    """All stages on one machine: each needs a core, then the disk. Cores and disk serve in the order of asking."""
    stages = len(services)
    done = np.empty((len(arrivals), stages))
    core_free = [0.0] * cores
    disk_free = 0.0
    busy = {"cpu": 0.0, "disk": 0.0}
    waiting = [(float(t), i, 0) for i, t in enumerate(arrivals)]  # sorted, so a valid heap
    in_system = longest = 0
    while waiting:
        now, message, step = heapq.heappop(waiting)
        stage, on_disk = divmod(step, 2)
        if step == 0:
            in_system += 1
            longest = max(longest, in_system)
        _name, service, disk_share = services[stage]
        need = float(service[message]) * (disk_share if on_disk else 1 - disk_share)
        if on_disk:
            disk_free = end = max(now, disk_free) + need
            busy["disk"] += need
            done[message, stage] = end
        else:
            end = max(now, core_free[0]) + need
            heapq.heapreplace(core_free, end)
            busy["cpu"] += need / cores
        if step + 1 < stages * 2:
            heapq.heappush(waiting, (end, message, step + 1))
        else:
            in_system -= 1
    return done, busy, longest
