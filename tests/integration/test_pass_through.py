"""Tags between two running systems: the outer one finds, the inner one's users decide; nobody else can tag, nobody else sees tags."""

from __future__ import annotations

import json
import re
import smtplib
import subprocess
import sys

import pytest

from iems.perf.home import PrivateHome
from tests.integration.test_screen import connect
from tests.integration.test_spam_control import mailbox, user
from tests.support.beside import beside
from tests.support.dnsserver import DnsServer
from tests.support.smtpserver import SmtpServer
from tests.support.waiting import events, until

ZONES = {("2.0.0.127.tag.test", "A"): ["127.0.0.2"], ("8.2.0.192.tag.test", "A"): ["127.0.0.9"]}


@pytest.fixture(scope="module")
def systems():
    dns = DnsServer(ZONES)
    sink = SmtpServer()
    with beside(dns, sink):
        settings = {"dns.servers": [f"127.0.0.1:{dns.port}"], "smtpd.workers": 1, "smtpd.xclient_networks": ["127.0.0.1/32"]}
        with PrivateHome(2) as inner, PrivateHome(1, settings) as outer:
            inner.ctl("domain", "add", "inner.test")
            inner.ctl("alias", "add", "bob@inner.test", "a1@load.test")
            inner.ctl("alias", "add", "eve@inner.test", "a2@load.test")
            outer.ctl("dnsbl", "add", "tag.test", "--action", "tag")
            for domain, port in (("inner.test", inner.port("smtp")), ("plain.test", sink.port)):
                outer.ctl("forward", "set", domain, "SMTPC", f"127.0.0.1:{port}")
            secret = outer.ctl("tagkey", "add", "k1").strip()
            done = subprocess.run(
                [sys.executable, "-m", "iems.cli.iemsctl", "--home", str(inner.path), "tagkey", "add", "k1", "--secret-stdin"],
                input=secret + "\n", text=True, check=True, capture_output=True,
            )  # fmt: skip
            assert done.stdout == "" and secret not in outer.ctl("tagkey", "list")
            outer.ctl("peer", "set", "inner.test", "--keep-tags", "on")
            yield outer, inner, sink


def send(home, recipients, subject, client="192.0.2.8", extra=""):
    with connect(home, client) if client else smtplib.SMTP("127.0.0.1", home.port("smtp")) as smtp:
        smtp.sendmail("x@else.test", recipients, f"From: x@else.test\r\n{extra}Subject: {subject}\r\n\r\nbody\r\n".encode())


def arrives(home, address, subject, name="INBOX"):
    return until(lambda: mailbox(home, address, name).get(subject))


def test_users_of_the_inner_system_decide(systems):
    outer, inner, sink = systems
    user(inner, "spam", "action", "a1@load.test", "file", "--zone", "tag.test")
    send(outer, ["bob@inner.test", "eve@inner.test", "u@plain.test"], "passes")
    head = arrives(inner, "a1@load.test", "passes", "Spam")
    assert "ip=192.0.2.8;" in head and "dnsbl=tag.test (127.0.0.9)" in head and "(zone tag.test)" in head
    assert head.lower().count("x-iems-antispam") == 1 and "; s=" not in head, "the signature stays between the systems"
    assert "action=ignore" in arrives(inner, "a2@load.test", "passes")
    until(lambda: sink.messages)
    [plain] = [m for m in sink.messages if b"passes" in m[2]]
    assert b"antispam" not in plain[2].lower() and b"X-Spam" not in plain[2]
    # the address of the first client is what a white list sees
    user(inner, "spam", "allow", "a1@load.test", "192.0.2.8")
    send(outer, ["bob@inner.test"], "allowed")
    assert "white list" in arrives(inner, "a1@load.test", "allowed")
    user(inner, "spam", "disallow", "a1@load.test", "192.0.2.8")


def test_forged_tags_are_dropped(systems):
    _, inner, _ = systems
    forged = "X-IEMS-AntiSpam: ip=192.0.2.8; t=2026-11-24T15:00:00Z; dnsbl=tag.test (127.0.0.9); k=k1; s=AAAA\r\nX-Spam-Status: YES\r\n"
    send(inner, ["bob@inner.test"], "forged", client="", extra=forged)
    head = arrives(inner, "a1@load.test", "forged")
    assert "antispam" not in head.lower() and "X-Spam" not in head


def test_a_signature_belongs_to_its_message(systems):
    outer, inner, sink = systems
    outer.ctl("peer", "set", "plain.test", "--keep-tags", "on")
    try:
        send(outer, ["w@plain.test"], "source", extra="Message-ID: <1@else.test>\r\n")
        signed = until(lambda: [m[2] for m in sink.messages if b"Subject: source" in m[2]])
    finally:
        outer.ctl("peer", "remove", "plain.test")
    [tagged] = signed
    field = re.search(rb"(?m)^X-IEMS-AntiSpam:.*(?:\r?\n[ \t].*)*\r?\n", tagged)
    assert field and b"; k=k1" in field[0].replace(b"\r\n\t", b" ")
    extra = "Message-ID: <2@else.test>\r\n" + field[0].decode().replace("\r\n", "\n").replace("\n", "\r\n")
    send(inner, ["bob@inner.test"], "moved", client="", extra=extra)
    assert "antispam" not in arrives(inner, "a1@load.test", "moved").lower(), "to another message"
    with smtplib.SMTP("127.0.0.1", inner.port("smtp")) as smtp:
        smtp.sendmail("x@else.test", ["eve@inner.test"], tagged)
    assert "dnsbl=tag.test (127.0.0.9)" in arrives(inner, "a2@load.test", "source"), "on its own it is believed"


