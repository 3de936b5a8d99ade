"""The user decides: one tagged message, a different outcome for each of its recipients; what was discarded comes back."""

from __future__ import annotations

import imaplib
import json
import subprocess
import sys

import pytest

from iems.perf import queue
from iems.perf.home import PrivateHome
from tests.integration.test_screen import connect
from tests.support.beside import beside
from tests.support.dnsserver import DnsServer
from tests.support.waiting import events

ZONES = {
    ("2.0.0.127.tag.test", "A"): ["127.0.0.2"],
    ("8.2.0.192.tag.test", "A"): ["127.0.0.9"],
    ("2.0.0.127.other.test", "A"): ["127.0.0.2"],
    ("8.2.0.192.other.test", "A"): ["127.0.0.3"],
}
PASSWORD = "pw"
USERS = [f"a{number}@load.test" for number in range(1, 7)]


@pytest.fixture(scope="module")
def server():
    dns = DnsServer(ZONES)
    with beside(dns):
        settings = {"dns.servers": [f"127.0.0.1:{dns.port}"], "smtpd.workers": 1, "smtpd.xclient_networks": ["127.0.0.1/32"]}
        with PrivateHome(len(USERS), settings) as home:
            for zone in ("tag.test", "other.test"):
                home.ctl("dnsbl", "add", zone, "--action", "tag")
            yield home


def user(server, *arguments, fails=False):
    done = subprocess.run(
        [sys.executable, "-m", "iems.cli.iemsuser", "--home", str(server.path), *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def send(server, recipients, subject, client="192.0.2.8", sender="x@else.test", author="X <x@else.test>"):
    with connect(server, client) as smtp:
        smtp.sendmail(sender, recipients, f"From: {author}\r\nSubject: {subject}\r\n\r\nbody\r\n".encode())
    queue.until_drained(server.path)


def mailbox(server, address, name="INBOX"):
    """subject -> whole header of each message."""
    found = {}
    with imaplib.IMAP4("127.0.0.1", server.port("imap")) as imap:
        imap.login(address, PASSWORD)
        if imap.select(name, readonly=True)[0] != "OK":
            return found
        for number in imap.search(None, "ALL")[1][0].split():
            head = imap.fetch(number, "(BODY.PEEK[HEADER])")[1][0][1].decode()
            subject = next(line[9:] for line in head.splitlines() if line.startswith("Subject: "))
            found[subject] = head
    return found


def test_one_message_four_outcomes(server):
    ignores, files, discards, bounces, allows, by_zone = USERS
    user(server, "spam", "action", files, "file")
    user(server, "spam", "action", discards, "discard")
    user(server, "spam", "action", bounces, "bounce")
    user(server, "spam", "action", allows, "discard")
    user(server, "spam", "allow", allows, "*@else.test")
    user(server, "spam", "action", by_zone, "ignore")
    user(server, "spam", "action", by_zone, "file=Lists/Tagged", "--zone", "other.test")
    send(server, USERS, "four")
    for address in (ignores, allows):
        assert "four" in mailbox(server, address)
    head = mailbox(server, ignores)["four"]
    assert "X-IEMS-AntiSpam: ip=192.0.2.8;" in head and "dnsbl=tag.test (127.0.0.9)" in head
    assert "dnsbl=other.test (127.0.0.3)" in head and "action=ignore (site)" in head and "X-Spam-Status: YES" in head
    head = mailbox(server, allows)["four"]
    assert "action=ignore (white list)" in head and "X-Spam-Status" not in head
    assert "four" not in mailbox(server, files) and "four" in mailbox(server, files, "Spam")
    assert "four" not in mailbox(server, by_zone) and "four" in mailbox(server, by_zone, '"Lists/Tagged"')
    assert not mailbox(server, discards) and not mailbox(server, bounces)
    [gone] = [event for event in events(server, "discarded") if event["recipient"] == discards]
    assert gone["detail"]["why"] == "spam control: all tags"
    [failed] = [event for event in events(server, "failed") if event["recipient"] == bounces]
    assert failed["detail"]["reply"].startswith("550 5.7.1")
    assert json.loads(server.ctl("audit", "--json"))["missing"] == 0
    # mail nobody tagged is nobody's business
    send(server, [discards], "clean", client="192.0.2.99")
    assert "X-IEMS-AntiSpam" not in mailbox(server, discards)["clean"]

    # what was discarded comes back, while the server runs
    [listed] = [json.loads(line) for line in user(server, "undelete", discards, "--list", "--discarded", "--json").splitlines()]
    assert listed["subject"] == "four" and listed["why"] == "discarded"
    assert "not among" in user(server, "undelete", discards, "01M8706PC7FC4Z91PGGMSBNTRQ", fails=True)
    assert user(server, "undelete", discards, listed["id"]) == "brought 1 messages back to INBOX\n"
    assert set(mailbox(server, discards)) == {"four", "clean"}
    assert user(server, "undelete", discards, "--list", "--json") == ""


def test_choices_are_shown_and_taken_back(server):
    address = USERS[0]
    for value in ("bad value", "a@", "10.0.0.9-10.0.0.1", "*"):
        assert "iemsuser" in user(server, "spam", "allow", address, value, fails=True)
    for action in ("file=a\x07b", "delete", "discard=x"):
        user(server, "spam", "action", address, action, fails=True)
    user(server, "spam", "action", address, "discard", "--zone", "tag.test")
    for value in ("Friend@Example.test", "*@abc.test", "*.def.test", "192.0.2.7", "192.0.2.8 - 192.0.2.9", "2001:db8::/32"):
        user(server, "spam", "allow", address, value)
    assert "already" in user(server, "spam", "allow", address, "friend@example.test", fails=True)
    shown = json.loads(user(server, "spam", "show", address, "--json"))
    assert shown["action"] is None and shown["site"] == "ignore" and shown["zones"] == {"tag.test": "discard"}
    assert {"kind": "range", "value": "192.0.2.8-192.0.2.9"} in shown["allow"] and len(shown["allow"]) == 6
    # the address of the sending server stands for its mail; so does the author
    send(server, [address], "by range")
    assert "by range" in mailbox(server, address)
    user(server, "spam", "disallow", address, "192.0.2.8-192.0.2.9")
    send(server, [address], "by nobody")
    assert "by nobody" not in mailbox(server, address)
    send(server, [address], "by author", author="F <friend@example.test>")
    assert "by author" in mailbox(server, address)
    send(server, [address], "by two authors", author="friend@example.test, x@else.test")
    assert "by two authors" not in mailbox(server, address)
    user(server, "spam", "action", address, "default", "--zone", "tag.test")
    for entry in json.loads(user(server, "spam", "show", address, "--json"))["allow"]:
        user(server, "spam", "disallow", address, entry["value"])
    assert json.loads(user(server, "spam", "show", address, "--json"))["allow"] == []
    assert "no account" in user(server, "spam", "show", "nobody@load.test", fails=True)
