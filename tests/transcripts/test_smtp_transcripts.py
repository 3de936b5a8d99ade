"""Every dialogue of tests/transcripts/smtp, played whole, byte by byte and at random cuts."""

from pathlib import Path

import pytest

from tests.transcripts.player import WAYS, Transcript, play
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
