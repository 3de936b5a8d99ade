"""The aims of the mail path: which figure of which rig has to be how good, against a peer in the same run or as such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

Record = dict[str, Any]


class Aim(Struct, frozen=True):
    """A figure that has to reach something. times: better than the peer, pair by pair; most: in its own unit."""

    key: str
    times: float | None = None
    most: float | None = None


class Row(Struct, frozen=True):
    """One line of the table. shown: figures of ours and of the peer."""

    title: str
    rig: str
    case: str
    peer: str
    shown: tuple[str, ...]
    aims: tuple[Aim, ...]


_RATE, _VOLUME = ("per_s", "cpu_us"), ("mb_per_min", "cpu_us")
ROWS = (
    Row("SMTP accept, 4 KB, 50 sessions", "smtp_accept", "4096x50", "postfix", _RATE, (Aim("per_s", 8), Aim("cpu_us", most=150))),
    Row("the same", "smtp_accept", "4096x50", "exim", _RATE, ()),
    Row("SMTP accept, 4 KB, 1 session", "smtp_accept", "4096x1", "postfix", (*_RATE, "p50_ms", "own_flushes"), (Aim("per_s", 3),)),
    Row("SMTP accept, 250 KB, 10 sessions", "smtp_accept", "250000x10", "postfix", _VOLUME,
        (Aim("per_s", 2.2), Aim("cpu_us", most=600))),
    Row("local delivery, 4 KB", "local_delivery", "4096", "dovecot sdbox", _RATE, (Aim("per_s", 8), Aim("cpu_us", most=200))),
    Row("local delivery, 250 KB", "local_delivery", "250000", "dovecot sdbox", _VOLUME, (Aim("per_s", 8), Aim("cpu_us", most=300))),
    Row("end to end, 4 KB, 10 sessions", "end_to_end", "4096", "postfix+dovecot", (*_RATE, "visible_p50_ms"),
        (Aim("per_s", 8), Aim("cpu_us", most=500), Aim("visible_p50_ms", most=50))),
    Row("end to end, 250 KB", "end_to_end", "250000", "postfix+dovecot", (*_VOLUME, "visible_p50_ms"),
        (Aim("per_s", 5), Aim("cpu_us", most=1000))),
    Row("relay in and out, 4 KB", "relay", "4096", "postfix", _RATE, (Aim("per_s", 4), Aim("cpu_us", most=400))),
    Row("relay in and out, 250 KB", "relay", "250000", "postfix", _VOLUME, (Aim("per_s", 3), Aim("cpu_us", most=1000))),
    Row("IMAP FETCH BODY[], 250 KB, 18 connections", "imap_fetch", "250000x18", "dovecot sdbox", _VOLUME,
        (Aim("per_s", 2), Aim("cpu_us", most=120))),
    Row("IMAP FETCH BODY[], 4 KB, 18 connections", "imap_fetch", "4096x18", "dovecot mdbox", _RATE,
        (Aim("per_s", 1.3), Aim("cpu_us", most=90))),
    Row("FETCH 1:* (FLAGS ENVELOPE BODYSTRUCTURE), 10,000 messages", "imap_list", "10000 messages", "dovecot sdbox",
        ("cpu_us", "first_cpu_us"), (Aim("cpu_us", most=25_000), Aim("first_cpu_us", most=25_000))),
    Row("SEARCH SUBJECT, 10,000 messages", "imap_search", "SUBJECT 10000 messages", "dovecot sdbox", ("cpu_us", "first_cpu_us"),
        (Aim("cpu_us", 10), Aim("first_cpu_us", 10))),
    Row("SEARCH TEXT, 10,000 messages", "imap_search", "TEXT 10000 messages", "dovecot sdbox", ("cpu_us", "first_cpu_us"),
        (Aim("cpu_us", 20), Aim("first_cpu_us", 20))),
    Row("SELECT with QRESYNC after 10 changes, 100,000 messages", "imap_resync", "100000 messages", "dovecot sdbox",
        ("cpu_us", "first_cpu_us", "p50_ms"), (Aim("p50_ms", most=5), Aim("cpu_us", most=5_000), Aim("first_cpu_us", most=5_000))),
    Row("LOGIN and SELECT, 200 messages", "imap_login", "200 messages", "dovecot sdbox", ("cpu_us", "first_cpu_us"), (Aim("cpu_us", 5),)),
    Row("POP3 RETR, 250 KB, 18 connections", "pop3_retr", "250000x18", "dovecot mdbox", _VOLUME, (Aim("per_s", 4),)),
    Row("memory of an idle IMAP connection, 200 messages", "memory", "plain 200", "dovecot sdbox", ("octets_each",),
        (Aim("octets_each", most=16_000),)),
    Row("the same with TLS", "memory", "tls 200", "dovecot sdbox", ("octets_each",), (Aim("octets_each", most=40_000),)),
    Row("delivery to IDLE notice", "idle", "quiet", "postfix+dovecot", ("p50_ms", "p99_ms"), (Aim("p50_ms", most=5),)),
    Row("MIME structure pass, 4 KB", "mime", "4096", "fast-mail-parser", ("cpu_us",), (Aim("cpu_us", most=12),)),
    Row("MIME structure pass, 250 KB", "mime", "250000", "fast-mail-parser", ("cpu_us",), (Aim("cpu_us", most=60),)),
)  # fmt: skip
_UNITS = {
    "per_s": ("{:,.0f}/s", 1.0), "mb_per_min": ("{:,.0f} MB/min", 1.0), "cpu_us": ("{:,.0f} us", 1.0), "p50_ms": ("p50 {:,.2f} ms", 1.0),
    "p99_ms": ("p99 {:,.2f} ms", 1.0), "visible_p50_ms": ("visible {:,.1f} ms", 1.0), "octets_each": ("{:,.1f} KB", 1e-3),
    "first_cpu_us": ("first {:,.0f} us", 1.0), "own_flushes": ("{:.2f} flushes", 1.0),
}  # fmt: skip


def _middle(record: Record | None, key: str) -> float | None:
    value = None if record is None else record.get(key)
    if isinstance(value, list | tuple):
        value = value[0]
    return float(value) if isinstance(value, int | float) else None


def _text(record: Record | None, keys: Sequence[str]) -> str:
    parts = []
    for key in keys:
        value = _middle(record, key)
        if value is not None:
            form, scale = _UNITS[key]
            small = key == "cpu_us" and value < 100
            parts.append(f"{value:.1f} us" if small else form.format(value * scale))
    return ", ".join(parts) or "not measured"


def judged(aim: Aim, ours: Record | None, versus: Record | None) -> bool | None:
    """Whether an aim is reached; None if it was not measured."""
    if aim.times is not None:
        ratio = None if versus is None else versus["ratios"].get(aim.key)
        return None if ratio is None else ratio[0] >= aim.times
    value = _middle(ours, aim.key)
    return None if value is None else value <= float(aim.most or 0.0)


def _aim_text(aim: Aim, reached: bool | None) -> str:
    if aim.times is not None:
        text = f"{aim.times:g}x"
    else:
        form, scale = _UNITS[aim.key]
        text = "<= " + form.format(float(aim.most or 0.0) * scale)
    return f"{text} {'?' if reached is None else 'yes' if reached else '**no**'}"


def table(records: Sequence[Record]) -> str:
    """The table in Markdown: ours and the peer's medians, ratios pair by pair, and each aim with yes, no, or ? for not measured."""
    header = next((r for r in records if "machine" in r), None)
    by_place: dict[tuple[str, str, str], Record] = {}
    versus: dict[tuple[str, str, str], Record] = {}
    for record in records:
        if "case" not in record or "failed" in record:
            continue
        if "versus" in record:
            versus[record["rig"], record["case"], record["versus"]] = record
        else:
            by_place[record["rig"], record["case"], record.get("peer", "iems")] = record
    lines = ["| case | peer | the peer | IEMS | times better, pair by pair | aims |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        ours = by_place.get((row.rig, row.case, "iems"))
        theirs = by_place.get((row.rig, row.case, row.peer))
        pair = versus.get((row.rig, row.case, row.peer))
        names = {"per_s": "rate", "cpu_us": "CPU", "first_cpu_us": "first CPU", "visible_p50_ms": "visible", "octets_each": "memory", "p50_ms": "p50"}
        ratios = [
            f"{names[key]} {middle:.1f}" + (f" ({low:.1f}-{high:.1f})" if low != high else "")
            for key, (middle, low, high) in (pair["ratios"].items() if pair else ())
            if key in names and (key != "p50_ms" or row.rig in ("idle", "smtp_accept", "imap_resync"))
        ]
        aims = ", ".join(_aim_text(aim, judged(aim, ours, pair)) for aim in row.aims)
        lines.append(f"| {row.title} | {row.peer} | {_text(theirs, row.shown)} | {_text(ours, row.shown)} | {', '.join(ratios)} | {aims} |")
    if header is not None:
        about = header["machine"]
        lines.append("")
        lines.append(
            f"{about['cores']} x {about['cpu']}, Linux {about['kernel']}, {about['filesystem']}: {header['flushes_per_s']:,.0f} flushes/s, "
            f"{header.get('write_mb_per_s', 0):,.0f} MB/s written, {header['loopback_mb_per_s']:,.0f} MB/s by loopback. Median of "
            f"{header['repeats']} repetitions of {header['run_s']:g} s, taken {header['run']}. "
            + ", ".join(text or name for name, text in header.get("peers", {}).items())
        )
    return "\n".join(lines)
