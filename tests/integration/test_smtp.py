"""SMTP and LMTP against a whole server: smtplib and swaks, smuggling, chunks, 421 and 452, killed workers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess

import pytest

from iems.master.board import Board
from iems.perf.home import PASSWORD, PrivateHome
from tests.support.waiting import events, until

A, B = "a1@load.test", "a2@load.test"


@pytest.fixture(scope="module")
def server():
    with PrivateHome(3, settings={"smtpd.max_sessions": 15}) as home:
        yield home


@pytest.fixture(autouse=True)
def settled(server):
    """Sessions of the test before are gone: the limit of sessions counts them too."""
    until(lambda: not board(server).total("smtpd", "sessions_now"))


class Wire:
    """A client that sends octets as they are."""

    def __init__(self, server, name="smtp"):
        self.sock = socket.create_connection(("127.0.0.1", server.port(name)), 10)
        self.file = self.sock.makefile("rb")
        self.greeting = self.reply()

    def reply(self):
        lines = []
        while line := self.file.readline():
            lines.append(line)
            if line[3:4] == b" ":
                break
        return b"".join(lines)

    def say(self, octets, replies=1):
        self.sock.sendall(octets)
        return [self.reply() for _ in range(replies)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.sock.close()


def board(server):
    return Board.open(server.path / "run" / "board")


def accepted(server):
    return board(server).counters("smtpd")["messages_accepted_total"]


def test_the_id_stands_in_reply_received_and_trace(server):
    with smtplib.SMTP("127.0.0.1", server.port("smtp"), timeout=60) as client:
        client.ehlo()
        client.mail("x@out.test")
        client.rcpt(A)
        code, text = client.data(b"Subject: id\r\n\r\n.dot\r\n")
    assert code == 250 and text.startswith(b"2.0.0 queued as ")
    message_id = text.split()[-1].decode()
    until(lambda: any(event.get("id") == message_id for event in events(server, "delivered")))
    traced = [json.loads(line)["event"] for line in server.ctl("trace", message_id, "--json").splitlines()]
    assert traced[0] == "accepted" and traced[-1] in ("delivered", "done")


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\n", b"\r\n.\r", b"\r.\r\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n"]
)  # fmt: skip
def test_smuggling(server, end):
    """beyond.md 3.16: one message or a 5xx, never two."""
    before = accepted(server)
    with Wire(server) as wire:
        wire.say(b"EHLO c\r\nMAIL FROM:<a@out.test>\r\nRCPT TO:<a1@load.test>\r\nDATA\r\n", 4)
        inner = b"MAIL FROM:<evil@out.test>\r\nRCPT TO:<a1@load.test>\r\nDATA\r\nSubject: two\r\n\r\nsmuggled"
        (reply,) = wire.say(b"Subject: one\r\n\r\ntext" + end + inner + b"\r\n.\r\n")
        assert reply.startswith(b"554 5.6.0 ")
        assert wire.say(b"QUIT\r\n")[0].startswith(b"221 ")
    assert accepted(server) == before


def test_chunks(server):
    before = accepted(server)
    with Wire(server) as wire:
        wire.say(b"EHLO c\r\nMAIL FROM:<a@out.test>\r\nRCPT TO:<a1@load.test>\r\n", 3)
        replies = wire.say(b"BDAT 19\r\nSubject: x\r\n\r\n.\r\nQUBDAT 4 LAST\r\nIT\r\n", 2)
        assert replies[1].startswith(b"250 2.0.0 queued as ")
        assert wire.say(b"BDAT 6\r\nQUIT\r\n")[0].startswith(b"503 ")
        closing, end = wire.say(b"BDAT x\r\nNOOP\r\n", 2)
        assert closing.startswith(b"501 5.5.4 BDAT needs a size and may have LAST, closing the connection [") and end == b""
    assert accepted(server) == before + 1


def test_cut_in_the_middle(server):
    """A client that goes away during content leaves nothing, neither message nor session."""
    before = accepted(server)
    for tail in (b"DATA\r\nSubject: x\r\n", b"BDAT 100000\r\nabc", b"DATA\r\n" + b"x" * 3_000_000):
        with Wire(server) as wire:
            wire.say(b"EHLO c\r\nMAIL FROM:<a@out.test>\r\nRCPT TO:<a1@load.test>\r\n", 3)
            wire.sock.sendall(tail)
    until(lambda: not board(server).total("smtpd", "sessions_now"))
    assert accepted(server) == before
    until(lambda: not list((server.path / "spool" / "large").iterdir()))


def test_the_sixteenth_session_gets_421(server):
    with contextlib.ExitStack() as stack:
        wires = [
            stack.enter_context(Wire(server, name)) for name in ["smtp"] * 12 + ["submission"] * 2 + ["lmtp"]
        ]
        assert all(wire.greeting.startswith(b"220 ") for wire in wires)
        with Wire(server) as one_more:
            assert one_more.greeting.startswith(b"421 4.7.0 ")
        assert wires[0].say(b"QUIT\r\n")[0].startswith(b"221 ")

        def served():
            with Wire(server) as again:
                return again.greeting.startswith(b"220 ")

        until(served)


def test_login_decides_about_relaying(server):
    trust = ssl._create_unverified_context()
    with smtplib.SMTP("127.0.0.1", server.port("smtp"), timeout=60) as client:
        client.ehlo()
        assert client.mail("x@out.test")[0] == 250
        code, text = client.rcpt("someone@else.test")
        assert code == 550 and b"5.7.1" in text and b"relaying denied" in text
        assert client.rcpt("nobody@load.test")[0] == 550
    with smtplib.SMTP("127.0.0.1", server.port("submission"), timeout=60) as client:
        client.ehlo()
        assert client.mail(A)[0] == 530
        client.starttls(context=trust)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login(A, "wrong")
        client.login("A1@Load.Test", PASSWORD)
        assert client.mail(A)[0] == 250 and client.rcpt("someone@else.test")[0] == 250
    with smtplib.SMTP_SSL("127.0.0.1", server.base + 465, context=trust, timeout=60) as client:
        client.login("a1", PASSWORD)
        assert client.sendmail(A, [B], b"Subject: tls\r\n\r\nx\r\n") == {}


def test_lmtp_answers_for_each_recipient(server):
    with Wire(server, "lmtp") as wire:
        recipients = b"RCPT TO:<a1@load.test>\r\nRCPT TO:<nobody@load.test>\r\nRCPT TO:<a2@load.test>\r\n"
        replies = wire.say(b"LHLO c\r\nMAIL FROM:<x@out.test>\r\n" + recipients + b"DATA\r\n", 6)
        assert [reply[:9] for reply in replies[2:5]] == [b"250 2.1.5", b"550 5.1.1", b"250 2.1.5"]
        assert all(b"queued as" in reply for reply in wire.say(b"Subject: lmtp\r\n\r\nx\r\n.\r\n", 2))
        assert wire.say(b"QUIT\r\n")[0].startswith(b"221 ")


@pytest.mark.skipif(shutil.which("swaks") is None, reason="needs swaks")
def test_swaks(server):
    for options in (["--server", f"127.0.0.1:{server.port('smtp')}", "--pipeline"],
                    ["--server", f"127.0.0.1:{server.port('lmtp')}", "--protocol", "LMTP"],
                    ["--server", f"127.0.0.1:{server.port('submission')}", "-a", "LOGIN", "-au", A, "-ap", PASSWORD]):  # fmt: skip
        done = subprocess.run(
            ["swaks", "--to", B, "--from", A, *options],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 and "queued as" in done.stdout, done.stdout + done.stderr


def test_a_killed_worker_costs_its_sessions_only(server):
    workers = [row.pid for row in board(server).rows() if row.role == "smtpd"]
    with Wire(server) as wire:
        wire.say(b"EHLO c\r\n")
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        assert wire.file.read() == b""

    def served():
        with smtplib.SMTP("127.0.0.1", server.port("smtp"), timeout=60) as client:
            return client.sendmail("x@out.test", [A], b"Subject: after\r\n\r\nx\r\n") == {}

    until(served)
