"""Peer profiles, forwards and relay domains on a started server, set by the command while it runs."""

from __future__ import annotations

import imaplib
import json
import smtplib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from iems.perf.home import PrivateHome
from tests.integration.test_relay import Outside, until
from tests.support.smtpserver import Connection, SmtpServer


@pytest.fixture(scope="module")
def next_hop() -> Iterator[SmtpServer]:
    server = SmtpServer()
    outside = Outside(server)
    yield server
    outside.close()


@pytest.fixture(scope="module")
def home(next_hop: SmtpServer) -> Iterator[PrivateHome]:
    settings = {
        "smtpc.resolution": "relay",
        "smtpc.relay_hosts": [f"127.0.0.1:{next_hop.port}"],
        "smtpd.trusted_networks": ["127.0.0.0/8"],
        "smtpd.size_limit": 100_000,
        "smtpc.srs": True,
    }
    with PrivateHome(2, settings) as running:
        yield running


def submit(home: PrivateHome, recipient: str) -> None:
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
        client.sendmail("a1@load.test", [recipient], b"Subject: x\r\n\r\nx\r\n")


def reports(home: PrivateHome) -> list[bytes]:
    client = imaplib.IMAP4("127.0.0.1", home.port("imap"))
    client.login("a1@load.test", "pw")
    client.select()
    found = [client.fetch(n, "(BODY[])")[1][0][1] for n in client.search(None, "ALL")[1][0].split()]
    client.logout()
    return found


def test_a_profile_acts_at_once(home: PrivateHome, next_hop: SmtpServer) -> None:
    before = len(next_hop.messages)
    submit(home, "bob@x.test")
    until(lambda: len(next_hop.messages) == before + 1)
    home.ctl("peer", "set", "x.test", "--accept", "off", "--transmit", "off", "--max-in", "200000")
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
        code, text = client.ehlo("x.test")
        assert code == 550 and text.startswith(b"host x.test is not authorized to connect [")
        client.ehlo("y.test")
        assert client.esmtp_features["size"] == "200000"
    submit(home, "bob@x.test")
    (report,) = until(lambda: reports(home))
    assert b"Status: 5.7.1" in report and b"is not transmitted" in report
    (shown,) = [json.loads(line) for line in home.ctl("peer", "list", "--json").splitlines()]
    assert shown["domain"] == "x.test" and shown["accept"] is False and shown["max_in_octets"] == 200_000
    home.ctl("peer", "remove", "x.test")
    submit(home, "bob@x.test")
    until(lambda: len(next_hop.messages) == before + 2)
    assert home.ctl("peer", "list", "--json") == ""


def test_a_profile_that_makes_no_sense(home: PrivateHome) -> None:
    with pytest.raises(RuntimeError, match="not a domain name"):
        home.ctl("peer", "set", "a b")
    with pytest.raises(RuntimeError, match="between 0 and 1000"):
        home.ctl("peer", "set", "x.test", "--max-sessions", "-1")
    assert home.ctl("peer", "list") == ""


def test_a_forward_comes_back_by_its_rewritten_path(home: PrivateHome, next_hop: SmtpServer) -> None:
    home.ctl("alias", "add", "away@load.test", "anna@else.test")
    before = len(next_hop.messages)
    content = b"Subject: x\r\n\r\nx\r\n"
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
        client.sendmail("Bob@out.test", ["away@load.test"], content)
        mail, rcpt, _ = until(lambda: next_hop.messages[before:])[0]
        path = mail.split(b"<")[1].split(b">")[0]
        assert path.startswith(b"SRS0=") and path.endswith(b"=out.test=Bob@load.test")
        assert rcpt == [b"RCPT TO:<anna@else.test>"]
        # A notice to that path finds its way to the first sender; a forged one is refused.
        client.sendmail("", [path.decode()], content)
        back, rcpt, _ = until(lambda: next_hop.messages[before + 1 :])[0]
        assert back.startswith(b"MAIL FROM:<>") and rcpt == [b"RCPT TO:<Bob@out.test>"]
        client.mail("")
        assert client.rcpt("SRS0=aaaaaa=aa=out.test=Bob@load.test")[0] == 550


def test_a_rule_of_a_user_forwards_with_a_rewritten_path(home: PrivateHome, next_hop: SmtpServer) -> None:
    before = len(next_hop.messages)
    done = subprocess.run(
        [sys.executable, "-m", "iems.cli.iemsuser", "--home", str(home.path), "mailsort", "add", "a2@load.test",
         "--header", "subject", "--contains", "onward", "--forward", "anna@else.test"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
        client.sendmail("Bob@out.test", ["a2@load.test"], b"Subject: onward\r\n\r\nx\r\n")
        client.sendmail("", ["a2@load.test"], b"Subject: onward, a report\r\n\r\nx\r\n")
    until(lambda: len(next_hop.messages) == before + 2)
    paths = sorted(mail.split(b"<")[1].split(b">")[0] for mail, _, _ in next_hop.messages[before:])
    assert paths[0] == b"" and paths[1].startswith(b"SRS0=") and paths[1].endswith(b"=out.test=Bob@load.test")
    assert all(b"\nX-Loop: a2@load.test" in content for _, _, content in next_hop.messages[before:])


def test_relay_domains_take_known_recipients_only(home: PrivateHome, next_hop: SmtpServer) -> None:
    def rcpt(*addresses: str) -> list[tuple[int, bytes]]:
        with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
            client.ehlo()
            client.mail("x@out.test")
            replies = [client.rcpt(address) for address in addresses]
            return [(code, text[:5]) for code, text in replies]

    def script(connection: Connection, verb: str, line: bytes) -> str | None:
        if verb != "RCPT":
            return None
        return "550 5.1.1 unknown" if b"nobody@" in line else "450 4.2.0 later" if b"grey@" in line else None

    host = f"127.0.0.1:{next_hop.port}"
    home.ctl("forward", "set", "inner.test", "SMTPC", host, "--check", "list")
    home.ctl("forward", "allow", "Ann@inner.test")
    assert rcpt("ann@inner.test", "bob@inner.test") == [(250, b"2.1.5"), (550, b"5.1.1")]
    with pytest.raises(RuntimeError, match="not an address"):
        home.ctl("forward", "allow", "eve@inner.test", "not one")
    assert json.loads(home.ctl("forward", "allowed", "inner.test", "--json")) == {"address": "ann@inner.test"}
    home.ctl("forward", "disallow", "ann@inner.test")
    assert rcpt("ann@inner.test") == [(550, b"5.1.1")]

    next_hop.script = script
    home.ctl("forward", "set", "inner.test", "SMTPC", host, "--check", "callahead")
    found = rcpt("ann@inner.test", "nobody@inner.test", "grey@inner.test")
    assert found == [(250, b"2.1.5"), (550, b"5.1.1"), (451, b"4.4.3")]
    home.ctl("forward", "set", "inner.test", "SMTPC", "127.0.0.1:1", "--check", "callahead")
    assert rcpt("ann@inner.test") == [(451, b"4.4.3")]
    home.ctl("forward", "set", "inner.test", "SMTPC", host)
    assert rcpt("nobody@inner.test") == [(250, b"2.1.5")]
    next_hop.script = None
