"""DMARC reports: rows kept and counted, the XML in the order of RFC 7489 appendix C, the mail, bounds and torn files."""

from __future__ import annotations

import email
import email.policy
import gzip
import xml.etree.ElementTree as ET

from iems.authres import dmarc, reports
from iems.authres.dkim import Signature
from iems.authres.outcome import Outcome
from iems.authres.reportmail import Report, mail, xml
from iems.authres.spf import Spf

DAY_S = 1_700_000_000
RECORD = dmarc.Record("d.example", "reject", rua=("r@d.example",), pct=50)


def line(ip="192.0.2.1", word="pass", reason="", sender="a@d.example", domain="d.example"):
    found = Outcome(
        "a@d.example", Spf(word, "d.example"), (Signature("pass", "other.example", "s<&>\0"),),
        dmarc.Dmarc(word, domain, "reject", spf=word == "pass", record=RECORD),
    )  # fmt: skip
    return reports.row_of(found, DAY_S, ip, sender, "none" if word == "pass" else "reject", reason)


def test_rows_are_counted_and_bounded(tmp_path):
    one, two = reports.Collector(tmp_path, 1, 10_000), reports.Collector(tmp_path, 2, 10_000)
    for collector in (one, two, one):
        assert collector.add(line(), DAY_S)
    assert one.add(line("192.0.2.9", "fail"), DAY_S) and one.add(line(), DAY_S + 86_400)
    (tmp_path / "dmarc/20231114.9.rows").write_bytes(b'{"torn\n' + line()[:40])
    assert reports.days(tmp_path) == ["20231114", "20231115"]
    counts = reports.counted(tmp_path, "20231114")["d.example"]
    assert sorted(counts.values()) == [1, 3] and reports.counted(tmp_path, "20231114", "other") == {}
    small = reports.Collector(tmp_path, 3, 2 * len(line()) + 1)
    assert [small.add(line(), DAY_S) for _ in range(4)] == [True, True, False, False]
    one.close()
    again = reports.Collector(tmp_path, 3, 2 * len(line()) + 1)  # after a restart the room is still used up
    assert not again.add(line(), DAY_S)
    reports.remove(tmp_path, "20231114")
    assert reports.days(tmp_path) == ["20231115"]
    assert reports.days(tmp_path / "nowhere") == []
    broken = reports.Collector(tmp_path / "no/folder", 1, 1000)
    assert not broken.add(line(), DAY_S)


def report(tmp_path):
    collector = reports.Collector(tmp_path, 1, 1 << 20)
    for each in (line(), line(), line("192.0.2.9", "fail", "local_policy", sender="")):
        collector.add(each, DAY_S)
    return Report("d.example", "20231114", reports.counted(tmp_path, "20231114")["d.example"])


def test_the_xml(tmp_path):
    root = ET.fromstring(xml(report(tmp_path), "load.test", "postmaster@load.test"))
    assert [one.tag for one in root] == ["version", "report_metadata", "policy_published", "record", "record"]
    metadata = {one.tag: one.text for one in root[1]}
    assert list(metadata) == ["org_name", "email", "report_id", "date_range"] and metadata["org_name"] == "load.test"
    assert (root.findtext(".//begin"), root.findtext(".//end")) == ("1699920000", "1700006399")
    policy = [(one.tag, one.text) for one in root[2]]
    assert policy == [("domain", "d.example"), ("adkim", "r"), ("aspf", "r"), ("p", "reject"), ("sp", "reject"), ("pct", "50"), ("fo", "0")]
    first, second = root[3], root[4]
    assert [one.tag for one in first] == ["row", "identifiers", "auth_results"]
    assert first.findtext("row/count") == "2" and first.findtext("row/policy_evaluated/spf") == "pass"
    assert [one.tag for one in second.find("row/policy_evaluated")] == ["disposition", "dkim", "spf", "reason"]
    assert second.findtext("row/policy_evaluated/reason/type") == "local_policy" and second.findtext("row/source_ip") == "192.0.2.9"
    assert [one.tag for one in first.find("identifiers")] == ["envelope_from", "header_from"]
    assert [one.tag for one in first.find("auth_results")] == ["dkim", "spf"]
    assert [(one.tag, one.text) for one in first.find("auth_results/dkim")] == [("domain", "other.example"), ("selector", "s<&>?"), ("result", "pass")]
    assert [(one.tag, one.text) for one in first.find("auth_results/spf")] == [("domain", "d.example"), ("scope", "mfrom"), ("result", "pass")]


def test_the_mail(tmp_path):
    octets = mail(report(tmp_path), "load.test", "postmaster@load.test", "r@d.example", DAY_S)
    assert octets.isascii() and max(map(len, octets.split(b"\r\n"))) <= 998
    found = email.message_from_bytes(octets, policy=email.policy.default)
    assert found["Subject"].startswith("Report Domain: d.example Submitter: load.test Report-ID: <20231114.")
    (attached,) = found.iter_attachments()
    assert attached.get_content_type() == "application/gzip"
    assert attached.get_filename() == "load.test!d.example!1699920000!1700006399.xml.gz"
    assert ET.fromstring(gzip.decompress(attached.get_content())).tag == "feedback"
