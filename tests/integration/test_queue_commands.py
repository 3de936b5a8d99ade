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
        queue.until_drained(home.path, look=queue.unrouted)
        [row] = listed("destinations")
        assert list(row) == [
            "channel", "destination", "on_hold", "ready", "leased", "deferred", "held", "quarantined", "oldest_s", "reason",
            "next_attempt", "failures", "limit", "weight",
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


def test_another_way_and_files(tmp_path):
    with PrivateHome(2) as home:

        def ask(*words):
            return [json.loads(line) for line in home.ctl("queue", *words, "--json").splitlines()]

        home.ctl("queue", "hold", "--channel", "LOCAL")
        with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
            client.ehlo()
            client.mail("s@load.test")
            client.rcpt("a1@load.test")
            client.rcpt("a2@load.test")
            id = client.data(b"Subject: x\r\n\r\n..dots\r\n")[1].split()[-1].decode()
        queue.until_drained(home.path, look=queue.unrouted)
        home.ctl("connector", "list", "a1@load.test")
        chosen = ("route", "--from-channel", "LOCAL", "--recipient", "a2@load.test", "--channel", "CCMAIL", "--destination", "PO1")
        [entry] = ask(*chosen, "--to", "box@load.test", "--dry-run")
        assert (entry["id"], entry["channel"], entry["to_channel"]) == (id, "LOCAL", "CCMAIL")
        assert entry["recipients"] == [{"address": "a2@load.test", "to_address": "box@load.test", "to_identifier": "PO1"}]
        assert [row["channel"] for row in ask("destinations")] == ["LOCAL"]
        assert ask(*chosen, "--to", "box@load.test") == [{"routed": 1}]
        rows = {row["channel"]: row for row in ask("destinations")}
        assert (rows["CCMAIL"]["destination"], rows["CCMAIL"]["ready"], rows["LOCAL"]["held"]) == ("PO1", 1, 1)
        assert "rerouted" in home.ctl("trace", id)

        home.ctl("queue", "export", id, "--out", str(tmp_path / "out"))
        content = (tmp_path / "out" / f"{id}.eml").read_bytes()
        assert content.endswith(b"\r\n\r\n..dots\r\n")
        told = json.loads((tmp_path / "out" / f"{id}.json").read_text())
        assert {(r["address"], r["channel"]) for r in told["recipients"]} == {("a1@load.test", "LOCAL"), ("box@load.test", "CCMAIL")}
        with pytest.raises(RuntimeError, match="there already"):
            home.ctl("queue", "export", id, "--out", str(tmp_path / "out"))
        for wrong in (
            ("route", id, "--channel", "CCMAIL"),
            ("route", "--channel", "LOCAL"),
            ("route", id, "--channel", "LOCAL", "--to", "x@load.test"),
            ("export", "--out", str(tmp_path)),
        ):
            with pytest.raises(RuntimeError):
                home.ctl("queue", *wrong)

        # the index is lost with the power: the new way stays, and both get their mail
        home.crash()
        subprocess.run(["rm", "-r", str(home.path / "spool/index")], check=True)
        home.ctl("queue", "route", "--recipient", "box@load.test", "--channel", "LOCAL", "--to", "a2@load.test")
        home.ctl("queue", "release", "--channel", "LOCAL")
        home.start()
        queue.until_drained(home.path)
        events = home.ctl("trace", id)
        assert events.count("delivered") == 2 and json.loads(home.ctl("audit", "--json"))["missing"] == 0
