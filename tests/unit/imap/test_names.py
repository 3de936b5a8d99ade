"""Mailbox names: modified UTF-7, INBOX, what may be made, patterns."""

import random
import time

import pytest

from iems.imap import names
from iems.imap.grammar import Bad, Refused


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("INBOX", b"INBOX"),
        ("~peter/mail/台北/日本語", b"~peter/mail/&U,BTFw-/&ZeVnLIqe-"),  # RFC 3501 5.1.3
        ("a&b", b"a&-b"),
        ("Entwürfe", b"Entw&APw-rfe"),
        ("☺!", b"&Jjo-!"),
        ("\U0001f600", b"&2D3eAA-"),
    ],
)
def test_utf7(name, wire):
    assert names.encode(name) == wire
    assert names.decode(wire) == name


def test_utf7_of_anything():
    rng = random.Random(2152)
    for _ in range(2000):
        name = "".join(rng.choice("a&-/ü日\U0001f600~, ") for _ in range(rng.randrange(8)))
        assert names.decode(names.encode(name)) == name
        assert names.encode(name).isascii()


@pytest.mark.parametrize("wire", [b"&Jjo!", b"&", b"a&b", b"&JjoX-", b"&A-", b"&2D0-", b"\xff"])
def test_bad_utf7(wire):
    with pytest.raises(Bad):
        names.decode(wire)


def test_utf8_is_taken():
    assert names.mailbox("Entwu\u0308rfe".encode()) == "Entwürfe"


def test_inbox():
    assert names.mailbox(b"inBox") == "INBOX"
    assert names.mailbox(b"inbox/Sub") == "INBOX/Sub"
    assert names.mailbox(b"inboxes") == "inboxes"


def test_new_names():
    assert names.check_new("a/b/") == "a/b"
    assert (
        names.check_new("../../etc/passwd") == "../../etc/passwd"
    )  # a name like others: nothing here is a path
    for name in (
        "",
        "/",
        "/a",
        "a//b",
        "a\tb",
        "a\0b",
        "a*",
        "50%",
        "x" * 256,
        "a/" * 600 + "a",
        "a\u2028b",
        "\ud800",
    ):
        with pytest.raises(Refused):
            names.check_new(name)


def test_patterns():
    assert names.Pattern("*").matches("a/b")
    assert not names.Pattern("%").matches("a/b")
    assert names.Pattern("%/%").matches("a/b")
    assert names.Pattern("a/*b").matches("a/x/b")
    assert names.Pattern("a%b").matches("ab")
    assert names.Pattern("inbox").matches("INBOX")
    assert names.Pattern("Inbox/%").matches("INBOX/x")
    assert not names.Pattern("foo").matches("foo/bar")
    assert names.Pattern("%*").matches("a/b")


def test_patterns_take_linear_time():
    start = time.process_time()
    assert not names.Pattern("*a" * 200 + "b").matches("a" * 900)
    assert time.process_time() - start < 2
