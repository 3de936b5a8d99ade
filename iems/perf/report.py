"""A run as one HTML page: pictures drawn in place and the table; opens without network. `charts` gives the pictures alone."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from iems import plot
from iems.perf import measure, rigs, suite

Record = dict[str, Any]

#: A repetition beside more than this of other work, in cores, is one to be read with care.
NOISY_CORES = 0.5
#: What a growth rig's cases grow in, and its figures with their titles.
_GROWTH = {
    "grow_queue": ("queued", "messages in the queue"),
    "grow_mailbox": ("messages", "messages in the mailbox"),
    "grow_mailboxes": ("accounts", "mailboxes"),
    "grow_connections": ("connections", "idle connections"),
}
#: A figure that grows by more than this from the smallest to the largest case bends.
BENDS = 1.5
_GROWN = ("cpu_us", "select_ms", "store_ms", "deliver_ms", "accepted_ms")

#: Rigs whose figures are of a message on its way.
_PATH = rigs.NAMES[: rigs.NAMES.index("pop3_retr") + 1]


def value(record: Record, key: str) -> float | None:
    """The middle of a figure; None if the record has none."""
    found = record.get(key)
    if isinstance(found, list | tuple):
        found = found[0] if found else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _own(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if "case" in r and "failed" not in r and "versus" not in r]


def _who(record: Record) -> str:
    return str(record.get("peer", "iems"))


def _title(record: Record) -> str:
    who = f" ({_who(record)})" if "peer" in record else ""
    return f"{record['rig']} {record['case']}{who}"


def charts(records: Sequence[Record]) -> dict[str, str]:
    """The pictures by name. One that a run has no records for is left out."""
    makers: dict[str, Callable[[Sequence[Record]], str | None]] = {
        "concurrency": _concurrency,
        "size": _size,
        "latency": _latency,
        "roles": _roles,
        "limits": _limits,
        "peers": _peers,
        "memory": _memory,
        "day": _day,
    }
    found = {name: svg for name, make in makers.items() if (svg := make(records)) is not None}
    for rig in _GROWTH:
        found |= {f"{rig}_{name}": svg for name, svg in _growth(records, rig)}
    return found


def _concurrency(records: Sequence[Record]) -> str | None:
    series: dict[str, list[tuple[float, float]]] = {}
    for record in _own(records):
        rate = value(record, "per_s")
        if record["rig"] == "smtp_accept" and rate is not None:
            series.setdefault(f"{_who(record)} {record['octets'] / 1e3:.0f} KB", []).append((record["sessions"], rate))
    series = {name: sorted(points) for name, points in series.items() if len(points) > 1}
    if not series:
        return None
    return plot.lines(
        series, title="SMTP accept: messages a second against sessions", x="sessions", y="messages/s", log_x=True, log_y=True
    )


def _size(records: Sequence[Record]) -> str | None:
    best: dict[str, dict[float, float]] = {}
    for record in _own(records):
        rate = value(record, "mb_per_min")
        if rate and record["rig"] in _PATH and "octets" in record and "peer" not in record:
            points = best.setdefault(record["rig"], {})
            points[record["octets"]] = max(rate, points.get(record["octets"], 0.0))
    series = {name: sorted(points.items()) for name, points in best.items() if len(points) > 1}
    if not series:
        return None
    title = "MB a minute against the size of messages (best number of sessions)"
    return plot.lines(series, title=title, x="octets of a message", y="MB/min", log_x=True, log_y=True)


def _latency(records: Sequence[Record]) -> str | None:
    wanted = {("smtp_accept", "4096x50"), ("smtp_accept", "4096x10"), ("imap_fetch", "4096x18"), ("pop3_retr", "4096x18"),
              ("end_to_end", "4096"), ("idle", "quiet")}  # fmt: skip
    series = {}
    for record in _own(records):
        if (record["rig"], record["case"]) in wanted and record.get("latency_ms") and "peer" not in record:
            points = zip(record["latency_ms"], measure.PERCENTILES, strict=True)
            series[_title(record)] = [(ms, percent) for ms, percent in points if ms > 0]
    if not series:
        return None
    return plot.lines(series, title="Latency: share of answers that came within", x="milliseconds", y="percent", log_x=True)


def _roles(records: Sequence[Record]) -> str | None:
    rows = []
    for record in _own(records):
        split = record.get("cpu_us_by_role")
        if record["rig"] in _PATH and record["rig"] != "imap_list" and split and "peer" not in record:
            most = sum(split.values())
            parts = {role: us for role, us in split.items() if us >= most * 0.02}
            rows.append((_title(record), parts | {"other": most - sum(parts.values())}))
    return plot.stacks(rows, title="CPU of a message by role, microseconds", unit="us") if rows else None


def limits(records: Sequence[Record]) -> Iterator[tuple[str, float, str]]:
    """How near each case comes to what the machine can do at most: (case, percent, of what)."""
    header = next((r for r in records if "machine" in r), None)
    if header is None:
        return
    flushes, written, loopback = (float(header.get(key) or 0) for key in ("flushes_per_s", "write_mb_per_s", "loopback_mb_per_s"))
    for record in _own(records):
        rate, volume, octets = value(record, "per_s"), value(record, "mb_per_min"), record.get("octets", 0)
        if "peer" in record or rate is None or volume is None:
            continue
        if record["rig"] == "smtp_accept" and record.get("sessions") == 1 and octets <= 4_096 and flushes:
            yield _title(record), rate / flushes * 100, f"of {flushes:,.0f} flushes/s"
        elif record["rig"] in ("smtp_accept", "end_to_end", "relay") and octets >= 50_000 and written:
            yield _title(record), volume / 60 / written * 100, f"of {written:,.0f} MB/s written"
        elif record["rig"] in ("imap_fetch", "pop3_retr") and octets >= 50_000 and loopback:
            yield _title(record), volume / 60 / loopback * 100, f"of {loopback:,.0f} MB/s by loopback"


def _limits(records: Sequence[Record]) -> str | None:
    rows = [(case, percent, f"{percent:.0f} % {what}") for case, percent, what in limits(records)]
    return plot.bars(rows, title="Distance to the physical limit (dashed: reached)", limit=100.0) if rows else None


def _peers(records: Sequence[Record]) -> str | None:
    rows = []
    for record in records:
        for key, title in (("per_s", "rate"), ("cpu_us", "CPU"), ("visible_p50_ms", "visible"), ("octets_each", "memory")):
            if "versus" in record and key in record["ratios"]:
                ratio, low, high = record["ratios"][key]
                spread = f" ({low:.1f}-{high:.1f})" if low != high else ""
                rows.append((f"{record['rig']} {record['case']}, {title}, {record['versus']}", ratio, f"{ratio:.1f}x{spread}"))
    if not rows:
        return None
    return plot.bars(rows, title="How many times better than the peer, pair by pair (dashed: equal)", limit=1.0, log=True)


def _memory(records: Sequence[Record]) -> str | None:
    rows = [
        (f"{record['case']} messages{f' ({_who(record)})' if 'peer' in record else ''}", octets / 1e3, f"{octets / 1e3:,.1f} KB")
        for record in _own(records)
        if record["rig"] == "memory" and "connections" in record and (octets := value(record, "octets_each"))
    ]
    return plot.bars(rows, title="Memory of an idle IMAP connection, by messages of the mailbox", log=len(rows) > 4) if rows else None


def _day(records: Sequence[Record]) -> str | None:
    series: dict[str, list[tuple[float, float]]] = {}
    for record in _own(records):
        if record["rig"] == "mixed_day" and "offered_per_s" in record:
            for key in ("p50_ms", "p99_ms"):
                latency = value(record, key)
                if latency is not None:
                    series.setdefault(f"{record['site']} {key[:3]}", []).append((record["offered_per_s"], latency))
    if not series:
        return None
    title = "A site's mix: from when a message is due to its 250, by messages offered"
    return plot.lines({n: sorted(p) for n, p in series.items()}, title=title, x="messages/s offered", y="ms", log_y=True)


def _growth(records: Sequence[Record], rig: str) -> Iterator[tuple[str, str]]:
    of, label = _GROWTH[rig]
    own = sorted((r for r in _own(records) if r["rig"] == rig and of in r), key=lambda r: float(r[of]))
    if len(own) < 2:
        return
    times = {
        key.removesuffix("_ms").removesuffix("ed"): [(r[of], v) for r in own if (v := value(r, key)) is not None]
        for key in _GROWN[1:]
    }
    cpu = [(r[of], v) for r in own if (v := value(r, "cpu_us")) is not None]
    yield "cpu", plot.lines({"CPU": cpu}, title=f"{rig}: CPU of a message, microseconds, against {label}", x=label, y="us", log_x=True)
    times = {name: points for name, points in times.items() if points}
    if times:
        title = f"{rig}: milliseconds against {label}"
        yield "ms", plot.lines(times, title=title, x=label, y="ms", log_x=True, log_y=True)


def bends(records: Sequence[Record]) -> list[str]:
    """What grew by more than BENDS from the smallest to the largest case of a growth rig, in words."""
    found = []
    for rig, (of, label) in _GROWTH.items():
        own = sorted((r for r in _own(records) if r["rig"] == rig and of in r), key=lambda r: float(r[of]))
        for key in _GROWN:
            ends = [v for r in (own[:1] + own[-1:]) if (v := value(r, key)) is not None]
            if len(own) > 1 and len(ends) == 2 and ends[0] > 0 and ends[1] / ends[0] > BENDS:
                found.append(
                    f"{rig}: {key} goes from {ends[0]:.3g} to {ends[1]:.3g} ({ends[1] / ends[0]:.1f}x) "
                    f"from {own[0][of]:,} to {own[-1][of]:,} {label}"
                )
    return found


def page(records: Sequence[Record]) -> str:
    """The page of a run."""
    header = next((r for r in records if "machine" in r), {})
    about = header.get("machine", {})
    noisy = [r for r in _own(records) if (value(r, "other_cores") or 0.0) > NOISY_CORES]
    notes = [f"failed: {_title(r)}: {r['failed']}" for r in records if "failed" in r]
    notes += [f"bends: {text}" for text in bends(records)]
    if noisy:
        notes.append(
            f"{len(noisy)} of {len(_own(records))} records were taken while other work took more than {NOISY_CORES:g} cores: "
            "read their CPU before their rates"
        )
    facts = [
        ("version", header.get("version", "")), ("taken", header.get("run", "")),
        ("machine", f"{about.get('cores', '?')} x {about.get('cpu', '?')}, {(about.get('memory_octets') or 0) / 1e9:.0f} GB"),
        ("system", f"Linux {about.get('kernel', '?')}, Python {about.get('python', '?')}, {about.get('filesystem', '?')}"),
        ("limits", f"{header.get('flushes_per_s', 0):,.0f} flushes/s, {header.get('write_mb_per_s', 0):,.0f} MB/s written, "
                   f"{header.get('loopback_mb_per_s', 0):,.0f} MB/s by loopback"),
        ("repetitions", f"{header.get('repeats', '?')} of {header.get('run_s', '?')} s"),
        ("peers", ", ".join(text or name for name, text in header.get("peers", {}).items()) or "none"),
    ]  # fmt: skip
    summary = "".join(f"<tr><th>{html.escape(str(n))}</th><td>{html.escape(str(v))}</td></tr>" for n, v in facts)
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>IEMS performance, {html.escape(str(header.get("run", "")))}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}}
th{{text-align:left;font-weight:600;padding-right:2em}}svg{{display:block;width:100%;max-width:60em;height:auto;margin:1.5em 0}}
.w{{overflow-x:auto}}td.n,th.n{{text-align:right;padding-left:1.2em;white-space:nowrap}}tr.p{{color:#666}}</style>
<h1>IEMS performance</h1><table>{summary}</table>
<h2>Notes</h2><ul>{listed or "<li>none</li>"}</ul>
{"".join(charts(records).values())}
<h2>All figures</h2><p>Medians; the least and greatest of the repetitions stand in perf.jsonl.</p><div class="w">{_table(records)}</div></html>
"""


def _table(records: Sequence[Record]) -> str:
    head = "".join(f'<th class="n">{html.escape(title)}</th>' for _, title, _ in suite.SHOWN)
    rows = []
    for record in _own(records):
        cells = "".join(
            f'<td class="n">{"" if (v := value(record, key)) is None else form.format(v)}</td>' for key, _, form in suite.SHOWN
        )
        mark = ' class="p"' if "peer" in record else ""
        rows.append(f"<tr{mark}><td>{html.escape(record['rig'])}</td><td>{html.escape(_title(record).split(' ', 1)[1])}</td>{cells}</tr>")
    return f"<table><tr><th>rig</th><th>case</th>{head}</tr>{''.join(rows)}</table>"
