"""IMAP against a real server: the ImapTest scripts, imaplib, mbsync, offlineimap, curl, TLS, IDLE, hostile input, draining."""

import imaplib
import re
import shutil
import socket
import ssl
import subprocess
import time

import pytest

from iems.perf.home import PrivateHome
from tests.integration import imaptest


@pytest.fixture(scope="module")
def home():
    with PrivateHome(6) as home:
        yield home


def login(home, user="a1@load.test"):
    client = imaplib.IMAP4("127.0.0.1", home.port("imap"), timeout=60)
    client.login(user, "pw")
    return client


def trusting():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("path", imaptest.scripts(), ids=lambda path: path.name)
def test_imaptest(home, path):
    assert imaptest.run(path, home.port("imap"), "a1@load.test", "pw") == ""


def test_content_comes_back_as_it_was(home):
    client = login(home, "a2@load.test")
    contents = [
        b"Subject: bare\n\nlf \r cr\0 nul\r\n.dot\r\n",
        b"\r\n",
        b"no header at all",
        b"Subject: large\r\n\r\n" + bytes(range(256)) * 12_000,
        b"Subject: 8bit \xff\xfe\r\n\r\n" + b"x" * 70_000,
    ]
    for content in contents:
        # imaplib would mend line ends; the server must not.
        client.literal = content
        kind, data = client._simple_command("APPEND", "INBOX", "()", '" 1-Feb-2003 04:05:06 +0000"')
        assert kind == "OK", data
    client.select("INBOX")
    for number, content in enumerate(contents, 1):
        _, data = client.fetch(str(number), "(BODY.PEEK[] RFC822.SIZE)")
        assert data[0][1] == content
        assert b"RFC822.SIZE %d" % len(content) in data[0][0] + data[1]
    _, data = client.fetch("4", "BODY.PEEK[TEXT]<1000.100000>")
    assert data[0][1] == (bytes(range(256)) * 12_000)[1000:101_000]
    _, data = client.fetch("1:*", "INTERNALDATE")
    assert all(b'" 1-Feb-2003 04:05:06 +0000"' in line.replace(b"01-Feb", b" 1-Feb") for line in data)
    client.logout()


def test_tls(home):
    client = imaplib.IMAP4("127.0.0.1", home.port("imap"), timeout=60)
    client.starttls(trusting())
    assert b"STARTTLS" not in client.capability()[1][0]
    client.login("a1", "pw")  # the local part is enough in a home with one domain
    client.logout()
    client = imaplib.IMAP4_SSL("127.0.0.1", home.port("imaps"), ssl_context=trusting(), timeout=60)
    client.login("a1@load.test", "pw")
    client.append("INBOX", None, None, b"Subject: tls\r\n\r\n" + b"0123456789abcde\n" * 20_000)
    client.select("INBOX")
    number = client.search(None, "SUBJECT", "tls")[1][0].split()[-1].decode()
    _, data = client.fetch(number, "(BODY[])")
    assert len(data[0][1]) > 300_000
    client.logout()


def test_commands_pipelined_after_starttls_are_dropped(home):
    with socket.create_connection(("127.0.0.1", home.port("imap")), timeout=60) as sock:
        file = sock.makefile("rb")
        file.readline()
        sock.sendall(b"a STARTTLS\r\nb LOGIN a1@load.test pw\r\nc NOOP\r\n")
        assert file.readline().startswith(b"a OK")
        try:
            with trusting().wrap_socket(sock) as secure:
                secure.sendall(b"d NOOP\r\n")
                assert secure.recv(100) == b"d OK NOOP completed\r\n"
        except OSError:
            pass  # what came too early was taken as part of the handshake, which failed


def test_idle_is_told_at_once(home):
    idler, writer = login(home, "a3@load.test"), login(home, "a3@load.test")
    idler.select("INBOX")
    idler.send(b"i IDLE\r\n")
    assert idler.readline().startswith(b"+")
    waits = []
    for number in range(5):
        writer.append("INBOX", None, None, b"Subject: x\r\n\r\nx\r\n")
        answered = time.perf_counter()
        assert b"%d EXISTS" % (number + 1) in idler.readline()
        waits.append(time.perf_counter() - answered)
        assert b"RECENT" in idler.readline()
    assert min(waits) < 0.5, waits
    idler.send(b"DONE\r\n")
    assert idler.readline().startswith(b"i OK")
    writer.select("INBOX")
    writer.store("1", "+FLAGS", "\\Deleted")
    writer.expunge()
    assert idler.noop()[0] == "OK"
    assert idler.untagged_responses.get("EXPUNGE") == [b"1"]
    idler.logout()
    writer.logout()


