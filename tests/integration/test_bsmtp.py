"""Mail tunnelled in batches from one server to a maildrop on it, picked up by another and delivered; killed in between."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import poplib
import random
import re
import signal
import smtplib
import socketserver
import threading
import time

import pytest

from iems.bsmtp import carrier
from iems.bsmtp.batch import Entry, encode
from iems.cli.run import status_of
from iems.model import Recipient
from iems.perf.home import PASSWORD, PrivateHome
from tests.support.waiting import until

poplib._MAXLINE = 1 << 20
TUNNEL = "a1@load.test"
KEY = "a shared key of this test\n"


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

    def __init__(self, near, extra="", protocol_port="pop3", **settings):
        self._port = f"port = {near.port(protocol_port)}\n" if protocol_port == "pop3" else ""
        super().__init__("far.test", 3, {f"bsmtp.{name}": value for name, value in settings.items()})
        self._near, self._extra = near, extra

    def _make(self):
        super()._make()
        secret(self, "pop", PASSWORD + "\n")
        with open(self.path / "conf/iems.toml", "a") as file:
            file.write(
                f'\n[[bsmtp.pickup]]\nname = "near"\nhost = "127.0.0.1"\n{self._port}login = "{TUNNEL}"\n'
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


class Maildrop(socketserver.ThreadingTCPServer):
    """A POP3 server with these mails. `told` is called with each command, and its argument, that is about to be answered."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, mails, told=lambda command, argument: None):
        self.mails, self.told, self.uidl, self.sessions = dict(enumerate(mails, 1)), told, True, 0
        super().__init__(("127.0.0.1", 0), Session)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Session(socketserver.StreamRequestHandler):
    """One session with a Maildrop; what is marked goes at QUIT."""

    def _lines(self):
        with contextlib.suppress(ConnectionError):
            yield from self.rfile

    def handle(self):
        drop, marked = self.server, []
        listed = dict(drop.mails)
        drop.sessions += 1
        self.wfile.write(b"+OK\r\n")
        for line in self._lines():
            word, _, argument = line.decode().strip().partition(" ")
            drop.told(word, argument)
            answer = b"+OK\r\n"
            if word == "LIST":
                answer += b"".join(b"%d %d\r\n" % (n, len(mail)) for n, mail in listed.items()) + b".\r\n"
            elif word == "UIDL":
                answer = answer + b"".join(b"%d u%d\r\n" % (n, n) for n in listed) + b".\r\n" if drop.uidl else b"-ERR\r\n"
            elif word == "RETR":
                answer += (b"\r\n" + listed[int(argument)]).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"
            elif word == "DELE":
                marked.append(int(argument))
            elif word == "QUIT":
                for number in marked:
                    drop.mails.pop(number, None)
            self.wfile.write(answer)
            if word == "QUIT":
                return


def batch_mail(number, *recipients, key=b""):
    """A carrier with two messages of these recipients."""
    entries = [
        Entry(b"s@out.test", [Recipient(r) for r in recipients], b"Subject: m%03d%s\r\n\r\nx\r\n" % (number, half)) for half in (b"a", b"b")
    ]
    made = carrier.make(
        encode(entries, b"h"), sender="postmaster@out.test", to=TUNNEL, hostname="out.test", unique=bytes(16), content=b"\r\n",
        now_s=int(time.time()), key=key,
    )  # fmt: skip
    return b"".join(made)


def subjects(server, user):
    """The test subjects in a mailbox, in order."""
    return sorted(line for mail in mails(server, user) for line in mail.split(b"\r\n") if line.startswith(b"Subject: m"))


def mails(server, user):
    """Contents of a mailbox."""
    client = poplib.POP3("127.0.0.1", server.port("pop3"), timeout=60)
    try:
        client.user(user)
        client.pass_(PASSWORD)
        return [b"\r\n".join(client.retr(n + 1)[1]) + b"\r\n" for n in range(len(client.list()[1]))]
    finally:
        client.quit()


def pids(server):
    """The bsmtp workers. While one is being forked its row has the master's pid."""
    return [pid for pid in status_of(server.path)["roles"]["bsmtp"]["pids"] if pid != server.pid]


BODY = b"Subject: dots\r\nTo: somebody@else.test\r\n\r\n.\r\n..two\r\n.QUIT\r\nMAIL FROM:<evil@x.test>\r\n\xc3\xa9\xff 8 bit\r\n\r\n.\r\n"


def test_a_domain_through_a_tunnel(near):
    """Hidden recipients, the null path and every octet arrive; the maildrop is empty afterwards."""
    with Far(near, 'tls = "starttls"\nverify = false') as far:
        with smtplib.SMTP("127.0.0.1", near.port("smtp"), timeout=60) as client:
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


def kill(found):
    """End these processes at once."""
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_pick_up_by_imap(near):
    """The same tunnel with the other protocol: from INBOX, and TLS by STARTTLS."""
    extra = f'protocol = "imap"\ntls = "starttls"\nverify = false\nport = {near.port("imap")}'
    with Far(near, extra, protocol_port="imap") as far:
        with smtplib.SMTP("127.0.0.1", near.port("smtp"), timeout=60) as client:
            for number in range(5):
                client.sendmail("sender@out.test", ["u1@far.test", "u4@far.test"], b"Subject: m%03d\r\n\r\n.dot\r\n" % number)
        for user in ("a2@load.test", "a3@load.test"):
            until(lambda user=user: len(subjects(far, user)) == 5)
            assert sorted(subjects(far, user)) == [b"Subject: m%03d" % number for number in range(5)]
        until(lambda: not mails(near, TUNNEL))


