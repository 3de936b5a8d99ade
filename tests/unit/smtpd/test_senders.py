"""Sender and login: what belongs to a user, what was granted, and what is refused at MAIL FROM."""

import subprocess
import sys

import pytest

from iems.directory import Directory, DirectoryRefusal
from iems.errors import DirectoryUnavailable
from iems.smtpd.senders import TOO_MANY, Arrival, Senders
from tests.transcripts.smtp_server import SmtpServer

JOHN = "john@example.test"


@pytest.fixture
def directory(tmp_path):
    found = Directory(tmp_path / "directory", create=True)
    found.add_domain("example.test")
    for name in ("john", "mary"):
        found.create_account(f"{name}@example.test", "pw")
    found.add_alias("info@example.test", JOHN)
    found.add_alias("info@example.test", "mary@example.test")
    found.add_alias("chief@example.test", "info@example.test")
    found.add_alias("away@example.test", "john@else.test")
    yield found
    found.close()


@pytest.fixture
def senders(directory):
    return Senders(directory, directory.resolve, reject=True)


@pytest.mark.parametrize(
    ("address", "owned"),
    [
        ("", True),
        ("john@example.test", True),
        ("John@EXAMPLE.test", True),
        ("john+list@example.test", True),
        ("info@example.test", True),
        ("chief@example.test", True),
        ("mary@example.test", False),
        ("mary+x@example.test", False),
        ("away@example.test", False),
        ("nobody@example.test", False),
        ("john@else.test", False),
        ("john", False),
        ('"john@example.test"@else.test', False),
        ("john@example.test@else.test", False),
    ],
)
def test_what_is_ones_own(senders, address, owned):
    assert senders.owns(JOHN, address.encode()) == owned


def test_members_of_a_shared_mailbox_who_may(directory, senders):
    directory.create_shared("team@example.test", members=[(JOHN, "read", True), ("mary@example.test", "manage", False)])
    directory.add_alias("crew@example.test", "team@example.test")
    for address in (b"team@example.test", b"Team+x@example.test", b"crew@example.test"):
        assert senders.owns(JOHN, address) and not senders.owns("mary@example.test", address)
    assert not senders.owns("team@example.test", b"john@example.test")
    directory.set_member("team@example.test", JOHN, "read", False)
    assert not senders.owns(JOHN, b"team@example.test")


def test_grants(directory, senders, tmp_path):
    for sender, address in (
        ("boss@else.test", b"Boss@else.test"),
        ("shop.test", b"anything@shop.test"),
        ("*.shop.test", b"a@deep.er.shop.test"),
    ):
        assert not senders.owns(JOHN, address)
        directory.grant_sender(JOHN, sender)
        assert senders.owns(JOHN, address)
        assert not senders.owns("mary@example.test", address)
        with pytest.raises(DirectoryRefusal, match="already"):
            directory.grant_sender(JOHN, sender.upper())
    directory.revoke_sender(JOHN, "SHOP.test")
    assert not senders.owns(JOHN, b"anything@shop.test") and senders.owns(JOHN, b"a@x.shop.test")
    for sender in ("shop.test", "a b@c", "", "*.", "@"):
        with pytest.raises(DirectoryRefusal):
            directory.revoke_sender(JOHN, sender)
    with pytest.raises(DirectoryRefusal, match="no account"):
        directory.grant_sender("info@example.test", "x.test")
    directory.delete_account(JOHN)
    assert not senders.owns(JOHN, b"boss@else.test")


