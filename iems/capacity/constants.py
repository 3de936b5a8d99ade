"""Every figure a forecast rests on, named and sourced, and replaceable by what was measured on the machine at hand."""

from __future__ import annotations

import json
from collections.abc import Iterable

from msgspec import Struct

K = 1_000
M = 1_000_000
G = 1_000_000_000

PAPER = "Site Planning Guide, 2003"


class Constants(Struct, frozen=True, kw_only=True):
    """Constants of a forecast. A rate of None is one nobody has measured: the module's load is then unknown."""

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


def measured(lines: Iterable[str], base: Constants | None = None) -> Constants:
    """Constants with this machine's own figures in place of the paper's.

    lines: JSON, one object a line, as `iemsctl perf run` writes: `module` (a name of MODULES) and `mb_per_min`, or
    `constant` (a field of `Constants`) and `value`. Other lines are passed over; of several for one module the last counts.
    Raises ValueError, naming the line, for text that is no JSON object, a rate that is not positive, an unknown constant,
    or input in which nothing is usable.
    """
    found: dict[str, float | int | str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"line {number}: not a JSON object")
        module = record.get("module")
        constant = record.get("constant")
        if isinstance(module, str) and module in _MEASURED and "mb_per_min" in record:
            key, value = _MEASURED[module], record["mb_per_min"]
        elif constant is not None:
            key, value = constant, record.get("value")
            if key not in Constants.__struct_fields__ or key == "source":
                raise ValueError(f"line {number}: no constant is named {key!r}")
        else:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
            raise ValueError(f"line {number}: {key} must be a positive number, not {value!r}")
        found[key] = int(value) if key.endswith("octets") else float(value)
    if not found:
        raise ValueError("no line holds a measured figure (`module` and `mb_per_min`)")
    values = {name: getattr(base or Constants(), name) for name in Constants.__struct_fields__}
    return Constants(**(values | found | {"source": "measured"}))
