"""Mail goes in by SMTP and APPEND and comes back by IMAP and POP3 octet for octet."""

from __future__ import annotations

import hashlib
import imaplib
import os
import poplib
import random
import re
import shutil
import socket
from pathlib import Path

import pytest

from iems.perf import messages, queue
from iems.perf.home import PASSWORD, PrivateHome

CORPUS = Path(__file__).parents[1] / "corpus" / "mime"
#: Header lines that a delivery puts before the content, in this order.
PREPENDED = re.compile(
    rb"Return-Path: <[^\r\n]*>\r\nDelivered-To: [^\r\n]+\r\nX-IEMS-Verdict: asked=nothing; to=INBOX\r\nReceived: from [^\r\n]+\r\n\tby [^\r\n]+\r\n\tfor [^\r\n]+\r\n"
)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)|\x00")


def corpus(folders=(CORPUS,)):
    """Every file below the folders that is small enough to be mail, as it is."""
    found = []
    for folder in folders:
        for place, _names, files in os.walk(folder):
            found += [Path(place, name).read_bytes() for name in sorted(files) if name.endswith((".eml", ".msg", ".raw")) or name.isdigit()]
    return [raw for raw in found if raw]


def for_smtp(raw):
    """The same mail as a client would send it: CRLF line ends, no NUL, a line end at the end."""
    text = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\x00", b"").replace(b"\n", b"\r\n")
    return text if text.endswith(b"\r\n") else text + b"\r\n"


def send_all(port, recipient, contents):
    """Send contents over one connection, pipelined; returns the final replies."""
    replies = []
    with socket.create_connection(("127.0.0.1", port), 60) as client, client.makefile("rb") as lines:

        def reply():
            while True:
                line = lines.readline()
                if line[3:4] != b"-":
                    return line

        reply()
        client.sendall(b"EHLO test\r\n")
        reply()
        for content in contents:
            client.sendall(b"MAIL FROM:<s@load.test> BODY=8BITMIME\r\nRCPT TO:<%b>\r\nDATA\r\n" % recipient)
            assert [reply()[:3] for _ in range(3)] == [b"250", b"250", b"354"]
            stuffed = re.sub(rb"(?m)^\.", b"..", content)
            client.sendall(stuffed + b".\r\n")
            replies.append(reply())
    return replies


def imap_bodies(port, user, mailbox="INBOX"):
    """Every message of a mailbox in UID order, and the size each was said to have."""
    client = imaplib.IMAP4("127.0.0.1", port)
    client.login(user, PASSWORD)
    client.select(mailbox, readonly=True)
    _, data = client.fetch("1:*", "(RFC822.SIZE BODY.PEEK[])")
    found = [(item[1], int(re.search(rb"RFC822.SIZE (\d+)", item[0])[1])) for item in data if isinstance(item, tuple)]
    client.logout()
    return found


def pop3_bodies(port, user, count):
    """The first `count` messages of a maildrop, octets as sent (dots unstuffed)."""
    poplib._MAXLINE = 1 << 20  # the corpus has longer lines than the library expects
    client = poplib.POP3("127.0.0.1", port)
    client.user(user)
    client.pass_(PASSWORD)
    total = client.stat()[0]
    bodies = [b"\r\n".join(client.retr(n + 1)[1]) + b"\r\n" for n in range(min(count, total))]
    client.quit()
    return total, bodies


def digests(contents):
    """A short name for each content, with its size."""
    return [f"{len(content)}:{hashlib.sha256(content).hexdigest()[:16]}" for content in contents]


def round_trip(contents, pop3_count):
    with PrivateHome(1) as home:
        replies = send_all(home.port("smtp"), home.users()[0], contents)
        assert all(b" queued as " in r for r in replies), [r for r in replies if b" queued as " not in r][:3]
        assert len({r.split()[-1] for r in replies}) == len(contents)
        queue.until_drained(home.path)
        by_imap = imap_bodies(home.port("imap"), home.users()[0].decode())
        total, by_pop3 = pop3_bodies(home.port("pop3"), home.users()[0].decode(), pop3_count)
    assert total == len(by_imap) == len(contents)
    came_back = []
    for body, size in by_imap:
        assert len(body) == size
        prefix = PREPENDED.match(body)
        assert prefix, body[:300]
        came_back.append(body[prefix.end() :])
    # One connection's mail may be delivered by several batches at once, so order is not promised.
    assert sorted(digests(came_back)) == sorted(digests(contents))
    assert digests(by_pop3) == digests([body for body, _ in by_imap[: len(by_pop3)]])


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_thousands_of_messages(count):
    rng = random.Random(10_000)
    contents = [for_smtp(raw) for raw in corpus()]
    assert len(contents) > 150
    large = count // 500
    while len(contents) < count - large:
        contents.append(messages.message(rng, rng.choice((700, 1500, 4096)))[0] + rng.choice((b"", b".\r\n", b"..\r\n.a\r\n")))
    contents += [messages.message(rng, 3_000_000)[0] for _ in range(large)]
    round_trip(contents, count // 5)


@pytest.mark.shared
def test_the_wider_sets(tmp_path):
    shared = Path(os.environ.get("IEMS_SHARED", "../shared")) / "data"
    if not shared.is_dir():
        pytest.skip("needs the wider sets of test mail (IEMS_SHARED)")
    shutil.unpack_archive(shared / "bayes" / "sapc-train.tar.xz", tmp_path)
    contents = [for_smtp(raw) for raw in corpus((shared / "mime", tmp_path))]
    assert len(contents) > 4_000
    round_trip(contents, 4_500)


def test_bare_line_ends_are_refused_by_smtp_and_kept_by_append():
    raw = [r for r in corpus() if _BARE.search(r)]
    assert len(raw) > 50
    with PrivateHome(1) as home:
        refused = [b"Subject: x\r\n\r\na\nb\r\n", b"Subject: x\r\n\r\na\rb\r\n", b"Subject: x\r\n\r\na\x00b\r\n"]
        assert [r[:1] for r in send_all(home.port("smtp"), home.users()[0], refused)] == [b"5"] * 3
        client = imaplib.IMAP4("127.0.0.1", home.port("imap"))
        client.login(home.users()[0].decode(), PASSWORD)
        for content in raw:
            tag = client._new_tag()
            client.send(b"%b APPEND INBOX {%d}\r\n" % (tag, len(content)))
            assert client._get_line().startswith(b"+")
            client.send(content + b"\r\n")
            while not (line := client._get_line()).startswith(tag):
                pass
            assert line.startswith(tag + b" OK"), line
        client.logout()
        found = [body for body, _ in imap_bodies(home.port("imap"), home.users()[0].decode())]
    # Digests: a difference of whole messages would take minutes to print.
    assert digests(found) == digests(raw)
