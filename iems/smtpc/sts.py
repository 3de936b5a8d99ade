"""MTA-STS policies of other domains (RFC 8461): asked for, fetched, and kept in the home so that a restart forgets none.

A policy that can't be fetched changes nothing: the one kept stands until it is too old, and without one there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from iems.net.http import response_of
from iems.net.resolver import DnsFailure, ascii_name
from iems.smtp.sts import MAX_OCTETS, StsPolicy, parse_policy, record_id

#: Policies in memory, and files kept.
MAX_KNOWN: Final = 10_000
#: All of one fetch (RFC 8461 3.3 advises a minute), and the pause after one that failed.
FETCH_S: Final = 30.0
PAUSE_S: Final = 300.0


class Kept(Struct):
    """A policy as it lies in the home. until_s: wall clock, seconds since 1970."""

    domain: str
    policy: StsPolicy
    until_s: float


class PolicyStore:
    """What is known of other domains' policies.

    folder: where they are kept, made if missing. resolver: as in `mx`. context: checks the policy host's certificate. port: of
    policy hosts. log: hears of fetches that fail. clock: wall clock in seconds. failed: hears of them, too, with domain and cause.
    """

    def __init__(
        self,
        folder: Path,
        resolver: Any,
        context: ssl.SSLContext,
        *,
        port: int = 443,
        log: Any = None,
        clock: Callable[[], float] = time.time,
        failed: Callable[[str, Exception], None] | None = None,
    ) -> None:
        self._folder = folder
        self._resolver = resolver
        self._context = context
        self._port = port
        self._log = log
        self._failed = failed
        self._clock = clock
        self._known: OrderedDict[str, Kept | None] = OrderedDict()
        self._not_before_s: dict[str, float] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._files = 0
        for path in folder.iterdir():
            kept = self._read(path)
            if kept is None or kept.until_s <= clock():
                with contextlib.suppress(OSError):
                    path.unlink()
            else:
                self._files += 1

    async def find(self, domain: str) -> StsPolicy | None:
        """The policy in force for a recipient domain; None if it has none."""
        try:
            domain = ascii_name(domain)
        except ValueError:
            return None
        now_s = self._clock()
        kept = await self._kept(domain)
        if kept is not None and kept.until_s <= now_s:
            kept = None
        try:
            answer = await self._resolver.query(f"_mta-sts.{domain}", "TXT")
            policy_id = record_id(answer.records)
        except (DnsFailure, ValueError):
            policy_id = None
        if (
            policy_id is not None
            and (kept is None or kept.policy.id != policy_id)
            and self._not_before_s.get(domain, 0.0) <= now_s
        ):
            fetched = await self._fetch(domain, policy_id)
            if fetched is not None:
                kept = Kept(domain, fetched, now_s + fetched.max_age_s)
                self._remember(domain, kept)
                await asyncio.to_thread(self._write, kept)
        return kept.policy if kept is not None else None

    def known(self, domain: str) -> StsPolicy | None:
        """The policy of a domain that is in memory, if it stands; nothing is asked or read."""
        kept = self._known.get(domain)
        return kept.policy if kept is not None and kept.until_s > self._clock() else None

    async def _fetch(self, domain: str, policy_id: str) -> StsPolicy | None:
        try:
            async with asyncio.timeout(FETCH_S):
                return parse_policy(await self._get(f"mta-sts.{domain}"), policy_id)
        except (OSError, ValueError, EOFError, DnsFailure, http.client.HTTPException) as cause:
            if len(self._not_before_s) >= MAX_KNOWN:
                self._not_before_s.clear()
            self._not_before_s[domain] = self._clock() + PAUSE_S
            if self._failed is not None:
                self._failed(domain, cause)
            if self._log is not None:
                self._log.event("sts-fetch-failed", domain=domain, why=str(cause) or type(cause).__name__)
            return None

    async def _get(self, host: str) -> bytes:
        """The policy file of a policy host: over HTTPS only, without following redirects (RFC 8461 3.3)."""
        addresses = await self._resolver.addresses(host)
        if not addresses:
            raise OSError("the policy host has no address")
        reader, writer = await asyncio.open_connection(
            addresses[-1], self._port, ssl=self._context, server_hostname=host
        )
        try:
            writer.write(
                f"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            octets = bytearray()
            while chunk := await reader.read(16_384):
                octets += chunk
                if len(octets) > 2 * MAX_OCTETS:
                    raise ValueError("the policy host sends too much")
        finally:
            writer.transport.abort()
        response = response_of(bytes(octets))
        if response.status != 200:
            raise ValueError(f"the policy host answers {response.status}")
        return response.read()

    def _path(self, domain: str) -> Path:
        return self._folder / (blake2b(domain.encode(), digest_size=16).hexdigest() + ".json")

    def _read(self, path: Path) -> Kept | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Kept)
        except (OSError, msgspec.DecodeError):
            return None

    async def _kept(self, domain: str) -> Kept | None:
        if domain in self._known:
            self._known.move_to_end(domain)
            return self._known[domain]
        kept = await asyncio.to_thread(self._read, self._path(domain)) if self._files else None
        if kept is not None and kept.domain != domain:
            kept = None
        self._remember(domain, kept)
        return kept

    def _remember(self, domain: str, kept: Kept | None) -> None:
        self._known[domain] = kept
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _write(self, kept: Kept) -> None:
        """In a thread: keep a policy in the home; a disk that is full costs only the memory of it after a restart."""
        path = self._path(kept.domain)
        new = not path.exists()
        if new and self._files >= MAX_KNOWN:
            return
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            part.write_bytes(msgspec.json.encode(kept))
            part.replace(path)
            self._files += new
        except OSError as cause:
            if self._log is not None:
                self._log.error("a policy can't be kept", cause)
