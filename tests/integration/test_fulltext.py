"""The full-text index of a real server: made while others are served, followed by new mail and expunges, lost and made again."""

import imaplib
import json
import os

import pytest

from iems.perf.filled import multiply
from iems.perf.home import PrivateHome
from tests.support.waiting import until

COUNT = 600


@pytest.fixture(scope="module")
def home():
    with PrivateHome(2, {"imapd.fulltext_from": 100, "imapd.workers": 2}) as home:
        with login(home) as client:
            for number in range(6):
                client.append(
                    "INBOX", None, None,
                    b"Subject: letter %d\r\nContent-Type: text/html; charset=iso-8859-1\r\n"
                    b"Content-Transfer-Encoding: quoted-printable\r\n\r\n<p>Gr=FC=DFe aus M=FCn=\r\nchen %d</p>\r\n" % (number, number),
                )  # fmt: skip
        multiply(home, b"a1@load.test", 6, COUNT)
        yield home


def login(home, user="a1@load.test"):
    client = imaplib.IMAP4("127.0.0.1", home.port("imap"), timeout=60)
    client.login(user, "pw")
    client.select("INBOX")
    return client


def search(client, *key):
    kind, found = client.uid("SEARCH", *key)
    assert kind == "OK"
    return [int(uid) for uid in found[0].split()]


def text(client, what):
    client.literal = what.encode()
    return search(client, "CHARSET", "UTF-8", "TEXT")


def built(home):
    """How often an index was told to be made or brought up to date."""
    lines = (home.path / "log" / "mail.log").read_text().splitlines()
    return [json.loads(line) for line in lines if '"search-index"' in line]


def wait(condition):
    """The log has no event to await: look until it is there."""
    until(condition)


def test_life(home):
    one, two = login(home), login(home)
    path = home.path / "store" / "search" / "1.sqlite"
    wanted = list(range(3, COUNT + 1, 6))
    assert text(one, "grüsse aus münchen 2") == wanted
    wait(lambda: built(home))
    assert built(home)[0]["detail"]["messages"] == COUNT
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    for client in (one, two, login(home)):  # on either worker
        assert text(client, "MÜNCHEN 2") == wanted
        assert search(client, "BODY", "letter") == [] and len(search(client, "TEXT", "letter")) == COUNT
    # New mail is found before the index knows it, and expunged mail is not found although it does.
    one.append("INBOX", None, None, b"Subject: new\r\n\r\nGruesse aus Muenchen, and M\xc3\xbcnchen 2 again\r\n")
    one.uid("STORE", "3", "+FLAGS", "\\Deleted")
    one.expunge()
    two.noop()
    assert text(two, "münchen 2") == [*wanted[1:], COUNT + 1]
    # Whatever becomes of the file, answers stay and it comes back.
    for harm in (path.unlink, lambda: os.truncate(path, 0), lambda: os.truncate(path, 9_000), lambda: path.write_bytes(b"x" * 50_000)):
        before = len(built(home))
        harm()
        while len(built(home)) == before:
            assert text(one, "münchen 2") == [*wanted[1:], COUNT + 1]
        assert text(two, "münchen 2") == [*wanted[1:], COUNT + 1]
    # A mailbox in place of a deleted one knows nothing of it.
    assert search(login(home, "a2@load.test"), "TEXT", "letter") == []
    for client in (one, two):
        client.logout()


def test_removed_with_the_mailbox(home):
    client = login(home)
    client.create("Old")
    client.copy("1:300", "Old")
    client.select("Old")
    before = len(built(home))
    assert search(client, "TEXT", '"letter 3"')
    wait(lambda: len(built(home)) > before)
    client.close()
    client.delete("Old")
    client.create("Old")
    client.append("Old", None, None, b"Subject: other\r\n\r\nletter 3\r\n")
    client.select("INBOX")
    client.copy("1:300", "Old")
    client.select("Old")
    assert search(client, "TEXT", '"letter 3"')[:2] == [1, 4]
    client.logout()
