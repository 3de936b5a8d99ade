"""POP3 against a whole server: poplib, fetchmail and curl, and IMAP beside it; TLS, locks, updates, killed workers, slow readers."""

from __future__ import annotations

import imaplib
import itertools
import os
import poplib
import random
import re
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import time

import pytest

from iems.perf.home import PASSWORD, PrivateHome
from tests.support.waiting import status, until

USER = "a1@load.test"
poplib._MAXLINE = 1 << 20


@pytest.fixture(scope="module")
def server():
    with PrivateHome(16) as home:
        yield home


_fresh = itertools.count(1)


@pytest.fixture
def user(server):
    """An account of its own for each test that takes mail away."""
    return server.users()[next(_fresh)].decode()


def send(server, recipient, *bodies):
    with smtplib.SMTP("127.0.0.1", server.port("smtp"), timeout=60) as client:
        for body in bodies:
            client.sendmail("sender@out.test", [recipient], body)


def login(server, user=USER, tls=False):
    client = poplib.POP3("127.0.0.1", server.port("pop3"), timeout=60)
    if tls:
        client.stls(context=unchecked())
    client.user(user)
    client.pass_(PASSWORD)
    return client


def unchecked():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def wait_for(server, user, count):
    """A session whose maildrop has `count` messages."""

    def complete():
        client = login(server, user)
        if client.stat()[0] == count:
            return client
        client.quit()
        return None

    return until(complete)


def body_of(lines):
    return b"\r\n".join(lines).partition(b"\r\n\r\n")[2]


def test_whole_session(server, user):
    send(
        server, user, b"Subject: one\r\n\r\nfirst\r\n", b"Subject: two\r\n\r\n.dot\r\n..dots\r\n.\r\nend\r\n"
    )
    client = wait_for(server, user, 2)
    count, octets = client.stat()
    _, listed, _ = client.list()
    assert octets == sum(int(line.split()[1]) for line in listed)
    ids = [line.split()[1] for line in client.uidl()[1]]
    assert len(set(ids)) == count == 2
    bodies = {body_of(client.retr(n)[1]) for n in (1, 2)}
    assert bodies == {b"first", b".dot\r\n..dots\r\n.\r\nend"}
    response, lines, _ = client.retr(1)
    assert int(response.split()[1]) == len(b"\r\n".join(lines)) + 2 == int(listed[0].split()[1])
    top = client.top(1, 0)[1]
    assert top[0].startswith(b"Return-Path: <sender@out.test>") and top[-1] == b""
    with pytest.raises(poplib.error_proto):
        client.retr(3)
    client.dele(1)
    client.close()
    client = login(server, user)
    assert [line.split()[1] for line in client.uidl()[1]] == ids
    client.dele(1)
    client.quit()
    client = login(server, user)
    assert [line.split()[1] for line in client.uidl()[1]] == ids[1:]
    client.quit()


def test_one_session_a_maildrop(server, user):
    first = login(server, user)
    with pytest.raises(poplib.error_proto, match="IN-USE"):
        login(server, user)
    first.quit()
    login(server, user).quit()


def test_tls(server):
    client = poplib.POP3("127.0.0.1", server.port("pop3"), timeout=60)
    assert "STLS" in client.capa()
    client.close()
    client = login(server, tls=True)
    assert "STLS" not in client.capa()
    client.quit()
    client = poplib.POP3_SSL("127.0.0.1", server.base + 995, timeout=60, context=unchecked())
    client.user("A1@Load.Test")
    client.pass_(PASSWORD)
    client.quit()
    client = login(server, "a1")
    client.quit()


def test_commands_behind_stls_are_dropped(server):
    with socket.create_connection(("127.0.0.1", server.port("pop3")), 20) as plain:
        assert plain.recv(100).startswith(b"+OK")
        plain.sendall(b"STLS\r\nUSER a1\r\nPASS pw\r\nSTAT\r\n")
        assert plain.recv(1000) == b"+OK Begin TLS\r\n"
        with unchecked().wrap_socket(plain) as secure:
            secure.sendall(b"PASS pw\r\n")
            assert secure.recv(1000) == b"-ERR USER first\r\n"


def test_wrong_passwords_end_the_session(server):
    client = poplib.POP3("127.0.0.1", server.port("pop3"), timeout=60)
    for number in range(5):
        client.user(USER if number % 2 else "nobody@load.test")
        with pytest.raises(poplib.error_proto, match="AUTH"):
            client.pass_("wrong")
    assert client.sock.recv(10) == b""
    client.close()


