"""ODMR between two servers: mail waits for its site, is fetched over a connection turned round, and is there once, whatever is killed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import poplib
import re
import signal
import smtplib
import socket
import threading

import pytest

from iems.cli.run import status_of
from iems.perf.home import PASSWORD, PrivateHome
from tests.support.waiting import until

poplib._MAXLINE = 1 << 20
LARGE = b"".join(b"%07d 123456789\r\n" % number for number in range(80_000))


class Named(PrivateHome):
    """A server with a name of its own, and tables behind its settings."""

    def __init__(self, name, accounts, settings, tables):
        super().__init__(accounts, settings)
        self._name, self._tables = name, tables

    def _make(self):
        super()._make()
        file = self.path / "conf/iems.toml"
        file.write_text(re.sub(r"(?m)^#?hostname = .*$", f'hostname = "{self._name}"', file.read_text()) + self._tables)


class Provider(Named):
    """Keeps the mail of branch.test and second.test for a1, of other.test for a2."""

    def __init__(self):
        tables = "".join(
            f'\n[[smtpd.odmr]]\naccount = "{account}@load.test"\ndomains = {json.dumps(domains)}\n'
            for account, domains in (("a1", ["branch.test", "second.test"]), ("a2", ["other.test"]))
        )
        super().__init__("provider.test", 3, {"ports.odmr": 366, "smtpc.workers": 2}, tables)

    def _make(self):
        super()._make()
        for domain in ("branch.test", "second.test", "other.test"):
            self.ctl("forward", "set", domain, "SMTPC")


class Branch(Named):
    """The site: no port of its own is known to anybody."""

    def __init__(self, port, extra="", interval_s=0.2):
        tables = (
            f'\n[[bsmtp.pickup]]\nname = "isp"\nprotocol = "odmr"\nhost = "127.0.0.1"\nport = {port}\nlogin = "a1@load.test"\n'
            f'password_file = "conf/isp"\ninterval_s = {interval_s}\n{extra}\n'
        )
        super().__init__("branch.test", 2, {"bsmtp.enabled": True}, tables)

    def _make(self):
        super()._make()
        path = self.path / "conf/isp"
        path.write_text(PASSWORD + "\n")
        path.chmod(0o600)
        for domain in ("branch.test", "second.test"):
            self.ctl("domain", "add", domain)
            self.ctl("alias", "add", f"u@{domain}", "a1@load.test")


@pytest.fixture(scope="module")
def provider():
    with Provider() as home:
        yield home


def send(server, subject, *recipients, body=b"x\r\n"):
    with smtplib.SMTP("127.0.0.1", server.port("smtp"), timeout=60) as client:
        client.sendmail("sender@out.test", list(recipients), b"Subject: %s\r\n\r\n%s" % (subject, body))


def mails(server, user="a1@load.test"):
    client = poplib.POP3("127.0.0.1", server.port("pop3"), timeout=60)
    try:
        client.user(user)
        client.pass_(PASSWORD)
        return [b"\r\n".join(client.retr(n + 1)[1]) + b"\r\n" for n in range(len(client.list()[1]))]
    finally:
        client.quit()


def subjects(server):
    return sorted(re.search(rb"(?m)^Subject: (\w+)", mail)[1] for mail in mails(server))


def waiting(server, domain):
    """The row of a destination; None if nothing waits."""
    rows = [json.loads(line) for line in server.ctl("queue", "destinations", "--json").splitlines()]
    return next((row for row in rows if row["destination"] == domain), None)


def pids(server, role):
    return [pid for pid in status_of(server.path)["roles"][role]["pids"] if pid != server.pid]


def kill(server, role):
    """End the role's workers at once; returns when others are there."""
    gone = pids(server, role)
    for pid in gone:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: len(found := pids(server, role)) == len(gone) and not set(found) & set(gone))