@pytest.mark.parametrize(
    "data",
    [
        b"a LOGIN {4294967295}\r\n",
        b"a LOGIN {4294967295+}\r\n",
        b"a LOGIN {99999999999999999999+}\r\n",
        b"a SEARCH " + b"(" * 1_000_000 + b"\r\n",
        b"x" * 1_000_000,
        b"\0" * 100_000 + b"\r\n" * 1000,
        b"a AUTHENTICATE PLAIN\r\n" + b"A" * 1_000_000 + b"\r\n",
        b"\r\n" * 10_000,
        b"a NOOP\n" * 1000,
    ],
    ids=range(9),
)
@pytest.mark.parametrize("logged_in", [False, True])
def test_hostile_input(home, data, logged_in):
    with socket.create_connection(("127.0.0.1", home.port("imap")), timeout=60) as sock:
        file = sock.makefile("rb")
        assert file.readline().startswith(b"* OK")
        if logged_in:
            sock.sendall(b"l LOGIN a1@load.test pw\r\ns SELECT INBOX\r\n")
            while not file.readline().startswith(b"s OK"):
                pass
        try:
            sock.sendall(data)
            sock.sendall(b"z LOGOUT\r\n")
            answer = file.read(4096)
        except ConnectionError:
            answer = b"* BYE"
        assert b"BAD" in answer or b"BYE" in answer
    client = login(home)
    client.logout()


def test_slow_reader_costs_no_memory(home):
    client = login(home, "a4@load.test")
    client.append("INBOX", None, None, b"Subject: x\r\n\r\n" + b"y" * 1_000_000)
    client.select("INBOX")
    with socket.create_connection(("127.0.0.1", home.port("imap")), timeout=60) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.sendall(b"l LOGIN a4@load.test pw\r\ns SELECT INBOX\r\n")
        sock.sendall(b"".join(b"f%d FETCH 1 BODY.PEEK[]\r\n" % number for number in range(200)))
        time.sleep(0.5)
        assert client.noop()[0] == "OK"
        got = 0
        while got < 5_000_000:
            got += len(sock.recv(1 << 16))
    client.logout()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(home, tmp_path):
    client = login(home, "a4@load.test")
    client.create("curl")
    url = f"imap://127.0.0.1:{home.port('imap')}/curl"
    message = tmp_path / "message"
    message.write_bytes(b"Subject: from curl\r\n\r\nhello\r\n")
    curl = ["curl", "-sS", "-u", "a4@load.test:pw", "--max-time", "20"]
    subprocess.run([*curl, "-T", message, url], check=True)
    done = subprocess.run([*curl, url + ";MAILINDEX=1"], check=True, capture_output=True)
    assert done.stdout == message.read_bytes()
    done = subprocess.run([*curl, url + "?SUBJECT%20curl"], check=True, capture_output=True)
    assert done.stdout == b"* SEARCH 1\r\n"
    client.logout()


