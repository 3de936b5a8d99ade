"""What a planner tells about a site, checked: every wrong field is named with the range it allows."""

from __future__ import annotations

import difflib
import re
import tomllib
from importlib import resources
from typing import Any

from msgspec import Struct

from iems.capacity.constants import G, K, M

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)b?\s*", re.IGNORECASE)
_UNIT = {"": 1, "k": K, "m": M, "g": G, "t": 1000 * G}


class SiteError(ValueError):
    """A site that can't be; `problems` has one `field: what` a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Site(Struct, frozen=True, kw_only=True):
    """One site. Counts are whole, sizes are octets, shares are between 0 and 1.

    active: users connected at once. messages_in, messages_out: a user, a day. client_bytes_per_day: what mail clients fetch
    (None: every message that came in is fetched once). outbound_by_smtpd: the share of outbound mail that clients submit to
    our SMTPD. cores: of one machine (None: as many as the one that was measured has). store_quota: octets a user; None: what retention_days keeps.
    """

    name: str = "site"
    title: str = ""
    users: int = 0
    active: int | None = None
    messages_in: float = 0.0
    messages_out: float = 0.0
    size: int = 50 * K
    outbound_by_smtpd: float = 1.0
    local_store: bool = True
    imap_share: float = 1.0
    pop3_share: float = 0.0
    web_share: float = 0.0
    client_bytes_per_day: int | None = None
    messages_per_mailbox: int = 200
    lists: int = 0
    list_members: int = 0
    list_postings_per_day: float = 0.0
    antivirus_engines: int = 0
    antivirus_mb_per_min: float | None = None
    content_filter: bool = False
    content_filter_mb_per_min: float | None = None
    bayes: bool = False
    mailsort_slowdown: float = 0.0
    passthrough_share: float = 0.0
    smtpd_sessions: int = 15
    smtpc_sessions: int = 30
    imap_sessions: int | None = None
    pop3_sessions: int | None = None
    web_sessions: int | None = None
    store_quota: int | None = None
    retention_days: float = 30.0
    growth_per_year: float = 0.0
    log_days: float = 30.0
    queue_max_messages: float | None = None
    peak_hour_factor: float = 2.0
    line_bits_per_s: float | None = None
    relays: int = 1
    stores: int = 1
    other_memory_bytes: int = 0
    cores: int | None = None


#: What each field means, for people.
MEANING = {
    "name": "A short name; pictures are called after it.",
    "title": "What reports are headed with.",
    "users": "Accounts.",
    "active": "Users connected at once; unset: 40 % of users (the paper's sites have 30 and 40).",
    "messages_in": "Messages each user gets on a working day.",
    "messages_out": "Messages each user sends on a working day.",
    "size": "Mean size of a message.",
    "outbound_by_smtpd": "Share of outbound mail that clients hand to our SMTPD (the rest is made here: web mail, lists).",
    "local_store": "Whether mail is kept here; false for a relay, a gateway, a firewall.",
    "imap_share": "Share of what is read that is read by IMAP. The three shares add up to 1.",
    "pop3_share": "By POP3.",
    "web_share": "By web mail.",
    "client_bytes_per_day": "What clients fetch a day; unset: every message once.",
    "messages_per_mailbox": "Messages in the mailbox that a session has selected.",
    "lists": "Distribution lists.",
    "list_members": "Members of one list.",
    "list_postings_per_day": "Postings to all lists a day; each is expanded to every member.",
    "antivirus_engines": "Scanners each message goes through, one after the other.",
    "antivirus_mb_per_min": "Rate of one scanner; unset: unknown, so its load is too.",
    "content_filter": "Whether a content filter sees inbound mail.",
    "content_filter_mb_per_min": "Its rate; unset: unknown.",
    "bayes": "Whether users train Bayesian filters: 75 % more disk.",
    "mailsort_slowdown": "Share of the LMDA's rate that users' MailSort rules take.",
    "passthrough_share": "Tagged mail from other MTAs, as a share of inbound mail, on top of it.",
    "smtpd_sessions": "SMTP sessions at once, in.",
    "smtpc_sessions": "SMTP sessions at once, out.",
    "imap_sessions": "IMAP sessions at once; unset: active users times imap_share.",
    "pop3_sessions": "POP3 sessions at once; unset: active users times pop3_share.",
    "web_sessions": "Web sessions at once; unset: active users times web_share.",
    "store_quota": "Octets of a mailbox; unset: what retention_days keeps of inbound mail.",
    "retention_days": "Days mail is kept where there is no quota.",
    "growth_per_year": "Share by which mailboxes grow in a year; the store is sized a year ahead.",
    "log_days": "Days logs are kept.",
    "queue_max_messages": "Most messages queued outbound; unset: a day's.",
    "peak_hour_factor": "The busiest hour against the mean hour of the working day.",
    "line_bits_per_s": "Speed of the line to the Internet; unset: not a bottleneck.",
    "relays": "Machines that take mail in and send it out.",
    "stores": "Machines that keep mail.",
    "other_memory_bytes": "Memory of whatever else runs on the machine.",
    "cores": "Of one machine; unset: as many as the measured machine has, 1 with the paper's figures.",
}


class _Range(Struct, frozen=True):
    low: float
    high: float


_RANGES = {
    "users": _Range(0, 100_000_000), "active": _Range(0, 100_000_000), "messages_in": _Range(0, 100_000),
    "messages_out": _Range(0, 100_000), "size": _Range(1, 10 * G), "outbound_by_smtpd": _Range(0, 1),
    "imap_share": _Range(0, 1), "pop3_share": _Range(0, 1), "web_share": _Range(0, 1),
    "client_bytes_per_day": _Range(0, 1e18), "messages_per_mailbox": _Range(0, 100_000_000), "lists": _Range(0, 10_000_000),
    "list_members": _Range(0, 100_000_000), "list_postings_per_day": _Range(0, 10_000_000),
    "antivirus_engines": _Range(0, 20), "antivirus_mb_per_min": _Range(1e-6, 1e9),
    "content_filter_mb_per_min": _Range(1e-6, 1e9), "mailsort_slowdown": _Range(0, 0.95),
    "passthrough_share": _Range(0, 100), "smtpd_sessions": _Range(0, 1_000_000), "smtpc_sessions": _Range(0, 1_000_000),
    "imap_sessions": _Range(0, 10_000_000), "pop3_sessions": _Range(0, 10_000_000), "web_sessions": _Range(0, 10_000_000),
    "store_quota": _Range(0, 1e15), "retention_days": _Range(0, 36_500), "growth_per_year": _Range(-0.9, 100),
    "log_days": _Range(0, 36_500), "queue_max_messages": _Range(0, 1e10), "peak_hour_factor": _Range(1, 24),
    "line_bits_per_s": _Range(1, 1e15), "relays": _Range(1, 10_000), "stores": _Range(1, 100_000),
    "other_memory_bytes": _Range(0, 1e15), "cores": _Range(1, 100_000),
}  # fmt: skip
_WHOLE = frozenset({
    "users", "active", "size", "client_bytes_per_day", "messages_per_mailbox", "lists", "list_members", "antivirus_engines",
    "smtpd_sessions", "smtpc_sessions", "imap_sessions", "pop3_sessions", "web_sessions", "store_quota", "relays", "stores",
    "other_memory_bytes", "cores",
})  # fmt: skip
_SIZES = frozenset({"size", "client_bytes_per_day", "store_quota", "other_memory_bytes"})
_OPTIONAL = frozenset(n for n, d in zip(Site.__struct_fields__, Site.__struct_defaults__, strict=True) if d is None)


def octets(text: str) -> int:
    """`50K`, `2.5 MB` or `1000` in octets, decimal as in the paper. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a size: {text!r} (such as 50K, 2.5M or 1G)")
    return round(float(match[1]) * _UNIT[match[2].lower()])


