"""Every dialogue of tests/transcripts/pop3, played whole, byte by byte and at random cuts."""

from pathlib import Path

import pytest

from tests.transcripts.player import WAYS, Transcript, play
from tests.transcripts.pop3_server import Pop3Server

FILES = sorted((Path(__file__).parent / "pop3").glob("*.txt"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dialogue(path, way):
    transcript = Transcript(path)
    server = Pop3Server(transcript.options)
    play(transcript, server, WAYS[way]())
    server.finish()
    left = transcript.options.get("left")
    if left is not None:
        assert " ".join(map(str, sorted(server.reader.flags))) == left
