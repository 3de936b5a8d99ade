"""A day played message by message, to check the closed formulas where they are least sure: near the knee.

Messages come in at random times (a Poisson process whose rate follows the day, with one peak hour) and need service at SMTPD, LMDA
and the readers; outbound ones at SMTPD and SMTPC. With the paper's rates each module is a station of its own and service times
are drawn around the mean that its rate gives. Where CPU time was measured on the machine (`Constants.costs`), sizes are drawn, each
message takes the CPU time that its size was measured to take, and all share the machine's cores and its one disk, first come first
served. Nothing here calls `forecast`: only the site and the constants are common.
"""

from __future__ import annotations

import heapq

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from iems.capacity.constants import Constants, Cost, M
from iems.capacity.site import Site, make

#: More messages than this are not played one by one: the middle of the day around the peak hour is, for as long as they last.
MOST_MESSAGES = 60_000
#: Stages in the order of a message's path, and the share of a service spent on the disk where only a rate is known.
STAGES = (("smtpd", 0.2), ("lmda", 0.2), ("imap", 0.5))
#: The same for each of the days around a knee.
MOST_AROUND = 12_000
#: Spread of sizes and service times (coefficient of variation of a gamma distribution): sizes vary more than code.
SPREAD = 0.8
#: Spread of the CPU time of messages of one size.
CODE_SPREAD = 0.3
#: Shares of the load at saturation at which a knee is looked at.
AROUND = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.1)

_Floats = NDArray[np.float64]


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


def simulate(
    site: Site, constants: Constants | None = None, *, seed: int = 2003, stages_apart: bool | None = None, most: int = MOST_MESSAGES
) -> Simulation:
    """Play a working day of `site`; of a day with more than `most` messages, as much as they last.

    stages_apart: each module's rate was measured with nothing else running (as the paper's were), so each is a station of its own;
    False: all stages share the cores and one disk. By default apart unless CPU time was measured. Raises ValueError for a site
    without mail or rates.
    """
    c = constants or Constants()
    if site.users * (site.messages_in + site.messages_out) <= 0:
        raise ValueError("nothing to simulate: users and messages_in or messages_out must be above 0")
    random = np.random.default_rng(seed)
    if c.costs and stages_apart is not True:
        arrivals, outbound, length_s = _arrivals(site, c, random, site.messages_out, most)
        cpu, disk = _measured(site, c, random, outbound)
        done, busy, longest = _together(arrivals, cpu, disk, site.cores or c.cores)
        delivered = 1 if site.local_store else cpu.shape[1] - 1
        finished = np.where(outbound, done[:, -1], done[:, delivered])
    else:
        if site.messages_in <= 0:
            raise ValueError("nothing to simulate: no CPU time was measured, and messages_in is 0")
        arrivals, _, length_s = _arrivals(site, c, random, 0.0, most)
        services = _rated(site, c, random, len(arrivals))
        if not services:
            raise ValueError("nothing to simulate: no module has a rate")
        if stages_apart is False:
            need = np.column_stack([service for _, service, _ in services])
            share = np.array([on_disk for _, _, on_disk in services])
            done, busy, longest = _together(arrivals, need * (1 - share), need * share, site.cores or c.cores)
        else:
            done, busy, longest = _apart(arrivals, [(name, service) for name, service, _ in services])
        finished = done[:, min(1, done.shape[1] - 1)]
    delays = finished - arrivals
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


def around(site: Site, users: int, constants: Constants | None = None, *, seed: int = 2003) -> list[tuple[float, Simulation]]:
    """Days of the same site with shares (AROUND) of `users`, evenly loaded: what comes of a predicted knee.

    users: at which a module or the machine is said to be used up. Raises ValueError as `simulate` does.
    """
    base = structs.asdict(site) | {"active": None, "peak_hour_factor": 1.0}
    days = []
    for share in AROUND:
        played = max(1, round(users * share))
        if played * (site.messages_in + site.messages_out):
            days.append((share, simulate(make(base | {"users": played}), constants, seed=seed, most=MOST_AROUND)))
    return days


def _gamma(random: np.random.Generator, mean: float, spread: float, count: int) -> _Floats:
    shape = 1 / spread**2
    return random.gamma(shape, mean / shape, count)


def _rated(site: Site, c: Constants, random: np.random.Generator, count: int) -> list[tuple[str, _Floats, float]]:
    """(stage, service times, share on the disk) from the modules' rates."""
    services: list[tuple[str, _Floats, float]] = []
    for name, disk_share in STAGES:
        rate = getattr(c, f"{name}_mb_per_min")
        if rate is None or (name != "smtpd" and not site.local_store):
            continue
        octets = float(site.size)
        if name == "imap":
            octets *= _fetched(site) * site.imap_share
        if name == "lmda":
            octets /= 1 - site.mailsort_slowdown
        machines = site.relays if name == "smtpd" else site.stores
        services.append((name, _gamma(random, octets / (rate * M / 60) / machines, SPREAD, count), disk_share))
    return services


