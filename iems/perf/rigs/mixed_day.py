"""A site's working day, compressed: mail comes in, is delivered, fetched, and goes out, in the proportions of one of the paper's sites.

First each part is measured by itself, busy. Together they cost more than the sum: none gets to do as much at a time, and they drive each
other out of the caches. So the mix is offered once at a moderate rate, and what a message of it costs there, over the sum of its parts, is the
`mix_factor`. From parts and factor the capacity calculator says, by its closed formula, how many messages a second this machine
carries. Then the mix is offered at random times, at rates around that, until it is known at which the machine no longer keeps up:
more than LATE of what fell due is not done, or still queued, at the end. The load comes from the same machine, so the CPU time of
the generator counts as part of each message; what other work on the machine takes is left out of what it can carry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from msgspec import structs

from iems._native import loadgen
from iems.capacity.constants import Constants, Cost
from iems.capacity.forecast import forecast
from iems.capacity.site import Site, make, scenario
from iems.perf import machine, measure, messages, queue
from iems.perf.filled import fill
from iems.perf.home import PASSWORD, PrivateHome
from iems.perf.measure import Options, Reading
from iems.perf.rigs.relay import sink

NAME = "mixed_day"
TITLE = "The paper's sites: where the mix saturates, and where that was predicted"
SITES = ("large-office", "exchange-migration")
ACCOUNTS = 20
MESSAGES = 40
SMTP_SESSIONS = 30
IMAP_SESSIONS = 18
#: Share of the offered work that may be missing at the end of a step.
LATE = 0.05
#: Rate at which the factor is taken, as a share of what the parts alone promise; halved until the machine keeps up.
MODERATE = 0.5
#: Steps of the search for the knee; each halves what is not known.
STEPS = 6
RECIPIENTS = [b"user%d@relay.test" % i for i in range(50)]


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Each site: its parts, its steps, its knee."""
    for name in SITES[:1] if options.brief else SITES:
        yield from _site(options, name)


def _site(options: Options, name: str) -> Iterator[dict[str, Any]]:
    site = scenario(name)[0]
    with sink() as (port, sink_pid):
        settings = {
            "smtpc.resolution": "relay", "smtpc.relay_hosts": [f"127.0.0.1:{port}"], "smtpd.trusted_networks": ["127.0.0.0/8"],
        }  # fmt: skip
        with PrivateHome(ACCOUNTS, settings, folder=options.folder) as home:
            fill(home, site.size, MESSAGES)
            day = _Day(home, site, options, lambda: machine.process_cpu_s(sink_pid))
            costs = day.parts()
            cores = machine.describe(home.path)["cores"]
            constants = Constants(cores=cores, costs=costs, source="measured")
            summed = _predicted(site, constants)
            factor = day.factor(summed * MODERATE, cores / summed)
            predicted = _predicted(site, structs.replace(constants, mix_factor=factor))
            yield from day.records
            low, high = 0.0, 0.0
            rate = predicted * 0.8
            for _ in range(max(4, STEPS - 2) if options.brief else STEPS):
                reading, kept_up = day.step(rate)
                yield (
                    {"rig": NAME, "case": f"{name} at {rate:.0f}/s", "site": name, "octets": site.size, "offered_per_s": rate,
                     "kept_up": kept_up, "also": ["offered_per_s", "kept_up", "backlog"]}
                    | measure.figures([reading])
                )  # fmt: skip
                low, high = (rate, high) if kept_up else (low, rate)
                rate = (low + high) / 2 if high and low else low * 1.3 if low else high * 0.7
    beside = predicted * max(0.1, 1 - day.other_cores / cores)
    saturated = (low + high) / 2 if low and high else low or high
    yield {
        "rig": NAME,
        "case": f"{name}, the knee",
        "site": name,
        "octets": site.size,
        "summed_per_s": summed,
        "predicted_per_s": predicted,
        "predicted_beside_others_per_s": beside,
        "saturated_per_s": saturated,
        "between_per_s": [low, high],
        "error_percent": (beside / saturated - 1) * 100 if saturated else None,
        "cost_us_by_part": {module: round(cost.message_us, 1) for module, cost in costs.items()},
        "constant": "mix_factor",
        "value": round(factor, 3),
        "also": ["summed_per_s", "value", "predicted_per_s", "predicted_beside_others_per_s", "saturated_per_s", "error_percent"],
    }


def _predicted(site: Site, constants: Constants) -> float:
    """Inbound messages a second at saturation, by the calculator's closed formula."""
    one = forecast(make(structs.asdict(site) | {"cores": None}), constants).one_machine
    if one is None or one.messages_per_s is None:
        raise RuntimeError(f"nothing to predict for {site.name}")
    return one.messages_per_s