class Site:
    """A site's own client: asks by hand, and is then the server."""

    def __init__(self, server, user="a1@load.test"):
        self.sock = socket.create_connection(("127.0.0.1", server.port("odmr")), 20)
        self.file = self.sock.makefile("rb")
        assert self.reply().startswith(b"220 ")
        self.said = self.ask(b"EHLO site.test")
        if user:
            token = base64.b64encode(f"\0{user}\0{PASSWORD}".encode())
            assert self.ask(b"AUTH PLAIN " + token).startswith(b"235")

    def line(self):
        return self.file.readline()

    def reply(self):
        lines = [self.line()]
        while lines[-1][3:4] == b"-":
            lines.append(self.line())
        return b"".join(lines)

    def say(self, text):
        self.sock.sendall(text + b"\r\n")

    def ask(self, text):
        self.say(text)
        return self.reply()

    def turn(self, domains=b""):
        answer = self.ask(b"ATRN " + domains if domains else b"ATRN")
        if answer.startswith(b"250"):
            self.say(b"220 site.test")
        return answer

    def messages(self, before=lambda number: None, most=None):
        """Contents that come, answered 250; `before` is told before each is answered. Ends at QUIT, or after `most` amid the next."""
        found = []
        while line := self.line():
            verb = line[:4].upper()
            if verb == b"EHLO":
                self.say(b"250-site.test\r\n250 SIZE 0")
            elif verb == b"DATA":
                self.say(b"354 go")
                if most is not None and len(found) == most:
                    self.line()
                    break
                content = []
                while (part := self.line()) not in (b".\r\n", b""):
                    content.append(part)
                before(len(found))
                found.append(b"".join(content))
                self.say(b"250 ok")
            elif verb == b"QUIT":
                self.say(b"221 bye")
                break
            else:
                self.say(b"250 ok")
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.sock.close()


def numbers(contents):
    return [int(re.search(rb"(?m)^Subject: m(\d+)", content)[1]) for content in contents]


def test_only_what_the_rfc_has_and_only_for_its_owner(provider):
    """RFC 2645 5.2: EHLO, AUTH, STARTTLS, ATRN, QUIT; 530, 450, 453; nothing goes by MX meanwhile."""
    with Site(provider, "") as site:
        assert b"ATRN\r\n" in site.said and b"STARTTLS\r\n" in site.said and b"PIPELINING" not in site.said
        assert site.ask(b"ATRN branch.test").startswith(b"530")
        for command in (b"HELO x", b"MAIL FROM:<a@b.test>", b"RCPT TO:<a@b.test>", b"DATA", b"NOOP", b"RSET", b"VRFY a", b"EXPN a", b"HELP"):
            assert site.ask(command)[:3] == b"502", command
        site.sock.sendall(b"BDAT 2 LAST\r\nab")
        assert site.reply().startswith(b"502")
        assert site.ask(b"ETRN branch.test").startswith(b"500")
        assert site.ask(b"QUIT").startswith(b"221")
    with Site(provider, "a3@load.test") as site:
        assert site.turn().startswith(b"450")
        assert site.turn(b"branch.test").startswith(b"450")
    with Site(provider, "a2@load.test") as site:
        assert site.turn(b"branch.test").startswith(b"450")
        assert site.turn(b"other.test,branch.test").startswith(b"450")
        assert site.turn(b"..").startswith(b"501")
        assert site.turn(b"OTHER.test").startswith(b"453")
        assert site.turn().startswith(b"453")
        send(provider, b"m1", "u@other.test")
        row = until(lambda: (found := waiting(provider, "other.test")) and found["deferred"] == 1 and found)
        assert "waits until its site fetches it" in row["reason"] and row["leased"] == 0
        assert site.turn(b"other.test").startswith(b"250")
        assert numbers(site.messages()) == [1]
    until(lambda: waiting(provider, "other.test") is None)


def test_a_connection_that_drops_half_way_leaves_the_rest(provider):
    for number in range(6):
        send(provider, b"m%d" % number, "u@branch.test" if number % 2 else "u@second.test")
    until(lambda: sum((waiting(provider, name) or {"deferred": 0})["deferred"] for name in ("branch.test", "second.test")) == 6)
    with Site(provider) as site:
        assert site.turn().startswith(b"250")
        first = numbers(site.messages(most=2))
    assert len(first) == 2
    until(lambda: sum((waiting(provider, name) or {"deferred": 0})["deferred"] for name in ("branch.test", "second.test")) == 4)
    with Site(provider) as site:
        assert site.turn(b"branch.test, second.test").startswith(b"250")
        rest = numbers(site.messages())
    assert sorted(first + rest) == list(range(6))
    until(lambda: waiting(provider, "branch.test") is None and waiting(provider, "second.test") is None)
    with Site(provider) as site:
        assert site.turn().startswith(b"453")


