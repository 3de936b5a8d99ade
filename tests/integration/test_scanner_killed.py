"""clamd killed while it takes a large message in; and the worker that shows it one: nothing is lost, nothing comes twice, the setting of each channel holds."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import smtplib
import socket
import threading
import time

import pytest

from iems.perf.home import PrivateHome
from iems.spool import admin
from tests.integration.test_modules import inbox
from tests.support.scanners import CLAMD, EICAR, ClamdDaemon
from tests.support.waiting import events

HELD_OCTETS = 1 << 20


class Between:
    """Stands between a client and clamd: passes on what is said; `hold` stops it after the first MiB of a message, which clamd has then taken in."""

    def __init__(self, port: int) -> None:
        self.to = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.hold = threading.Event()
        self.go = threading.Event()
        self.held = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self.to), 10)
            except OSError:
                return
            with server:
                back = threading.Thread(target=self._pass, args=(server, client, False), daemon=True)
                back.start()
                self._pass(client, server, True)
                back.join()

    def _pass(self, source: socket.socket, target: socket.socket, holds: bool) -> None:
        octets = 0
        try:
            while data := source.recv(65_536):
                target.sendall(data)
                octets += len(data)
                if holds and octets > HELD_OCTETS and self.hold.is_set():
                    self.held.release()
                    self.go.wait()
        except OSError:
            pass
        for sock in (source, target):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def message(subject: str, virus: bool = False) -> bytes:
    body = base64.encodebytes(random.Random(subject).randbytes(2 << 20) + (EICAR if virus else b"")).replace(b"\n", b"\r\n")
    return f"Subject: {subject}\r\nContent-Type: application/x; name=a.bin\r\nContent-Transfer-Encoding: base64\r\n\r\n".encode() + body


def send(home: PrivateHome, subject: str, *recipients: str, virus: bool = False) -> None:
    with smtplib.SMTP("127.0.0.1", home.port("smtp"), timeout=60) as smtp:
        smtp.sendmail("a2@load.test", recipients, message(subject, virus))


def has(home: PrivateHome, subject: str) -> int:
    return sum(f"Subject: {subject}\r\n".encode() in content for content in inbox(home, "a1@load.test"))


def wait_for(true, limit_s: float = 60) -> None:
    until = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def counts(home: PrivateHome, channel: str, state: str) -> int:
    return admin.counts(home.path / "spool").get(channel, {}).get(state, 0)


def tried_again(home: PrivateHome) -> bool:
    """Whether nothing waits any more; what does is tried at once: the breaker may have opened, and leaves the scanner alone for a while."""
    if not any(c["ready"] + c["leased"] + c["deferred"] for c in admin.counts(home.path / "spool").values()):
        return True
    home.ctl("queue", "retry", "--channel", "INPUT")
    return False


@pytest.mark.skipif(CLAMD is None, reason="clamd is not installed")
def test_killed_amid_a_message(tmp_path):
    with ClamdDaemon(tmp_path / "clamd") as daemon:
        between = Between(daemon.port)
        settings = {
            "antivirus.scanners": [f"clamd:127.0.0.1:{between.port}"], "antivirus.channel_failures": ["SMTPC pass"], "antivirus.infected": "delete",
            "antivirus.timeout_s": 300.0, "smtpd.trusted_networks": ["127.0.0.0/8"],
        }  # fmt: skip
        with PrivateHome(2, settings, held=("SMTPC",)) as home:
            between.hold.set()
            send(home, "closed", "a1@load.test")
            send(home, "open", "u@far.test")
            for _ in range(2):
                assert between.held.acquire(timeout=60)
            daemon.signal(signal.SIGKILL)
            daemon.process.wait()
            between.hold.clear()
            between.go.set()
            # One waits, as its channel is closed to what nobody has seen; the other goes on.
            wait_for(lambda: counts(home, "INPUT", "deferred") == 1 and counts(home, "SMTPC", "held") == 1)
            [queued] = [json.loads(line) for line in home.ctl("queue", "list", "--channel", "SMTPC", "--json").splitlines()]
            assert queued["recipients"][0]["address"] == "u@far.test" and queued["size"] > 2 << 20
            assert has(home, "closed") == 0
            replies = [event["detail"]["reply"] for event in events(home, "deferred")]
            assert replies and all("clamd" in reply for reply in replies)

            # While it is gone mail is taken and waits; once it is back all of it is looked at.
            send(home, "gone", "a1@load.test")
            send(home, "virus", "a1@load.test", virus=True)
            wait_for(lambda: counts(home, "INPUT", "deferred") == 3)
            with daemon:
                wait_for(lambda: tried_again(home), 150)
                assert [has(home, subject) for subject in ("closed", "gone", "virus")] == [1, 1, 0]
                assert "Test.Eicar" in [event["detail"]["reason"] for event in events(home, "discarded")][-1]

                # The worker that shows it a message dies amid it: another begins anew.
                between.go.clear()
                between.hold.set()
                send(home, "worker", "a1@load.test")
                assert between.held.acquire(timeout=60)
                [pid] = json.loads(home.ctl("status", "--json"))["roles"]["preprocessor"]["pids"]
                os.kill(pid, signal.SIGKILL)
                between.hold.clear()
                between.go.set()
                wait_for(lambda: tried_again(home), 150)
                assert has(home, "worker") == 1
                audit = json.loads(home.ctl("audit", "--json"))
                assert (audit["missing"], audit["quarantined"]) == (0, 0)
