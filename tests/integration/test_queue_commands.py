"""iemsctl queue on a running server: by destination, by reason and age, and --dry-run."""

from __future__ import annotations

import json
import smtplib
import subprocess

import pytest

from iems.perf import queue
from iems.perf.home import PrivateHome


def test_queue_commands_on_a_running_server():
    with PrivateHome(2) as home:

        def listed(*words):
            return [json.loads(line) for line in home.ctl("queue", *words, "--json").splitlines()]

        home.ctl("queue", "hold", "--channel", "LOCAL")
        with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
            for name in ("a1", "a2"):
                client.sendmail("s@load.test", [f"{name}@load.test"], b"Subject: x\r\n\r\nx\r\n")
        queue.until_drained(home.path, 30, queue.unrouted)
        [row] = listed("destinations")
        assert list(row) == [
            "channel", "destination", "on_hold", "ready", "leased", "deferred", "held", "quarantined", "oldest_s", "reason",
            "next_attempt", "failures", "limit",
        ]  # fmt: skip
        assert (row["channel"], row["held"], row["on_hold"]) == ("LOCAL", 2, True)
        home.ctl("queue", "hold", "--recipient", "a1@load.test")
        chosen = ("--reason", "administrator", "--younger", "1h")
        [entry] = listed("delete", *chosen, "--dry-run")
        assert list(entry) == ["id", "channel", "identifier", "state", "reverse_path", "recipients"]
        assert entry["recipients"] == ["a1@load.test"] and entry["state"] == "held"
        assert listed("release", *chosen, "--older", "1h", "--dry-run") == []
        assert len(listed("list")) == 2
        assert listed("release", "--channel", "LOCAL", "--dry-run") and listed("destinations")[0]["on_hold"]
        for wrong in ("2", "-1h", "1w", "9999999999h"):
            with pytest.raises((AssertionError, RuntimeError, subprocess.CalledProcessError)):
                home.ctl("queue", "delete", "--older", wrong, "--yes")
        assert listed("delete", *chosen, "--yes") == [{"deleted": 1}]
        home.ctl("queue", "release", "--channel", "LOCAL")
        queue.until_drained(home.path)
        assert listed("destinations") == []
