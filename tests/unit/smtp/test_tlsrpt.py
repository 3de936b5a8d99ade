"""TLS-RPT: records, reports, and the mail they travel in."""

import email
import email.policy
import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.smtp import tlsrpt
from iems.smtp.tlsrpt import Day, Failure, Tally, address_of, destinations, post_of


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([b"v=TLSRPTv1; rua=mailto:tls@x.test"], ["mailto:tls@x.test"]),
        ([b"v=TLSRPTv1;rua=mailto:tls@x.test , https://r.x.test/v1?a=b;"], ["mailto:tls@x.test", "https://r.x.test/v1?a=b"]),
        ([b"v=TLSRPTv1 ; ext=1; rua=mailto:a%2Bb@x.test"], ["mailto:a%2Bb@x.test"]),
        ([b"v=spf1 -all", b"v=TLSRPTv1; rua=mailto:a@x.test"], ["mailto:a@x.test"]),
        ([b"v=TLSRPTv1; rua=mailto:a@x.test", b"v=TLSRPTv1; rua=mailto:b@x.test"], []),
        ([b"v=TLSRPTv2; rua=mailto:a@x.test"], []),
        ([b"v=TLSRPTv1; rua=http://x.test/,ftp://x.test/,mailto:no,https://,mailto:a@b"], []),
        ([b"v=TLSRPTv1; rua="], []),
        ([b"v=TLSRPTv1; rua=" + b",".join(b"mailto:a%d@x.test" % n for n in range(50))], [f"mailto:a{n}@x.test" for n in range(5)]),
        ([], []),
    ],
)
def test_records(records, found):
    assert destinations(records) == found


def test_uris():
    assert address_of("MAILTO:a%2Bb@x.test?subject=x") == "a+b@x.test"
    for bad in ("mailto:a@x.test%0d%0aBcc:b@x.test", "mailto:<a@x.test>", "mailto:a b@x.test", "mailto:@x.test", "mailto:a@", "x"):
        assert address_of(bad) is None, bad
    assert post_of("https://h.test:8443") == ("h.test", 8443, "/") and post_of("https://h.test/a?b=c") == ("h.test", 443, "/a?b=c")
    for bad in ("http://h.test/", "https://u:p@h.test/", "https://h.test/ x", "https://h.test/\r\nX: y", "https://h.test:x/", "https:///a"):
        assert post_of(bad) is None, bad


@given(st.lists(st.binary(max_size=80), max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_record(parts):
    for uri in destinations([b"v=TLSRPTv1; " + part for part in parts] or parts):
        assert address_of(uri) or post_of(uri)
    for uri in destinations([b"v=TLSRPTv1; rua=" + b",".join(parts)]):
        assert "\r" not in uri and "\n" not in uri


def day():
    found = Day("2026-11-23")
    tally = found.tally("x.test", "sts")
    tally.text, tally.hosts, tally.good = ["version: STSv1", "mode: enforce", "mx: mx.x.test"], ["mx.x.test"], 7
    tally.failed(Failure("certificate-expired", "mx.x.test", "192.0.2.1", "192.0.2.9", "certificate has expired"), 2)
    tally.failed(Failure("sts-policy-fetch-error"))
    return found


def test_a_report():
    made = json.loads(tlsrpt.report("2026-11-23", day().of("x.test"), organization="me.test", contact="pm@me.test", name="n1"))
    assert made["organization-name"] == "me.test" and made["contact-info"] == "pm@me.test" and made["report-id"] == "n1"
    assert made["date-range"] == {"start-datetime": "2026-11-23T00:00:00Z", "end-datetime": "2026-11-23T23:59:59Z"}
    (policy,) = made["policies"]
    assert policy["policy"] == {
        "policy-type": "sts", "policy-domain": "x.test", "mx-host": ["mx.x.test"],
        "policy-string": ["version: STSv1", "mode: enforce", "mx: mx.x.test"],
    }
    assert policy["summary"] == {"total-successful-session-count": 7, "total-failure-session-count": 3}
    assert policy["failure-details"] == [
        {"result-type": "certificate-expired", "sending-mta-ip": "192.0.2.9", "receiving-mx-hostname": "mx.x.test",
         "receiving-ip": "192.0.2.1", "failed-session-count": 2, "failure-reason-code": "certificate has expired"},
        {"result-type": "sts-policy-fetch-error", "failed-session-count": 1},
    ]


def test_the_mail():
    content = tlsrpt.packed(b'{"a": 1}')
    raw = tlsrpt.mail(content, day="2026-11-23", domain="x.test", hostname="mx.me.test", sender="pm@me.test", recipient="tls@x.test",
                      name="n1", now_s=1_795_000_000.0)
    assert raw.isascii() and b"\n." not in raw and raw.endswith(b"--\r\n") and raw.count(b"\n") == raw.count(b"\r\n")
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert message.get_content_type() == "multipart/report" and message.get_param("report-type") == "tlsrpt"
    assert message["TLS-Report-Domain"] == "x.test" and message["TLS-Report-Submitter"] == "mx.me.test"
    assert "Report Domain: x.test Submitter: mx.me.test" in message["Subject"]
    text, report = message.iter_parts()
    assert text.get_content_type() == "text/plain" and report.get_content_type() == "application/tlsrpt+gzip"
    assert report.get_filename() == "mx.me.test!x.test!1795392000!1795478399!n1.json.gz"
    assert gzip.decompress(report.get_content()) == b'{"a": 1}'


def test_days_are_merged_and_bounded(monkeypatch):
    both = day()
    both.add(day())
    assert both.of("x.test")[0].good == 14 and both.of("x.test")[0].bad == 6 and both.domains() == ["x.test"]
    monkeypatch.setattr(tlsrpt, "MAX_DOMAINS", 2)
    assert both.tally("y.test", "tlsa") is not None and both.tally("z.test", "tlsa") is None and both.left_out == 1
    many = Tally("x.test", "sts")
    for number in range(tlsrpt.MAX_KINDS + 50):
        many.failed(Failure("validation-failure", why=str(number)))
    assert many.bad == tlsrpt.MAX_KINDS + 50 and len(many.failures) == tlsrpt.MAX_KINDS
    assert tlsrpt.plain("a\r\nb\u2028" + "x" * 999) == "a??b?" + "x" * (tlsrpt.MAX_TEXT - 5)
