"""Every dialogue of tests/transcripts/smtp, played whole, byte by byte and at random cuts."""

import re
from pathlib import Path

import pytest

from tests.transcripts.player import WAYS, Transcript, play, whole
from tests.transcripts.smtp_server import SmtpServer

FILES = sorted((Path(__file__).parent / "smtp").glob("*.txt"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dialogue(path, way):
    transcript = Transcript(path)
    server = SmtpServer(transcript.options)
    play(transcript, server, WAYS[way]())
    # Content that was begun ends in the spool or is given back.
    open_now = server.engine.transaction is not None and server.engine.transaction.sink is not None
    assert server.spool.begun == len(server.spool.messages) + server.spool.discarded + open_now


REFUSAL = re.compile(rb"(?m)^[45][0-9][0-9] ([^\r\n]*)\r\n")


class Keeping(SmtpServer):
    """Keeps refusals, with a number as their id; remembers what it said."""

    def __init__(self, options):
        super().__init__(options)
        self.kept = []
        self.heard = []
        self.engine.receipt = self._keep

    def _keep(self, reply, about, transaction):
        self.kept.append(reply)
        return b" [%d]\r\n" % len(self.kept)

    def _plain(self, out):
        self.heard.append(out)
        return re.sub(rb" \[[0-9]+\]\r\n", b"\r\n", out)

    def connect(self):
        return self._plain(super().connect())

    def feed(self, data):
        return self._plain(super().feed(data))

    def happen(self, what):
        return self._plain(super().happen(what))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_refusal_has_an_id(path):
    """Every 4xx and 5xx of every dialogue ends with the id under which it is kept; the dialogue is the same otherwise."""
    transcript = Transcript(path)
    server = Keeping(transcript.options)
    play(transcript, server, whole)
    said = b"".join(server.heard)
    for found in REFUSAL.finditer(said):
        number = re.search(rb" \[([0-9]+)\]$", found[1])
        assert number, found[0]
        assert found[0].startswith(b"%d " % server.kept[int(number[1]) - 1].code)
    assert all(reply.code >= 400 for reply in server.kept)
