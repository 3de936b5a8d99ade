"""Mail tunnelled in batches from one server to a maildrop on it, picked up by another and delivered; killed in between."""

from __future__ import annotations

import contextlib
import json
import os
import poplib
import random
import re
import signal
import smtplib
import time

import pytest

from iems.perf.home import PASSWORD, PrivateHome

poplib._MAXLINE = 1 << 20
TUNNEL = "a1@load.test"
KEY = "a shared key of this test\n"


def until(found, limit_s=60.0):
    """What `found` gives, once it is true."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError, poplib.error_proto, smtplib.SMTPException):
            if answer := found():
                return answer
        time.sleep(0.05)
    raise AssertionError(f"did not happen in {limit_s} s")


def secret(home, name, text):
    path = home.path / "conf" / name
    path.write_text(text)
    path.chmod(0o600)


class Named(PrivateHome):
    """A server with a name and a key of its own."""

    def __init__(self, name, accounts, settings):
        super().__init__(accounts, {"bsmtp.enabled": True, **settings})
        self._name = name

    def _make(self):
        super()._make()
        secret(self, "key", KEY)
        file = self.path / "conf/iems.toml"
        file.write_text(re.sub(r"(?m)^#?hostname = .*$", f'hostname = "{self._name}"', file.read_text()))


class Far(Named):
    """The server at the far end: batches for its domain far.test lie in a maildrop of another server."""

    def __init__(self, near, extra=""):
        super().__init__("far.test", 3, {})
        self._near, self._extra = near, extra

    def _make(self):
        super()._make()
        secret(self, "pop", PASSWORD + "\n")
        with open(self.path / "conf/iems.toml", "a") as file:
            file.write(
                f'\n[[bsmtp.pickup]]\nname = "near"\nhost = "127.0.0.1"\nport = {self._near.port("pop3")}\nlogin = "{TUNNEL}"\n'
                f'password_file = "conf/pop"\nkey_file = "conf/key"\ninterval_s = 0.2\nmax_messages = 3\n{self._extra}\n'
            )
        self.ctl("domain", "add", "far.test")
        for number in range(1, 5):
            self.ctl("alias", "add", f"u{number}@far.test", "a2@load.test" if number < 4 else "a3@load.test")


@pytest.fixture(scope="module")
def near():
    with Named("near.test", 2, {"bsmtp.key_file": "conf/key"}) as home:
        home.ctl("forward", "set", "far.test", "BSMTPOUT", TUNNEL)
        yield home


def mails(server, user):
    """Contents of a mailbox."""
    client = poplib.POP3("127.0.0.1", server.port("pop3"), timeout=20)
    try:
        client.user(user)
        client.pass_(PASSWORD)
        return [b"\r\n".join(client.retr(n + 1)[1]) + b"\r\n" for n in range(len(client.list()[1]))]
    finally:
        client.quit()


def pids(server):
    return json.loads(server.ctl("status", "--json"))["roles"]["bsmtp"]["pids"]


BODY = b"Subject: dots\r\nTo: somebody@else.test\r\n\r\n.\r\n..two\r\n.QUIT\r\nMAIL FROM:<evil@x.test>\r\n\xc3\xa9\xff 8 bit\r\n\r\n.\r\n"


def test_a_domain_through_a_tunnel(near):
    """Hidden recipients, the null path and every octet arrive; the maildrop is empty afterwards."""
    with Far(near, 'tls = "starttls"\nverify = false') as far:
        with smtplib.SMTP("127.0.0.1", near.port("smtp"), timeout=20) as client:
            stuffed = BODY.replace(b"\r\n.", b"\r\n..")
            for path in (b"sender@out.test", b""):
                client.ehlo()
                client.docmd("MAIL", f"FROM:<{path.decode()}> BODY=8BITMIME RET=HDRS ENVID=id+2B1")
                client.docmd("RCPT", "TO:<u1@far.test> NOTIFY=NEVER ORCPT=rfc822;first@far.test")
                client.docmd("RCPT", "TO:<u4@far.test> NOTIFY=SUCCESS,FAILURE")
                assert client.docmd("DATA")[0] == 354
                client.send(stuffed + b".\r\n")
                assert client.getreply()[0] == 250
        for user in ("a2@load.test", "a3@load.test"):
            got = until(lambda user=user: (found := mails(far, user)) and len(found) >= 2 and found)
            assert len(got) == 2
            assert sorted(mail.split(b"\r\n", 1)[0] for mail in got) == [b"Return-Path: <>", b"Return-Path: <sender@out.test>"]
            for mail in got:
                assert mail.endswith(b"\r\n" + BODY)
                assert b"u1@" not in mail and b"u4@" not in mail
                assert b"by far.test with BSMTP id" in mail and b"by near.test with ESMTP id" in mail
        until(lambda: not mails(near, TUNNEL))


def test_killed_in_between_everything_arrives_once(near):
    """The workers of both ends are killed again and again; each mail is there once."""
    rng = random.Random(2442)
    count = 60
    with Far(near, 'tls = "none"') as far:
        with smtplib.SMTP("127.0.0.1", near.port("smtp"), timeout=20) as client:
            for number in range(count):
                client.sendmail("s@out.test", ["u2@far.test"], b"Subject: m%03d\r\n\r\nx\r\n" % number)
                if not number % 10:
                    for server in (near, far):
                        for pid in pids(server):
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(pid, signal.SIGKILL)
        for _ in range(6):
            time.sleep(rng.uniform(0.05, 0.4))
            for server in (far, near):
                for pid in pids(server):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

        def subjects():
            return [line for mail in mails(far, "a2@load.test") for line in mail.split(b"\r\n") if line.startswith(b"Subject: m")]

        until(lambda: len(set(subjects())) == count)
        until(lambda: not mails(near, TUNNEL))
        assert sorted(subjects()) == [b"Subject: m%03d" % number for number in range(count)]
        for server in (near, far):
            assert json.loads(server.ctl("audit", "--json"))["missing"] == 0
