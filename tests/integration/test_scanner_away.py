"""A scanner away for long: the sender hears of the delay, as of mail that waits to be relayed."""

from __future__ import annotations

import smtplib

from iems.perf.home import PrivateHome
from tests.integration.test_scanner_killed import counts, wait_for
from tests.support.waiting import events


def test_the_sender_hears_of_mail_that_waits(tmp_path):
    """As NOTIFY says (RFC 3461 4.1), once, also over a restart."""
    settings = {
        "antivirus.scanners": ["clamd:127.0.0.1:9"], "antivirus.channel_failures": ["SMTPC pass"], "smtpc.delay_notice_s": 1.0,
        "smtpd.trusted_networks": ["127.0.0.0/8"],
    }  # fmt: skip
    with PrivateHome(1, settings, held=("SMTPC",)) as home:
        with smtplib.SMTP("127.0.0.1", home.port("smtp"), timeout=60) as smtp:
            for sender, notify in (("never@far.test", "NEVER"), ("failure@far.test", "FAILURE"), ("delay@far.test", "DELAY,FAILURE")):
                smtp.sendmail(sender, ["a1@load.test"], b"Subject: waits\r\n\r\nbody\r\n", ["RET=FULL", "ENVID=E1"], [f"NOTIFY={notify}"])
        wait_for(lambda: counts(home, "SMTPC", "held"))
        home.stop()
        home.start()
        before = len(events(home, "deferred"))
        home.ctl("queue", "retry", "--channel", "INPUT")
        wait_for(lambda: len(events(home, "deferred")) >= before + 3)
        wait_for(lambda: counts(home, "INPUT", "deferred") == 3)
        assert counts(home, "SMTPC", "held") == 1
        home.ctl("queue", "export", "--channel", "SMTPC", "--out", str(tmp_path / "out"))
        [report] = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file() and b"Action: delayed" in path.read_bytes()]
        assert b"To: <delay@far.test>" in report and b"Original-Envelope-Id: E1" in report and b"Will-Retry-Until: " in report
        assert b"Subject: waits" in report and b"\r\nbody\r\n" not in report