def make(values: dict[str, Any]) -> Site:
    """A site from fields; everything wrong is raised at once in one SiteError."""
    problems: list[str] = []
    clean: dict[str, Any] = {}
    for key, raw in values.items():
        if key not in Site.__struct_fields__:
            near = difflib.get_close_matches(key, Site.__struct_fields__, 1)
            problems.append(f"{key}: no such field" + (f" (did you mean {near[0]}?)" if near else ""))
            continue
        try:
            clean[key] = _value(key, raw)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if not problems:
        problems = _contradictions(Site(**clean))
    if problems:
        raise SiteError(problems)
    return Site(**clean)


def _value(key: str, raw: Any) -> Any:
    if key in ("name", "title"):
        if not isinstance(raw, str):
            raise ValueError("must be text")
        return raw
    if key in ("local_store", "content_filter", "bayes"):
        if not isinstance(raw, bool):
            raise ValueError("must be true or false")
        return raw
    if raw is None and key in _OPTIONAL:
        return None
    allowed = _RANGES[key]
    if isinstance(raw, str) and key in _SIZES:
        raw = octets(raw)
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError(f"must be a number between {allowed.low:,g} and {allowed.high:,g}, not {raw!r}")
    if not allowed.low <= raw <= allowed.high:  # False for NaN too
        raise ValueError(f"must be between {allowed.low:,g} and {allowed.high:,g}, not {raw:,g}")
    if key in _WHOLE:
        if raw != int(raw):
            raise ValueError(f"must be a whole number, not {raw!r}")
        return int(raw)
    return float(raw)


