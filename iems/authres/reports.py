"""Rows of DMARC reports: one for each message of a domain that wants to know, kept by day (RFC 7489 7.2).

HOME/dmarc/DAY.SLOT.rows has a JSON line for each message, appended by the worker that checked it and never synced: a report is a
statistic. A day's room is bounded; what comes after is left out. `reportmail` makes reports of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from iems.authres.outcome import Outcome

FOLDER: Final = "dmarc"
SUFFIX: Final = ".rows"
DAY_S: Final = 86_400
#: Different rows of a day that are counted; the rest is left out.
MAX_DIFFERENT: Final = 200_000


class Published(Struct, frozen=True, array_like=True):
    """The policy a domain published. sp, np: "" if not given."""

    domain: str
    p: str
    sp: str
    np: str
    adkim: str
    aspf: str
    pct: int
    fo: str
    testing: bool
    rua: tuple[str, ...]


class Row(Struct, frozen=True, array_like=True):
    """One message. disposition: what was done. reason: why less than was asked for. dkim, spf: whether aligned and passed.

    signatures: (domain, selector, result). spf_result: (domain, scope, result), None if SPF was not asked.
    """

    published: Published
    ip: str
    disposition: str
    dkim: bool
    spf: bool
    reason: str
    header_from: str
    envelope_from: str
    signatures: tuple[tuple[str, str, str], ...]
    spf_result: tuple[str, str, str] | None


class _Line(Struct, frozen=True, array_like=True):
    time_s: int
    row: Row


def row_of(found: Outcome, time_s: int, ip: str, mail_from: str, disposition: str, reason: str) -> bytes:
    """The line for a message whose domain has a record."""
    record = found.dmarc.record
    assert record is not None
    published = Published(
        record.domain,
        record.p,
        record.sp,
        record.np,
        "s" if record.strict_dkim else "r",
        "s" if record.strict_spf else "r",
        record.pct,
        record.fo,
        record.testing,
        record.rua,
    )
    row = Row(
        published,
        ip,
        disposition,
        found.dmarc.dkim,
        found.dmarc.spf,
        reason,
        found.dmarc.domain,
        mail_from.rpartition("@")[2][:255].lower(),
        tuple((one.domain, one.selector, one.result) for one in found.dkim if one.domain),
        (found.spf.domain[:255], found.spf.scope, found.spf.result) if found.spf is not None else None,
    )
    return msgspec.json.encode(_Line(time_s, row)) + b"\n"


def day_of(time_s: float) -> str:
    """The UTC day, as `20261124`."""
    return time.strftime("%Y%m%d", time.gmtime(time_s))


class Collector:
    """Appends rows. slot: of the worker, whose file no other writes. limit_octets: of a day and worker."""

    def __init__(self, home: Path, slot: int, limit_octets: int) -> None:
        self._folder = home / FOLDER
        self._slot = slot
        self._limit = limit_octets
        self._day = ""
        self._fd = -1
        self._left = 0

    def add(self, line: bytes, now_s: float | None = None) -> bool:
        """Keep a line of `row_of`; False if there is no room. A disk that fails costs the row, never the message."""
        day = day_of(time.time() if now_s is None else now_s)
        try:
            if day != self._day:
                self._open(day)
            if len(line) > self._left:
                return False
            written = os.write(self._fd, line)
            self._left -= written
        except OSError:
            self._day = ""
            return False
        return written == len(line)

    def _open(self, day: str) -> None:
        self.close()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"{day}.{self._slot}{SUFFIX}"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._left = self._limit - os.fstat(self._fd).st_size
        self._day = day

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._day = ""


def days(home: Path) -> list[str]:
    """The days with rows, oldest first."""
    try:
        return sorted({entry.name[:8] for entry in os.scandir(home / FOLDER) if entry.name.endswith(SUFFIX)})
    except FileNotFoundError:
        return []


def rows(home: Path, day: str) -> Iterator[Row]:
    """The rows of a day; lines that are torn or none are passed over."""
    decoder = msgspec.json.Decoder(_Line)
    for path in sorted((home / FOLDER).glob(f"{day}.*{SUFFIX}")):
        with path.open("rb") as file:
            for line in file:
                try:
                    yield decoder.decode(line).row
                except msgspec.MsgspecError:
                    continue


def counted(home: Path, day: str, domain: str = "") -> dict[str, dict[Row, int]]:
    """Policy domain -> row -> messages, of one day and of one domain if it is given."""
    found: dict[str, dict[Row, int]] = {}
    left = MAX_DIFFERENT
    for row in rows(home, day):
        if not domain or row.published.domain == domain:
            of_domain = found.setdefault(row.published.domain, {})
            count = of_domain.get(row, 0)
            if count or left:
                of_domain[row] = count + 1
                left -= not count
    return {name: of_domain for name, of_domain in found.items() if of_domain}


def remove(home: Path, day: str) -> None:
    """Remove the rows of a day."""
    for path in (home / FOLDER).glob(f"{day}.*"):
        path.unlink(missing_ok=True)