@pytest.mark.skipif(shutil.which("mbsync") is None, reason="mbsync is not installed")
def test_mbsync(home, tmp_path):
    client = login(home, "a4@load.test")
    client.create("sync/sub")
    contents = [b"Subject: %d\r\nMessage-ID: <%d@x>\r\n\r\nbody %d\r\n" % (n, n, n) for n in range(20)]
    for content in contents:
        client.append("sync/sub", "(\\Seen)", None, content)
    maildir = tmp_path / "mail"
    maildir.mkdir()
    (tmp_path / "rc").write_text(
        f"""IMAPAccount iems
Host 127.0.0.1
Port {home.port("imap")}
User a4@load.test
Pass pw
SSLType None
AuthMechs PLAIN

IMAPStore remote
Account iems

MaildirStore local
Path {maildir}/
Inbox {maildir}/INBOX
SubFolders Verbatim

Channel all
Far :remote:
Near :local:
Patterns sync/*
Create Both
Expunge Both
Sync All
SyncState *
"""
    )

    def sync():
        done = subprocess.run(
            ["mbsync", "-c", tmp_path / "rc", "-a"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr + done.stdout

    sync()
    found = [path for folder in ("new", "cur") for path in (maildir / "sync/sub" / folder).iterdir()]
    assert sorted(
        re.sub(rb"X-TUID: .*\n", b"", path.read_bytes()).replace(b"\n", b"\r\n") for path in found
    ) == sorted(contents)
    # Back: one goes here, one comes from there.
    found[0].unlink()
    (maildir / "sync/sub/new/1.x").write_bytes(b"Subject: local\n\nnew\n")
    sync()
    client.select("sync/sub")
    assert client.search(None, "ALL")[1][0].split() == [b"%d" % n for n in range(1, 21)]
    assert client.search(None, "SUBJECT", "local")[1] == [b"20"]
    client.logout()


def test_draining_says_bye():
    with PrivateHome(1) as home:
        client = login(home, "a1@load.test")
        client.select("INBOX")
        client.send(b"i IDLE\r\n")
        assert client.readline().startswith(b"+")
        home.stop()
        assert client.readline().startswith(b"* BYE")
        assert client.file.read() == b""


@pytest.mark.skipif(shutil.which("offlineimap") is None, reason="offlineimap is not installed")
def test_offlineimap(home, tmp_path):
    """Both ways: what is there comes, what is written here goes, what is removed here goes there."""
    client = login(home, "a5@load.test")
    for number in range(10):
        client.append("INBOX", "", None, b"Subject: %d\r\nMessage-ID: <%d@x>\r\n\r\nbody\r\n" % (number, number))
    (tmp_path / "rc").write_text(
        f"""[general]
accounts = iems
metadata = {tmp_path}/state
[Account iems]
localrepository = local
remoterepository = remote
[Repository local]
type = Maildir
localfolders = {tmp_path}/mail
[Repository remote]
type = IMAP
remotehost = 127.0.0.1
remoteport = {home.port("imap")}
remoteuser = a5@load.test
remotepass = pw
ssl = no
starttls = no
"""
    )

    def sync():
        done = subprocess.run(
            ["offlineimap", "-c", tmp_path / "rc", "-o", "-u", "basic"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr + done.stdout

    sync()
    inbox = tmp_path / "mail/INBOX"
    found = [path for folder in ("new", "cur") for path in (inbox / folder).iterdir()]
    assert len(found) == 10
    found[0].unlink()
    (inbox / "new/1.local.host").write_bytes(b"Subject: local\nMessage-ID: <local@x>\n\nnew\n")
    sync()
    client.select("INBOX")
    assert len(client.search(None, "ALL")[1][0].split()) == 10
    assert len(client.search(None, "SUBJECT", "local")[1][0].split()) == 1
    client.logout()


def test_inbox(home):
    """INBOX is one name in any case, is always there, gives its messages away in RENAME and stays (RFC 9051 5.1, 6.3.4 to 6.3.6)."""
    imap = login(home, "a6@load.test")  # nobody else's

    def status(name):
        return imap.status(name, "(MESSAGES UIDNEXT UIDVALIDITY)")[1][0].split(b" ", 1)[1]

    for content in (b"Subject: 1\r\n\r\nx\r\n", b"Subject: 2\r\n\r\nx\r\n"):
        assert imap.append("inBox", "\\Flagged", None, content)[0] == "OK"
    before = status("INBOX")
    assert status("inbox") == status("InBoX") == before
    assert imap.create("inbox")[0] == "NO" and imap.delete("Inbox")[0] == "NO" and imap.rename("Sent", "inboX")[0] == "NO"
    assert imap.create("iNbOx/below")[0] == "OK" and imap.status("INBOX/below", "(MESSAGES)")[0] == "OK"
    assert imap.rename("inbox", "Old")[0] == "OK"
    assert imap.select("Old")[1][0] == before.split()[1]
    assert b"\\Flagged" in imap.fetch("1", "(FLAGS)")[1][0]
    assert imap.status("INBOX/below", "(MESSAGES)")[0] == "OK" and imap.status("Old/below", "(MESSAGES)")[0] == "NO"
    after = status("INBOX").split()
    assert after[1] == b"0" and after[3:] == before.split()[3:], "no uid is given twice"
    assert imap.append("INBOX", None, None, b"Subject: 3\r\n\r\nx\r\n")[0] == "OK"
    imap.close()
    imap.delete("Old")
    imap.delete("INBOX/below")
    imap.logout()