@pytest.mark.parametrize("tls", [False, True])
def test_large_message_to_a_slow_reader(server, tls):
    """Sendfile where no line opens with a dot, stuffed chunks where one does; other sessions go on meanwhile."""
    rng = random.Random(3)
    lines = [bytes(rng.choices(b"abcdefghij .", k=70)).lstrip(b".") for _ in range(40_000)]
    plain = b"Subject: plain\r\n\r\n" + b"\r\n".join(lines) + b"\r\n"
    dots = (
        b"Subject: dots\r\n\r\n"
        + b"\r\n".join(b"." + line if n % 7 == 0 else line for n, line in enumerate(lines))
        + b"\r\n"
    )
    account = server.users()[14 if tls else 15].decode()
    send(server, account, plain, dots)
    client = wait_for(server, account, 2)
    client.quit()
    client = login(server, account, tls=tls)
    client._putline(b"RETR 1")
    client._putline(b"RETR 2")
    time.sleep(0.3)
    login(server).quit()
    got = {body_of(client._getlongresp()[1]) for _ in range(2)}
    assert got == {plain.partition(b"\r\n\r\n")[2][:-2], dots.partition(b"\r\n\r\n")[2][:-2]}
    client.quit()
    client = login(server, account)
    assert client.top(1, 3)[2] < 1000
    client.quit()


def pids(server, role):
    return status(server)["roles"][role]["pids"]


def test_killed_worker_frees_the_maildrop(server):
    client = login(server)
    for pid in pids(server, "pop3d"):  # one of them has the session
        os.kill(pid, signal.SIGKILL)
    assert client.sock.recv(10) == b""
    client.close()
    until(lambda: login(server).quit())


def test_a_changed_password_counts_at_once(server):
    login(server).quit()
    command = [sys.executable, "-m", "iems.cli.iemsuser", "--home", str(server.path)]
    subprocess.run([*command, "passwd", USER, "--password-stdin"], input=b"new", check=True, timeout=60)
    with pytest.raises(poplib.error_proto):
        login(server)
    subprocess.run(
        [*command, "passwd", USER, "--password-stdin"], input=PASSWORD.encode(), check=True, timeout=60
    )
    login(server).quit()


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl(server):
    send(server, USER, b"Subject: for curl\r\n\r\n.x\r\n")
    wait_for(server, USER, 1).quit()
    url = f"pop3://127.0.0.1:{server.port('pop3')}"
    for options in ([], ["--ssl-reqd", "-k"], ["--login-options", "AUTH=PLAIN"]):
        found = subprocess.run(
            ["curl", "-s", *options, "-u", f"{USER}:{PASSWORD}", f"{url}/1"], capture_output=True, timeout=60
        )
        assert found.returncode == 0
        assert found.stdout.endswith(b"Subject: for curl\r\n\r\n.x\r\n")
    listing = subprocess.run(["curl", "-s", "-u", f"{USER}:{PASSWORD}", url], capture_output=True, timeout=60)
    assert listing.stdout.startswith(b"1 ")


@pytest.mark.skipif(not shutil.which("fetchmail"), reason="needs fetchmail")
def test_fetchmail(server, user, tmp_path):
    send(server, user, *(b"Subject: number %d\r\n\r\nbody %d\r\n" % (n, n) for n in range(5)))
    wait_for(server, user, 5).quit()
    rc = tmp_path / "fetchmailrc"
    box = tmp_path / "mbox"
    rc.write_text(
        f"poll 127.0.0.1 protocol POP3 service {server.port('pop3')} auth password uidl\n"
        f'  user "{user}" password "{PASSWORD}" sslproto ""\n'
        f"  mda \"/bin/sh -c 'cat >>{box}; echo >>{box}'\"\n"
    )
    rc.chmod(0o600)
    command = [
        "fetchmail",
        "-f",
        str(rc),
        "--pidfile",
        str(tmp_path / "pid"),
        "-i",
        str(tmp_path / "ids"),
        "--nobounce",
    ]
    found = subprocess.run(
        [*command, "--keep"], capture_output=True, timeout=60, env=os.environ | {"HOME": str(tmp_path)}
    )
    assert found.returncode == 0, found.stderr + found.stdout
    text = box.read_text()
    assert all(f"body {n}" in text for n in range(5))
    # With the ids it kept, nothing is new; then everything is taken away.
    found = subprocess.run(
        [*command, "--keep"], capture_output=True, timeout=60, env=os.environ | {"HOME": str(tmp_path)}
    )
    assert found.returncode == 1, found.stdout
    found = subprocess.run(
        [*command, "--all"], capture_output=True, timeout=60, env=os.environ | {"HOME": str(tmp_path)}
    )
    assert found.returncode == 0, found.stderr + found.stdout
    client = login(server, user)
    assert client.stat() == (0, 0)
    client.quit()


