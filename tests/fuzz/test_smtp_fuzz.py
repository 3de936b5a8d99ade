"""Mutated transcripts: whatever a client says, the server answers in whole lines, keeps little and gives content back."""

import random
from pathlib import Path

import pytest

from iems.smtpd.engine import State
from tests.transcripts.player import Transcript, play, whole
from tests.transcripts.smtp_server import SmtpServer

FILES = sorted((Path(__file__).parents[1] / "transcripts" / "smtp").glob("*.txt"))
SPICE = (
    b"\r\n", b"\n", b"\r", b"\0", b".", b"\r\n.\r\n", b"\n.\n", b"\r\n.\r", b"<", b">", b"@", b'"', b"\\", b":", b"=", b"+",
    b"BDAT 5\r\n", b"BDAT 0 LAST\r\n", b"BDAT 99999999999999999 LAST\r\n", b"DATA\r\n", b"RSET\r\n", b"STARTTLS\r\n",
    b"AUTH PLAIN\r\n", b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<john@mx.test>\r\n", b"EHLO x\r\n", b"\xff\xfe", b" " * 300,
)  # fmt: skip


def mutate(rng, data):
    data = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(5)
        if what == 0:
            data[at:at] = rng.choice(SPICE)
        elif what == 1:
            del data[at : at + rng.randrange(1, 20)]
        elif what == 2 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif what == 3:
            end = min(len(data), at + rng.randrange(1, 60))
            to = rng.randrange(len(data) + 1)
            data[to:to] = data[at:end]
        elif what == 4:
            del data[at:]
            data += rng.choice(SPICE)
    return bytes(data)


def survive(rng, transcript, data):
    server = SmtpServer(transcript.options)
    out = server.connect()
    at = 0
    while at < len(data):
        size = rng.choice((1, 5, 40, 400, 4000))
        out += server.feed(data[at : at + size])
        at += size
        if server.engine.state == State.TLS:
            out += server.happen("tls")
        assert server.engine.backlog <= 12_288 + size
    assert out.endswith(b"\r\n") and out.count(b"\n") == out.count(b"\r\n") == out.count(b"\r")
    for line in out.split(b"\r\n")[:-1]:
        assert line[:3].isdigit() and line[3:4] in (b" ", b"-") and line[:1] in b"2345", line
    errors = [
        event for event in server.log.events if event[0] == "error" and "Error" in event[3].get("cause", "")
    ]
    assert not [
        event
        for event in errors
        if "SpoolError" not in event[3]["cause"] and "a fault of ours" not in event[3]["cause"]
    ]
    server.engine.end()
    assert server.spool.begun == len(server.spool.messages) + server.spool.discarded
    for _, line, content in server.spool.messages:
        # Nothing odd gets in, and no line of ours is made by the client.
        assert line.count(b"\r\n") == line.count(b"\n") and line.startswith(b"Received: from ")
        assert (
            transcript.options.get("bare_lf")
            or content.replace(b"\r\n", b"").count(b"\n") == 0
            or b"BINARY" in data.upper()
        )


def fuzz(seed, rounds):
    rng = random.Random(seed)
    transcripts = [Transcript(path) for path in FILES]
    for _ in range(rounds):
        transcript = rng.choice(transcripts)
        survive(rng, transcript, mutate(rng, transcript.client()[:8000]))


def test_short():
    fuzz(1, 1500)


@pytest.mark.long
def test_long():
    for seed in range(2, 60):
        fuzz(seed, 3000)


def test_seeds_play():
    """What is mutated starts from dialogues that hold."""
    for path in FILES:
        transcript = Transcript(path)
        play(transcript, SmtpServer(transcript.options), whole)