def _contradictions(site: Site) -> list[str]:
    problems = []
    if site.active is not None and site.active > site.users:
        problems.append(f"active: at most users ({site.users:,}), not {site.active:,}")
    shares = site.imap_share + site.pop3_share + site.web_share
    if site.local_store and site.users and abs(shares - 1) > 0.001:
        problems.append(f"imap_share, pop3_share, web_share: must add up to 1, not {shares:g}")
    if site.list_postings_per_day and not (site.lists and site.list_members):
        problems.append("list_postings_per_day: needs lists and list_members above 0")
    if site.content_filter_mb_per_min is not None and not site.content_filter:
        problems.append("content_filter_mb_per_min: given, but content_filter is false")
    if site.antivirus_mb_per_min is not None and not site.antivirus_engines:
        problems.append("antivirus_mb_per_min: given, but antivirus_engines is 0")
    if site.bayes and not site.local_store:
        problems.append("bayes: needs local_store (it runs in the LMDA)")
    return problems


def parse(text: str) -> tuple[Site, dict[str, Any]]:
    """A site and the paper's own figures (table `paper`) from TOML text. Raises SiteError."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SiteError([f"not TOML: {error}"]) from None
    paper = data.pop("paper", {})
    return make(data), paper


def fields() -> list[tuple[str, str, str, str]]:
    """Each field as people see it: name, default, what is allowed, meaning."""
    rows = []
    for name, default in zip(Site.__struct_fields__, Site.__struct_defaults__, strict=True):
        allowed = "text"
        if isinstance(default, bool):
            allowed = "true or false"
        elif name in _RANGES:
            kind = "size" if name in _SIZES else "whole number" if name in _WHOLE else "number"
            allowed = f"{kind}, {_short(_RANGES[name].low)} to {_short(_RANGES[name].high)}"
        shown = "unset" if default is None else str(default).lower() if isinstance(default, bool) else f"{default}"
        rows.append((name, shown, allowed, MEANING[name]))
    return rows


def _short(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e6 else f"{value:.0e}".replace("e+", "e").replace("e0", "e")


def scenario_names() -> list[str]:
    """The paper's sites that ship with the product, in the paper's order."""
    order = ("pop-imap-50", "relays-2000", "gateway", "exchange-migration", "firewall", "small-office",
             "small-office-busy", "large-office")  # fmt: skip
    present = {entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml")}
    return [name for name in order if name in present] + sorted(present.difference(order))


def scenario(name: str) -> tuple[Site, dict[str, Any]]:
    """One of the paper's sites and what the paper says of it. Raises SiteError for an unknown name."""
    if name not in scenario_names():
        near = difflib.get_close_matches(name, scenario_names(), 1)
        raise SiteError([f"no scenario is named {name!r}" + (f" (did you mean {near[0]}?)" if near else "")])
    return parse((_folder() / f"{name}.toml").read_text("utf-8"))


def _folder() -> Any:
    return resources.files("iems.capacity") / "scenarios"
