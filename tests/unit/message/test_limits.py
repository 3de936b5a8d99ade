"""Hostile messages (bounded work, stated limits): the answer stays small or linear, and the raw text is still served."""

import time

import pytest

from iems._native import mime_py
from iems.message import Structure, body, summarize
from iems.message.address import parse_addresses
from iems.message.text import Searchable
from iems.message.words import content_type, decode_words

pytest.importorskip("iems._native.mime")

NESTED = b"".join(
    b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (i, i) for i in range(10_000)
)
HOSTILE = {
    "500,000 address fields": b"To: a@b.example\r\n" * 500_000 + b"\r\nx",
    "500,000 addresses in a field": b"To: " + b"a@b.example,\r\n " * 500_000 + b"\r\n\r\nx",
    "10,000 nested multiparts": NESTED + b"\r\nx",
    "10,000 nested messages": b"Content-Type: message/rfc822\r\n\r\n" * 10_000 + b"x",
    "100,000 parameters": b"Content-Type: text/plain"
    + b"".join(b";\r\n n*%d=abc" % i for i in range(100_000))
    + b"\r\n\r\n",
    "100,000 pieces of a boundary": b"Content-Type: multipart/mixed"
    + b"".join(b";boundary*%d=abc" % i for i in range(99_999, -1, -1))
    + b"\r\n\r\nx",
    "a line of 1 MB": b"Subject: " + b"x" * 1_000_000 + b"\r\n\r\nx",
    "1 MB of parentheses": b"From: " + b"(" * 1_000_000 + b"\r\n\r\nx",
    "1 MB of quotes": b"From: " + b'"' * 1_000_000 + b"\r\n\r\nx",
    "1 MB of brackets": b"From: " + b"[a" * 500_000 + b"\r\n\r\nx",
    "10,000 Received": b"Received: from x by y\r\n\tfor z; date\r\n" * 10_000 + b"\r\nx",
    "200,000 parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    + b"--b\r\n\r\nx\r\n" * 200_000
    + b"--b--",
    "one boundary at every level": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" * 10_000
    + b"x",
    "a million near delimiters": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    + b"--c\n--\n" * 500_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_work_is_bounded(name):
    raw = HOSTILE[name]
    started = time.process_time()
    envelope, structure = summarize(raw)
    assert time.process_time() - started < 1.0
    assert len(envelope) + len(structure) < 4_000_000
    assert len(body(raw)) <= len(structure)
    parsed = Structure.parse(raw)
    assert len(parsed) <= mime_py.MAX_PARTS
    assert parsed.text("") == raw


def test_limits_show_in_the_flags():
    wanted = {
        "500,000 address fields": mime_py.CUT_HEADER,
        "10,000 nested multiparts": mime_py.CUT_DEPTH,
        "10,000 nested messages": mime_py.CUT_DEPTH,
        "200,000 parts": mime_py.CUT_PARTS,
        "a line of 1 MB": 0,
    }
    cuts = mime_py.CUT_HEADER | mime_py.CUT_DEPTH | mime_py.CUT_PARTS
    assert {name: Structure.parse(HOSTILE[name]).flags & cuts for name in wanted} == wanted


def test_the_inner_rest_is_one_leaf():
    structure = Structure.parse(HOSTILE["10,000 nested messages"])
    assert len(structure) == mime_py.MAX_DEPTH + 1
    last = structure.at(mime_py.MAX_DEPTH)
    assert last.kind == mime_py.LEAF
    assert structure.content[last.body_start : last.body_end].startswith(b"Content-Type: message/rfc822")


def test_python_readers_are_bounded_too():
    started = time.process_time()
    assert len(parse_addresses(HOSTILE["500,000 addresses in a field"])) == mime_py.MAX_ADDRESSES
    content_type(b"text/plain" + b"".join(b"; n*%d*=%%41" % i for i in range(100_000)))
    decode_words(b"=?utf-8?q?a?= " * 100_000)
    decode_words(b"=?" * 500_000)
    decode_words(b"=?a?q?" * 200_000)
    assert "x" in Searchable(HOSTILE["10,000 nested messages"]).body
    assert time.process_time() - started < 3.0
