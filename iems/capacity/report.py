"""A forecast as a table for the terminal and as one HTML page that opens without network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from msgspec import structs

from iems import plot
from iems.capacity.constants import Constants
from iems.capacity.forecast import Forecast, forecast
from iems.capacity.simulate import Simulation
from iems.capacity.site import Site, make

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"))


def octets_text(count: float) -> str:
    """Octets in the largest decimal unit that leaves a whole part: `37.5 GB`."""
    for size, unit in _UNITS:
        if abs(count) >= size:
            return f"{count / size:,.1f}".removesuffix(".0") + f" {unit}"
    return f"{count:,.0f} B"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.1f} %"


def rows(result: Forecast) -> list[tuple[str, str]]:
    """Name and value of each line of the summary."""
    answer = [
        ("users (active)", f"{result.users:,} ({result.active:,})"),
        ("mail in a day", f"{octets_text(result.inbound_bytes_per_day)}, {result.inbound_messages_per_day:,.0f} messages"),
        ("mail out a day", octets_text(result.outbound_bytes_per_day)),
        ("fetched by clients a day", octets_text(result.client_bytes_per_day)),
        ("peak hour", f"{result.peak_mb_per_min:,.1f} MB/min"),
        ("message store", octets_text(result.store_bytes)),
        ("Bayesian databases", octets_text(result.bayes_bytes)),
        ("queues (2 to 4 times)", f"{octets_text(result.queue_bytes_low)} to {octets_text(result.queue_bytes)}"),
        ("logs", octets_text(result.log_bytes)),
        ("memory for connections", octets_text(result.memory_connections_bytes)),
        ("memory with its margin", octets_text(result.memory_total_bytes)),
        ("processes, descriptors", f"{result.processes}, {result.descriptors:,} (limit here {result.descriptors_limit:,})"),
        ("workers", ", ".join(f"{role} {count}" for role, count in result.workers.items())),
        ("relays, stores", f"{result.relays_needed}, {result.stores_needed}"),
        ("first bottleneck", result.first_bottleneck or "none known"),
    ]
    if result.users_at_saturation is not None:
        answer.append(("users it carries", f"{result.users_comfortable:,} in comfort, {result.users_at_saturation:,} at most"))
    one = result.one_machine
    if one is not None:
        answer.append(
            (f"on one machine, {one.cores} core{'s' * (one.cores > 1)}",
             f"CPU {one.cpu_percent:,.1f} % of the day's mean, {one.peak_percent:,.1f} % in the peak hour, {one.cpu_s_per_message * 1e3:,.2f} ms"
             f" a message")
        )  # fmt: skip
        if one.users_carried is not None:
            others = {"in the peak hour": one.users_in_peak, "by memory": one.users_by_memory, "by descriptors": one.users_by_descriptors}
            told = ", ".join(f"{users:,} {what}" for what, users in others.items() if users is not None)
            answer.append(("users it carries alone", f"{one.users_carried:,}: {one.limited_by} ends first ({told})"))
    return answer


def table(result: Forecast, disagreements: Sequence[dict[str, Any]], hardware: str | None) -> str:
    """The forecast as text."""
    lines = [f"{result.title}  (rates: {result.source})", ""]
    lines += [f"  {name:<26}{value}" for name, value in rows(result)]
    lines += ["", f"  {'module':<16}{'MB/day':>12}{'MB/min':>10}{'rate':>10}{'load':>10}{'peak':>10}"]
    for name, load in result.modules.items():
        rate = "" if load.rate_mb_per_min is None else f"{load.rate_mb_per_min:,.0f}"
        lines.append(
            f"  {name:<16}{load.bytes_per_day / 1e6:>12,.1f}{load.mb_per_min:>10,.2f}{rate:>10}"
            f"{_percent(load.load_percent):>10}{_percent(load.peak_percent):>10}" + (f"  {load.note}" if load.note else "")
        )
    for step in result.split:
        lines.append(f"  move to its own machine: {step['part']} ({step['why']})")
    lines += [f"  warning: {warning}" for warning in result.warnings]
    if hardware:
        lines += ["", f"  the paper's hardware: {hardware}"]
    lines += [f"  the paper says {row['figure']} {row['paper']:,}, we get {row['ours']:,}: {row['why']}" for row in disagreements]
    return "\n".join(lines)


def vary(site: Site, field: str, values: Sequence[float], constants: Constants | None = None) -> list[tuple[float, Forecast]]:
    """Forecasts of the site with one field set to each value. Raises SiteError where a value can't be."""
    base = structs.asdict(site)
    return [(value, forecast(make(base | {field: value}), constants)) for value in values]


