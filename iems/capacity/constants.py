"""Every figure a forecast rests on, named and sourced, and replaceable by what was measured on the machine at hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

K = 1_000
M = 1_000_000
G = 1_000_000_000

PAPER = "Site Planning Guide, 2003"


class Cost(Struct, frozen=True):
    """CPU time a message takes in a module: so much for any message, and so much for each 10^6 octets of it."""

    message_us: float
    mb_us: float

    def seconds(self, octets: float) -> float:
        """CPU seconds of a message of that size."""
        return (self.message_us + self.mb_us * octets / M) / 1e6


class Constants(Struct, frozen=True, kw_only=True):
    """Constants of a forecast. A rate of None is one nobody has measured: the module's load is then unknown.

    costs: CPU time by module, where it was measured; cores: of the machine it was measured on. With them one machine that does all
    the work can be forecast; rates alone are of modules that have a machine to themselves.
    """

    smtpd_mb_per_min: float | None = 95.0  # paper, Critical Paths: AMD K6-2/500, 250K messages
    lmda_mb_per_min: float | None = 110.0  # paper, the same machine, no MailSort filters
    imap_mb_per_min: float | None = 90.0  # paper, 18 connections downloading
    pop3_mb_per_min: float | None = 90.0  # paper: the same or better
    smtpc_mb_per_min: float | None = None  # the paper gives none
    web_mb_per_min: float | None = None  # the paper gives none
    antivirus_mb_per_min: float | None = None  # paper: vendor specific
    content_filter_mb_per_min: float | None = None
    bayes_mb_per_min: float | None = None
    disk_mb_per_min: float | None = None
    directory_lookups_per_s: float | None = None
    connection_octets: int = 120 * K  # paper, Message Store: each POP3 and IMAP4 connection
    selected_message_octets: int = 100  # paper: each message of the selected mailbox, IMAP4
    memory_margin: float = 0.20  # paper: "20+%"
    os_octets: int = 64 * M  # paper: Linux (96 MB for NT, 2000 and XP)
    component_octets: int = 0  # base of the mail system's own processes; the paper names it but gives no figure
    bayes_good_share: float = 0.50  # paper: of expected message volume
    bayes_spam_share: float = 0.25  # paper
    queue_factor_low: float = 2.0  # paper: 2 to 4 times the largest outbound queue
    queue_factor_high: float = 4.0
    log_octets_per_message: int = 800  # four JSON lines of about 200 octets in log/mail.log
    working_day_h: float = 8.0  # the day to which load refers
    comfortable_percent: float = 70.0  # above it queues grow at the peak; split before (utilisation law, M/G/1)
    sessions_per_worker: int = 4_000
    descriptors_per_session: int = 2
    memory_octets: int | None = None  # of one machine
    cores: int = 1  # of one machine; paper: one processor each
    costs: dict[str, Cost] = {}
    mix_factor: float = 1.0  # CPU time of all modules at work together over the sum of each by itself; measured by the mixed day
    source: str = PAPER


#: Modules in the order of a message's path; the names of the outputs.
MODULES = (
    "smtpd", "smtpc", "lmda", "imap", "pop3", "web", "directory", "antivirus", "content_filter", "bayes", "lists",
    "network", "disk",
)  # fmt: skip

#: Which constant a measured line of a module replaces.
_MEASURED = {
    name: f"{name}_mb_per_min"
    for name in ("smtpd", "smtpc", "lmda", "imap", "pop3", "web", "antivirus", "content_filter", "bayes", "disk")
}


#: Rigs whose CPU a message is the cost of a module. A relayed message costs what it takes to take it in, and the rest.
_COSTED = {"smtp_accept": "smtpd", "local_delivery": "lmda", "imap_fetch": "imap", "pop3_retr": "pop3", "relay": "smtpc"}


def measured(lines: Iterable[str], base: Constants | None = None) -> Constants:
    """Constants with this machine's own figures in place of the paper's.

    lines: JSON, one object a line, as `iemsctl perf run` writes: its first line (`machine`, `write_mb_per_s`); `module` (a name of
    MODULES) and `mb_per_min`; `constant` (a field of `Constants`) and `value`; records of rigs with `octets` and `cpu_us`. Other lines,
    and those of peers, are passed over; of several for one module the last counts. Raises ValueError, naming the line, for text
    that is no JSON object, a rate that is not positive, an unknown constant, or input in which nothing is usable.
    """
    found: dict[str, Any] = {}
    points: dict[str, dict[float, tuple[float, float]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"line {number}: not a JSON object")
        if "peer" in record or "versus" in record or "failed" in record:
            continue
        if isinstance(record.get("machine"), dict):
            _header(record, number, found)
            continue
        _point(record, number, points)
        module = record.get("module")
        constant = record.get("constant")
        if isinstance(module, str) and module in _MEASURED and "mb_per_min" in record:
            key, value = _MEASURED[module], record["mb_per_min"]
        elif constant is not None:
            key, value = constant, record.get("value")
            if key not in Constants.__struct_fields__ or key in ("source", "costs"):
                raise ValueError(f"line {number}: no constant is named {key!r}")
        else:
            continue
        value = _positive(value, key, number)
        found[key] = int(value) if key.endswith("octets") or key == "cores" else float(value)
    if points:
        found["costs"] = _costs(points)
    if not found:
        raise ValueError("no line holds a measured figure (`module` and `mb_per_min`)")
    values = {name: getattr(base or Constants(), name) for name in Constants.__struct_fields__}
    return Constants(**(values | found | {"source": "measured"}))


def _positive(value: Any, key: str, number: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
        raise ValueError(f"line {number}: {key} must be a positive number, not {value!r}")
    return value


def _header(record: dict[str, Any], number: int, found: dict[str, Any]) -> None:
    if "write_mb_per_s" in record:
        found["disk_mb_per_min"] = _positive(record["write_mb_per_s"], "write_mb_per_s", number) * 60
    for key in ("cores", "memory_octets"):
        if record["machine"].get(key) is not None:
            found[key] = int(_positive(record["machine"][key], key, number))


def _point(record: dict[str, Any], number: int, points: dict[str, dict[float, tuple[float, float]]]) -> None:
    """Take up what a message of some size cost in a module; of several with that size the one with most sessions, nearest to the knee."""
    module = _COSTED.get(str(record.get("rig")))
    cpu = record.get("cpu_us")
    if module is None or cpu is None or "octets" not in record:
        return
    cost = _positive(cpu[0] if isinstance(cpu, list) and cpu else cpu, "cpu_us", number)
    octets = _positive(record["octets"], "octets", number)
    sessions = float(record.get("sessions") or 0)
    if sessions >= points.setdefault(module, {}).get(octets, (0.0, 0.0))[0]:
        points[module][octets] = (sessions, cost)


def _costs(points: dict[str, dict[float, tuple[float, float]]]) -> dict[str, Cost]:
    made = {}
    for module, of in points.items():
        sizes = sorted(of)
        costs = [of[size][1] for size in sizes]
        if module == "smtpc":
            if "smtpd" not in points:
                continue
            taken_in = _line(points["smtpd"])
            costs = [max(1.0, cost - taken_in.seconds(size) * 1e6) for size, cost in zip(sizes, costs, strict=True)]
        made[module] = _line({size: (0.0, cost) for size, cost in zip(sizes, costs, strict=True)})
    return made


def _line(points: dict[float, tuple[float, float]]) -> Cost:
    """The line through the smallest and the largest size; through the origin where there is one size only."""
    low, high = min(points), max(points)
    if low == high:
        return Cost(0.0, points[low][1] / low * M)
    slope = max(0.0, (points[high][1] - points[low][1]) / (high - low) * M)
    return Cost(max(0.0, points[low][1] - slope * low / M), slope)
