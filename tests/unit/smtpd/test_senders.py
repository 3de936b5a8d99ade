"""Sender and login: what belongs to a user, what was granted, and what is refused at MAIL FROM."""

import subprocess
import sys

import pytest

from iems.directory import Directory, DirectoryRefusal
from iems.errors import DirectoryUnavailable
from iems.smtpd.senders import Senders
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
        server.engine.feed(line + b"\r\n")
        out = server.turn()
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
