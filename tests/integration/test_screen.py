"""The screen of a started server: bans at once, lists asked about clients told of by XCLIENT, tags that outlive a crash."""

from __future__ import annotations

import json
import shutil
import smtplib
import subprocess

import pytest

from iems.model import Verdict
from iems.perf.home import PrivateHome
from iems.spool import admin
from tests.support.beside import beside
from tests.support.dnsserver import DnsServer
from tests.support.waiting import events, until

TO = "a1@load.test"
ZONES = {
    ("2.0.0.127.bl.test", "A"): ["127.0.0.2"],
    ("7.2.0.192.bl.test", "A"): ["127.0.0.4"],
    ("7.2.0.192.bl.test", "TXT"): ['"told by bl.test"'],
    ("2.0.0.127.tag.test", "A"): ["127.0.0.2"],
    ("8.2.0.192.tag.test", "A"): ["127.0.0.9"],
    ("9.2.0.192.ill.test", "A"): ["127.255.255.254"],
    ("2.0.0.127.ill.test", "A"): ["127.0.0.2"],
    ("good.example", "MX"): ["10 mx.good.example."],
}


@pytest.fixture(scope="module")
def dns():
    server = DnsServer(ZONES)
    with beside(server):
        yield server


@pytest.fixture(scope="module")
def server(dns):
    settings = {
        "dns.servers": [f"127.0.0.1:{dns.port}"], "smtpd.workers": 1, "smtpd.xclient_networks": ["127.0.0.1/32"],
        "smtpd.check_sender_domain": "tag", "dns.timeout_s": 1.0,
    }  # fmt: skip
    with PrivateHome(1, settings, held=("LOCAL",)) as home:
        yield home


def connect(server, client=""):
    smtp = smtplib.SMTP("127.0.0.1", server.port("smtp"), timeout=60)
    smtp.ehlo("c.example")
    if client:
        code, text = smtp.docmd("XCLIENT", f"ADDR={client}")
        if code != 220:
            smtp.close()
            raise smtplib.SMTPResponseException(code, text)
        smtp.ehlo("c.example")
    return smtp


def send(server, client="", path="x@good.example", header="Subject: x"):
    """The first code that is no success, or 250, and the words with it."""
    with connect(server, client) as smtp:
        for step in (lambda: smtp.mail(path), lambda: smtp.rcpt(TO)):
            code, text = step()
            if code != 250:
                return code, text.decode()
        code, text = smtp.data(f"{header}\r\n\r\nbody\r\n".encode())
        return code, text.decode()


@pytest.mark.parametrize("place", ["MAIL", "From", "Reply-To", "Resent-From", "Sender", "Return-Path"])
@pytest.mark.parametrize(("kind", "value", "reply"), [("address", "bad@spam.example", 553), ("domain", "*.example", 451)])
def test_bans_at_each_place_at_once(server, place, kind, value, reply):
    given = {"path": "Bad@Spam.Example"} if place == "MAIL" else {"path": "ok@load.test", "header": f"{place}: B <bad@spam.example>"}
    with connect(server) as waiting:  # a session from before the ban
        assert waiting.mail("bad@spam.example")[0] == 250
        server.ctl("ban", "add", kind, value, "--reply", str(reply))
        try:
            assert send(server, **given)[0] == reply
            assert waiting.rcpt(TO)[0] == reply
        finally:
            server.ctl("ban", "remove", kind, value)
    assert send(server, **given)[0] == 250


@pytest.mark.parametrize(("kind", "value"), [("ip", "127.0.0.9"), ("range", "127.0.0.8-127.0.0.10"), ("cidr", "127.0.0.8/30")])
def test_banned_clients_are_turned_away_at_once(server, kind, value):
    server.ctl("ban", "add", kind, value)
    try:
        with pytest.raises(smtplib.SMTPConnectError, match="554"):
            smtplib.SMTP("127.0.0.1", server.port("smtp"), timeout=60, source_address=("127.0.0.9", 0))
        with pytest.raises(smtplib.SMTPResponseException, match="554"):
            connect(server, "127.0.0.9")
        assert send(server)[0] == 250
    finally:
        server.ctl("ban", "remove", kind, value)
    smtplib.SMTP("127.0.0.1", server.port("smtp"), timeout=60, source_address=("127.0.0.9", 0)).quit()


