"""ManageSieve with a started server: sievelib's client, TLS, refusals, and mail that goes through what was put."""

from __future__ import annotations

import base64
import imaplib
import os
import signal
import socket
import ssl
from collections.abc import Iterator

import pytest
from sievelib.managesieve import Client

from iems.perf.home import PASSWORD, PrivateHome
from tests.integration.test_sieve import send, subjects, user, wait
from tests.support.waiting import until

USER = "a1@load.test"
FILED = b'require "fileinto"; fileinto "Archive";'


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateHome]:
    with PrivateHome(3, {"auth.max_failures": 2, "auth.plaintext": "loopback"}) as home:
        yield home


class Peer:
    """A client that says exactly what it is told to."""

    def __init__(self, home: PrivateHome) -> None:
        self.sock: socket.socket = socket.create_connection(("127.0.0.1", home.port("sieve")), timeout=60)
        self.answer()

    def answer(self) -> bytes:
        found = b""
        while not any(found.startswith(word) or b"\r\n" + word in found for word in (b"OK", b"NO", b"BYE")) or not found.endswith(b"\r\n"):
            data = self.sock.recv(65536)
            if not data:
                break
            found += data
        return found

    def ask(self, line: bytes) -> bytes:
        self.sock.sendall(line + b"\r\n")
        return self.answer()

    def login(self, who: str = USER, password: str = PASSWORD) -> bytes:
        return self.ask(b'AUTHENTICATE "PLAIN" "' + base64.b64encode(f"\0{who}\0{password}".encode()) + b'"')


@pytest.mark.filterwarnings("ignore:Credentials are sent")
def test_a_client_of_others(server: PrivateHome) -> None:
    client = Client("127.0.0.1", server.port("sieve"))
    assert client.connect(USER, PASSWORD, starttls=False, authmech="PLAIN")
    assert "fileinto" in client.get_sieve_capabilities()
    script = 'require ["fileinto"];\r\nif header :contains "subject" "ziel" { fileinto "Archive"; }\r\n'
    assert client.checkscript(script) and not client.checkscript("nope;")
    assert client.havespace("mine", len(script)) and client.putscript("mine", script) and client.setactive("mine")
    assert client.listscripts() == ("mine", [])
    found = client.getscript("mine")
    assert found is not None and found.replace("\r\n", "\n").strip() == script.replace("\r\n", "\n").strip()
    send(server, "x@far.test", USER, "am-ziel")
    wait(server, USER, "am-ziel", "Archive")
    assert client.renamescript("mine", "other") and not client.deletescript("other")
    assert client.setactive("") and client.deletescript("other") and not any(client.listscripts())
    send(server, "x@far.test", USER, "ziel-zwei")
    wait(server, USER, "ziel-zwei")
    client.logout()


def test_errors_of_a_script_come_with_their_places(server: PrivateHome) -> None:
    peer = Peer(server)
    assert peer.login().startswith(b"OK")
    text = peer.ask(b'PUTSCRIPT "bad" {22+}\r\nnope;\r\nfileinto "x";\r\n')
    assert text.startswith(b"NO {") and b"line 1, column 1: there is no command nope\r\nline 2, column 1: fileinto needs" in text
    assert peer.ask(b'PUTSCRIPT "b" {3+}\r\n\xff\xfe\xfd').startswith(b"NO")
    assert peer.ask(b'PUTSCRIPT "big" {70000+}\r\n' + b"#" * 70_000).startswith(b"NO (QUOTA/MAXSIZE)")
    assert peer.ask(b'HAVESPACE "x" 99999999').startswith(b"NO (QUOTA/MAXSIZE)")
    assert peer.ask(b'SETACTIVE "none"').startswith(b"NO (NONEXISTENT)")
    assert peer.ask(b'PUTSCRIPT "" "keep;"').startswith(b"NO") and peer.ask(b"LISTSCRIPTS") == b"OK\r\n"


def test_tls_and_log_in(server: PrivateHome) -> None:
    peer = Peer(server)
    assert peer.login(password="wrong").startswith(b"NO")
    assert peer.ask(b"LISTSCRIPTS") == b'NO "Log in first"\r\n'
    assert peer.login("nobody@load.test").startswith(b"BYE")
    assert peer.sock.recv(10) == b""
    peer = Peer(server)
    peer.sock.sendall(b'STARTTLS\r\nLOGOUT\r\n')  # what follows in the clear is not obeyed
    assert peer.answer().startswith(b"OK")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    peer.sock = context.wrap_socket(peer.sock)
    told = peer.answer()
    assert b'"SASL" "PLAIN"' in told and b'"STARTTLS"' not in told
    assert peer.login().startswith(b"OK") and peer.ask(b"LISTSCRIPTS") == b"OK\r\n"


def test_scripts_outlive_the_server_and_accounts_are_apart(server: PrivateHome) -> None:
    peer = Peer(server)
    peer.login("a2@load.test")
    assert peer.ask(b'PUTSCRIPT "s" {%d+}\r\n%b' % (len(FILED), FILED)) == b"OK\r\n"
    assert peer.ask(b'SETACTIVE "s"') == b"OK\r\n"
    for pid in server.roles()["sieved"]:
        os.kill(pid, signal.SIGKILL)
    assert peer.sock.recv(10) == b""

    def again():
        fresh = Peer(server)
        return fresh if fresh.login("a2@load.test").startswith(b"OK") else None

    peer = until(again)
    assert peer.ask(b"LISTSCRIPTS") == b'"s" ACTIVE\r\nOK\r\n'
    other = Peer(server)
    other.login("a3@load.test")
    assert other.ask(b"LISTSCRIPTS") == b"OK\r\n" and other.ask(b'GETSCRIPT "s"').startswith(b"NO (NONEXISTENT)")
    assert f"s {len(FILED)} active" in user(server, "sieve", "list", "a2@load.test")
    send(server, "x@far.test", "a2@load.test", "kept")
    wait(server, "a2@load.test", "kept", "Archive")
    assert subjects(server, "a2@load.test") == []
    user(server, "disable", "a2@load.test")
    assert peer.ask(b"LISTSCRIPTS").startswith(b"NO")


def test_guessing_here_is_held_back_as_everywhere() -> None:
    settings = {"smtpd.limit_loopback": True, "auth.lockout_failures": 2, "auth.failure_delay_s": 0.0, "auth.max_failures": 9}
    with PrivateHome(1, settings) as home:
        peer = Peer(home)
        for _ in range(2):
            assert peer.login(password="wrong") == b'NO "Wrong name or password"\r\n'
        assert peer.login().startswith(b"NO (TRYLATER)"), "even the right one waits now"
        with pytest.raises(imaplib.IMAP4.error), imaplib.IMAP4("127.0.0.1", home.port("imap"), timeout=60) as client:
            client.login(USER, PASSWORD)
