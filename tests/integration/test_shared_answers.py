"""What one worker of a started server asked of DNS no other asks again, after a reload neither."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import time

from iems.cli.run import status_of
from iems.perf.home import PrivateHome
from tests.support.beside import beside
from tests.support.dnsserver import DnsServer

ZONES = {
    ("2.0.0.127.tag.test", "A"): ["127.0.0.2"],
    ("8.2.0.192.tag.test", "A"): ["127.0.0.9"],
}
CLIENT = "192.0.2.8"
QUESTION = ("8.2.0.192.tag.test", "A", "udp")


def send(home):
    with smtplib.SMTP("127.0.0.1", home.port("smtp"), timeout=60) as smtp:
        smtp.ehlo("c.example")
        assert smtp.docmd("XCLIENT", f"ADDR={CLIENT}")[0] == 220
        smtp.ehlo("c.example")
        smtp.sendmail("x@good.example", ["a1@load.test"], b"Subject: x\r\n\r\nx\r\n")


def taggers(home):
    """Workers that found the client on the list."""
    lines = (home.path / "log/mail.log").read_text().splitlines()
    return {event["pid"] for event in map(json.loads, lines) if event["event"] == "tagged"}


def until_more(home, before):
    """Send until a worker that has not seen the client before has."""
    end = time.monotonic() + 60
    while not (found := taggers(home) - before):
        assert time.monotonic() < end
        send(home)
    return found


def test_one_question_whoever_asks():
    dns = DnsServer(ZONES, ttl=3600)
    with beside(dns):
        settings = {"dns.servers": [f"127.0.0.1:{dns.port}"], "smtpd.workers": 2, "smtpd.xclient_networks": ["127.0.0.1/32"], "dns.timeout_s": 20.0,
                    "smtpd.screen_timeout_s": 60.0}  # fmt: skip
        with PrivateHome(1, settings, held=("LOCAL",)) as home:
            home.ctl("dnsbl", "add", "tag.test", "--action", "tag")
            first = until_more(home, set())
            second = until_more(home, first)
            assert dns.asked.count(QUESTION) == 1
            # A worker that is killed leaves the answers to the one that takes its place.
            os.kill(next(iter(second)), signal.SIGKILL)
            third = until_more(home, first | second)
            assert dns.asked.count(QUESTION) == 1
            workers = set(status_of(home.path)["roles"]["smtpd"]["pids"])
            home.ctl("reload")
            end = time.monotonic() + 60
            while workers & set(status_of(home.path)["roles"]["smtpd"]["pids"]) - {home.pid}:
                assert time.monotonic() < end
                time.sleep(0.05)
            until_more(home, first | second | third)
            assert dns.asked.count(QUESTION) == 1


def test_without_the_table_each_worker_asks():
    dns = DnsServer(ZONES, ttl=3600)
    with beside(dns):
        settings = {"dns.servers": [f"127.0.0.1:{dns.port}"], "smtpd.workers": 2, "smtpd.xclient_networks": ["127.0.0.1/32"], "dns.timeout_s": 20.0,
                    "smtpd.screen_timeout_s": 60.0, "dns.shared_mb": 0}  # fmt: skip
        with PrivateHome(1, settings, held=("LOCAL",)) as home:
            home.ctl("dnsbl", "add", "tag.test", "--action", "tag")
            until_more(home, until_more(home, set()))
            assert dns.asked.count(QUESTION) == 2