def test_large_content_that_goes_to_a_file(server):
    body = "\r\n" + "x" * 70 + "\r\n"
    header = "Subject: x\r\n" + "X-Filler: y\r\n" * 1000 + "Sender: c@spam.example\r\n\r\n" + body * 40_000
    server.ctl("ban", "add", "address", "c@spam.example")
    try:
        assert send(server, header=header)[0] == 553
        assert send(server, header=header.replace("Sender", "Subject"))[0] == 250
    finally:
        server.ctl("ban", "remove", "address", "c@spam.example")


def test_a_list_rejects_with_its_words(server, dns):
    server.ctl("dnsbl", "add", "bl.test", "--action", "reject")
    try:
        code, text = send(server, "192.0.2.7")
        assert code == 550 and text.startswith("5.7.1 Your address is listed by bl.test: told by bl.test [")
        assert send(server, "192.0.2.6")[0] == 250 and send(server)[0] == 250
    finally:
        server.ctl("dnsbl", "remove", "bl.test")
    assert send(server, "192.0.2.7")[0] == 250
    (refused,) = [event["detail"] for event in events(server, "refused") if event["detail"].get("what") == "dnsbl"]
    assert refused["client"] == "192.0.2.7" and refused["subject"] == "bl.test 127.0.0.4"


def test_a_sick_list_lets_mail_in_with_one_alarm(server):
    server.ctl("dnsbl", "add", "ill.test", "--action", "reject")
    try:
        assert [send(server, "192.0.2.9")[0] for _ in range(3)] == [250] * 3
    finally:
        server.ctl("dnsbl", "remove", "ill.test")
    (alarm,) = events(server, "alarm")
    assert alarm["detail"]["zone"] == "ill.test" and "127.255.255.254" in alarm["detail"]["why"]


def test_swaks_pipelines_behind_a_mail_that_waits(server, dns):
    if shutil.which("swaks") is None:
        pytest.skip("swaks is not installed")
    server.ctl("dnsbl", "add", "tag.test", "--action", "tag")
    dns.faults["8.2.0.192.tag.test"] = "first-silent"  # so the first answer takes dns.timeout_s, if it was not asked yet
    try:
        done = subprocess.run(
            ["swaks", "--server", f"127.0.0.1:{server.port('smtp')}", "--from", "x@good.example", "--to", TO, "--pipeline",
             "--xclient", "ADDR=192.0.2.8"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        dns.faults.clear()
        server.ctl("dnsbl", "remove", "tag.test")
    assert done.returncode == 0, done.stdout


def test_tags_travel_through_spool_crash_and_rebuild(server, dns):
    server.ctl("dnsbl", "add", "tag.test", "--action", "tag", "--codes", "127.0.0.8-10")
    try:
        code, text = send(server, "192.0.2.8", "x@none.example")
    finally:
        server.ctl("dnsbl", "remove", "tag.test")
    assert code == 250
    message_id = text.split()[-1]
    tagged = [json.loads(line) for line in server.ctl("trace", message_id, "--json").splitlines()]
    (detail,) = [event["detail"] for event in tagged if event["event"] == "tagged"]
    assert detail["verdicts"][0] == "dnsbl tag.test: 127.0.0.9" and detail["verdicts"][1].startswith("sender-domain none.example")
    expected = (
        Verdict("dnsbl", "tag.test", "127.0.0.9"),
        Verdict("sender-domain", "none.example", "The sender's domain has neither mail exchanger nor address"),
    )

    def verdicts():
        with admin.looking(server.path) as index:
            for _class, _due, item, key in index.queued():
                if item is not None and item.id == admin_id and key[0] == admin.channel_number("LOCAL"):
                    return item.envelope.verdicts
        return None

    from iems.model import id_octets

    admin_id = id_octets(message_id)
    assert until(verdicts) == expected
    server.stop()
    server.start()
    assert until(verdicts) == expected
    server.crash()
    shutil.rmtree(server.path / "spool/index")
    server.start()
    assert until(verdicts) == expected
