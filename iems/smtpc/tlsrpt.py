"""Sends the reports on TLS of days that are over (RFC 8460): by mail through our own queue, by HTTPS where that is set.

The files of `tallies` are merged; who wants reports is asked then, once a domain and day. What was sent is noted, so that a report
whose domain can't be asked, or whose host does not answer, is tried again without the others going a second time.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from iems.config import Config
from iems.errors import SpoolError
from iems.model import Channel, Envelope, Notify, Recipient, child_id
from iems.net.resolver import DnsFailure
from iems.smtp.tlsrpt import Day, address_of, destinations, mail, packed, post_of, report, report_id
from iems.smtpc.tallies import today
from iems.spool.items import Message

#: The folder in a home; days kept that could not be reported; all of one POST; octets of an answer that are read.
FOLDER: Final = "tls-rpt"
KEEP_DAYS: Final = 5
POST_S: Final = 60.0
ANSWER_OCTETS: Final = 8192
#: Largest packed report.
MAX_REPORT_OCTETS: Final = 10_000_000

_DAY = re.compile(r"\d{4}-\d\d-\d\d\Z")
_DONE: Final = "sent"


class Sent(Struct):
    """What became of one report. how: the URIs it went to; state: sent, not-wanted, later, failed, dry-run."""

    day: str
    domain: str
    state: str
    how: list[str]
    content: bytes = b""


def days(folder: Path) -> list[str]:
    """The days there are counts of, the oldest first."""
    with contextlib.suppress(OSError):
        return sorted(path.name for path in folder.iterdir() if _DAY.match(path.name) and path.is_dir())
    return []


def merged(folder: Path, day: str) -> Day:
    """What all workers counted on a day; a file that can't be read is left out."""
    found = Day(day)
    for path in sorted((folder / day).glob("*.json")):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            found.add(msgspec.json.decode(path.read_bytes(), type=Day))
    return found


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether nobody else sends reports of this home meanwhile."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


class Reporter:
    """home, config: of the server. resolver: as in `mx`. submit: puts messages into the INPUT queue, or raises. verifying: TLS for POST."""

    def __init__(
        self,
        home: Path,
        config: Config,
        resolver: Any,
        submit: Callable[[list[Message]], Awaitable[None]],
        verifying: Callable[[], ssl.SSLContext],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = home / FOLDER
        self._config = config
        self._resolver = resolver
        self._submit = submit
        self._verifying = verifying
        self._clock = clock
        self._contact = config.smtpc.tls_reports_contact or f"postmaster@{config.domain or config.hostname}"

    async def run(self, *, dry: bool = False, only: str = "") -> list[Sent]:
        """Report every day that is over (only: that day alone); what became of each report. dry: nothing is sent or noted.

        [] too if another process is at it.
        """
        with alone(self._folder) as free:
            if not free:
                return []
            now = today(self._clock())
            found: list[Sent] = []
            for day in days(self._folder):
                if day < now and (not only or day == only):
                    found += await self._day(day, dry)
            return found

    async def _day(self, day: str, dry: bool) -> list[Sent]:
        counted = await asyncio.to_thread(merged, self._folder, day)
        done = await asyncio.to_thread(self._done, day)
        found = []
        left = False
        for domain in counted.domains():
            if domain in done:
                continue
            sent = await self._domain(day, domain, counted, dry)
            found.append(sent)
            if sent.state == "later":
                left = True
            elif not dry:
                await asyncio.to_thread(self._note, day, domain)
        if not dry and (not left or self._old(day)):
            await asyncio.to_thread(shutil.rmtree, self._folder / day, True)
        return found

    def _old(self, day: str) -> bool:
        return day < today(self._clock() - KEEP_DAYS * 86_400)

    def _done(self, day: str) -> set[str]:
        try:
            return set((self._folder / day / _DONE).read_text("utf-8").split())
        except OSError:
            return set()

    def _note(self, day: str, domain: str) -> None:
        with open(self._folder / day / _DONE, "a", encoding="utf-8") as file:
            file.write(domain + "\n")

    async def _domain(self, day: str, domain: str, counted: Day, dry: bool) -> Sent:
        try:
            answer = await self._resolver.query(f"_smtp._tls.{domain}", "TXT")
        except DnsFailure:
            return Sent(day, domain, "later", [])
        except ValueError:
            return Sent(day, domain, "not-wanted", [])
        uris = destinations(answer.records)
        config = self._config
        if not config.smtpc.tls_reports_post:
            uris = [uri for uri in uris if address_of(uri)]
        if not uris:
            return Sent(day, domain, "not-wanted", [])
        name = report_id(day, domain, config.hostname)
        content = report(
            day, counted.of(domain), organization=config.domain or config.hostname, contact=self._contact, name=name
        )
        if dry:
            return Sent(day, domain, "dry-run", uris, content)
        octets = packed(content)
        if len(octets) > MAX_REPORT_OCTETS:
            return Sent(day, domain, "failed", [])
        how = [uri for uri in uris if await self._send(uri, day, domain, name, octets)]
        # Another try could send it twice to those that have it; only where nobody has it there is one.
        return Sent(day, domain, "sent" if how else "later", how)

    async def _send(self, uri: str, day: str, domain: str, name: str, octets: bytes) -> bool:
        address = address_of(uri)
        try:
            if address is not None:
                await self._submit([self._message(address, day, domain, name, octets)])
                return True
            async with asyncio.timeout(POST_S):
                return await self._post(uri, octets)
        except (OSError, EOFError, ValueError, DnsFailure, SpoolError):
            return False

    def _message(self, address: str, day: str, domain: str, name: str, octets: bytes) -> Message:
        now_s = self._clock()
        hostname = self._config.hostname
        content = mail(
            octets, day=day, domain=domain, hostname=hostname, sender=self._contact, recipient=address, name=name, now_s=now_s
        )
        local, _, host = address.rpartition("@")
        to = f"{local}@{host.lower()}".encode()
        id = child_id(int(now_s * 1000).to_bytes(6, "big") + bytes(10), f"tlsrpt\0{name}\0{address}".encode())
        return Message(
            id,
            Envelope(
                input_channel=Channel.MTA,
                reverse_path=self._contact.encode(),
                # Nobody is to be told: a report that does not arrive is no mail anybody misses.
                recipients=[Recipient(to, address.encode(), notify=Notify.NEVER)],
                received_ns=int(now_s * 1e9),
                size=len(content),
                dot_free=True,
            ),
            [content],
        )

    async def _post(self, uri: str, octets: bytes) -> bool:
        """Whether a host took the report (RFC 8460 5.4): 2xx, without redirects, over TLS with a good certificate."""
        where = post_of(uri)
        assert where is not None
        host, port, path = where
        addresses = await self._resolver.addresses(host)
        if not addresses:
            raise OSError("the host has no address")
        reader, writer = await asyncio.open_connection(addresses[-1], port, ssl=self._verifying(), server_hostname=host)
        try:
            named = host if port == 443 else f"{host}:{port}"
            writer.write(
                f"POST {path} HTTP/1.1\r\nHost: {named}\r\nContent-Type: application/tlsrpt+gzip\r\n"
                f"Content-Length: {len(octets)}\r\nConnection: close\r\n\r\n".encode()
                + octets
            )
            await writer.drain()
            line = await reader.readline()
        finally:
            writer.transport.abort()
        words = line[:ANSWER_OCTETS].split(b" ")
        return len(words) > 1 and words[0].startswith(b"HTTP/1.") and words[1].isdigit() and 200 <= int(words[1]) < 300
