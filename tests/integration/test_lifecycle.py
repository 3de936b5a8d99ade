"""A whole server through its life: init, start, mail, a killed worker, reload with an open session, stop."""

from __future__ import annotations

import imaplib
import json
import os
import poplib
import signal
import smtplib
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iems.master.child import lives
from iems.perf.ports import free_base
from tests.support.waiting import status, until

CONTENT = b"Subject: hello\r\nFrom: anna@example.test\r\n\r\nThe first mail.\r\n"


class Server:
    """A home and the commands on it."""

    def __init__(self, path: Path) -> None:
        self.home = path
        self.base = free_base()
        self.master: subprocess.Popen[str] | None = None

    def call(self, program: str, *args: str, text: str = "", code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", f"iems.cli.{program}", *args],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "IEMS_HOME": str(self.home)},
        )
        assert done.returncode == code, (args, done.stdout, done.stderr)
        return done.stdout

    def ctl(self, *args: str, code: int = 0) -> str:
        return self.call("iemsctl", *args, code=code)

    def status(self) -> dict[str, Any]:
        return status(SimpleNamespace(path=self.home))

    def start_in_foreground(self) -> None:
        self.master = subprocess.Popen(
            [sys.executable, "-m", "iems.cli.iemsctl", "--home", str(self.home), "start", "--foreground"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.master.stdout is not None
        assert self.master.stdout.readline() == "ready\n"

    def send(self) -> str:
        """Sends a message; gives the id in `queued as ID`."""
        with smtplib.SMTP("127.0.0.1", self.base + 25) as client:
            client.ehlo()
            client.mail("anna@example.test")
            assert client.rcpt("ben@example.test")[0] == 250
            code, text = client.data(CONTENT)
            assert code == 250
            return text.decode().rsplit("queued as ", 1)[1].split()[0]

    def imap(self) -> imaplib.IMAP4:
        client = imaplib.IMAP4("127.0.0.1", self.base + 143)
        client.login("ben@example.test", "pw")
        return client

    def messages(self) -> int:
        client = self.imap()
        try:
            return int(client.select()[1][0])  # type: ignore[arg-type]
        finally:
            client.logout()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path / "home")
    found.ctl("init", str(found.home), "--domain", "example.test", "--port-base", str(found.base))
    for name in ("anna", "ben"):
        found.call("iemsuser", "create", f"{name}@example.test", "--password-stdin", text="pw\n")
    try:
        yield found
    finally:
        if found.master is not None:
            if found.master.poll() is None:
                found.master.send_signal(signal.SIGTERM)
                try:
                    found.master.wait(60)
                except subprocess.TimeoutExpired:
                    found.master.kill()
            found.master.communicate()
        else:
            subprocess.run(
                [sys.executable, "-m", "iems.cli.iemsctl", "--home", str(found.home), "stop"],
                capture_output=True,
            )


def test_a_server_lives(server: Server) -> None:
    server.start_in_foreground()
    assert server.master is not None
    shown = json.loads(server.ctl("status", "--json"))
    assert shown["pid"] == server.master.pid
    assert set(shown) >= {
        "version",
        "home",
        "pid",
        "uptime_s",
        "generation",
        "roles",
        "channels",
        "counters",
    }
    roles = shown["roles"]
    assert {"smtpd", "preprocessor", "lmda", "store", "imapd", "pop3d", "janitor"} <= set(roles)
    for role in roles.values():
        assert role["state"] == "running" and role["alive"] == role["workers"] == len(role["pids"])
    assert {"ready", "leased", "deferred", "held", "quarantined", "oldest_s"} <= set(
        shown["channels"]["LOCAL"]
    )

    sent = server.send()
    until(lambda: server.messages() == 1)
    traced: list[str] = []

    def told() -> bool:
        traced[:] = [json.loads(line)["event"] for line in server.ctl("trace", sent, "--json").splitlines()]
        return {"accepted", "routed", "delivered"} <= set(traced)

    until(told)
    assert traced[0] == "accepted"

    with urllib.request.urlopen(f"http://127.0.0.1:{server.base + 9100}/metrics", timeout=60) as answer:
        assert b'iems_messages_accepted_total{role="smtpd"} 1' in answer.read()

    # Any worker may be killed: the master replaces it, and mail goes on.
    for role in ("smtpd", "store", "lmda", "preprocessor", "imapd", "janitor"):
        victim = server.status()["roles"][role]["pids"][0]
        os.kill(victim, signal.SIGKILL)
        until(lambda role=role, victim=victim: _replaced(server.status()["roles"][role], victim))
    server.send()
    until(lambda: server.messages() == 2)

    # Reload: new workers, the open session stays.
    session = server.imap()
    before = server.status()["roles"]
    server.ctl("reload")
    after = server.status()
    assert after["generation"] == 2
    assert not set(before["smtpd"]["pids"]) & set(after["roles"]["smtpd"]["pids"][-1:])
    assert session.select()[0] == "OK"
    session.logout()
    server.send()
    until(lambda: server.messages() == 3)
    with_pop = poplib.POP3("127.0.0.1", server.base + 110)
    with_pop.user("ben@example.test")
    with_pop.pass_("pw")
    assert with_pop.stat()[0] == 3
    with_pop.quit()

    # Wrong settings change nothing and are named.
    conf = server.home / "conf/iems.toml"
    right = conf.read_text()
    conf.write_text(right.replace("[smtpd]", "[smtpd]\nworkes = 3", 1))
    server.ctl("reload", code=1)
    assert server.status()["generation"] == 2
    conf.write_text(right)

    pids = [pid for role in server.status()["roles"].values() for pid in role["pids"]]
    waiting = server.imap()
    server.ctl("stop")
    assert server.master.wait(60) == 0
    assert not any(map(lives, pids))
    assert b"BYE" in waiting.readline()
    server.ctl("status", code=3)
    for offset in (25, 143, 110):
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", server.base + offset)) != 0


def _replaced(role: dict[str, Any], victim: int) -> bool:
    return role["state"] == "running" and victim not in role["pids"]


def test_detached(server: Server) -> None:
    server.ctl("start")
    try:
        assert server.send()
        assert "already running" in subprocess.run(
            [sys.executable, "-m", "iems.cli.iemsctl", "--home", str(server.home), "start"],
            capture_output=True, text=True,
        ).stderr  # fmt: skip
        server.ctl("doctor")
        until(lambda: server.messages() == 1)
    finally:
        server.ctl("stop")
    assert not (server.home / "log/master.err").read_text()


def test_mail_taken_before_a_kill_of_the_master_is_delivered(server: Server) -> None:
    server.start_in_foreground()
    assert server.master is not None
    for _ in range(5):
        server.send()
    server.master.kill()
    server.master.communicate()
    server.start_in_foreground()
    until(lambda: server.messages() == 5)


def test_a_start_that_can_not_succeed_fails_with_its_reason(server: Server) -> None:
    """A worker that dies at every start is no reason to wait for ever."""
    (server.home / "store" / "p0").write_text("not a folder")
    done = subprocess.run(
        [sys.executable, "-m", "iems.cli.iemsctl", "--home", str(server.home), "start"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "store does not start" in done.stderr and "mail.log" in done.stderr
    assert "start-failed" in (server.home / "log" / "mail.log").read_text()
    server.ctl("status", code=3)
