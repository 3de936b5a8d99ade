"""A started server checks mail from outside and signs its own; DNS, the next host and the second opinions are on loopback."""

from __future__ import annotations

import asyncio
import email
import gzip
import imaplib
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import dkim as dkimpy
import pytest

from iems.authres import sign
from iems.authres.dkim import verify
from iems.authres.mail import Mail
from iems.perf import queue
from iems.perf.home import PASSWORD, PrivateHome
from tests.support.beside import beside
from tests.support.dnsserver import DnsServer
from tests.support.smtpserver import SmtpServer
from tests.support.waiting import until
from tests.support.zones import Zones

KEY = sign.new_key("rsa")
RECORD = sign.record(KEY)
ZONES = {
    ("d.example", "TXT"): ['"v=spf1 ip4:192.0.2.1 -all"'],
    ("_dmarc.d.example", "TXT"): ['"v=DMARC1; p=reject; rua=mailto:reports@d.example"'],
    ("s._domainkey.d.example", "TXT"): [" ".join(f'"{RECORD[at : at + 255]}"' for at in range(0, len(RECORD), 255))],
    ("_dmarc.q.example", "TXT"): ['"v=DMARC1; p=quarantine"'],
    ("plain.example", "TXT"): ['"v=spf1 ip4:192.0.2.9 -all"'],
}
HEAD = b"From: A <a@d.example>\r\nTo: a1@load.test\r\nSubject: hello\r\nMessage-ID: <%d@d.example>\r\n"
FORGED = b"Authentication-Results: mail.load.test; dmarc=pass header.from=d.example\r\n"


@pytest.fixture(scope="module")
def outside():
    """DNS and the host all mail goes to, in a loop of their own thread."""
    found = SimpleNamespace(dns=DnsServer(dict(ZONES)), host=SmtpServer())
    with beside(found.dns, found.host):
        yield found


@pytest.fixture(scope="module")
def server(outside):
    settings = {
        "dns.servers": [f"127.0.0.1:{outside.dns.port}"], "smtpd.xclient_networks": ["127.0.0.1/32"], "smtpd.workers": 1,
        "smtpc.resolution": "relay", "smtpc.relay_hosts": [f"127.0.0.1:{outside.host.port}"],
        "authres.verify": True, "authres.dmarc": "reject", "authres.reports": True, "dkim.seal": True,
    }  # fmt: skip
    with PrivateHome(1, settings) as home:
        home.ctl("alias", "add", "away@load.test", "far@far.example")
        assert home.ctl("dkim", "key", "create", "load.test", "--selector", "one") == "one\n"
        home.ctl("dkim", "key", "create", "load.test", "--algorithm", "ed25519", "--selector", "two")
        records = [json.loads(line) for line in home.ctl("dkim", "record", "load.test", "--json").splitlines()]
        home.records = {record["name"]: record["text"].encode() for record in records}
        home.dns = lambda name, timeout=5: home.records.get(name.decode().rstrip("."))
        yield home


