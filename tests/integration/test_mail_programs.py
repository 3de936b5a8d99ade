"""Mail programs that fetch: getmail, mpop, and the live tests of imapclient (mbsync, offlineimap, curl: test_imap.py; fetchmail: test_pop3.py)."""

from __future__ import annotations

import imaplib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iems.perf.home import PASSWORD, PrivateHome

#: Fail where the network is fast: they wait for a connection that takes over a millisecond, and an answer that takes over ten microseconds.
NEED_A_SLOW_NETWORK = {"test_small_connection_timeout_fail", "test_small_read_timeout_fail"}
#: What only another server has: its labels and searches, and folders by a command that was given up.
NOT_OURS = {"test_gmail_labels", "test_gmail_search", "test_xlist", "test_uid_expunge"}
CONTENTS = [
    b"Subject: number %d\r\nMessage-ID: <%d@x>\r\n\r\nbody %d\r\n.\r\n..two dots\r\nFrom here\r\n" % (number, number, number) for number in range(12)
]


@pytest.fixture(scope="module")
def server():
    with PrivateHome(4) as home:
        yield home


def imap(server, user, mailbox="INBOX"):
    client = imaplib.IMAP4("127.0.0.1", server.port("imap"), timeout=60)
    client.login(user, PASSWORD)
    client.select(mailbox)
    return client


def put(server, user):
    """Twelve messages in an empty INBOX."""
    with imap(server, user) as client:
        client.store("1:*", "+FLAGS.SILENT", "\\Deleted")
        client.expunge()
        for content in CONTENTS:
            client.append("INBOX", None, None, content)


def left(server, user):
    with imap(server, user) as client:
        return client.search(None, "ALL")[1][0].split()


def maildir(path):
    for name in ("new", "cur", "tmp"):
        (path / name).mkdir(parents=True)
    return path


def held(box: Path) -> list[bytes]:
    """The messages of a Maildir with line ends as in mail, without the fields a program put into them."""
    found = []
    for file in [*(box / "new").iterdir(), *(box / "cur").iterdir()]:
        text = file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        text = text.replace(b"X-getmail-retrieved-from-mailbox: INBOX\r\n", b"", 1)
        found.append(re.sub(rb"\A(?:(?:Return-Path|Delivered-To|Received):[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*)*", b"", text))
    return sorted(found)


def run(*command, home: Path, fine=(0,)):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, env=os.environ | {"HOME": str(home)})
    assert done.returncode in fine, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("getmail") is None, reason="getmail is not installed")
@pytest.mark.parametrize("kind", ["POP3", "IMAP"])
def test_getmail(server, tmp_path, kind):
    user = server.users()[0].decode()
    put(server, user)
    box = maildir(tmp_path / "mail")
    more = 'mailboxes = ("INBOX",)' if kind == "IMAP" else ""

    def fetch(delete):
        (tmp_path / "getmailrc").write_text(
            f"[retriever]\ntype = Simple{kind}Retriever\nserver = 127.0.0.1\nport = {server.port(kind.lower())}\n"
            f"username = {user}\npassword = {PASSWORD}\n{more}\n"
            # run by root it delivers through a program only
            f'[destination]\ntype = MDA_external\npath = /bin/sh\narguments = ("-c", "cat >{box}/new/$$")\nallow_root_commands = true\n'
            f"[options]\nread_all = false\ndelete = {delete}\ndelivered_to = false\nreceived = false\n"
        )
        return run("getmail", "--getmaildir", tmp_path, "--rcfile", tmp_path / "getmailrc", home=tmp_path)

    assert "12 messages" in fetch("false")
    assert held(box) == sorted(CONTENTS)
    # What it saw it knows again by its unique id; then it takes all away.
    assert "0 messages" in fetch("false") and len(held(box)) == 12
    assert len(left(server, user)) == 12
    fetch("true")
    assert left(server, user) == [] and len(held(box)) == 12


@pytest.mark.skipif(shutil.which("mpop") is None, reason="mpop is not installed")
@pytest.mark.parametrize("pipelining", ["on", "off"])
@pytest.mark.parametrize("auth", ["user", "plain", "scram-sha-256"])
def test_mpop(server, tmp_path, pipelining, auth):
    user = server.users()[1].decode()
    put(server, user)
    box = maildir(tmp_path / "mail")

    def fetch(keep):
        (tmp_path / "mpoprc").write_text(
            f"account default\nhost 127.0.0.1\nport {server.port('pop3')}\nuser {user}\npassword {PASSWORD}\nauth {auth}\ntls off\n"
            f"pipelining {pipelining}\nkeep {keep}\nreceived_header off\nuidls_file {tmp_path}/uidls\ndelivery maildir {box}\n"
        )
        (tmp_path / "mpoprc").chmod(0o600)
        return run("mpop", "-C", tmp_path / "mpoprc", home=tmp_path)

    assert "12" in fetch("on")
    assert held(box) == sorted(CONTENTS)
    fetch("on")
    assert len(held(box)) == 12 and len(left(server, user)) == 12
    fetch("off")
    assert len(held(box)) == 12 and left(server, user) == []


def test_live_tests_of_imapclient(server, tmp_path):
    pytest.importorskip("imapclient")
    ini = tmp_path / "live.ini"
    ini.write_text(
        f"[DEFAULT]\nhost = 127.0.0.1\nport = {server.port('imap')}\nusername = {server.users()[2].decode()}\npassword = {PASSWORD}\nssl = false\n"
    )
    runner = Path(__file__).parents[1] / "support/livetest.py"
    done = subprocess.run([sys.executable, runner, ini, "-v"], capture_output=True, text=True, timeout=120)
    ended = re.findall(r"^(test_\w+) \(.*?\)(?:\n[^\n]*?)* \.\.\. (ok|FAIL|ERROR|skipped)", done.stderr, re.MULTILINE)
    told = re.search(r"^Ran (\d+) tests", done.stderr, re.MULTILINE)
    assert told and len(ended) == int(told[1]) >= 59, done.stderr
    by_end = {end: {name for name, how in ended if how == end} for end in ("ok", "FAIL", "ERROR", "skipped")}
    assert by_end["FAIL"] <= NEED_A_SLOW_NETWORK and not by_end["ERROR"], done.stderr
    assert by_end["skipped"] <= NOT_OURS, by_end["skipped"]
    assert [how for _, how in ended].count("ok") >= 51
