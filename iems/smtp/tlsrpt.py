"""Reports on TLS (RFC 8460): the TXT record that asks for them, what is counted, the report, and the mail that carries it. Pure."""

from __future__ import annotations

import base64
import datetime
import gzip
import hashlib
import re
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct, field

#: What a day keeps at most: domains, kinds of failure and mail hosts of one, texts of its policy; and where a report is sent.
MAX_DOMAINS: Final = 10_000
MAX_KINDS: Final = 100
MAX_HOSTS: Final = 32
MAX_LINES: Final = 64
MAX_TEXT: Final = 256
MAX_URIS: Final = 5

_VERSION = re.compile(rb"v=TLSRPTv1[ \t]*;(.*)\Z", re.S)
_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+\Z")
_NOT_PRINTED = re.compile(r"[^\x20-\x7e]")


class Failure(Struct, frozen=True):
    """One kind of failed connection. result: a result type of RFC 8460 4.3; why: for people."""

    result: str
    host: str = ""
    address: str = ""
    own: str = ""
    why: str = ""


class Tally(Struct):
    """Connections towards one domain under one policy. kind: `tlsa`, `sts` or `no-policy-found`; text: the policy's lines."""

    domain: str
    kind: str
    text: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    good: int = 0
    bad: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    def failed(self, failure: Failure, number: int = 1) -> None:
        """Count a failure; past `MAX_KINDS` it is in the sum alone."""
        self.bad += number
        key = msgspec.json.encode(failure).decode()
        if key in self.failures or len(self.failures) < MAX_KINDS:
            self.failures[key] = self.failures.get(key, 0) + number

    def add(self, other: Tally) -> None:
        """Take in what another worker counted."""
        self.good += other.good
        self.bad += other.bad
        for key, number in other.failures.items():
            if key in self.failures or len(self.failures) < MAX_KINDS:
                self.failures[key] = self.failures.get(key, 0) + number


class Day(Struct):
    """What one worker (or all) counted on a day of UTC, "2026-11-24"; by domain and kind of policy. left_out: domains past the limit."""

    day: str
    tallies: dict[str, Tally] = field(default_factory=dict)
    left_out: int = 0

    def tally(self, domain: str, kind: str) -> Tally | None:
        """Where connections of a domain are counted; None for one domain too many."""
        key = f"{domain} {kind}"
        found = self.tallies.get(key)
        if found is None:
            if len(self.tallies) >= MAX_DOMAINS:
                self.left_out += 1
                return None
            found = self.tallies[key] = Tally(domain, kind)
        return found

    def add(self, other: Day) -> None:
        """Take in another worker's day."""
        self.left_out += other.left_out
        for tally in other.tallies.values():
            own = self.tally(tally.domain, tally.kind)
            if own is not None:
                own.text, own.hosts = own.text or tally.text, own.hosts or tally.hosts
                own.add(tally)

    def domains(self) -> list[str]:
        """The domains counted, in order."""
        return sorted({tally.domain for tally in self.tallies.values()})

    def of(self, domain: str) -> list[Tally]:
        """All that was counted of one domain."""
        return [self.tallies[key] for key in sorted(self.tallies) if self.tallies[key].domain == domain]


def plain(text: str) -> str:
    """A text of a peer as it may stand in a report: printable ASCII, not too long."""
    return _NOT_PRINTED.sub("?", text)[:MAX_TEXT]


def destinations(records: Iterable[bytes]) -> list[str]:
    """Where reports go, by the TXT records of `_smtp._tls.DOMAIN`: mailto: and https: URIs; [] if none are wanted.

    Records of another version don't count; more than one that does means none (RFC 8460 3).
    """
    found = [match[1] for record in records if (match := _VERSION.match(record))]
    if len(found) != 1:
        return []
    for part in found[0].split(b";"):
        name, equals, value = part.strip().partition(b"=")
        if equals and name.strip() == b"rua":
            uris = [uri.strip().decode("ascii", "replace") for uri in value.split(b",")]
            return [uri for uri in uris[:MAX_URIS] if address_of(uri) or post_of(uri)]
    return []


