"""A started home relays to hosts on loopback; failures come back to the sender's mailbox as notices."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import imaplib
import json
import os
import signal
import smtplib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iems.perf.ports import free_base
from tests.support.dnsserver import DnsServer
from tests.support.smtpserver import SmtpServer
from tests.support.waiting import events, status, until

CONTENT = b"Subject: hello\r\nFrom: anna@example.test\r\nMessage-ID: <%d@example.test>\r\n\r\nline\r\n..\r\n.dotted\r\n"


class Outside:
    """The hosts we relay to, in a loop of their own thread."""

    def __init__(self, *servers: Any) -> None:
        self.servers = servers
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        for server in servers:
            self._run(server.__aenter__())

    def _run(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def close(self) -> None:
        for server in self.servers:
            self._run(server.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(60)


class Home:
    """A home with the account anna, started with `settings` (TOML)."""

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path / "home"
        self.base = free_base()
        self._call("iemsctl", "init", str(self.path), "--domain", "example.test", "--port-base", str(self.base))
        self._call("iemsuser", "create", "anna@example.test", "--password-stdin", text="pw\n")
        (self.path / "conf/iems.toml").write_text(
            f'hostname = "mail.example.test"\ndomain = "example.test"\n[ports]\nbase = {self.base}\n'
            f'[smtpd]\ntrusted_networks = ["127.0.0.0/8"]\n{settings}'
        )
        self.start()

    def _call(self, program: str, *args: str, text: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", f"iems.cli.{program}", *args], input=text, capture_output=True, text=True, timeout=60,
            env={**os.environ, "IEMS_HOME": str(self.path)},
        )
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout

    def start(self) -> None:
        self.master = subprocess.Popen(
            [sys.executable, "-m", "iems.cli.iemsctl", "--home", str(self.path), "start", "--foreground"],
            stdout=subprocess.PIPE, text=True,
        )
        assert self.master.stdout is not None
        assert self.master.stdout.readline() == "ready\n"

    def stop(self) -> None:
        if self.master.poll() is None:
            self.master.send_signal(signal.SIGTERM)
            try:
                self.master.wait(60)
            except subprocess.TimeoutExpired:
                self.master.kill()
        self.master.communicate()

    def status(self) -> dict[str, Any]:
        return status(self)

    def events(self, name: str) -> list[dict[str, Any]]:
        return events(self, name)

    def send(self, *recipients: str, count: int = 1, content: bytes = b"", options: tuple[str, ...] = ()) -> None:
        with smtplib.SMTP("127.0.0.1", self.base + 25) as client:
            client.ehlo()
            for number in range(count):
                client.mail("anna@example.test")
                for recipient in recipients:
                    assert client.rcpt(recipient, list(options))[0] == 250
                code, text = client.data(content or CONTENT % number)
                assert code == 250, text

    def inbox(self) -> list[Any]:
        client = imaplib.IMAP4("127.0.0.1", self.base + 143)
        client.login("anna@example.test", "pw")
        client.select()
        found = []
        for number in client.search(None, "ALL")[1][0].split():
            raw = client.fetch(number, "(BODY[])")[1][0][1]
            found.append(email.message_from_bytes(raw, policy=email.policy.default))
        client.logout()
        return found


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Home]]:
    """Starts a home that relays to servers; stops everything at the end."""
    opened: list[Any] = []

    def start(*servers: Any, settings: Callable[..., str] | None = None) -> Home:
        outside = Outside(*servers)
        opened.append(outside.close)
        text = settings(*servers) if settings else relay_to(*servers)
        home = Home(tmp_path, text)
        opened.append(home.stop)
        return home

    yield start
    for close in reversed(opened):
        close()


def relay_to(server: SmtpServer, more: str = "") -> str:
    return f'[smtpc]\nresolution = "relay"\nrelay_hosts = ["127.0.0.1:{server.port}"]\n{more}'


def reports(message: Any) -> list[Any]:
    """The per-recipient fields of a notice."""
    return list(message.get_payload()[1].get_payload()[1:])


def test_mail_leaves_and_failures_come_back(started: Callable[..., Home]) -> None:
    server = SmtpServer(lambda c, verb, line: "550 5.1.1 no such user" if verb == "RCPT" and b"nobody@" in line else None)
    home = started(server)
    home.send("bob@elsewhere.test", count=30)
    home.send("carol@elsewhere.test", "nobody@elsewhere.test", "dave@third.test")
    until(lambda: len(server.messages) == 32)
    assert b"line\r\n...\r\n..dotted\r\n" in server.messages[0][2]
    assert b"by mail.example.test" in server.messages[0][2]
    notice = until(home.inbox)[0]
    assert notice.get_content_type() == "multipart/report" and notice["Return-Path"] == "<>"
    (report,) = reports(notice)
    assert report["Final-Recipient"] == "rfc822; nobody@elsewhere.test"
    assert (report["Action"], report["Status"]) == ("failed", "5.1.1")
    assert report["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user"
    assert notice.get_payload()[2].get_payload()[0]["Message-ID"] == "<0@example.test>"
    until(lambda: not any(home.status()["channels"]["SMTPC"][what] for what in ("ready", "leased", "deferred")))
    assert len(home.events("relayed")) == 32 and len(home.events("failed")) == 1 and home.events("error") == []
    assert home.status()["roles"]["smtpc"]["state"] == "running"


def test_big_mail_leaves_whole(started: Callable[..., Home]) -> None:
    server = SmtpServer()
    home = started(server)
    plain = b"Subject: big\r\n\r\n" + b"".join(b"%07d a line\r\n" % n for n in range(200_000))
    home.send("bob@elsewhere.test", content=plain)
    home.send("bob@elsewhere.test", content=plain.replace(b" a", b"\r\n.a"))
    until(lambda: len(server.messages) == 2)
    sizes = sorted(len(content) - content.index(b"Subject: big") for _, _, content in server.messages)
    assert sizes == [len(plain), len(plain) + 4 * 200_000 - 200_000]
    assert any(content.endswith(plain) for _, _, content in server.messages)


def test_deferred_mail_is_tried_again_and_survives_a_restart(started: Callable[..., Home]) -> None:
    refusing = True
    server = SmtpServer(lambda c, verb, line: "451 4.3.0 later" if verb == "MAIL" and refusing else None)
    home = started(server, settings=lambda s: relay_to(s, "retry_s = 1.0\nweight_deferred = -2\nweight_size = 7\n"))
    home.send("bob@elsewhere.test", count=3)
    until(lambda: home.status()["channels"]["SMTPC"]["deferred"] == 3)
    listed = [json.loads(line) for line in home._call("iemsctl", "queue", "list", "--json").splitlines()]
    assert [message["weight"] for message in listed] == [-2, -2, -2]  # small, deferred for less than an hour
    home.stop()
    refusing = False
    home.start()
    until(lambda: len(server.messages) == 3)
    assert home.inbox() == []


def test_delay_notice_and_giving_up(started: Callable[..., Home]) -> None:
    server = SmtpServer(lambda c, verb, line: "450 4.2.1 busy" if verb == "RCPT" else None)
    home = started(server, settings=lambda s: relay_to(s, "retry_s = 0.5\nretry_max_s = 0.5\ndelay_notice_s = 1.0\nlifetime_s = 5.0\n"))
    home.send("bob@elsewhere.test")
    notices = until(lambda: (found := home.inbox()) and len(found) == 2 and found)
    assert [reports(notice)[0]["Action"] for notice in notices] == ["delayed", "failed"]
    assert reports(notices[1])[0]["Status"] == "5.4.7"
    time.sleep(1)
    assert len(home.inbox()) == 2 and home.status()["channels"]["SMTPC"]["deferred"] == 0


def test_success_is_told_once_a_message(started: Callable[..., Home]) -> None:
    """Three recipients who are to be told of: two at domains behind a host without DSN, one with a mailbox here."""
    server = SmtpServer(extensions=("PIPELINING",))
    home = started(server)
    home.send("bob@one.test", "carol@two.test", "anna@example.test", options=("NOTIFY=SUCCESS",))
    found = until(lambda: (mail := home.inbox()) and len(mail) == 3 and mail)
    told = {tuple(sorted((r["Final-Recipient"], r["Action"]) for r in reports(m))) for m in found if m.is_multipart()}
    assert told == {
        (("rfc822; anna@example.test", "delivered"),),
        (("rfc822; bob@one.test", "relayed"), ("rfc822; carol@two.test", "relayed")),
    }


def test_a_report_that_nobody_takes_comes_to_the_postmaster(started: Callable[..., Home]) -> None:
    server = SmtpServer(lambda c, verb, line: "550 5.1.1 nobody here" if verb == "RCPT" else None)
    home = started(server)
    with smtplib.SMTP("127.0.0.1", home.base + 25) as client:
        client.sendmail("gone@elsewhere.test", ["nobody@third.test"], CONTENT % 1)
    (notice,) = until(home.inbox)  # anna reads the postmaster's mail
    assert "double bounce" in notice["Subject"] and notice["Return-Path"] == "<>"
    (report,) = reports(notice)
    assert report["Final-Recipient"] == "rfc822; gone@elsewhere.test"
    until(lambda: not any(home.status()["channels"]["SMTPC"][what] for what in ("ready", "leased", "deferred")))
    assert len(home.events("dsn")) == 2 and home.events("discarded") == []
    audit = json.loads(home._call("iemsctl", "audit", "--json"))
    assert audit["missing"] == 0 and audit["queued"] == 0


def test_by_mx_with_faults(started: Callable[..., Home]) -> None:
    server = SmtpServer()
    zone = {
        ("ok.test", "MX"): ["10 dead.ok.test.", "20 mx.ok.test."],
        ("dead.ok.test", "A"): ["127.0.0.77"],
        ("mx.ok.test", "A"): ["127.0.0.1"],
        ("null.test", "MX"): ["0 ."],
    }
    names = DnsServer(zone, {"sick.test": "SERVFAIL", "mute.test": "silent"})

    def settings(server: SmtpServer, names: DnsServer) -> str:
        return (
            f'[smtpc]\nresolution = "dns"\nport = {server.port}\nconnect_timeout_s = 2.0\n'
            f'[dns]\nservers = ["127.0.0.1:{names.port}"]\ntimeout_s = 0.3\nattempts = 2\n'
        )

    home = started(server, names, settings=settings)
    home.send("a@ok.test", "b@null.test", "c@nowhere.test", "d@sick.test", "e@mute.test")
    until(lambda: len(server.messages) == 1)
    until(lambda: sorted(r["Status"] for notice in home.inbox() for r in reports(notice)) == ["5.1.10", "5.1.2"])
    until(lambda: home.status()["channels"]["SMTPC"]["deferred"] == 2)


def test_killed_at_work_loses_nothing(started: Callable[..., Home]) -> None:
    """kill -9 of the relay amid its work: every message arrives; what arrives twice was in the air."""
    server = SmtpServer(delay_s=0.002)
    home = started(server)
    home.send("bob@elsewhere.test", count=200)
    for _ in range(3):
        time.sleep(0.15)
        for pid in home.status()["roles"]["smtpc"]["pids"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: home.status()["roles"]["smtpc"]["alive"])
    found = until(lambda: (ids := {m[2].split(b"Message-ID: <")[1].split(b"@")[0] for m in server.messages}) and len(ids) == 200 and ids)
    assert len(found) == 200
    until(lambda: not any(home.status()["channels"]["SMTPC"][what] for what in ("ready", "leased")))
    twice = len(server.messages) - 200
    assert twice <= 3 * 2 * 5  # per kill at most what five sessions had sent and not recorded, and one group on its way to the disk
