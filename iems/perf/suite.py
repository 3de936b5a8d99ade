"""Runs rigs one after the other and keeps what they say: JSON lines for programs, a table for people."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import iems
from iems.perf import machine, peers, rigs
from iems.perf.measure import Options

#: Names of figures in tables, and how they are shown.
SHOWN = (
    ("per_s", "messages/s", "{:,.0f}"),
    ("mb_per_min", "MB/min", "{:,.0f}"),
    ("cpu_us", "CPU us", "{:,.1f}"),
    ("p50_ms", "p50 ms", "{:,.2f}"),
    ("p99_ms", "p99 ms", "{:,.2f}"),
    ("visible_p50_ms", "visible ms", "{:,.1f}"),
    ("octets_each", "octets each", "{:,.0f}"),
    ("own_flushes", "own flushes", "{:,.3f}"),
    ("other_cores", "other cores", "{:,.2f}"),
)
#: A change smaller than this is noise on a machine that other work shares, whatever the spread of three repetitions says.
NOISE = 0.10
#: Seconds a rig took in a brief run on the machine it was written on: only their proportions count, for the time left.
_EXPECTED = {
    "smtp_accept": 12.0, "local_delivery": 6.0, "filtered_delivery": 10.0, "end_to_end": 8.0, "relay": 6.0, "imap_fetch": 10.0, "imap_list": 5.0,
    "imap_search": 12.0, "imap_resync": 8.0, "imap_login": 6.0,
    "pop3_retr": 10.0, "memory": 20.0, "idle": 4.0, "mixed_day": 25.0, "slow_drip": 8.0, "deferred": 12.0, "restart": 10.0,
    "rebuild": 8.0, "grow_queue": 12.0, "grow_mailbox": 15.0, "grow_mailboxes": 12.0, "grow_connections": 12.0,
}  # fmt: skip


def header(options: Options) -> dict[str, Any]:
    """The first line of a run: what it ran on, what that can do at most, and how it was measured."""
    folder = options.folder or Path(tempfile.gettempdir())
    return {
        "run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": iems.__version__,
        "machine": machine.describe(folder),
        "flushes_per_s": machine.flushes_per_s(folder),
        "write_mb_per_s": machine.write_mb_per_s(folder, 32 if options.brief else 256),
        "loopback_mb_per_s": machine.loopback_mb_per_s(),
        "load_average": os.getloadavg()[0],
        "repeats": options.repeats,
        "run_s": options.run_s,
        "scale": options.scale,
        "peers": {name: peers.version(name, options) for name in options.peers},
    }


def run(names: Iterable[str], options: Options, tell: Callable[[str], None] = lambda text: None) -> Iterator[dict[str, Any]]:
    """The header, then a record for each case of each rig. A rig that fails gives a record with `failed`; the others go on."""
    yield header(options)
    names = list(names)
    folder = options.folder or Path(tempfile.gettempdir())
    begun = time.monotonic()
    expected = sum(_EXPECTED.get(name, 10.0) for name in names)
    past = 0.0
    for number, name in enumerate(names):
        spent = time.monotonic() - begun
        # the share of work done is known from what each rig takes on the machine it was written on
        left = f", about {spent / past * (expected - past):.0f} s left" if past else ""
        tell(f"{name} ({number + 1} of {len(names)}){left}")
        try:
            for record in rigs.run(rigs.rig(name), options):
                if "versus" not in record and "failed" not in record:
                    record["disk_flushes_per_s"] = machine.flushes_per_s(folder, 0.05 if options.brief else 0.25)
                if "module" in record and "mb_per_min" in record:
                    # the line the capacity calculator reads: one number, the median
                    record["spread_mb_per_min"] = record["mb_per_min"]
                    record["mb_per_min"] = record["mb_per_min"][0]
                yield record
        except Exception as error:
            yield {"rig": name, "case": "", "failed": f"{type(error).__name__}: {error}"}
        past += _EXPECTED.get(name, 10.0)


def _figure(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    if isinstance(value, list | tuple):
        value = value[0]
    return float(value) if isinstance(value, int | float) else None


def table(records: Iterable[dict[str, Any]]) -> str:
    """Records as text, a line each; medians. Ratios say how many times better ours is, pair by pair."""
    lines = []
    for record in records:
        if "machine" in record:
            about = record["machine"]
            lines.append(
                f"IEMS {record['version']} on {about['cores']} x {about['cpu']}, {about['memory_octets'] / 1e9:.0f} GB, Linux "
                f"{about['kernel']}, {about['filesystem']}; {record['flushes_per_s']:,.0f} flushes/s, {record['write_mb_per_s']:,.0f} MB/s "
                f"written, loopback {record['loopback_mb_per_s']:,.0f} MB/s; median of {record['repeats']}"
            )
            lines.append(f"{'rig':<17}{'case':<28}{'who':<16}" + "".join(f"{title:>14}" for _, title, _ in SHOWN))
            continue
        place = f"{record['rig']:<17}{record.get('case', ''):<28}"
        if "failed" in record:
            lines.append(f"{place}{record.get('peer', 'iems'):<16}failed: {record['failed']}")
        elif "versus" in record:
            texts = [
                f"{key} {middle:.2f}x ({low:.2f}-{high:.2f})" for key, (middle, low, high) in record["ratios"].items()
            ]
            lines.append(f"{place}{'against':<8}{record['versus']}: " + "; ".join(texts))
        else:
            cells = ((_figure(record, key), form) for key, _, form in SHOWN)
            lines.append(
                f"{place}{record.get('peer', 'iems'):<16}"
                + "".join(f"{'' if value is None else form.format(value):>14}" for value, form in cells)
            )
            rest = [f"{key} {_plain(record[key])}" for key in record.get("also", ())]
            if rest:
                lines.append(" " * 45 + ", ".join(rest))
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = value[0]
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def read(file: Path) -> list[dict[str, Any]]:
    """The records of a run. Raises ValueError for a file that is none."""
    records = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {error}") from None
        if not isinstance(record, dict) or not ("machine" in record or "rig" in record):
            raise ValueError(f"{file}:{number}: not a record of a run")
        records.append(record)
    return records


def compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What changed from one run to another: rig, case, figure, before, after, ratio, and whether that is beyond the noise.

    Beyond the noise: more than NOISE apart, and the ranges of the repetitions don't overlap.
    """

    def spread(record: dict[str, Any], key: str) -> tuple[float, float, float] | None:
        value = record.get("spread_mb_per_min") if key == "mb_per_min" and "spread_mb_per_min" in record else record.get(key)
        return tuple(value) if isinstance(value, list | tuple) and len(value) == 3 else None

    def place(record: dict[str, Any]) -> tuple[str, str, str]:
        return record["rig"], record["case"], record.get("peer", "iems")

    old = {place(r): r for r in before if "case" in r and "versus" not in r}
    changes = []
    for record in after:
        if "case" not in record or "versus" in record or place(record) not in old:
            continue
        for key, _title, _form in SHOWN:
            was, now = spread(old[place(record)], key), spread(record, key)
            if key == "other_cores" or was is None or now is None or not was[0]:
                continue
            ratio = now[0] / was[0]
            apart = now[1] > was[2] or now[2] < was[1]
            changes.append(
                {"rig": record["rig"], "case": record["case"], "who": record.get("peer", "iems"), "figure": key, "before": was[0],
                 "after": now[0], "ratio": ratio, "beyond_noise": apart and abs(ratio - 1) > NOISE}
            )  # fmt: skip
    return changes
