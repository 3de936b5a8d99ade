"""DMARC aggregate reports: the XML of RFC 7489 appendix C, and the mail that carries it (7.2.1.1). Pure."""

from __future__ import annotations

import gzip
import hashlib
import time
from calendar import timegm
from collections.abc import Mapping
from typing import Final
from xml.sax.saxutils import escape

from msgspec import Struct

from iems.authres.reports import DAY_S, Published, Row
from iems.message import build

#: Records of one report; the rows with the most messages come first.
MAX_RECORDS: Final = 10_000


class Report(Struct, frozen=True):
    """One day of one domain. begin_s, end_s: since 1970, both inside the day."""

    domain: str
    day: str
    rows: Mapping[Row, int]

    @property
    def begin_s(self) -> int:
        """First second of the day."""
        return timegm(time.strptime(self.day, "%Y%m%d"))

    @property
    def end_s(self) -> int:
        """Last second of the day."""
        return self.begin_s + DAY_S - 1

    @property
    def messages(self) -> int:
        """Messages it is about."""
        return sum(self.rows.values())

    @property
    def published(self) -> Published:
        """The policy: that of most messages, if it was changed during the day."""
        counts: dict[Published, int] = {}
        for row, count in self.rows.items():
            counts[row.published] = counts.get(row.published, 0) + count
        return max(counts, key=lambda one: (counts[one], one.rua))

    def id(self, submitter: str) -> str:
        """Unique for day, domain and submitter; the same if the report is made again."""
        text = f"{self.day}\0{self.domain}\0{submitter}"
        return f"{self.day}.{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def _tag(name: str, value: object, indent: int) -> str:
    text = "".join(c if c >= " " and c not in "\x7f\ufffe\uffff" and not "\ud800" <= c <= "\udfff" else "?" for c in str(value))
    return f"{'  ' * indent}<{name}>{escape(text)}</{name}>\n"


def _word(passed: bool) -> str:
    return "pass" if passed else "fail"


def _record(row: Row, count: int) -> str:
    out = ["  <record>\n    <row>\n", _tag("source_ip", row.ip, 3), _tag("count", count, 3), "      <policy_evaluated>\n"]
    out += [_tag("disposition", row.disposition, 4), _tag("dkim", _word(row.dkim), 4), _tag("spf", _word(row.spf), 4)]
    if row.reason:
        out.append("        <reason>\n" + _tag("type", row.reason, 5) + "        </reason>\n")
    out.append("      </policy_evaluated>\n    </row>\n    <identifiers>\n")
    if row.envelope_from:
        out.append(_tag("envelope_from", row.envelope_from, 3))
    out += [_tag("header_from", row.header_from, 3), "    </identifiers>\n    <auth_results>\n"]
    for domain, selector, result in row.signatures:
        out.append("      <dkim>\n" + _tag("domain", domain, 4) + _tag("selector", selector, 4) + _tag("result", result, 4) + "      </dkim>\n")
    domain, scope, result = row.spf_result or (row.envelope_from or row.header_from, "mailfrom", "none")
    scope = "mfrom" if scope == "mailfrom" else scope
    out.append("      <spf>\n" + _tag("domain", domain, 4) + _tag("scope", scope, 4) + _tag("result", result, 4) + "      </spf>\n")
    return "".join([*out, "    </auth_results>\n  </record>\n"])


def xml(report: Report, submitter: str, email: str) -> bytes:
    """The report. submitter: our domain. email: whom to write to about it."""
    policy = report.published
    out = ['<?xml version="1.0" encoding="UTF-8"?>\n<feedback>\n', _tag("version", "1.0", 1), "  <report_metadata>\n"]
    out += [_tag("org_name", submitter, 2), _tag("email", email, 2), _tag("report_id", report.id(submitter), 2)]
    out += ["    <date_range>\n", _tag("begin", report.begin_s, 3), _tag("end", report.end_s, 3), "    </date_range>\n"]
    out += ["  </report_metadata>\n  <policy_published>\n", _tag("domain", policy.domain, 2)]
    out += [_tag("adkim", policy.adkim, 2), _tag("aspf", policy.aspf, 2), _tag("p", policy.p, 2)]
    out += [_tag("sp", policy.sp or policy.p, 2), _tag("pct", policy.pct, 2), _tag("fo", policy.fo, 2), "  </policy_published>\n"]
    ordered = sorted(report.rows.items(), key=lambda one: (-one[1], one[0].ip, one[0].header_from))
    out += [_record(row, count) for row, count in ordered[:MAX_RECORDS]]
    return "".join([*out, "</feedback>\n"]).encode("utf-8")


def mail(report: Report, submitter: str, sender: str, recipient: str, now_s: float) -> bytes:
    """The message that carries it to one address."""
    identity = report.id(submitter)
    name = f"{submitter}!{report.domain}!{report.begin_s}!{report.end_s}"
    packed = gzip.compress(xml(report, submitter, sender), mtime=report.begin_s)
    text = (
        f"This is an aggregate report by {submitter} about mail that names {report.domain} in From,\n"
        f"of {report.day[:4]}-{report.day[4:6]}-{report.day[6:]} (UTC): {report.messages} messages.\n"
    )
    unique = hashlib.blake2b(f"{identity}\0{recipient}".encode(), digest_size=16).digest()
    head = [
        build.raw_field("From", f"<{sender}>"),
        build.raw_field("To", f"<{recipient}>"),
        build.raw_field("Subject", f"Report Domain: {report.domain} Submitter: {submitter} Report-ID: <{identity}>"),
        build.date_field(now_s),
        build.raw_field("Message-ID", build.message_id(unique, submitter)),
        build.raw_field("Auto-Submitted", "auto-generated"),
        build.raw_field("MIME-Version", "1.0"),
    ]
    parts = [build.text_part(text), build.octets_part(packed, "application/gzip", f"{name}.xml.gz")]
    return b"".join(head) + build.multipart("mixed", parts)