def charts(
    result: Forecast, curve: Sequence[tuple[float, Forecast]], field: str, days: Sequence[tuple[float, Simulation]] = ()
) -> dict[str, str]:
    """The pictures by name: `load` of each module, load against the varied `field`, and, of days around the knee, `delay`."""
    known = [(n, m.load_percent, m.peak_percent or 0.0) for n, m in result.modules.items() if m.load_percent is not None]
    found = {
        "load": plot.bars(
            [(name, load, f"{load:.1f} % (peak {peak:.0f} %)") for name, load, peak in known],
            title="Load of each module, percent of its rate; pale: peak hour",
            behind=[peak for _, _, peak in known],
            limit=100.0,
            colours=[_RED if load > 100 else _AMBER if load > 70 else _GREEN for _, load, _ in known],
        )
    }
    if curve:
        names = [n for n in curve[0][1].modules if any(f.modules[n].load_percent for _, f in curve)]
        series = {n: [(x, min(f.modules[n].load_percent or 0.0, _MOST)) for x, f in curve] for n in names}
        if any(f.one_machine for _, f in curve):
            series["all on one machine (CPU)"] = [
                (x, min(f.one_machine.cpu_percent, _MOST)) for x, f in curve if f.one_machine is not None
            ]
        found["against"] = plot.lines(series, title=f"Load against {field}", x=field, y="percent", limit=100.0)
    if days:
        found["delay"] = plot.lines(
            {
                "p50": [(share * 100, day.delay_p50_s * 1e3) for share, day in days],
                "p95": [(share * 100, day.delay_p95_s * 1e3) for share, day in days],
                "p99": [(share * 100, day.delay_p99_s * 1e3) for share, day in days],
            },
            title="From arrival to mailbox in a simulated day, by share of the users at saturation",
            x="percent of the users at saturation",
            y="milliseconds",
            log_y=True,
        )
    return found


def page(
    result: Forecast,
    disagreements: Sequence[dict[str, Any]],
    curve: Sequence[tuple[float, Forecast]],
    field: str,
    hardware: str | None = None,
    days: Sequence[tuple[float, Simulation]] = (),
) -> str:
    """One HTML page: the summary, a bar for each module, load against `field`, delays around the knee; all drawn in place."""
    summary = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(v)}</td></tr>" for n, v in rows(result))
    notes = "".join(f"<li>{html.escape(w)}</li>" for w in result.warnings)
    notes += "".join(f"<li>move to its own machine: {html.escape(s['part'])}: {html.escape(s['why'])}</li>" for s in result.split)
    notes += "".join(
        f"<li>the paper says {html.escape(r['figure'])} {r['paper']:,}, we get {r['ours']:,}: {html.escape(str(r['why']))}</li>"
        for r in disagreements
    )
    if hardware:
        notes += f"<li>the paper's hardware: {html.escape(hardware)}</li>"
    drawn = "".join(charts(result, curve, field, days).values())
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Capacity: {html.escape(result.title)}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}}
th{{text-align:left;font-weight:600;padding-right:2em}}td,th{{padding:.15em .6em .15em 0}}svg{{width:100%;height:auto;margin:1em 0}}</style>
<h1>{html.escape(result.title)}</h1><p>Rates: {html.escape(result.source)}. Load is the mean of the working day.</p>
<table>{summary}</table>{drawn}<h2>Notes</h2><ul>{notes or "<li>none</li>"}</ul></html>
"""


_GREEN, _AMBER, _RED = "#1b7f5c", "#b26a00", "#b3261e"
#: A load beyond this is drawn at this: what matters is below.
_MOST = 400.0