def test_the_command(directory, tmp_path):
    directory.close()

    def run(*arguments):
        command = [sys.executable, "-m", "iems.cli.iemsuser", "--home", str(tmp_path), "senders", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout

    assert run(JOHN, "--grant", "Boss@else.test") == (0, "boss@else.test\n")
    assert run(JOHN, "--grant", "shop.test", "--revoke", "boss@else.test") == (0, "shop.test\n")
    assert run(JOHN, "--revoke", "boss@else.test") == (1, "")
    assert run("nobody@example.test") == (1, "")


class Owner:
    header_octets = 0

    def __init__(self, reject, away=False):
        self.reject = reject
        self.away = away

    def owns(self, user, address):
        if self.away:
            raise DirectoryUnavailable("gone")
        return address == user.encode()


def talk(senders, *lines):
    server = SmtpServer({"ip": "127.0.0.1"})
    server.handlers.senders = senders
    server.connect()
    out = b""
    for line in (b"EHLO c", *lines):
        out = server.feed(line + b"\r\n")
    return out, server.log.events


LOGIN = b"AUTH PLAIN AGpvaG5AbXgudGVzdABwdw=="


def test_mail_from():
    out, events = talk(Owner(True), LOGIN, b"MAIL FROM:<other@mx.test>")
    assert out.startswith(b"553 5.7.1 ")
    event, _, _, detail = events[-1]
    assert event == "refused" and detail["what"] == "sender-login" and detail["subject"] == "john@mx.test"
    assert talk(Owner(True), LOGIN, b"MAIL FROM:<john@mx.test>")[0].startswith(b"250")
    # Who has not logged in is nobody's user.
    assert talk(Owner(True), b"MAIL FROM:<other@mx.test>")[0].startswith(b"250")
    out, events = talk(Owner(False), LOGIN, b"MAIL FROM:<other@mx.test>")
    assert out.startswith(b"250") and events[-1][0] == "sender-mismatch"
    assert talk(Owner(True, away=True), LOGIN, b"MAIL FROM:<john@mx.test>")[0].startswith(b"451 4.3.0")
    assert talk(Owner(False, away=True), LOGIN, b"MAIL FROM:<john@mx.test>")[0].startswith(b"250")


@pytest.mark.parametrize(
    ("header", "foreign"),
    [
        (b"", ""),
        (b"Subject: no From\r\n\r\nFrom: x@else.test\r\n", ""),
        (b"From: John <john@example.test>\r\n\r\n", ""),
        (b"From: john+a@example.test, Info <info@example.test>\r\n\r\n", ""),
        (b"From: undisclosed: ;\r\n\r\n", ""),
        (b"From: mary@example.test\r\n\r\n", "mary@example.test"),
        (b"From: john@example.test,\r\n mary@example.test\r\n\r\n", "mary@example.test"),
        (b"From: john@example.test\r\nX: y\r\nfrom: mary@example.test\r\n\r\n", "mary@example.test"),
        (b"From: all: mary@example.test;\r\n\r\n", "mary@example.test"),
        (b"From: john\r\n\r\n", "john"),
        (b"From: " + b"john@example.test," * 500 + b"\r\n\r\n", TOO_MANY),
        (b"From: " + b"x" * 70_000 + b"\r\n\r\n", TOO_MANY),
    ],
)
def test_from(senders, header, foreign):
    assert senders.foreign(JOHN, header) == foreign


class FromOwner(Owner):
    header_octets = 2000

    def foreign(self, user, header):
        self.seen = header
        if self.away:
            raise DirectoryUnavailable("gone")
        return "" if b"From: good" in header else "other@mx.test"


DATA = (LOGIN, b"MAIL FROM:<john@mx.test>", b"RCPT TO:<john@mx.test>", b"DATA")


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        ((b"From: good", b"", b"body"), b"250"),
        ((b"From: good",), b"250"),
        ((b"From: bad", b"", b"From: good"), b"553 5.7.1"),
        ((b"From: bad",), b"553 5.7.1"),
        ((b"", b"From: good"), b"553 5.7.1"),
        ((*(b"X: " + b"y" * 60 for _ in range(50)), b"From: good", b""), b"554 5.6.0"),
        ((*(b"X: " + b"y" * 60 for _ in range(20)), b"From: good", b"", *(b"z" * 70 for _ in range(99))), b"250"),
    ],
)
def test_content(lines, reply):
    owner = FromOwner(True)
    out, _ = talk(owner, *DATA, *lines, b".")
    # Nothing but the header is looked at.
    assert out.startswith(reply), out
    if reply == b"250":
        assert b"body" not in owner.seen and b"zzz" not in owner.seen
    out, events = talk(FromOwner(False), *DATA, *lines, b".")
    assert out.startswith(b"250")
    assert (events[-2][0] == "sender-mismatch") == (reply != b"250")


def test_content_while_the_directory_is_away():
    class Away(FromOwner):
        def owns(self, user, address):
            return True

    assert talk(Away(True, away=True), *DATA, b"From: good", b"", b".")[0].startswith(b"451 4.3.0")
    assert talk(Away(False, away=True), *DATA, b"From: good", b"", b".")[0].startswith(b"250")


def test_header_in_pieces():
    text = b"A: b\r\nFrom: x\r\n\r\nbody"
    for size in range(1, len(text) + 1):
        arrival, found = Arrival(), None
        for end in range(size, len(text) + size, size):
            have = bytearray(text[:end])
            found = arrival.header(have, len(have), 100, end >= len(text))
            if found is not None:
                break
        assert found == text[:-4] and arrival.ended
        assert arrival.header(bytearray(text), len(text), 100, True) is None
    assert Arrival().header(bytearray(b"x" * 50), 60, 100, False) == b""
