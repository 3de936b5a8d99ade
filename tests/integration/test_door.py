"""The door of a started server: limits over all workers, early talkers, flow control, senders on hold, ETRN."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from iems.perf import queue
from iems.perf.home import PrivateHome
from iems.spool import admin
from tests.integration.faults.rig import FaultHome, Wire
from tests.support.smtpserver import SmtpServer
from tests.support.waiting import events, status, until

LIMITED = {"smtpd.limit_loopback": True, "smtpd.greeting_delay_s": 0.0, "smtpd.workers": 2}
TO = "a1@load.test"


class From(Wire):
    """A connection from an address of our choice."""

    def __init__(self, port: int, ip: str = "127.0.0.1") -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(ip, 0))
        self._rest = b""


def test_sessions_over_all_workers_and_a_death() -> None:
    with PrivateHome(1, {**LIMITED, "smtpd.max_sessions_per_ip": 6, "smtpd.max_sessions_per_network": 8}) as home:
        port = home.port("smtp")
        ours = [From(port) for _ in range(6)]
        assert [wire.line()[:3] for wire in ours] == [b"220"] * 6
        for name in ("smtp", "submission", "lmtp"):
            with From(home.port(name)) as late:
                assert late.line().startswith(b"421 4.7.0 Too many sessions from your address")
        others = [From(port, f"127.0.0.{number}") for number in (2, 3)]
        assert [wire.line()[:3] for wire in others] == [b"220"] * 2
        with From(port, "127.0.0.4") as late:
            assert late.line().startswith(b"421")  # the network has eight
        with From(port, "127.0.1.1") as elsewhere:
            assert elsewhere.line().startswith(b"220")
        # Old workers keep their sessions over a reload, and they count.
        home.ctl("reload")
        with From(port) as late:
            assert late.line().startswith(b"421")
        # Who dies takes his sessions with him.
        pids = {row for row in home.roles()["smtpd"]}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert all(wire.rest() == b"" for wire in ours)
        until(lambda: len(set(home.roles().get("smtpd", ())) - pids) == 2)

        def room() -> bool:
            with contextlib.suppress(OSError), From(port) as wire:
                return wire.line().startswith(b"220")
            return False

        until(room)
        assert status(home)["counters"]["smtpd_sessions_limited_total"] >= 5
        assert events(home, "refused")[0]["detail"]["what"] == "sessions-per-ip"


def test_early_talkers_and_real_clients() -> None:
    with PrivateHome(1, {**LIMITED, "smtpd.greeting_delay_s": 0.4, "smtpd.message_rate": 5, "smtpd.tarpit_errors": 1}) as home:
        port = home.port("smtp")

        def caught() -> bool:
            """On a busy machine the first words may be late."""
            with From(port) as wire:
                wire.send(b"EHLO c\r\n")
                said = wire.line()
                return said.startswith(b"554 5.5.1 You spoke before the greeting was sent [") and wire.line() == b""

        until(caught)
        with From(port) as wire:
            wire.reply()
            wire.send(b"EHLO c\r\nMAIL FROM:<a@b>\r\n")
            assert wire.line().startswith(b"554 5.5.0 Commands came before the answer they have to wait for [") and wire.line() == b""
        swaks = ["swaks", "--server", "127.0.0.1", "--port", str(port), "--from", "x@load.test", "--to", TO]
        for more in ([], ["--pipeline"]):
            done = subprocess.run([*swaks, *more], capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stdout
        with From(port) as wire:
            wire.reply()
            wire.ask(b"EHLO c")
            assert wire.ask(b"BAD").startswith(b"500")
            begun = time.monotonic()
            assert wire.ask(b"BAD").startswith(b"500") and time.monotonic() - begun > 0.9
        # Five messages a minute, whoever brings them: what Postfix's client sees is a temporary refusal.
        done = subprocess.run(
            ["smtp-source", "-f", "x@load.test", "-t", TO, "-m", "10", "-s", "1", f"127.0.0.1:{port}"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "450 4.7.1 Too many messages" in done.stderr, done.stderr
        counters = status(home)["counters"]
        assert 5 <= counters["smtpd_messages_accepted_total"] <= 6  # one more where a minute begins
        assert counters["smtpd_early_talkers_total"] == 2 and counters["smtpd_tarpits_total"] == 1
        assert {event["detail"].get("what") for event in events(home, "refused")} == {
            "early-talker", "early-pipelining", "message-rate",
        }  # fmt: skip


def mail_reply(home: PrivateHome, name: str = "smtp") -> bytes:
    with From(home.port(name)) as wire:
        wire.reply()
        wire.ask(b"LHLO c" if name == "lmtp" else b"EHLO c")
        return wire.ask(b"MAIL FROM:<s@load.test>")


def test_flow_control_by_the_input_queue() -> None:
    settings = {"smtpd.flow_queue_high": 6, "smtpd.flow_queue_low": 2, "smtpd.workers": 2}
    with PrivateHome(1, settings, held=("INPUT",)) as home:
        with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
            for _ in range(6):
                client.sendmail("s@load.test", [TO], b"Subject: x\r\n\r\nx\r\n")
        for name in ("smtp", "lmtp"):
            until(lambda name=name: mail_reply(home, name).startswith(b"452 4.3.1 Mail system full, try again later ["))
        assert status(home)["flow"] == {"queue": "closed", "disk": "open", "memory": "open"}
        assert "mail is put off: queue" in home.ctl("status")
        with urllib.request.urlopen(f"http://127.0.0.1:{home.base + 9100}/metrics") as answer:
            assert b'iems_flow_queue_now{role="smtpd"}' in answer.read()
        home.ctl("queue", "release", "--channel", "INPUT")
        queue.until_drained(home.path)
        until(lambda: status(home)["flow"]["queue"] == "open")  # without a client that looks
        assert mail_reply(home).startswith(b"250") and mail_reply(home, "lmtp").startswith(b"250")
        told = [(event["event"], event["detail"]["what"]) for event in events(home, "flow-closed", "flow-open")]
        assert told == [("flow-closed", "queue"), ("flow-open", "queue")]


def test_flow_control_by_the_disk() -> None:
    with FaultHome(settings={"smtpd.flow_disk_high": 80.0, "smtpd.flow_disk_low": 60.0}, disks={"spool": ("64m", 0)}) as home:
        assert home.send("first").startswith(b"250")
        home.disks["spool"].fill(leave=8 << 20)
        until(lambda: mail_reply(home).startswith(b"452 4.3.1"))
        home.disks["spool"].empty()
        until(lambda: status(home)["flow"]["disk"] == "open")
        assert home.send("again").startswith(b"250")
        assert [event["event"] for event in home.events("flow-closed", "flow-open")] == ["flow-closed", "flow-open"]
        assert not home.events("spool_refuses")


def submit(home: PrivateHome, *recipients: str, ip: str = "127.0.0.1") -> str:
    """The last word of the server about a message of a1: its 250, or a refusal."""
    with smtplib.SMTP("127.0.0.1", home.port("submission"), source_address=(ip, 0)) as client:
        client.ehlo("c.example")
        client.login("a1@load.test", "pw")
        client.mail("a1@load.test")
        for one in recipients:
            code, text = client.rcpt(one)
            if code != 250:
                return f"{code} {text.decode()}"
        code, text = client.data(b"Subject: x\r\n\r\nx\r\n")
        return f"{code} {text.decode()}"


def test_a_sender_on_hold() -> None:
    settings = {**LIMITED, "smtpd.takeover_recipients": 4, "smtpd.takeover_networks": 2, "smtpd.sender_hour": 9, "auth.plaintext": "always"}
    with PrivateHome(2, settings, held=("SMTPC",)) as home:

        def listed(*words: str) -> list[dict[str, Any]]:
            return [json.loads(line) for line in home.ctl(*words, "--json").splitlines()]

        def held() -> list[str]:
            chosen = admin.Selection(channel=admin.channel_number("INPUT"))
            return [found["reason"] for found in admin.list_items(home.path, chosen) if found["state"] == "held"]

        people = [f"p{number}@else.test" for number in range(9)]
        assert submit(home, *people[:4]).startswith("250")
        assert submit(home, people[4]).startswith("250")
        why = "sender a1@load.test is on hold: more than 4 recipients in 10 minutes"
        assert held() == [why]
        assert submit(home, "a2@load.test").startswith("250") and held() == [why] * 2
        [alarm] = events(home, "alarm")
        assert (alarm["detail"]["what"], alarm["detail"]["sender"]) == ("sender-takeover", "a1@load.test")
        [known] = listed("sender", "list")
        assert (known["sender"], known["hour"], known["held"]) == ("a1@load.test", 5, True)
        found = subprocess.run(
            [sys.executable, "-m", "iems.cli.iemsctl", "--home", str(home.path), "doctor"], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "mail of a1@load.test is on hold since" in found.stdout
        # A crash forgets neither the list nor the counts.
        home.crash()
        home.start()
        assert submit(home, people[0]).startswith("250") and held() == [why] * 3
        assert listed("queue", "release", "--sender", "a1@load.test", "--recipient", "a2@load.test") == [{"released": 1}]
        assert home.ctl("sender", "clear", "a1@load.test", "--release") == "released 2\n"
        assert held() == [] and listed("sender", "list") == []
        assert submit(home, people[0]).startswith("250") and held() == []
        # Enough is enough: more than nine in an hour are for later.
        for number in range(2):
            assert submit(home, *people[:4]).startswith("250"), number
        assert submit(home, people[0]).startswith("450 4.7.1 Too many recipients for now, try again later [")
        # Many networks in an hour.
        for number in (1, 2, 3):
            assert submit(home, "a2@load.test", ip=f"127.0.{number}.1").startswith("250")
        assert held() == ["sender a1@load.test is on hold: clients in more than 2 networks in an hour"] * 2
        assert json.loads(home.ctl("audit", "--json"))["missing"] == 0
        with pytest.raises(RuntimeError, match="nothing is known of"):
            home.ctl("sender", "clear", "a2@load.test")


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever, daemon=True)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join(60)
    made.close()


def test_etrn(loop: asyncio.AbstractEventLoop) -> None:
    """Mail for a host that is away is tried at once when it says so, and for nobody else."""
    away = [True]
    server = SmtpServer(lambda connection, verb, line: "451 4.3.2 away" if away[0] and verb == "MAIL" else None)
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(60)
    port = server.port
    settings = {"smtpd.etrn_domains": ["*.permitted.test"]}
    with PrivateHome(1, settings) as home:
        home.ctl("forward", "set", "branch.test", "SMTPC", f"127.0.0.1:{port}")
        home.ctl("forward", "set", "*.branch.test", "SMTPC", f"127.0.0.1:{port}")
        with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
            for name in ("x@branch.test", "y@sub.branch.test"):
                client.sendmail("s@load.test", [name], b"Subject: x\r\n\r\nx\r\n")

        def row() -> dict[str, Any]:
            found = home.ctl("queue", "destinations", "--channel", "SMTPC", "--json").splitlines()
            return json.loads(found[0]) if found else {}

        until(lambda: row().get("deferred") == 2)
        with From(home.port("smtp")) as wire:
            assert b"250-ETRN" in wire.hello()
            assert wire.ask(b"ETRN else.test").startswith(b"459 4.7.1")
            assert wire.ask(b"ETRN load.test").startswith(b"459 4.7.1")
            assert wire.ask(b"ETRN #else").startswith(b"459 4.7.1")
            assert wire.ask(b"ETRN a.permitted.test") == b"251 2.0.0 OK, no messages waiting for node a.permitted.test"
            away[0] = False
            assert wire.ask(b"ETRN Branch.test") == b"253 2.0.0 OK, 2 pending messages for node branch.test started"
            assert wire.ask(b"ETRN branch.test") == b"252 2.0.0 OK, pending messages for this node started"
            until(lambda: len(server.messages) == 2)
            until(lambda: not row())  # the outcomes are in the queue
            assert wire.ask(b"ETRN @branch.test") == b"251 2.0.0 OK, no messages waiting for node @branch.test"
            assert wire.ask(b"ETRN #127.0.0.1:%d" % port).startswith(b"251 ")
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(60)
        assert [event["detail"]["node"] for event in events(home, "etrn")][:2] == ["a.permitted.test", "branch.test"]