def _fetched(site: Site) -> float:
    """How often a message that came in is fetched, on average."""
    if site.client_bytes_per_day is None or not site.messages_in:
        return 1.0
    return site.client_bytes_per_day / (site.users * site.messages_in * site.size)


def _measured(site: Site, c: Constants, random: np.random.Generator, outbound: NDArray[np.bool_]) -> tuple[_Floats, _Floats]:
    """CPU and disk seconds of each message at each stage (smtpd, lmda, readers, smtpc); 0 where it doesn't pass."""
    count = len(outbound)
    sizes = _gamma(random, float(site.size), SPREAD, count)

    def cpu(module: str, share: float) -> _Floats:
        cost: Cost | None = c.costs.get(module)
        if cost is None or not share:
            return np.zeros(count)
        return (cost.message_us + cost.mb_us * sizes / M) / 1e6 * share * _gamma(random, 1.0, CODE_SPREAD, count)

    inward = ~outbound
    entering = cpu("smtpd", 1.0) * np.where(outbound, site.outbound_by_smtpd, 1.0)
    filed = cpu("lmda", 1.0 / (1 - site.mailsort_slowdown)) * inward if site.local_store else np.zeros(count)
    shares = (("imap", site.imap_share), ("pop3", site.pop3_share), ("web", site.web_share))
    read = sum(cpu(name, share) for name, share in shares) * _fetched(site) * inward if site.local_store else np.zeros(count)
    leaving = cpu("smtpc", 1.0) * (outbound if site.local_store else 1.0)
    columns = np.column_stack([entering, filed, read, leaving])
    if np.count_nonzero(columns.any(axis=0)) > 1:
        columns *= c.mix_factor
    disk = np.zeros_like(columns)
    if c.disk_mb_per_min:
        disk[:, 0] = sizes / (c.disk_mb_per_min * M / 60)  # content is written once, where it comes in
    return columns, disk


def _arrivals(
    site: Site, c: Constants, random: np.random.Generator, messages_out: float, most: int
) -> tuple[_Floats, NDArray[np.bool_], float]:
    """Sorted arrival times in seconds, which of them are outbound, and how long all is.

    One hour in the middle carries `peak_hour_factor` times the mean; the rest is even.
    """
    hours = c.working_day_h
    inbound = site.users * site.messages_in * (1 + site.passthrough_share)
    total = inbound + site.users * messages_out
    mean_per_hour = total / hours
    peak = min(site.peak_hour_factor, hours) * mean_per_hour
    quiet = (total - peak) / (hours - 1) if hours > 1 else peak
    middle = hours / 2 - 0.5
    spans = [(0.0, middle, quiet), (middle, middle + 1, peak), (middle + 1, hours, quiet)] if hours > 1 else [(0.0, hours, peak)]
    if total > most:
        # as much of the day around its peak as can be played
        half = hours / 2 * most / total
        spans = [(max(a, hours / 2 - half), min(b, hours / 2 + half), r) for a, b, r in spans]
        spans = [(a, b, r) for a, b, r in spans if b > a]
    times = [random.uniform(a, b, random.poisson(r * (b - a))) for a, b, r in spans]
    start, end = spans[0][0], spans[-1][1]
    arrivals = np.sort(np.concatenate(times) - start) * 3600
    if not len(arrivals):
        arrivals = np.array([0.0])  # a day of less than a message
    return arrivals, random.random(len(arrivals)) >= inbound / total, (end - start) * 3600


def _apart(arrivals: _Floats, services: list[tuple[str, _Floats]]) -> tuple[_Floats, dict[str, float], int]:
    """Stations one after the other, each with one server (Lindley's recursion, exact)."""
    ready = arrivals
    columns = []
    busy = {}
    longest = 0
    for name, service in services:
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


def _together(arrivals: _Floats, cpu: _Floats, disk: _Floats, cores: int) -> tuple[_Floats, dict[str, float], int]:
    """All stages on one machine: each needs a core, then the disk. Cores and disk serve in the order of asking."""
    stages = cpu.shape[1]
    done = np.empty(cpu.shape)
    core_free = [0.0] * max(1, cores)
    disk_free = 0.0
    needs = np.stack([cpu, disk], axis=2).reshape(len(arrivals), stages * 2).tolist()
    waiting = [(float(t), i, 0) for i, t in enumerate(arrivals)]  # sorted, so a valid heap
    in_system = longest = 0
    steps = stages * 2
    while waiting:
        now, message, step = heapq.heappop(waiting)
        if step == 0:
            in_system += 1
            longest = max(longest, in_system)
        need = needs[message][step]
        if not need:
            end = now
        elif step & 1:
            disk_free = end = max(now, disk_free) + need
        else:
            end = max(now, core_free[0]) + need
            heapq.heapreplace(core_free, end)
        if step & 1:
            done[message, step >> 1] = end
        step += 1
        if step < steps:
            heapq.heappush(waiting, (end, message, step))
        else:
            in_system -= 1
    return done, {"cpu": float(cpu.sum()) / max(1, cores), "disk": float(disk.sum())}, longest
