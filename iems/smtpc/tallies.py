"""What a worker counts for reports on TLS (RFC 8460): one tally for each domain and policy, a file for each day and worker.

A connection costs an entry in memory; the file is written anew once a minute and at the end, so a crash forgets a minute at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from iems.model import Reply
from iems.smtp.sts import StsPolicy
from iems.smtp.tlsrpt import MAX_HOSTS, MAX_LINES, Day, Failure, plain
from iems.smtpc.mx import Host
from iems.smtpc.security import Need

#: Between two writings of the file.
WRITE_S: Final = 60.0

#: OpenSSL's reasons (x509_vfy.h) -> result types of RFC 8460 4.3.1.
_EXPIRED: Final = {9, 10}
_MISMATCH: Final = {62, 64}
_UNTRUSTED: Final = {2, 18, 19, 20, 21, 22, 24, 27, 28}


def today(now_s: float) -> str:
    """The day of UTC of a wall clock time in seconds."""
    return datetime.datetime.fromtimestamp(now_s, datetime.UTC).strftime("%Y-%m-%d")


def result_type(cause: BaseException | None) -> str:
    """What RFC 8460 calls a handshake that failed."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        code = cause.verify_code
        if code in _EXPIRED:
            return "certificate-expired"
        if code in _MISMATCH:
            return "certificate-host-mismatch"
        if code in _UNTRUSTED:
            return "certificate-not-trusted"
    return "validation-failure"


def fetch_result(cause: BaseException) -> str:
    """What RFC 8460 calls a policy that could not be had: not by a good certificate, not readable, or not fetched."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "sts-webpki-invalid"
    if isinstance(cause, ValueError) and "policy host" not in str(cause):
        return "sts-policy-invalid"
    return "sts-policy-fetch-error"


class Tallies:
    """folder: `tls-rpt` of the home. name: of this worker's files. clock: wall clock in seconds. sts: the policy known of a domain.
    log: hears of a disk that fails."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        clock: Callable[[], float],
        sts: Callable[[str], StsPolicy | None] = lambda domain: None,
        log: Any = None,
    ) -> None:
        self._folder = folder
        self._name = name
        self._clock = clock
        self._sts = sts
        self._log = log
        self._changed = False
        self._written = 0
        self._day = self._read(today(clock()))

    def _file(self, day: str) -> Path:
        return self._folder / day / f"{self._name}.json"

    def _read(self, day: str) -> Day:
        """What this worker counted before a restart."""
        try:
            return msgspec.json.decode(self._file(day).read_bytes(), type=Day)
        except (OSError, msgspec.DecodeError):
            return Day(day)

    # ---------------------------------------------------------------- counting

    def connected(
        self, domain: str, need: Need, host: Host, own: str, *, secure: bool, reply: Reply | None, cause: BaseException | None
    ) -> None:
        """A connection to a host got as far as it could. secure: TLS stands. reply: why there is no session, None if there is one.

        own: our address. cause: of a handshake that failed. A host that did not get to the question of TLS does not count.
        """
        result = why = ""
        if not secure:
            if cause is not None:
                result, why = result_type(cause), str(cause)
            elif reply is None or (reply.subject, reply.detail) == (7, 4):
                result = "starttls-not-supported"
            elif (reply.subject, reply.detail) == (7, 5):
                result, why = "validation-failure", reply.text
            else:
                return
        self._count(domain, need, Failure(result, host.name, host.address, own, plain(why)) if result else None)

    def troubled(self, domain: str, kind: str, result: str, host: str = "", why: str = "") -> None:
        """A policy stood in the way before any connection was made. kind: of the policy."""
        self._count_in(domain, kind, Failure(result, host, why=plain(why)), None)

    def unfetched(self, domain: str, cause: Exception) -> None:
        """A domain's MTA-STS policy could not be had."""
        self.troubled(domain, "sts", fetch_result(cause), why=str(cause) or type(cause).__name__)

    def _count(self, domain: str, need: Need, failure: Failure | None) -> None:
        if need.level == "dane":
            self._count_in(domain, "tlsa", failure, need)
        else:
            self._count_in(domain, "sts" if self._sts(domain) is not None else "no-policy-found", failure, need)

    def _count_in(self, domain: str, kind: str, failure: Failure | None, need: Need | None) -> None:
        now = today(self._clock())
        if now != self._day.day:
            self._roll(now)
        tally = self._day.tally(domain, kind)
        if tally is None:
            return
        self._changed = True
        if not tally.text:
            if kind == "tlsa" and need is not None:
                rows = [(3, *record) for record in need.tlsa] + [(2, *record) for record in need.anchors]
                tally.text = [f"{u} {s} {m} {plain(octets.hex())}" for u, s, m, octets in rows[:MAX_LINES]]
            elif kind == "sts" and (policy := self._sts(domain)) is not None:
                lines = ["version: STSv1", f"mode: {policy.mode}", *(f"mx: {name}" for name in policy.mx)]
                tally.text = [plain(line) for line in (*lines[:MAX_LINES], f"max_age: {policy.max_age_s}")]
                tally.hosts = list(policy.mx[:MAX_HOSTS])
        if failure is None:
            tally.good += 1
        else:
            tally.failed(failure)

    # ---------------------------------------------------------------- keeping

    def _roll(self, now: str) -> None:
        """A new day begins: the last one is written now, as whoever reports it looks at the files alone."""
        self.write()
        self._day = Day(now)
        self._changed = False

    def write(self) -> None:
        """Write the file if something was counted since. Blocks for a small file; a disk that fails costs a report only."""
        if not self._changed:
            return
        self._changed = False
        self._put(self._day.day, msgspec.json.encode(self._day))

    async def write_beside(self) -> None:
        """The same beside the loop."""
        if today(self._clock()) != self._day.day:
            self._roll(today(self._clock()))
        if self._changed:
            self._changed = False
            await asyncio.to_thread(self._put, self._day.day, msgspec.json.encode(self._day))

    def _put(self, day: str, octets: bytes) -> None:
        path = self._file(day)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_bytes(octets)
            part.replace(path)
        except OSError as cause:
            with contextlib.suppress(OSError):
                part.unlink()
            if self._log is not None:
                self._log.error("counts for reports on TLS can't be kept", cause)
