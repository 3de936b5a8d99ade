"""Levels of the log and old logs by mail, on a running server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import poplib
import signal
import smtplib
import threading

from iems.perf.home import PASSWORD, PrivateHome
from tests.support.smtpserver import SmtpServer
from tests.support.waiting import events, status, until


@contextlib.contextmanager
def hop():
    """A server that takes everything, in a thread with a loop of its own."""
    ready, over = threading.Event(), asyncio.Event()
    server = SmtpServer()
    loop = asyncio.new_event_loop()

    async def serve():
        async with server:
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(60)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def test_dialogues_in_the_log_without_secrets():
    with hop() as next_hop, PrivateHome(
        1,
        {"log.level": "informational", "smtpc.resolution": "relay", "smtpc.relay_hosts": [f"127.0.0.1:{next_hop.port}"]},
    ) as home:
        with smtplib.SMTP("127.0.0.1", home.port("submission")) as client:
            client.ehlo("client.test")
            client.login("a1@load.test", PASSWORD)
            client.sendmail("a1@load.test", ["bob@far.test"], b"Subject: x\r\n\r\nin the content\r\n")
        until(lambda: next_hop.messages)
        until(lambda: events(home, "relayed"))

        def lines(key):
            return [f"{e['detail']['way']} {e['detail']['line']}" for e in events(home, "smtp") if key in e["detail"]]

        ours = lines("listener")
        assert "< EHLO client.test" in ours and "> 250 2.1.0 Sender OK" in ours and "< RCPT TO:<bob@far.test>" in ours
        assert any(line.startswith("< AUTH ") and "***" in line for line in ours) and "> 235 2.7.0 Authentication succeeded" in ours
        theirs = lines("host")
        assert any(line.startswith("> EHLO ") for line in theirs) and any(line.startswith("> RCPT TO:<bob@far.test>") for line in theirs)
        text = (home.path / "log/mail.log").read_text()
        assert "in the content" not in text and "AGExQGxvYWQudGVzdABwdw" not in text
        assert events(home, "connected") and until(lambda: events(home, "disconnected"))
        home.configure({"log.level": "errors"})
        config = home.path / "conf/iems.toml"
        config.write_text(config.read_text().replace('level = "informational"\n', ""))
        home.ctl("reload")
        until(lambda: status(home)["generation"] == 2)
        before = len(events(home, "accepted", "smtp"))
        until(lambda: _accepts(home))
        assert len(events(home, "accepted", "smtp")) == before


def _accepts(home):
    with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
        client.sendmail("s@x.test", ["a1@load.test"], b"Subject: y\r\n\r\ny\r\n")
    return True


def test_an_old_log_comes_by_mail_and_goes():
    with PrivateHome(1, {"log.mail_old": True, "log.keep_old": False, "log.rotate_octets": 10_240}) as home:
        home.ctl("alias", "add", "postmaster@load.test", "a1@load.test")

        def soon(found):
            """As `until`, with everybody awake: the master looks at the log's size, the janitor at old ones."""
            return until(lambda: os.kill(home.pid, signal.SIGUSR1) or found())

        soon(lambda: (home.path / "log/mailed").exists())
        with smtplib.SMTP("127.0.0.1", home.port("smtp")) as client:
            for number in range(12):
                client.sendmail("s@x.test", ["a1@load.test"], b"Subject: %d\r\n\r\nx\r\n" % number)

        def mails():
            client = poplib.POP3("127.0.0.1", home.port("pop3"), timeout=60)
            client.user("a1@load.test")
            client.pass_(PASSWORD)
            found = [b"\n".join(client.retr(n + 1)[1]) for n in range(client.stat()[0])]
            client.quit()
            return [mail for mail in found if b"Subject: Old log of" in mail]

        first = soon(mails)
        assert b"Return-Path: <>" in first[0] or b"postmaster@load.test" in first[0]
        assert b'"event":"accepted"' in first[0].replace(b"=3D", b"=") or b"Content-Transfer-Encoding: base64" in first[0]
        soon(lambda: not list((home.path / "log").glob("mail.log.*")))
        until(lambda: home.ctl("queue", "list") == "")
        assert json.loads(home.ctl("audit", "--json"))["missing"] == 0