def address_of(uri: str) -> str | None:
    """The address of a mailto: URI, None for anything else."""
    if uri[:7].lower() != "mailto:":
        return None
    address = unquote(uri[7:].partition("?")[0])
    return address if _ADDRESS.match(address) else None


def post_of(uri: str) -> tuple[str, int, str] | None:
    """(host, port, path with query) of an https: URI, None for anything else."""
    if _NOT_PRINTED.search(uri) or " " in uri:
        return None
    try:
        parts = urlsplit(uri)
        port = parts.port or 443
    except ValueError:
        return None
    if parts.scheme.lower() != "https" or not parts.hostname or parts.username or parts.password:
        return None
    path = parts.path or "/"
    return parts.hostname, port, f"{path}?{parts.query}" if parts.query else path


def report_id(day: str, domain: str, hostname: str) -> str:
    """The name of the report a host makes about a domain on a day."""
    text = f"{day}\0{domain}\0{hostname}".encode()
    return f"{day}-{hashlib.blake2b(text, digest_size=8).hexdigest()}"


def report(day: str, tallies: Sequence[Tally], *, organization: str, contact: str, name: str) -> bytes:
    """The report on one domain's tallies as JSON (RFC 8460 4.4)."""
    policies = []
    for tally in tallies:
        policy: dict[str, Any] = {"policy-type": tally.kind, "policy-domain": tally.domain}
        if tally.text:
            policy["policy-string"] = tally.text
        if tally.hosts:
            policy["mx-host"] = tally.hosts
        entry: dict[str, Any] = {
            "policy": policy,
            "summary": {
                "total-successful-session-count": tally.good,
                "total-failure-session-count": tally.bad,
            },
        }
        details = []
        for key, number in sorted(tally.failures.items()):
            failure = msgspec.json.decode(key, type=Failure)
            values = {
                "result-type": failure.result,
                "sending-mta-ip": failure.own,
                "receiving-mx-hostname": failure.host,
                "receiving-ip": failure.address,
                "failure-reason-code": failure.why,
            }
            details.append({name: value for name, value in values.items() if value} | {"failed-session-count": number})
        if details:
            entry["failure-details"] = details
        policies.append(entry)
    return msgspec.json.encode(
        {
            "organization-name": organization,
            "date-range": {"start-datetime": f"{day}T00:00:00Z", "end-datetime": f"{day}T23:59:59Z"},
            "contact-info": contact,
            "report-id": name,
            "policies": policies,
        }
    )


def packed(content: bytes) -> bytes:
    """A report as it travels; the same octets each time."""
    return gzip.compress(content, mtime=0)


def mail(
    content: bytes, *, day: str, domain: str, hostname: str, sender: str, recipient: str, name: str, now_s: float
) -> bytes:
    """The message that carries a packed report (RFC 8460 5.3)."""
    start = int(datetime.datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp())
    file = f"{hostname}!{domain}!{start}!{start + 86399}!{name}.json.gz"
    boundary = "=_" + hashlib.blake2b(content, digest_size=16).hexdigest()
    lines = [
        f"From: <{sender}>",
        f"To: <{recipient}>",
        f"Date: {formatdate(now_s)}",
        f"Message-ID: <{name}@{hostname}>",
        f"Subject: Report Domain: {domain}",
        f" Submitter: {hostname}",
        f" Report-ID: <{name}@{hostname}>",
        f"TLS-Report-Domain: {domain}",
        f"TLS-Report-Submitter: {hostname}",
        "TLS-Required: No",
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type="tlsrpt";\r\n boundary="{boundary}"',
        "",
        f"--{boundary}",
        "Content-Type: text/plain; charset=us-ascii",
        "",
        f"This is a report on TLS connections from {hostname} to the mail hosts of",
        f"{domain} on {day} (UTC), as RFC 8460 describes it.",
        "",
        f"--{boundary}",
        "Content-Type: application/tlsrpt+gzip",
        "Content-Transfer-Encoding: base64",
        f'Content-Disposition: attachment;\r\n filename="{file}"',
        "",
        base64.encodebytes(content).decode().replace("\n", "\r\n") + f"--{boundary}--",
        "",
    ]
    return "\r\n".join(lines).encode()