def test_default_of_channels_that_cannot_act(systems):
    outer, inner, sink = systems
    user(inner, "spam", "action", "a1@load.test", "file", "--zone", "tag.test")
    with pytest.raises(RuntimeError, match="needs a default while mail is tagged"):
        outer.ctl("cam", "default", "SMTPC", "none")
    outer.ctl("cam", "default", "SMTPC", "discard")
    try:
        send(outer, ["u@plain.test", "bob@inner.test"], "stays here")
        arrives(inner, "a1@load.test", "stays here", "Spam")
        [gone] = [event for event in events(outer, "discarded") if event["recipient"] == "u@plain.test"]
        assert "dnsbl tag.test" in gone["detail"]["reason"]
        outer.ctl("cam", "set", "antispam", "SMTPD", "SMTPC", "off")
        send(outer, ["v@plain.test"], "switched off")
        until(lambda: any(b"switched off" in m[2] for m in sink.messages))
        assert not any(b"stays here" in m[2] for m in sink.messages)
        with pytest.raises(RuntimeError, match="unseen: antispam: SMTPD -> SMTPC"):
            outer.ctl("cam", "prove")
    finally:
        outer.ctl("cam", "set", "antispam", "*", "*", "on")
        outer.ctl("cam", "default", "SMTPC", "pass")
    assert "no loop" in outer.ctl("cam", "prove")
    outer.ctl("alias", "add", "r1@load.test", "r2@load.test")
    outer.ctl("alias", "add", "r2@load.test", "r1@load.test")
    with pytest.raises(RuntimeError, match=r"loop: alias: r1@load\.test -> r2@load\.test -> r1@load\.test"):
        outer.ctl("cam", "prove")
    outer.ctl("alias", "remove", "r2@load.test", "r1@load.test")
    # A ring of a rule and two aliases.
    outer.ctl("alias", "add", "r2@load.test", "a1@load.test")
    user(outer, "mailsort", "add", "a1@load.test", "--header", "subject", "--contains", "x", "--forward", "r1@load.test")
    with pytest.raises(RuntimeError, match=r"loop: rule: a1@load\.test -> r1@load\.test -> r2@load\.test -> a1@load\.test"):
        outer.ctl("cam", "prove")
    user(outer, "mailsort", "remove", "a1@load.test", "1")
    assert "no loop" in outer.ctl("cam", "prove")
    outer.ctl("alias", "remove", "r1@load.test")
    outer.ctl("alias", "remove", "r2@load.test")
    shown = [json.loads(line) for line in outer.ctl("cam", "show", "antispam", "--json").splitlines()]
    assert len(shown) == 9 * 6 and all(cell["runs"] for cell in shown)
    assert json.loads(outer.ctl("audit", "--json"))["missing"] == 0


def test_start_refuses_tags_that_a_channel_can_do_nothing_with():
    with PrivateHome(1) as home:
        home.ctl("cam", "default", "NOTES", "none")
        with pytest.raises(RuntimeError, match=r"say first what becomes of tagged mail on NOTES"):
            home.ctl("dnsbl", "add", "tag.test", "--action", "tag")
        home.ctl("dnsbl", "add", "tag.test", "--action", "reject")
        home.stop()
        home.configure({"smtpd.check_helo": "tag"})
        with pytest.raises(RuntimeError, match=r"smtpd.check_helo tags mail: say what becomes of it on NOTES"):
            home.ctl("start")
        home.ctl("cam", "default", "NOTES", "bounce")
        home.start()

        # A reload, by the command or by SIGHUP, is held to the same.
        conf = home.path / "conf/iems.toml"
        tagging = conf.read_text()
        conf.write_text(tagging.replace('check_helo = "tag"', 'check_helo = "off"'))
        home.ctl("reload")
        home.ctl("cam", "default", "CCMAIL", "none")
        conf.write_text(tagging)
        with pytest.raises(RuntimeError, match="refused: the old settings stay"):
            home.ctl("reload")
        assert json.loads(home.ctl("status", "--json"))["generation"] == 2
        [refused] = events(home, "reload-refused")
        assert refused["detail"]["problems"] == [
            "smtpd.check_helo tags mail: say what becomes of it on CCMAIL: iemsctl cam default CCMAIL pass"
        ]
        home.ctl("cam", "default", "CCMAIL", "pass")
        home.ctl("reload")
        assert json.loads(home.ctl("status", "--json"))["generation"] == 3
