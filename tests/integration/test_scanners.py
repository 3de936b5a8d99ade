"""Real clamd and spamd behind a running server: what they find, what happens while they are frozen or gone."""

from __future__ import annotations

import base64
import json
import mailbox
import signal
import smtplib
import sys

import pytest

from iems.perf import queue
from iems.perf.home import PrivateHome
from iems.spool import admin
from tests.integration.test_modules import inbox, part, send
from tests.support.scanners import CLAMD, EICAR, GTUBE, RSPAMD, SPAMD, ClamdDaemon, RspamdDaemon, SpamdDaemon
from tests.support.waiting import events, until

VIRUS = base64.encodebytes(EICAR).replace(b"\n", b"\r\n")


def waits(home, channel="INPUT", state="deferred", number=1):
    until(lambda: admin.counts(home.path / "spool").get(channel, {}).get(state, 0) >= number)


def emptied(home):
    queue.until_drained(home.path, look=lambda path: queue.queued(path, ("ready", "leased", "deferred")))


@pytest.mark.skipif(CLAMD is None, reason="clamd is not installed")
def test_clamd(tmp_path):
    with ClamdDaemon(tmp_path / "clamd") as daemon:
        settings = {
            "antivirus.scanners": [f"command:{sys.executable} -c 'import sys; sys.exit(b\"SECOND\" in open(sys.argv[1], \"rb\").read())' %F", f"clamd:127.0.0.1:{daemon.port}"],
            "antivirus.infected": "strip", "antivirus.timeout_s": 4.0, "smtpd.trusted_networks": ["127.0.0.0/8"],
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
            daemon.pause()
            for number in range(12):
                send_quick(home, f"frozen {number}")
            waits(home, number=6)
            assert len(inbox(home, "a1@load.test")) == 3, "readers are not held up"
            until(lambda: events(home, "scanner_away"))
            daemon.go_on()
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


def send_quick(home, subject, recipients=("a1@load.test",), text="x"):
    with smtplib.SMTP("127.0.0.1", home.port("smtp"), timeout=60) as smtp:
        smtp.sendmail("a2@load.test", recipients, f"Subject: {subject}\r\n\r\n{text}\r\n".encode())


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


@pytest.mark.skipif(RSPAMD is None, reason="rspamd is not installed")
def test_rspamd(tmp_path):
    """Forwarded to an inspector once, kept in an mbox, refused, marked: by channel; and frozen, mail for one channel waits, for another it goes on."""
    with RspamdDaemon(tmp_path / "rspamd") as daemon:
        settings = {
            "content.checker": f"rspamd:127.0.0.1:{daemon.port}", "content.action": "forward", "content.inspector": "a3@load.test",
            "content.channel_actions": ["SMTPC archive", "CCMAIL bounce", "NOTES header"], "content.archive_format": "mbox",
            "content.refusal": "Not this, please", "content.timeout_s": 4.0, "content.on_failure": "defer", "content.channel_failures": ["LOCAL pass"],
            "smtpd.trusted_networks": ["127.0.0.0/8"],
        }  # fmt: skip
        with PrivateHome(3, settings, held=("SMTPC", "CCMAIL", "NOTES")) as home:
            home.ctl("connector", "add", "old@load.test", "CCMAIL", "PO1")
            home.ctl("connector", "add", "notes@load.test", "NOTES", "N1")
            from tests.integration.test_spam_control import mailbox as folder

            send_quick(home, "BUY NOW", ["a1@load.test", "a2@load.test", "u@far.test", "old@load.test"])
            send_quick(home, "gtube", ["u@far.test"], GTUBE.decode())
            emptied(home)
            assert [m.count(b"Subject: BUY NOW") for m in inbox(home, "a3@load.test")] == [1] and not inbox(home, "a1@load.test")
            report = inbox(home, "a2@load.test")[-1]
            assert b"Not this, please" in report and b"old@load.test" in report
            assert sorted(message["Subject"] for message in mailbox.mbox(home.path / "spam")) == ["BUY NOW", "gtube"]
            assert home.ctl("queue", "list", "--json") == ""
            [to] = {event["detail"]["to"] for event in events(home, "redirected")}
            assert to == "a3@load.test"
            send_quick(home, "buy now", ["notes@load.test"])
            waits(home, "NOTES", "held")
            shown = home.ctl("queue", "export", "--channel", "NOTES", "--out", str(tmp_path / "out"))
            assert any(b"X-Spam-Status: YES" in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()), shown
            daemon.pause()
            send_quick(home, "unseen", ["a1@load.test"])
            send_quick(home, "waits", ["a2@load.test", "u@far.test"])
            waits(home)
            daemon.go_on()
            home.ctl("queue", "retry", "--channel", "INPUT")
            waits(home, "SMTPC", "held")
            assert "unseen" in folder(home, "a1@load.test") and "waits" in folder(home, "a2@load.test")
            assert json.loads(home.ctl("audit", "--json"))["missing"] == 0