def swaks(server, content, *more, to="a1@load.test", sender="a@d.example", client="192.0.2.1", port="smtp"):
    """Send by swaks; the id of the message."""
    command = ["swaks", "--server", f"127.0.0.1:{server.port(port)}", "--from", sender, "--to", to, "--data", "-", *more]
    if client:
        command += ["--xclient", f"ADDR={client}"]
    done = subprocess.run(command, input=content.replace(b"\r\n", b"\n"), capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout.decode()
    return next(line.split()[-1].decode() for line in done.stdout.splitlines() if b"queued as" in line)


def stored(server, number):
    """The message with this number in its Message-ID."""
    queue.until_drained(server.path)
    with imaplib.IMAP4("127.0.0.1", server.port("imap")) as client:
        client.login("a1@load.test", PASSWORD)
        client.select()
        found = client.search(None, "HEADER", "Message-ID", f"<{number}@")[1][0].split()
        return b"" if not found else client.fetch(found[-1], "(BODY.PEEK[] BODYSTRUCTURE ENVELOPE)")[1][0][1]


def relayed(outside, server, count):
    """Octets of the last message the next host got."""
    until(lambda: len(outside.host.messages) >= count)
    return outside.host.messages[-1][2].replace(b"\r\n..", b"\r\n.")


def test_checked_and_told_and_forgeries_gone(server):
    plain = HEAD % 1 + b"\r\n.dotted\r\nHello\r\n"
    signed = dkimpy.sign(plain, b"s", b"d.example", sign.key_pem(KEY).encode(), include_headers=[b"From", b"Subject"])
    id = swaks(server, FORGED + signed + plain.replace(b"Subject", FORGED + b"Subject"))
    content = stored(server, 1)
    assert content.rstrip().endswith(plain.rstrip()) and content.count(b"Authentication-Results") == 1
    found = email.message_from_bytes(content)
    told = found["Authentication-Results"]
    assert found.keys()[2:4] == ["X-IEMS-Verdict", "Authentication-Results"]  # behind what delivery puts in front
    assert content.partition(b"\r\nAuthentication-Results: ")[2].startswith(b"mail.load.test;\r\n\tspf=pass smtp.mailfrom=a@d.example;\r\n\tdkim=pass header.d=d.example")
    assert "dmarc=pass header.from=d.example policy.dmarc=reject" in told
    events = [json.loads(line) for line in server.ctl("trace", id, "--json").splitlines()]
    (examined,) = [event["detail"] for event in events if event["event"] == "examined" and event["detail"]["module"] == "authres"]
    assert "2 forged fields removed; spf=pass; dkim=pass; dmarc=pass" in examined["note"]


def test_borrowed_names_are_dropped_and_real_ones_told(server):
    dropped = swaks(server, HEAD % 2 + b"\r\nx\r\n", client="192.0.2.77")
    refused = swaks(server, HEAD % 3 + b"\r\nx\r\n", sender="a@plain.example", client="192.0.2.9")
    assert stored(server, 2) == b"" == stored(server, 3)
    names = {id: [json.loads(line)["event"] for line in server.ctl("trace", id, "--json").splitlines()] for id in (dropped, refused)}
    assert "discarded" in names[dropped] and "dsn" not in names[dropped]
    assert "failed" in names[refused]
    assert json.loads(server.ctl("audit", "--json"))["missing"] == 0


def test_quarantine_is_a_tag_that_delivery_acts_on(server):
    swaks(server, HEAD.replace(b"d.example", b"q.example") % 9 + b"\r\nx\r\n")
    content = email.message_from_bytes(stored(server, 9))
    assert content["X-Spam-Status"] == "YES" and "dmarc=q.example (fail, policy quarantine)" in content["X-IEMS-AntiSpam"].replace("%2C", ",").replace("\r\n\t", " ")


def test_mail_of_ours_is_signed_by_both_keys(server, outside):
    count = len(outside.host.messages)
    body = b"From: a1@load.test\r\nTo: far@far.example\r\nSubject: out\r\nMessage-ID: <4@load.test>\r\n\r\n.x  y \r\n" + b"line\r\n" * 100_000
    swaks(server, body, "--auth", "PLAIN", "--auth-user", "a1@load.test", "--auth-password", PASSWORD, sender="a1@load.test", to="far@far.example", client="", port="submission")
    content = relayed(outside, server, count + 1)
    assert content.count(b"DKIM-Signature:") == 2 and len(content) > 600_000
    assert dkimpy.DKIM(content).verify(0, dnsfunc=server.dns) and dkimpy.DKIM(content).verify(1, dnsfunc=server.dns)
    zone = Zones({name: {"TXT": [text]} for name, text in server.records.items()})
    assert [one.result for one in asyncio.run(verify(zone, Mail.of(content), int(time.time())))] == ["pass", "pass"]


def test_signed_and_sealed_behind_our_own_rewriting(server, outside, tmp_path):
    text = tmp_path / "text"
    text.write_text("A word from our house.\n")
    server.ctl("autotext", "set", "SMTPD", "--text", str(text))
    try:
        count = len(outside.host.messages)
        body = b"From: a1@load.test\r\nTo: far@far.example\r\nSubject: out\r\nMessage-ID: <10@load.test>\r\n\r\nHello\r\n"
        swaks(server, body, "--auth", "PLAIN", "--auth-user", "a1@load.test", "--auth-password", PASSWORD, sender="a1@load.test", to="far@far.example", client="", port="submission")
        content = relayed(outside, server, count + 1)
        assert b"A word from our house." in content and dkimpy.verify(content, dnsfunc=server.dns)
        swaks(server, HEAD % 11 + b"\r\nforward me\r\n", to="away@load.test")
        content = relayed(outside, server, count + 2)
        assert b"A word from our house." in content and dkimpy.arc_verify(content, dnsfunc=server.dns)[0] == b"pass"
    finally:
        server.ctl("autotext", "remove", "SMTPD")


def test_keys_in_dns(server, outside):
    with pytest.raises(RuntimeError, match=r"not in DNS.*one\._domainkey"):
        server.ctl("dkim", "record", "load.test", "--check")
    for name, text in server.records.items():
        octets = text.decode()
        outside.dns.records[name, "TXT"] = [" ".join(f'"{octets[at : at + 255]}"' for at in range(0, len(octets), 255))]
    # The server's resolver isn't the command's: nothing is kept.
    assert server.ctl("dkim", "record", "load.test", "--check").count("right") == 2
    outside.dns.faults["one._domainkey.load.test"] = "SERVFAIL"
    try:
        with pytest.raises(RuntimeError, match="not in DNS"):
            server.ctl("dkim", "record", "load.test", "--check", "--json")
    finally:
        outside.dns.faults.clear()


def test_forwarded_mail_is_sealed_not_signed(server, outside):
    count = len(outside.host.messages)
    swaks(server, FORGED + HEAD % 5 + b"\r\nforward me\r\n", to="away@load.test")
    content = relayed(outside, server, count + 1)
    assert content.count(b"ARC-Seal: i=1;") == 1 and b"DKIM-Signature" not in content
    assert b"ARC-Authentication-Results: i=1; mail.load.test;\r\n\tspf=pass" in content
    word, _, problem = dkimpy.arc_verify(content, dnsfunc=server.dns)
    assert word == b"pass", problem


def test_a_report_is_shown_and_sent(server, outside):
    swaks(server, HEAD % 6 + b"\r\nx\r\n")
    queue.until_drained(server.path)
    (row,) = [json.loads(line) for line in server.ctl("dmarc", "report", "show", "--json").splitlines()]
    assert row["domain"] == "d.example" and row["to"] == ["reports@d.example"] and row["messages"] >= row["passed"] >= 1
    assert "<org_name>load.test</org_name>" in server.ctl("dmarc", "report", "show", "--domain", "d.example")
    assert "reports@d.example" in server.ctl("dmarc", "report", "send", "--dry-run")
    count = len(outside.host.messages)
    server.ctl("dmarc", "report", "send")
    content = relayed(outside, server, count + 1)
    assert dkimpy.verify(content, dnsfunc=server.dns)
    (attached,) = [part for part in email.message_from_bytes(content).walk() if part.get_content_type() == "application/gzip"]
    root = ET.fromstring(gzip.decompress(attached.get_payload(decode=True)))
    assert {one.text for one in root.iter("source_ip")} >= {"192.0.2.1"}
    assert b"<reports@d.example>" in outside.host.messages[-1][1][0]


def test_dns_away_lets_mail_in(server, outside):
    outside.dns.faults.update({"e.example": "SERVFAIL", "_dmarc.e.example": "SERVFAIL"})
    swaks(server, (HEAD % 7).replace(b"d.example>\r\nTo", b"e.example>\r\nTo") + b"\r\nx\r\n", sender="a@e.example")
    assert b"dmarc=temperror" in stored(server, 7) and b"spf=temperror" in stored(server, 7)


def test_the_command_line(server, outside, tmp_path):
    def check(*words, stdin=b""):
        command = [sys.executable, "-m", "iems.cli.iemsctl", "check", words[0], "--dns", f"127.0.0.1:{outside.dns.port}", *words[1:]]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
        return done.stdout.decode().split("\n")[0]

    assert check("spf", "192.0.2.1", "h.example", "a@d.example") == "pass"
    assert check("spf", "192.0.2.2", "h.example", "a@d.example") == "fail"
    plain = HEAD % 8 + b"\r\nHello\r\n"
    signed = dkimpy.sign(plain, b"s", b"d.example", sign.key_pem(KEY).encode()) + plain
    file = tmp_path / "mail.eml"
    file.write_bytes(signed)
    assert check("dkim", str(file)) == check("dmarc", str(file)) == "pass" and check("arc", str(file)) == "none"
    assert check("dmarc", "-", stdin=plain) == "fail" and check("dkim", "-", stdin=signed.replace(b"\r\n", b"\n")) == "pass"
    assert check("dmarc", "--domain", "mail.d.example") == "reject"
