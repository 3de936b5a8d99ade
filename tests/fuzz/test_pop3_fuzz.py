"""Mutated dialogues: whatever a client says, the server answers in whole lines, stays small, and removes only what QUIT asks for."""

import random
from pathlib import Path

import pytest

from iems.pop3d.engine import MAX_SASL_OCTETS, State
from tests.transcripts.player import Transcript
from tests.transcripts.pop3_server import MESSAGES, Pop3Server

FILES = sorted((Path(__file__).parents[1] / "transcripts" / "pop3").glob("*.txt"))
SPICE = (
    b"\r\n", b"\n", b"\r", b"\0", b".", b"QUIT\r\n", b"RETR 1\r\n", b"TOP 2 1\r\n", b"DELE 1\r\n", b"RSET\r\n", b"STLS\r\n",
    b"AUTH PLAIN\r\n", b"AGpvaG4AcHc=\r\n", b"USER john\r\nPASS pw\r\n", b"LIST\r\n", b"UIDL 99999999999\r\n", b"\xff\xfe", b" " * 300,
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


def fuzz(seed, rounds):
    rng = random.Random(seed)
    for _ in range(rounds):
        transcript = Transcript(rng.choice(FILES))
        server = Pop3Server(transcript.options)
        output = server.connect()
        # From each state: half of the dialogues begin logged in.
        if rng.random() < 0.5 and not server.closed:
            output += server.feed(b"USER mary\r\nPASS  p w \r\n")
        data = mutate(rng, transcript.client())
        at = 0
        while at < len(data):
            end = at + rng.choice((1, 5, 40, 1000))
            output += server.feed(data[at:end])
            at = end
            if server.stream.started_tls:
                output += server.happen("tls")
        assert output.endswith(b"\r\n") or not output
        for line in output.split(b"\r\n"):
            assert b"\n" not in line and b"\r" not in line
        assert server.session.engine.buffered <= MAX_SASL_OCTETS
        if server.session.engine.state is not State.CLOSED:
            assert len(server.reader.flags) == len(MESSAGES)
        server.finish()
        assert server.errors == [] or all("gone" in str(fault) for fault in server.errors)


@pytest.mark.parametrize("seed", range(4))
def test_mutated(seed):
    fuzz(seed, 150)


@pytest.mark.long
def test_mutated_long():
    fuzz(1939, 50_000)
