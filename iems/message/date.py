"""Dates in header fields (RFC 5322 3.3 and the obsolete and wrong forms that senders use)."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
# RFC 5322 4.3. The single letters stand for -0000, because RFC 822 had their signs wrong.
_ZONES = {
    "edt": -240, "est": -300, "cdt": -300, "cst": -360, "mdt": -360, "mst": -420, "pdt": -420, "pst": -480,
    "cet": 60, "cest": 120, "met": 60, "mest": 120, "bst": 60, "jst": 540,
}  # fmt: skip

_CLOCK = r"(?P<hour>\d{1,2})\s*[:.]\s*(?P<minute>\d{1,2})(?:\s*[:.]\s*(?P<second>\d{1,2})(?:\.\d+)?)?"
_ZONE = r"(?:\s*(?P<zone>[+-]\s*\d{4}|[+-]\d{1,2}:?\d{2}|[A-Za-z]{1,5}(?:[+-]\d{4})?))?"
_MAIL = re.compile(
    rf"\s*(?:[A-Za-z]{{2,9}}\.?\s*,?\s*)?(?P<day>\d{{1,2}})(?:\s*-\s*|\s+)(?P<month>[A-Za-z]{{3,9}})\.?(?:\s*-\s*|,?\s+)"
    rf"(?P<year>\d{{2,4}})(?:,?\s+{_CLOCK}{_ZONE})?",
)
_CTIME = re.compile(
    rf"\s*[A-Za-z]{{2,9}}\.?,?\s+(?P<month>[A-Za-z]{{3,9}})\.?\s+(?P<day>\d{{1,2}}),?\s+{_CLOCK}{_ZONE}\s+(?P<year>\d{{4}})"
    r"(?:\s+(?P<late>[+-]\d{4}))?"
)
_ISO = re.compile(rf"\s*(?P<year>\d{{4}})-(?P<month>\d{{2}})-(?P<day>\d{{2}})(?:[T ]{_CLOCK}{_ZONE})?")


def _uncommented(text: str) -> str:
    if "(" not in text:
        return text
    out, level, escaped = [], 0, False
    for char in text:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == "(":
            level += 1
        elif char == ")":
            level = max(level - 1, 0)
            char = " "
        if not level:
            out.append(char)
    return "".join(out)


def parse_date(value: bytes | str) -> datetime | None:
    """The moment a date field names, with its zone; None if it can't be read or is no moment of this calendar.

    A missing or unknown zone and "-0000" are taken as UTC. Years of two digits are 1950-2049, of three 1900 more
    (RFC 5322 4.3). A 60th second is the 59th. At most the first 200 octets are read.
    """
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    text = _uncommented(text[:200])
    match = _MAIL.match(text) or _CTIME.match(text) or _ISO.match(text)
    if not match:
        return None
    found = match.groupdict()
    month = found["month"].lower()[:3]
    number = int(month) if month.isdigit() else (_MONTHS.index(month) + 1 if month in _MONTHS else 0)
    year = int(found["year"])
    if len(found["year"]) < 4 and match.re is not _ISO:
        year += 1900 if len(found["year"]) == 3 or year >= 50 else 2000
    try:
        return datetime(
            year,
            number,
            int(found["day"]),
            int(found["hour"] or 0),
            int(found["minute"] or 0),
            min(int(found["second"] or 0), 59) if int(found["second"] or 0) <= 60 else 99,
            tzinfo=_zone(found.get("late") or found["zone"] or ""),
        )
    except ValueError:
        return None


def _zone(text: str) -> timezone:
    text = re.sub(r"\s", "", text).lower()
    signed = re.search(r"([+-])(\d{1,2}):?(\d{2})\Z", text)
    minutes = _ZONES.get(text, 0)
    if signed:
        minutes = int(signed[2]) * 60 + int(signed[3])
        minutes = -minutes if signed[1] == "-" else minutes
    return timezone(timedelta(minutes=minutes)) if abs(minutes) < 1440 else UTC


def sent_date(value: bytes | str) -> date | None:
    """The day a Date field names in its own zone, as SENTON compares it (RFC 3501 6.4.4); None if it can't be read."""
    found = parse_date(value)
    return found.date() if found else None


def format_date(epoch_s: float, zone_minutes: int = 0) -> str:
    """The value of a Date field for a moment (seconds since 1970), in a zone so many minutes east of UTC."""
    moment = datetime.fromtimestamp(int(epoch_s), timezone(timedelta(minutes=zone_minutes)))
    sign, rest = ("-", -zone_minutes) if zone_minutes < 0 else ("+", zone_minutes)
    return (
        f"{_DAYS[moment.weekday()]}, {moment.day:02} {_MONTHS[moment.month - 1].capitalize()} {moment.year:04} "
        f"{moment:%H:%M:%S} {sign}{rest // 60:02}{rest % 60:02}"
    )