class _Day:
    """A server and the load of a site on it."""

    def __init__(self, home: PrivateHome, site: Site, options: Options, sink_s: Callable[[], float]) -> None:
        self._home = home
        self._site = site
        self._options = options
        self._sink_s = sink_s
        self._pool = messages.pool(site.size)
        self._others: list[float] = []
        self.records: list[dict[str, Any]] = []

    @property
    def other_cores(self) -> float:
        """Cores that other work took while the mix was running, in the middle."""
        return float(np.median(self._others)) if self._others else 0.0

    def _note(self, module: str, reading: Reading) -> Cost:
        site, case = self._site, f"{self._site.name}, {module} alone"
        self.records.append({"rig": NAME, "case": case, "site": site.name, "octets": site.size} | measure.figures([reading]))
        return Cost(reading["cpu_us"] + reading["client_us"], 0.0)

    def parts(self) -> dict[str, Cost]:
        """CPU time of a message at each module, the generator's included, each module busy by itself."""
        home, options = self._home, self._options
        found = {}
        home.ctl("queue", "hold", "--channel", "LOCAL")
        found["smtpd"] = self._note(
            "smtpd", measure.repetition([home], lambda mark: self._send(home.users(), 0.0, mark=mark, run_s=options.run_s))
        )
        queue.until_drained(home.path, look=queue.unrouted)
        waiting = queue.queued(home.path)

        def release() -> None:
            home.ctl("queue", "release", "--channel", "LOCAL")
            queue.drained(home)

        reading = measure.counted([home], waiting, self._site.size, release)
        found["lmda"] = self._note("lmda", reading | {"client_us": 0.0})  # the command and the looking are no part of a delivery
        found["imap"] = self._note("imap", measure.repetition([home], lambda mark: self._read(0.0, mark=mark, run_s=options.run_s)))
        if self._site.messages_out:
            home.ctl("queue", "hold", "--channel", "SMTPC")
            self._send(RECIPIENTS, 0.0, run_s=options.run_s)
            queue.until_drained(home.path, look=queue.unrouted)
            waiting = queue.queued(home.path)

            def leave() -> None:
                home.ctl("queue", "release", "--channel", "SMTPC")
                queue.drained(home)

            sunk = self._sink_s()
            reading = measure.counted([home], waiting, self._site.size, leave)
            found["smtpc"] = self._note("smtpc", reading | {"client_us": (self._sink_s() - sunk) / waiting * 1e6})
        return found

    def factor(self, rate: float, summed_s: float) -> float:
        """What a message of the mix costs at a moderate rate, over `summed_s`, the sum of its parts; at least 1."""
        for _ in range(4):
            reading, kept_up = self.step(rate)
            if kept_up:
                break
            rate /= 2
        else:
            raise RuntimeError(f"the machine does not even carry {rate:.0f} messages a second of the mix")
        case = f"{self._site.name}, {rate:.0f}/s for its cost"
        self.records.append(
            {"rig": NAME, "case": case, "site": self._site.name, "octets": self._site.size, "also": ["backlog"]}
            | measure.figures([reading])
        )
        return max(1.0, float(reading["cpu_us"] + reading["client_us"]) / 1e6 / summed_s)

    def _send(
        self, to: list[bytes], rate: float, *, run_s: float, mark: Callable[[str], None] | None = None
    ) -> loadgen.Load:
        return loadgen.smtp(
            self._home.port("smtp"), self._pool, to, b"sender@load.test", sessions=SMTP_SESSIONS, rate=rate, first_id=time.time_ns(),
            warmup_s=0.3, run_s=run_s, on_mark=mark,
        )  # fmt: skip

    def _read(self, rate: float, *, run_s: float, mark: Callable[[str], None] | None = None) -> loadgen.Load:
        return loadgen.fetch(
            self._home.port("imap"), self._home.users(), PASSWORD.encode(), b"FETCH %ld BODY.PEEK[]", 1, MESSAGES,
            sessions=IMAP_SESSIONS, shuffle=True, seed=time.time_ns() % 2**32, rate=rate, warmup_s=0.3, run_s=run_s, on_mark=mark,
        )  # fmt: skip

    def step(self, rate: float) -> tuple[Reading, bool]:
        """Offer `rate` inbound messages a second and what goes with them; whether the machine kept up."""
        site, home = self._site, self._home
        run_s = max(1.5, self._options.run_s)
        meter = measure.Meter([home], self._sink_s)
        flows: dict[str, tuple[float, Callable[[], loadgen.Load]]] = {
            "in": (rate, lambda: self._send(home.users(), rate, run_s=run_s, mark=meter.mark))
        }
        fetched = 1.0 if site.client_bytes_per_day is None else site.client_bytes_per_day / (site.users * site.messages_in * site.size)
        reads = rate * fetched * site.imap_share
        if reads:
            flows["read"] = (reads, lambda: self._read(reads, run_s=run_s))
        leaving = rate * site.messages_out / site.messages_in
        if leaving:
            flows["out"] = (leaving, lambda: self._send(RECIPIENTS, leaving, run_s=run_s))
        results: dict[str, loadgen.Load] = {}

        def go(name: str, load: Callable[[], loadgen.Load]) -> None:
            results[name] = load()

        threads = [threading.Thread(target=go, args=(name, load)) for name, (_, load) in flows.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        backlog = queue.queued(home.path)
        queue.drained(home)
        if len(results) < len(flows):
            raise RuntimeError("a generator failed")
        if problems := [result["complaint"] for result in results.values() if result["errors"]]:
            raise RuntimeError(f"the mix: {problems[0]}")
        done = min(results[name]["done"] / (offered * results[name]["seconds"]) for name, (offered, _) in flows.items())
        late = max(results[name]["waiting"] / (offered * run_s) for name, (offered, _) in flows.items())
        queued = backlog / ((rate + leaving) * run_s)
        arrived = results["in"]
        reading = (
            measure.rates(arrived["done"], arrived["octets"], arrived["seconds"])
            | meter.spent(max(1, arrived["done"]))
            | measure.latencies(arrived["latency_s"])
            | {"backlog": float(backlog), "done_share": done}
        )
        self._others.append(reading["other_cores"])
        # Poisson arrivals scatter: a step of a few hundred messages may fall short by chance
        slack = LATE + 2 / max(1.0, rate * run_s) ** 0.5
        return reading, done >= 1 - slack and late <= LATE and queued <= LATE
