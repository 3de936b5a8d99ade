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
from iems.perf import machine, rigs
from iems.perf.measure import Options

#: Names of figures in tables, and how they are shown.
_SHOWN = (
    ("per_s", "messages/s", "{:,.0f}"),
    ("mb_per_min", "MB/min", "{:,.0f}"),
    ("cpu_us", "CPU us", "{:,.1f}"),
    ("p50_ms", "p50 ms", "{:,.2f}"),
    ("p99_ms", "p99 ms", "{:,.2f}"),
    ("visible_p50_ms", "visible p50 ms", "{:,.1f}"),
    ("octets_each", "octets each", "{:,.0f}"),
    ("flushes", "flushes", "{:,.3f}"),
)
#: A change smaller than this is noise on a machine that other work shares, whatever the spread of three repetitions says.
NOISE = 0.10


def header(options: Options) -> dict[str, Any]:
    """The first line of a run: what it ran on and how."""
    folder = options.folder or Path(tempfile.gettempdir())
    return {
        "run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": iems.__version__,
        "machine": machine.describe(folder),
        "flushes_per_s": machine.flushes_per_s(folder),
        "loopback_mb_per_s": machine.loopback_mb_per_s(),
        "load_average": os.getloadavg()[0],
        "repeats": options.repeats,
        "run_s": options.run_s,
        "scale": options.scale,
    }


def run(names: Iterable[str], options: Options, tell: Callable[[str], None] = lambda text: None) -> Iterator[dict[str, Any]]:
    """The header, then a record for each case of each rig. A rig that fails gives a record with `failed`; the others go on."""
    yield header(options)
    names = list(names)
    begun = time.monotonic()
    for number, name in enumerate(names):
        left = (time.monotonic() - begun) / number * (len(names) - number) if number else None
        tell(f"{name} ({number + 1} of {len(names)})" + (f", about {left:.0f} s left" if left is not None else ""))
        try:
            for record in rigs.rig(name).run(options):
                record["disk_flushes_per_s"] = machine.flushes_per_s(options.folder or Path(tempfile.gettempdir()), 0.2)
                if "module" in record and "mb_per_min" in record:
                    # the line the capacity calculator reads: one number, the median
                    record["spread_mb_per_min"] = record["mb_per_min"]
                    record["mb_per_min"] = record["mb_per_min"][0]
                yield record
        except Exception as error:
            yield {"rig": name, "failed": f"{type(error).__name__}: {error}"}


def _figure(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    if isinstance(value, list | tuple):
        value = value[0]
    return float(value) if isinstance(value, int | float) else None


def table(records: Iterable[dict[str, Any]]) -> str:
    """Records as text, a line each; medians."""
    lines = []
    for record in records:
        if "machine" in record:
            about = record["machine"]
            lines.append(
                f"IEMS {record['version']} on {about['cores']} x {about['cpu']}, {about['memory_octets'] / 1e9:.0f} GB, Linux "
                f"{about['kernel']}, {about['filesystem']}; {record['flushes_per_s']:,.0f} flushes/s, loopback "
                f"{record['loopback_mb_per_s']:,.0f} MB/s; median of {record['repeats']}"
            )
            lines.append(f"{'rig':<16}{'case':<18}" + "".join(f"{title:>16}" for _, title, _ in _SHOWN))
        elif "failed" in record:
            lines.append(f"{record['rig']:<16}failed: {record['failed']}")
        else:
            cells = ((_figure(record, key), form) for key, _, form in _SHOWN)
            lines.append(
                f"{record['rig']:<16}{record['case']:<18}"
                + "".join(f"{'' if value is None else form.format(value):>16}" for value, form in cells)
            )
    return "\n".join(lines)


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

    old = {(r["rig"], r["case"]): r for r in before if "case" in r}
    changes = []
    for record in after:
        if "case" not in record or (record["rig"], record["case"]) not in old:
            continue
        for key, _title, _form in _SHOWN:
            was, now = spread(old[record["rig"], record["case"]], key), spread(record, key)
            if was is None or now is None or not was[0]:
                continue
            ratio = now[0] / was[0]
            apart = now[1] > was[2] or now[2] < was[1]
            changes.append(
                {"rig": record["rig"], "case": record["case"], "figure": key, "before": was[0], "after": now[0], "ratio": ratio,
                 "beyond_noise": apart and abs(ratio - 1) > NOISE}
            )  # fmt: skip
    return changes
