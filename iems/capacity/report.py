"""A forecast as a table for the terminal and as one HTML page that opens without network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from msgspec import structs

from iems.capacity.constants import Constants
from iems.capacity.forecast import Forecast, forecast
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


def page(
    result: Forecast,
    disagreements: Sequence[dict[str, Any]],
    curve: Sequence[tuple[float, Forecast]],
    field: str,
    hardware: str | None = None,
) -> str:
    """One HTML page: the summary, a bar for each module, and load against `field`, drawn in place."""
    summary = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(v)}</td></tr>" for n, v in rows(result))
    notes = "".join(f"<li>{html.escape(w)}</li>" for w in result.warnings)
    notes += "".join(f"<li>move to its own machine: {html.escape(s['part'])}: {html.escape(s['why'])}</li>" for s in result.split)
    notes += "".join(
        f"<li>the paper says {html.escape(r['figure'])} {r['paper']:,}, we get {r['ours']:,}: {html.escape(str(r['why']))}</li>"
        for r in disagreements
    )
    if hardware:
        notes += f"<li>the paper's hardware: {html.escape(hardware)}</li>"
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Capacity: {html.escape(result.title)}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}}
th{{text-align:left;font-weight:600;padding-right:2em}}td,th{{padding:.15em .6em .15em 0}}svg{{width:100%;height:auto}}
text{{font:12px system-ui,sans-serif;fill:#333}}</style>
<h1>{html.escape(result.title)}</h1><p>Rates: {html.escape(result.source)}. Load is the mean of the working day.</p>
<table>{summary}</table><h2>Load of each module</h2>{_bars(result)}
<h2>Load against {html.escape(field)}</h2>{_curve(curve, field)}<h2>Notes</h2><ul>{notes or "<li>none</li>"}</ul></html>
"""


def _bars(result: Forecast) -> str:
    known = [(n, m.load_percent, m.peak_percent or 0) for n, m in result.modules.items() if m.load_percent is not None]
    if not known:
        return "<p>No module has a known rate.</p>"
    top = max(100.0, *(peak for _, _, peak in known))
    scale = 560 / top
    parts = [f'<svg viewBox="0 0 800 {len(known) * 30 + 30}" role="img" aria-label="load of each module in percent">']
    for row, (name, load, peak) in enumerate(known):
        y = row * 30 + 8
        colour = "#b3261e" if load > 100 else "#b26a00" if load > 70 else "#2e6f40"
        parts.append(
            f'<text x="0" y="{y + 13}">{name}</text><rect x="130" y="{y}" width="{peak * scale:.1f}" height="18" fill="#ddd"/>'
            f'<rect x="130" y="{y}" width="{load * scale:.1f}" height="18" fill="{colour}"/>'
            f'<text x="{138 + max(peak, load) * scale:.1f}" y="{y + 13}">{load:.1f} % (peak {peak:.0f} %)</text>'
        )
    x = 130 + 100 * scale
    parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{len(known) * 30 + 8}" stroke="#b3261e" stroke-dasharray="4 3"/></svg>')
    return "".join(parts)


_COLOURS = ("#2b5fab", "#b3261e", "#2e6f40", "#8a4fb5", "#b26a00", "#00798c", "#555")


def _curve(curve: Sequence[tuple[float, Forecast]], field: str) -> str:
    names = [n for n in curve[0][1].modules if any(f.modules[n].load_percent for _, f in curve)] if curve else []
    if not names:
        return "<p>Nothing to draw: no module has a known rate and a load.</p>"
    xs = [x for x, _ in curve]
    low, high = min(xs), max(xs)
    top = min(400.0, max(120.0, *((f.modules[n].load_percent or 0) for _, f in curve for n in names)))

    def at(x: float, y: float) -> str:
        return f"{60 + (x - low) / ((high - low) or 1) * 600:.1f},{310 - min(y, top) / top * 290:.1f}"

    parts = ['<svg viewBox="0 0 800 350" role="img" aria-label="load against the varied field">']
    for level in range(0, int(top) + 1, 50 if top > 150 else 20):
        y = 310 - level / top * 290
        parts.append(f'<line x1="60" x2="660" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/><text x="12" y="{y + 4:.1f}">{level} %</text>')
    limit = at(low, 100), at(high, 100)
    parts.append(f'<polyline points="{limit[0]} {limit[1]}" stroke="#b3261e" stroke-dasharray="4 3" fill="none"/>')
    for number, name in enumerate(names):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(at(x, f.modules[name].load_percent or 0) for x, f in curve)
        parts.append(f'<polyline points="{points}" stroke="{colour}" stroke-width="2" fill="none"/>')
        parts.append(f'<text x="675" y="{30 + number * 18}" style="fill:{colour}">{name}</text>')
    parts.append(
        f'<text x="60" y="335">{low:,g}</text><text x="640" y="335">{high:,g}</text><text x="330" y="335">{html.escape(field)}</text></svg>'
    )
    return "".join(parts)