def test_a_worker_killed_at_every_step_takes_each_mail_in_once():
    """Killed when it asks to delete, when it says goodbye, and at moments after a mail came."""
    rng = random.Random(1939)
    with contextlib.ExitStack() as stack:
        kills = itertools.cycle(["RETR", "RETR", "DELE", "RETR", "QUIT"])
        aim = [next(kills)]

        deaths = collections.Counter()

        def told(command, argument):
            # After three deaths over one mail it would stay in its place.
            if command == aim[0] and (command != "RETR" or deaths[argument] < 2):
                aim[0] = next(kills)
                deaths[argument] += command == "RETR"
                found = pids(far)
                threading.Timer(rng.uniform(0, 0.006) if command == "RETR" else 0, kill, (found,)).start()

        key = KEY.strip().encode()
        drop = stack.enter_context(Maildrop([], told))
        drop.port = lambda name: drop.server_address[1]
        far = stack.enter_context(Far(drop, 'tls = "none"'))
        drop.mails.update((n, batch_mail(n, b"u1@far.test", b"u4@far.test", key=key)) for n in range(9))
        until(lambda: not drop.mails)
        expected = [b"Subject: m%03d%s" % (n, half) for n in range(9) for half in (b"a", b"b")]
        for user in ("a2@load.test", "a3@load.test"):
            until(lambda user=user: len(set(subjects(far, user))) == len(expected))
            assert subjects(far, user) == expected
        assert json.loads(far.ctl("audit", "--json"))["missing"] == 0
        assert drop.sessions >= 4  # as often as a kill came amid one


def test_what_is_no_batch_for_us_goes_to_the_postmaster():
    """Sessions end at their limit; a batch without our signature, ordinary mail and a batch sent twice; a folder; no unique ids."""
    key = KEY.strip().encode()
    signed = batch_mail(1, b"u1@far.test", key=key)
    drop = Maildrop([])
    drop.port, drop.uidl = lambda name: drop.server_address[1], False
    with drop, Far(drop, 'tls = "none"', folder="drop", folder_interval_s=0.1, key_file="conf/key", max_octets=100_000) as far:
        large = b"Subject: large\r\n\r\n" + b"x" * 100_000 + b"\r\n"
        drop.mails.update(enumerate([
            signed, batch_mail(2, b"u1@far.test"), b"Subject: ordinary\r\n\r\nx\r\n", signed, large,
            batch_mail(3, b"nobody@elsewhere.test", key=key), batch_mail(4, b"u1@far.test", key=key)[:-30] + b"\r\n",
        ], 1))  # fmt: skip
        until(lambda: list(drop.mails) == [5])  # the large one stays
        assert drop.sessions >= 2
        folder = far.path / "drop"
        (folder / ".tmp").write_bytes(batch_mail(9, b"u4@far.test", key=key))
        (folder / ".tmp").rename(folder / "batch")
        (folder / ".on-its-way").write_bytes(b"x")
        (folder / "again").write_bytes(signed)
        until(lambda: os.listdir(folder) == [".on-its-way"])
        until(lambda: subjects(far, "a3@load.test") == [b"Subject: m009a", b"Subject: m009b"])
        told = until(lambda: (found := mails(far, "a1@load.test")) and len(found) == 4 and found)
        assert subjects(far, "a2@load.test") == [b"Subject: m001a", b"Subject: m001b"]
        reasons = sorted(mail.split(b"X-IEMS-Pickup: near: ")[1].split(b"\r\n")[0][:23] for mail in told)
        assert reasons == [b"a recipient is not ours", b"no batch in it", b"the batch is not signed", b"the signature of the ba"]
        log = (far.path / "log/mail.log").read_text()
        assert "has more than 100000 octets" in log and PASSWORD not in re.findall(r'"[^"]*"', log) and KEY.strip() not in log


def test_a_tunnel_to_no_address_fails_with_a_report(near):
    near.ctl("forward", "set", "broken.test", "BSMTPOUT", "noaddress")
    before = len(mails(near, "a2@load.test"))
    with smtplib.SMTP("127.0.0.1", near.port("smtp"), timeout=60) as client:
        client.sendmail("a2@load.test", ["x@broken.test"], b"Subject: lost?\r\n\r\nx\r\n")
    [report] = until(lambda: mails(near, "a2@load.test")[before:])
    assert b"Status: 5.1.3" in report and b"Subject: lost?" in report


def test_a_tunnel_into_itself_ends(near):
    near.ctl("forward", "set", "loop.test", "BSMTPOUT", "again@loop.test")
    before = len(mails(near, "a2@load.test"))
    with smtplib.SMTP("127.0.0.1", near.port("smtp"), timeout=60) as client:
        client.sendmail("a2@load.test", ["x@loop.test"], b"Subject: round\r\n\r\nx\r\n")
    reports = until(lambda: (found := mails(near, "a2@load.test")) and len(found) > before and found)
    assert b"Status: 5.4.6" in reports[-1]
    until(lambda: not json.loads(near.ctl("audit", "--json"))["queued"])


def test_encoders_killed_in_between(near):
    """The workers of both ends are killed while mail goes through the tunnel; each mail is there once."""
    count = 24
    with Far(near, 'tls = "none"') as far:
        with smtplib.SMTP("127.0.0.1", near.port("smtp"), timeout=60) as client:
            for number in range(count):
                client.sendmail("s@out.test", ["u2@far.test"], b"Subject: m%03d\r\n\r\nx\r\n" % number)
                if number % 8 == 5:
                    kill(pids(near))
        kill(pids(far))
        until(lambda: len(set(subjects(far, "a2@load.test"))) == count)
        until(lambda: not mails(near, TUNNEL))
        assert subjects(far, "a2@load.test") == [b"Subject: m%03d" % number for number in range(count)]
        for server in (near, far):
            assert json.loads(server.ctl("audit", "--json"))["missing"] == 0
