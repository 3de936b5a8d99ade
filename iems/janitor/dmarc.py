"""DMARC reports, once a day for the day before (UTC): made of the rows that were kept, sent as mail through the spool.

A crash between two reports sends none twice: what was handed to the spool is noted in HOME/dmarc/DAY.sent. Who asks for them with
`iemsctl dmarc report send` leaves a note in HOME/dmarc/send, which names the day.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path
from typing import Any, Final

from iems.authres import reports
from iems.authres.asking import DnsFailure
from iems.authres.dmarc import reports_allowed
from iems.authres.reportmail import Report, mail
from iems.errors import SpoolError
from iems.model import Channel, Envelope, Recipient
from iems.net.resolver import Resolver
from iems.spool import Message, Spool

ASKED: Final = "dmarc/send"
#: Seconds between two looks for a finished day, after midnight before the first, and days rows are kept if nobody sends reports.
LOOK_S: Final = 600.0
PATIENCE_S: Final = 900
KEPT_DAYS: Final = 7
#: Reports of one day.
MAX_REPORTS: Final = 10_000


class DmarcReports:
    """Looks now and then. ctx: the worker's. Nothing is asked of DNS before there is a report to send."""

    def __init__(self, ctx: Any, spool: Spool) -> None:
        self._ctx = ctx
        self._spool = spool
        self._look_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self.submitter = ctx.config.domain or ctx.hostname
        self.sender = ctx.config.authres.report_address or f"postmaster@{self.submitter}"

    async def round(self) -> None:
        """Begin to send what is due, beside the janitor's other work."""
        asked = self._ctx.home / ASKED
        if self._task is not None and not self._task.done():
            return
        if asked.exists():
            wanted = asked.read_text("ascii", "replace").split()
            asked.unlink()
            days = [day for day in reports.days(self._ctx.home) if day in wanted]
        elif time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            now_s = time.time()
            self._forget(now_s)
            if not self._ctx.config.authres.reports:
                return
            days = [day for day in reports.days(self._ctx.home) if day < reports.day_of(now_s - PATIENCE_S)]
        else:
            return
        if days:
            self._task = asyncio.ensure_future(self._send(days))

    def _forget(self, now_s: float) -> None:
        for day in reports.days(self._ctx.home):
            if day < reports.day_of(now_s - KEPT_DAYS * reports.DAY_S):
                reports.remove(self._ctx.home, day)

    async def _send(self, days: list[str]) -> None:
        resolver = Resolver.of(self._ctx.config.dns, self._ctx.answers)
        for day in days:
            try:
                await self._day(resolver, day)
            except (OSError, SpoolError) as fault:
                self._ctx.log.error("DMARC reports wait", fault)

    async def _day(self, resolver: Resolver, day: str) -> None:
        home: Path = self._ctx.home
        found = await asyncio.to_thread(reports.counted, home, day)
        note = home / reports.FOLDER / f"{day}.sent"
        sent = set(note.read_text("ascii", "replace").split()) if note.exists() else set()
        later = False
        for domain, rows in sorted(found.items())[:MAX_REPORTS]:
            report = Report(domain, day, rows)
            for address in report.published.rua:
                mark = hashlib.blake2b(f"{domain}\0{address}".encode(), digest_size=8).hexdigest()
                if mark in sent:
                    continue
                try:
                    allowed = await reports_allowed(resolver, domain, address)
                except DnsFailure:
                    later = True
                    continue
                except ValueError:
                    allowed = False
                octets = b""
                if allowed:
                    try:
                        octets = await asyncio.to_thread(mail, report, self.submitter, self.sender, address, time.time())
                    except ValueError as fault:
                        # An address or name that no field can hold: a stranger's record, and nothing to wait for.
                        self._ctx.log.error("a DMARC report can't be made", fault)
                if octets:
                    (error,) = await self._spool.append([self._message(octets, address)])
                    if error is not None:
                        raise error
                self._ctx.log.event(
                    "dmarc-report", None, domain=domain, day=day, to=address, messages=report.messages, sent=bool(octets)
                )
                sent.add(mark)
                with note.open("a", encoding="ascii") as file:
                    file.write(mark + "\n")
                    file.flush()
                    os.fsync(file.fileno())
        # Today's rows still come in; they go with the day.
        if not later and day < reports.day_of(time.time() - PATIENCE_S):
            reports.remove(home, day)

    def _message(self, octets: bytes, address: str) -> Message:
        recipient = address.encode("utf-8")
        local, _, domain = recipient.rpartition(b"@")
        # The null path: a report that can't be delivered is nobody's concern.
        envelope = Envelope(Channel.MTA, b"", [Recipient(local + b"@" + domain.lower(), recipient)], time.time_ns())
        return Message(self._spool.new_id(), envelope, [octets])

    async def close(self) -> None:
        """Stop after the report in work."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