@pytest.mark.parametrize("role", ["smtpc", "smtpd"])
def test_the_provider_killed_before_an_answer_sends_again(provider, role):
    """Killed while the site has the content and has not answered: sent again; what was answered before is not."""
    for number in range(3):
        send(provider, b"m%d" % number, "u@branch.test")
    until(lambda: (waiting(provider, "branch.test") or {"deferred": 0})["deferred"] == 3)
    with Site(provider) as site:
        assert site.turn().startswith(b"250")
        first = []

        def before(number):
            if number == 1:
                until(lambda: (row := waiting(provider, "branch.test")) and row["leased"] + row["deferred"] == 2)
                kill(provider, role)

        with contextlib.suppress(OSError):
            first = numbers(site.messages(before))[:1]
    until(lambda: waiting(provider, "branch.test")["leased"] == 0)
    with Site(provider) as site:
        assert until(lambda: site.turn()[:3]) == b"250"
        rest = numbers(site.messages())
    assert sorted(first + rest) == [0, 1, 2] and len(first) == 1
    until(lambda: waiting(provider, "branch.test") is None)


def test_a_site_fetches_over_tls(provider):
    """Everything arrives as it was sent, once; the site's own rules hold: who is unknown there is refused there."""
    with Branch(provider.port("odmr"), 'tls = "starttls"\nverify = false') as branch:
        for number in range(8):
            send(provider, b"m%d" % number, "u@branch.test", "u@second.test", body=b".dot\r\n..two\r\n\xff\r\n")
        send(provider, b"m8", "u@branch.test", body=LARGE)
        send(provider, b"m9", "nobody@branch.test")
        got = until(lambda: len(found := mails(branch)) >= 17 and found)
        assert sorted(numbers(got)) == sorted([*range(8), *range(8), 8])
        assert all(b"by branch.test with ESMTPS (TLS" in mail or b"with ESMTPS" in mail for mail in got)
        assert sum(mail.endswith(LARGE) for mail in got) == 1
        assert sum(mail.endswith(b"\r\n\r\n.dot\r\n..two\r\n\xff\r\n") for mail in got) == 16
        until(lambda: waiting(provider, "branch.test") is None and waiting(provider, "second.test") is None)
        assert len(mails(branch)) == 17
        log = (branch.path / "log/mail.log").read_text() + (provider.path / "log/mail.log").read_text()
        assert f'"{PASSWORD}"' not in log and '"nobody@branch.test"' in log
        assert json.loads(branch.ctl("audit", "--json"))["missing"] == 0


def test_the_site_killed_amid_a_message_gets_it_once():
    """A provider made by hand is in the middle of DATA when a worker of the site dies, one role after the other; then it is asked again."""
    listening = socket.create_server(("127.0.0.1", 0))
    done, trouble = [], []
    with listening, Branch(listening.getsockname()[1], 'tls = "none"\ndomains = ["branch.test"]') as branch:

        def serve():
            try:
                while len(done) < 2:
                    sock, _ = listening.accept()
                    with sock, sock.makefile("rb") as file:
                        sock.settimeout(60)
                        if dialogue(sock, file):
                            done.append(1)
            except Exception as error:
                trouble.append(error)

        def dialogue(sock, file):
            """Whether the mail was taken."""
            sock.sendall(b"220 hand\r\n")
            while line := file.readline():
                if line.startswith(b"EHLO"):
                    sock.sendall(b"250-hand\r\n250-AUTH PLAIN\r\n250 ATRN\r\n")
                elif line.startswith(b"AUTH"):
                    sock.sendall(b"235 ok\r\n")
                elif line == b"ATRN branch.test\r\n":
                    if done:
                        sock.sendall(b"453 none\r\n")
                        continue
                    sock.sendall(b"250 turn\r\n")
                    break
                elif line.startswith(b"QUIT"):
                    sock.sendall(b"221 bye\r\n")
                    return True
            if not file.readline().startswith(b"220 branch.test"):
                return False
            for command in (b"EHLO hand", b"MAIL FROM:<s@out.test>", b"RCPT TO:<u@branch.test>", b"DATA"):
                sock.sendall(command + b"\r\n")
                while (answer := file.readline())[3:4] == b"-":
                    pass
                assert answer[:1] in b"23", answer
            sock.sendall(b"Subject: m1\r\n\r\nhalf")
            if to_kill:
                kill(branch, to_kill.pop())
                with contextlib.suppress(ConnectionResetError):
                    assert file.readline() == b""
                return False
            sock.sendall(b"\r\n.\r\n")
            assert file.readline().startswith(b"250")
            sock.sendall(b"QUIT\r\n")
            return file.readline().startswith(b"221")

        to_kill = ["bsmtp", "smtpd"]
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        until(lambda: len(done) == 2 or trouble)
        assert not trouble and not to_kill
        until(lambda: mails(branch))
        assert numbers(mails(branch)) == [1]
        assert json.loads(branch.ctl("audit", "--json"))["missing"] == 0
