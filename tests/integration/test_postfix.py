"""Postfix as next hop and as sender, smtp-source, msmtp and openssl as clients: each started privately, on loopback."""

from __future__ import annotations

import hashlib
import imaplib
import shutil
import smtplib
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iems.perf.home import PrivateHome
from tests.integration.test_relay import Home, reports, started, until
from tests.support.certificates import Authority
from tests.support.dnsserver import DnsServer
from tests.support.postfix import TestPostfix, needs_postfix
from tests.unit.smtpc.test_smtpc_security import PolicyHost

__all__ = ["started"]
POLICY = b"version: STSv1\nmode: enforce\nmx: %b\nmax_age: 86400\n"
SMTP_SOURCE = shutil.which("smtp-source", path="/usr/sbin:/usr/bin")


class Policies(PolicyHost):
    """One policy host for two domains: the name asked for says whose policy it is."""

    async def _serve(self, reader: Any, writer: Any) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        text = POLICY % (b"mx.sts.test" if b"Host: mta-sts.sts.test" in request else b"mx.elsewhere.test")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        await writer.drain()
        writer.close()


@needs_postfix
def test_postfix_as_next_hop_under_every_tls_policy(started: Callable[..., Home], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    shown = authority.server("mx.dane.test", "mx.sts.test", "mx.bad.test", "mta-sts.sts.test", "mta-sts.other.test")
    right = hashlib.sha256(shown.spki).hexdigest()
    with TestPostfix(hold=True, certificate=shown) as postfix:
        port = postfix.port("smtp")
        zone: dict[tuple[str, str], list[str]] = {
            (f"_{port}._tcp.mx.dane.test", "TLSA"): [f"3 1 1 {right}"],
            (f"_{port}._tcp.mx.bad.test", "TLSA"): [f"3 1 1 {'00' * 32}"],
            ("_mta-sts.sts.test", "TXT"): ['"v=STSv1; id=1"'],
            ("_mta-sts.other.test", "TXT"): ['"v=STSv1; id=1"'],
            ("mta-sts.sts.test", "A"): ["127.0.0.1"],
            ("mta-sts.other.test", "A"): ["127.0.0.1"],
        }
        for name in ("dane.test", "bad.test", "sts.test", "other.test"):
            zone |= {(name, "MX"): [f"10 mx.{name}."], (f"mx.{name}", "A"): ["127.0.0.1"]}
        names, policies = DnsServer(zone), Policies(shown.context, None)
        names.secure = True

        def settings(names: DnsServer, policies: Policies) -> str:
            return (
                f'[smtpc]\nresolution = "dns"\nport = {port}\ndane = true\nmta_sts = true\nmta_sts_port = {policies.port}\n'
                f'tls_ca_file = "{authority.file}"\n'
                f'[dns]\nservers = ["127.0.0.1:{names.port}"]\ntimeout_s = 0.5\nattempts = 2\n'
            )

        home = started(names, policies, settings=settings)
        home.send("a@dane.test", "b@bad.test", "c@sts.test", "d@other.test")
        until(lambda: len(home.events("relayed")) == 2 and len(home.events("deferred")) == 2)
        assert {event["recipient"] for event in home.events("relayed")} == {"a@dane.test", "c@sts.test"}
        said = {event["recipient"]: event["detail"]["reply"] for event in home.events("deferred")}
        assert "4.7.5" in said["b@bad.test"] and "TLSA" in said["b@bad.test"]
        assert "4.7.5" in said["d@other.test"] and "MTA-STS" in said["d@other.test"]
        assert len(until(postfix.held)) == 2 and "TLS connection established from" in postfix.log()

        # Postfix knows no REQUIRETLS: such mail comes back, over TLS, and never went.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with smtplib.SMTP("127.0.0.1", home.base + 25) as client:
            client.starttls(context=context)
            client.ehlo()
            client.sendmail("anna@example.test", ["a@dane.test"], b"Subject: secret\r\n\r\nx\r\n", mail_options=["REQUIRETLS"])
        (notice,) = until(home.inbox)
        (report,) = reports(notice)
        assert report["Status"] == "5.7.30" and report["Final-Recipient"] == "rfc822; a@dane.test"
        assert len(postfix.held()) == 2 and not any("secret" in text for text in postfix.held())

        # What needs SMTPUTF8 is not made into something else for a host without it: it comes back with the reason.
        home._call("iemsctl", "forward", "set", "old.test", "SMTPC", f"127.0.0.1:{postfix.port('old')}")
        with smtplib.SMTP("127.0.0.1", home.base + 25) as client:
            client.ehlo()
            client.sendmail(
                "anna@example.test", ["jörg@old.test", "plain@old.test"], "Subject: grün\r\n\r\nx\r\n".encode(),
                mail_options=["SMTPUTF8", "BODY=8BITMIME"],
            )
        text = str(until(lambda: next((mail for mail in home.inbox() if "5.6.7" in str(mail)), None)))
        assert "message/global-delivery-status" in text and "SMTPUTF8" in text
        assert "Final-Recipient: utf-8; j" in text and "Final-Recipient: rfc822; plain@old.test" in text
        assert len(postfix.held()) == 2


@pytest.fixture(scope="module")
def home() -> Iterator[PrivateHome]:
    with PrivateHome(2, {"smtpd.trusted_networks": ["127.0.0.0/8"]}) as running:
        yield running


def inbox(home: PrivateHome, user: str) -> list[bytes]:
    client = imaplib.IMAP4("127.0.0.1", home.port("imap"))
    client.login(user, "pw")
    client.select()
    found = [client.fetch(n, "(BODY[])")[1][0][1] for n in client.search(None, "ALL")[1][0].split()]
    client.logout()
    return found


@needs_postfix
def test_postfix_as_sender_with_smtputf8_and_dsn(home: PrivateHome) -> None:
    with TestPostfix(next_hop=("smtp", home.port("smtp"))) as postfix, smtplib.SMTP("127.0.0.1", postfix.port("smtp")) as client:
        client.ehlo()
        client.sendmail(
            "jörg@grün.test", ["a1@load.test"], "Subject: grüße\r\nMessage-ID: <u1@x.test>\r\n\r\nschön\r\n".encode(),
            mail_options=["SMTPUTF8", "BODY=8BITMIME"],
        )
        (raw,) = until(lambda: inbox(home, "a1@load.test"))
        assert "Return-Path: <jörg@".encode() in raw and "Subject: grüße\r\n".encode() in raw and "schön".encode() in raw
        assert b"with UTF8SMTP" in raw
        client.mail("a2@load.test", ["ENVID=QQ+2B1", "RET=HDRS"])
        client.rcpt("a1@load.test", ["NOTIFY=SUCCESS", "ORCPT=rfc822;first@load.test"])
        assert client.data(b"Subject: told\r\n\r\nx\r\n")[0] == 250
        (notice,) = until(lambda: inbox(home, "a2@load.test"))
        assert b"Original-Envelope-Id: QQ+1\r\n" in notice and b"Original-Recipient: rfc822; first@load.test\r\n" in notice
        assert b"Action: delivered\r\n" in notice and b"Subject: Mail delivered\r\n" in notice
        assert "a1@load.test" in postfix.log() and "status=sent (250 2.0.0 queued as" in postfix.log()


@pytest.mark.skipif(SMTP_SOURCE is None, reason="smtp-source (of postfix) is not installed")
def test_smtp_source(home: PrivateHome) -> None:
    assert SMTP_SOURCE is not None
    before = len(inbox(home, "a2@load.test"))
    command = [SMTP_SOURCE, "-s", "5", "-m", "40", "-l", "3000", "-f", "s@x.test", "-t", "a2@load.test", f"127.0.0.1:{home.port('smtp')}"]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    until(lambda: len(inbox(home, "a2@load.test")) == before + 40)


@pytest.mark.skipif(shutil.which("msmtp") is None, reason="msmtp is not installed")
def test_msmtp(home: PrivateHome) -> None:
    command = [
        "msmtp", "--file=/dev/null", "--host=127.0.0.1", f"--port={home.port('submission')}", "--from=a1@load.test", "--auth=plain",
        "--user=a1@load.test", "--passwordeval=echo pw", "--tls=on", "--tls-certcheck=off", "--dsn-notify=failure", "a2@load.test",
    ]  # fmt: skip
    subprocess.run(command, input=b"Subject: by msmtp\n\n.dot\n", check=True, timeout=60, capture_output=True)
    until(lambda: any(b"Subject: by msmtp\r\n" in raw and b"\r\n.dot\r\n" in raw for raw in inbox(home, "a2@load.test")))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl(home: PrivateHome) -> None:
    command = ["openssl", "s_client", "-starttls", "smtp", "-crlf", "-quiet", "-tls1_3", "-connect", f"127.0.0.1:{home.port('smtp')}"]
    words = b"EHLO x.test\nMAIL FROM:<s@x.test> REQUIRETLS\nQUIT\n"
    done = subprocess.run(command, input=words, capture_output=True, timeout=60, check=True)
    assert b"250-REQUIRETLS\r\n" in done.stdout and b"STARTTLS" not in done.stdout
    assert b"250 2.1.0" in done.stdout and b"221 2.0.0" in done.stdout
