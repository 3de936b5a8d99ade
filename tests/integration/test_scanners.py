"""Real clamd and spamd behind a running server: what they find, what happens while they are frozen or gone."""

from __future__ import annotations

import base64
import json
import mailbox
import signal
import sys
import time

import pytest

from iems.perf.home import PrivateHome
from iems.spool import admin
from tests.integration.test_modules import inbox, part, send
from tests.integration.test_screen import events
from tests.support.scanners import CLAMD, EICAR, GTUBE, SPAMD, ClamdDaemon, SpamdDaemon

VIRUS = base64.encodebytes(EICAR).replace(b"\n", b"\r\n")


def waits(home, channel="INPUT", state="deferred", number=1):
    until = time.monotonic() + 30
    while admin.counts(home.path / "spool")[channel][state] < number:
        assert time.monotonic() < until
        time.sleep(0.05)


def emptied(home):
    until = time.monotonic() + 60
    while any(c["ready"] + c["leased"] + c["deferred"] for c in admin.counts(home.path / "spool").values()):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.skipif(CLAMD is None, reason="clamd is not installed")
def test_clamd(tmp_path):
    with ClamdDaemon(tmp_path / "clamd") as daemon:
        settings = {
            "antivirus.scanners": [f"command:{sys.executable} -c 'import sys; sys.exit(b\"SECOND\" in open(sys.argv[1], \"rb\").read())' %F", f"clamd:127.0.0.1:{daemon.port}"],
            "antivirus.infected": "strip", "antivirus.timeout_s": 2.0, "smtpd.trusted_networks": ["127.0.0.0/8"],
        }  # fmt: skip
        with PrivateHome(2, settings) as home:
            send(home, ["a1@load.test"], part("good.bin", base64.b64encode(b"good") + b"\r\n"), subject="clean")
            assert b"good.bin" in inbox(home, "a1@load.test")[-1]
            send(home, ["a1@load.test"], part("a.com", VIRUS), part("good.bin", base64.b64encode(b"good") + b"\r\n"), subject="stripped")
            last = inbox(home, "a1@load.test")[-1]
            assert b"a.com" not in last and b"Test.Eicar" in last and b"good.bin" in last and VIRUS.strip() not in last
            notes = [event["detail"]["note"] for event in events(home, "examined") if event["detail"]["module"] == "antivirus"]
            assert "clean" in notes[0] and notes[1].count("clamd") == 1 and "Test.Eicar" in notes[1] and "python" in notes[1]

            # a virus that is no single part: put aside, shown, and let out by a person
            send(home, ["a1@load.test"], subject="SECOND")
            [aside] = [json.loads(line) for line in home.ctl("queue", "list", "--json").splitlines()]
            assert aside["state"] == "quarantined" and "virus" in aside["reason"]
            home.ctl("queue", "release", aside["id"])
            emptied(home)
            assert b"Subject: SECOND" in inbox(home, "a1@load.test")[-1]

            # frozen: mail waits, others are served, nothing is lost
            daemon.signal(signal.SIGSTOP)
            for number in range(12):
                send_quick(home, f"frozen {number}")
            waits(home, number=6)
            assert len(inbox(home, "a1@load.test")) == 3, "readers are not held up"
            until = time.monotonic() + 30
            while not events(home, "scanner_away"):
                assert time.monotonic() < until
                time.sleep(0.1)
            daemon.signal(signal.SIGCONT)
            home.stop()
            home.start()
            waits(home, number=1)
            home.ctl("queue", "retry", "--channel", "INPUT")
            emptied(home)
            assert sum(b"Subject: frozen" in m for m in inbox(home, "a1@load.test")) == 12
            home.ctl("cam", "set", "antivirus", "SMTPD", "LOCAL", "off")
            send(home, ["a1@load.test"], part("a.com", VIRUS), subject="unseen")
            assert VIRUS.strip() in inbox(home, "a1@load.test")[-1]
            assert json.loads(home.ctl("audit", "--json"))["missing"] == 0


def send_quick(home, subject):
    import smtplib

    with smtplib.SMTP("127.0.0.1", home.port("smtp"), timeout=20) as smtp:
        smtp.sendmail("a2@load.test", ["a1@load.test"], f"Subject: {subject}\r\n\r\nx\r\n".encode())


@pytest.mark.skipif(SPAMD is None, reason="spamd is not installed")
def test_spamd(tmp_path):
    with SpamdDaemon(tmp_path / "spamd") as daemon:
        settings = {
            "content.checker": f"spamd:127.0.0.1:{daemon.port}", "content.channel_actions": ["SMTPC archive", "CCMAIL discard"],
            "smtpd.trusted_networks": ["127.0.0.0/8"], "content.timeout_s": 20.0,
        }  # fmt: skip
        with PrivateHome(3, settings, held=("SMTPC", "CCMAIL")) as home:
            home.ctl("connector", "add", "old@load.test", "CCMAIL", "PO1")
            spam = b"Content-Type: text/plain\r\n\r\n" + GTUBE + b"\r\n"
            from tests.integration.test_spam_control import mailbox as folder
            from tests.integration.test_spam_control import user

            user(home, "spam", "action", "a1@load.test", "file")
            send(home, ["a1@load.test", "a3@load.test", "u@far.test", "old@load.test"], spam, subject="gtube")
            assert "gtube" in folder(home, "a1@load.test", "Spam")
            head = folder(home, "a3@load.test")["gtube"]
            assert "X-Spam-Status: YES" in head and "content=spamd" in head and "GTUBE" in head
            assert home.ctl("queue", "list", "--json") == "", "neither relayed nor for the gateway"
            kept = list(mailbox.Maildir(home.path / "spam"))
            assert len(kept) == 1 and kept[0]["Subject"] == "gtube"
            send(home, ["a1@load.test", "u@far.test"], subject="ham")
            assert "ham" in folder(home, "a1@load.test") and "far.test" in home.ctl("queue", "list")
            daemon.signal(signal.SIGKILL)
            send(home, ["a1@load.test"], spam, subject="nobody looks")
            assert "nobody looks" in folder(home, "a1@load.test")
            assert json.loads(home.ctl("audit", "--json"))["missing"] == 0
