"""A virus scanner hangs, crashes, answers garbage, says virus for all (beyond.md 3, row 11): each channel's policy holds, a breaker opens, no mail is lost.

With scans that wait for ever (no deadline) the first message holds the test up until its limit; with `on_failure` = "pass" for LOCAL it finds
mail that nobody looked at.
"""

from __future__ import annotations

import json

from iems.perf import queue
from iems.perf.home import PrivateHome
from iems.spool import admin
from tests.integration.test_scanners import send_quick
from tests.integration.test_spam_control import mailbox
from tests.support.beside import beside
from tests.support.smtpserver import SmtpServer
from tests.support.waiting import events, until

SCANNER = """#!/bin/sh
case "$(cat MOOD)" in
    hang) exec sleep 600 ;;
    crash) kill -SEGV $$ ;;
    garbage) head -c 100000 /dev/urandom; exit 77 ;;
    virus) exit 1 ;;
esac
"""
HERE, AWAY = "a1@load.test", "u@plain.test"


def test_every_mood(tmp_path):
    mood, scanner = tmp_path / "mood", tmp_path / "scanner"
    scanner.write_text(SCANNER.replace("MOOD", str(mood)))
    scanner.chmod(0o755)
    mood.write_text("good")
    sink = SmtpServer()
    settings = {
        "antivirus.scanners": [f"command:{scanner} %F"], "antivirus.timeout_s": 2.0, "antivirus.infected": "quarantine",
        "antivirus.channel_failures": ["SMTPC pass"], "preprocessor.workers": 1, "smtpd.trusted_networks": ["127.0.0.0/8"],
    }  # fmt: skip
    with beside(sink), PrivateHome(2, settings) as home:
        home.ctl("forward", "set", "plain.test", "SMTPC", f"127.0.0.1:{sink.port}")
        send_quick(home, "good", [HERE])
        queue.until_drained(home.path, 60)
        assert "good" in mailbox(home, HERE)
        waiting = []
        for wrong in ("hang", "crash", "garbage", "hang", "garbage", "crash"):
            mood.write_text(wrong)
            waiting.append(f"{wrong} {len(waiting)}")
            send_quick(home, waiting[-1], [HERE])
            until(lambda: admin.counts(home.path / "spool").get("INPUT", {}).get("deferred", 0) == len(waiting))
        until(lambda: events(home, "scanner_away"))
        send_quick(home, "away", [AWAY])
        until(lambda: any(b"Subject: away" in message[2] for message in sink.messages))
        assert set(mailbox(home, HERE)) == {"good"}, "what nobody has looked at waits"

        mood.write_text("good")
        # A new worker asks at once; the old one would wait for the rest of its half minute.
        home.stop()
        home.start()

        def all_came():
            home.ctl("queue", "retry", "--channel", "INPUT")
            return set(mailbox(home, HERE)) == {"good", *waiting}

        until(all_came)
        mood.write_text("virus")
        for number in range(3):
            send_quick(home, f"virus {number}", [HERE])
            send_quick(home, f"virus {number}", [AWAY])
        until(lambda: admin.counts(home.path / "spool").get("INPUT", {}).get("quarantined", 0) == 6)
        aside = [json.loads(line) for line in home.ctl("queue", "list", "--json").splitlines()]
        assert len(aside) == 6 and all("virus" in item["reason"] for item in aside)
        balance = json.loads(home.ctl("audit", "--json"))
        assert (balance["quarantined"], balance["missing"], balance["lost"]) == (6, 0, 0)
        # It was a mistake of the scanner's: a person lets them out, and nothing is lost.
        for item in aside:
            home.ctl("queue", "release", item["id"])
        queue.until_drained(home.path, 60)
        assert set(mailbox(home, HERE)) == {"good", *waiting, *(f"virus {number}" for number in range(3))}
        until(lambda: sum(b"Subject: virus" in message[2] for message in sink.messages) == 3)
        balance = json.loads(home.ctl("audit", "--json"))
        assert balance["accepted"] == balance["delivered"] + balance["relayed"] == 14 and (balance["missing"], balance["lost"]) == (0, 0)