class Both:
    """One account by POP3 and by IMAP, compared octet by octet."""

    def __init__(self, server, user):
        self.server, self.user = server, user
        self.imap = imaplib.IMAP4("127.0.0.1", server.port("imap"), timeout=60)
        self.imap.login(user, PASSWORD)
        self.imap.select("INBOX")
        self.validity = int(self.imap.untagged_responses["UIDVALIDITY"][0])
        self.ever = {}

    def append(self, content):
        # imaplib would mend line ends; the server must not
        self.imap.literal = content
        kind, data = self.imap._simple_command("APPEND", "INBOX")
        assert kind == "OK", data

    def mailbox(self):
        """uid -> (size, octets, header, flags) as IMAP tells."""
        assert self.imap.noop()[0] == "OK"
        kind, data = self.imap.uid("FETCH", "1:*", "(UID FLAGS RFC822.SIZE BODY.PEEK[HEADER] BODY.PEEK[])")
        assert kind == "OK"
        found, items = {}, [item for item in data if isinstance(item, tuple)]
        for (head, header), (_, body) in zip(items[::2], items[1::2], strict=True):
            uid, size = (int(re.search(rb"%b (\d+)" % name, head)[1]) for name in (b"UID", b"RFC822.SIZE"))
            found[uid] = (size, body, header, set(re.search(rb"FLAGS \(([^)]*)\)", head)[1].split()) - {b"\\Recent"})
        return found

    def agree(self):
        """Compares all, and leaves by QUIT, so that what was sent whole is \\Seen."""
        by_imap = self.mailbox()
        client = login(self.server, self.user)
        ids = [line.split() for line in client.uidl()[1]]
        uids = [int(unique.partition(b"-")[2]) for _, unique in ids]
        assert [unique for _, unique in ids] == [b"%d-%d" % (self.validity, uid) for uid in by_imap]
        assert [int(line.split()[1]) for line in client.list()[1]] == [size for size, *_ in by_imap.values()]
        assert client.stat() == (len(by_imap), sum(size for size, *_ in by_imap.values()))
        for number, uid in enumerate(uids, 1):
            size, body, header, _ = by_imap[uid]
            # a message that does not end in a line end gets one, as the final dot needs it (RFC 1939 3)
            whole = body if body.endswith(b"\r\n") else body + b"\r\n"
            assert self.octets(client, b"RETR %d" % number) == whole and len(body) == size
            assert self.octets(client, b"TOP %d 0" % number) == header
            assert self.ever.setdefault(uid, body) == body  # what a unique id names never changes
        client.quit()
        after = self.mailbox()
        assert list(after) == uids and all(b"\\Seen" in flags for *_, flags in after.values())
        assert all(after[uid][3] - {b"\\Seen"} == by_imap[uid][3] - {b"\\Seen"} for uid in after)
        return uids

    @staticmethod
    def octets(client, command):
        """A multi-line answer as it was before dots were stuffed, after a bare LF too."""
        client._putline(command)
        assert client.file.readline().startswith(b"+OK")
        found = []
        while (line := client.file.readline()) != b".\r\n":
            assert line
            found.append(line)
        return b"".join([line.removeprefix(b".") for line in found])


def test_one_account_by_pop3_and_imap(server, user):
    """Whatever comes or goes by one protocol is so by the other; unique ids are uids, sizes are RFC822.SIZE."""
    rng = random.Random(1939)
    both = Both(server, user)
    hard = [
        b"Subject: dots\r\n\r\n.\r\n..\r\n.a\r\n...\r\n", b"Subject: no end\r\n\r\nlast line", b"\r\n", b"no header at all\r\n\r\n",
        b"Subject: \xff\xfe\r\n\r\n" + bytes(range(1, 256)) * 40 + b"\r\n", b"Subject: large\r\n\r\n" + b"0123456789abcdef\r\n" * 3_000,
        b"Subject: header only\r\n\r\n", b"Subject: long line\r\n\r\n" + b"x" * 70_000 + b"\r\n.\r\n",
    ]  # fmt: skip
    for content in hard:
        both.append(content)
    held = both.agree()
    for number in range(25):
        what = rng.choice(("append", "append", "send", "send", "dele", "expunge", "hang up", "flag")) if held else "append"
        picked = rng.sample(held, min(len(held), rng.randrange(1, 4)))
        if what == "append":
            both.append(b"Subject: %d\r\n\r\n%b\r\n" % (number, bytes(rng.choices(b"\r\n.. abc", k=200)).replace(b"\0", b"")))
        elif what == "send":
            send(server, user, b"Subject: sent %d\r\n\r\n.\r\n" % number)
            until(lambda held=held: len(both.mailbox()) > len(held))
        elif what in ("dele", "hang up"):
            client = login(server, user)
            for uid in picked:
                client.dele(held.index(uid) + 1)
            if what == "dele":
                client.quit()
                held = [uid for uid in held if uid not in picked]
            else:
                client.close()  # without QUIT nothing goes
        else:
            flag = "\\Deleted" if what == "expunge" else "\\Flagged"
            both.imap.uid("STORE", ",".join(map(str, picked)), "+FLAGS.SILENT", f"({flag})")
            if what == "expunge":
                both.imap.uid("EXPUNGE", ",".join(map(str, picked)))
                held = [uid for uid in held if uid not in picked]
        now = both.agree()
        assert now[: len(held)] == held and len(now) - len(held) == (what in ("append", "send")), what
        held = now
    both.imap.logout()
