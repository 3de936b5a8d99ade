"""What the module antivirus does with what scanners say."""

from __future__ import annotations

import asyncio

import pytest

from iems.model import Channel, Envelope, Recipient
from iems.preprocessor.modules import TryLater, Work
from iems.preprocessor.modules.antivirus import AntiVirus
from iems.preprocessor.route import Part
from iems.scan.breaker import ScanFailure


class Fake:
    """Finds EVIL; or fails."""

    def __init__(self, name="fake", fails=False, mark=b"EVIL"):
        self.name, self.fails, self.mark, self.asked = name, fails, mark, 0

    async def scan(self, content):
        self.asked += 1
        if self.fails:
            raise ScanFailure("away")
        return "Evil.A" if self.mark in b"".join([piece async for piece in content]) else ""


def examine(module, content, path=b"s@t", released=False):
    recipient = Recipient(b"u@x")

    async def write(octets):
        raise AssertionError("short pieces are inline")

    work = Work(b"", Envelope(Channel.SMTPD, path, [recipient], 0), [Part(Channel.LOCAL, "", [recipient], [recipient])], [content],
                lambda rope, start, length: b"".join(rope)[start : start + length], write, released)  # fmt: skip
    return asyncio.run(module.examine(work))


BAD = b"Subject: x\r\n\r\nEVIL\r\n"


@pytest.mark.parametrize("action", ["bounce", "quarantine", "delete", "strip"])
def test_actions(action):
    verdict = examine(AntiVirus([Fake()], action, "defer", "mx"), BAD)
    if action == "bounce":
        assert verdict.failed[0][1].text == "Refused: virus Evil.A"
        assert not examine(AntiVirus([Fake()], action, "defer", "mx"), BAD, path=b"").failed, "a report is not bounced"
    elif action == "quarantine":
        assert verdict.quarantine == "virus Evil.A"
    elif action == "delete":
        assert verdict.discarded[0][1] == "virus Evil.A"
    else:
        assert b"EVIL" not in b"".join(verdict.rope) and b"removed from this message by mx: Evil.A" in b"".join(verdict.rope)
        header = examine(AntiVirus([Fake(mark=b"Subject")], action, "defer", "mx"), BAD)
        assert header.quarantine and header.rope is None, "what is in no part can't be taken out"
    assert examine(AntiVirus([Fake()], action, "defer", "mx"), b"\r\ngood\r\n").note == "fake: clean"
    assert examine(AntiVirus([Fake()], action, "defer", "mx"), BAD, released=True).note.startswith("released")


def test_chain_stops_at_the_first_that_finds():
    first, second = Fake("first"), Fake("second", mark=b"ODD")
    chain = AntiVirus([first, second], "quarantine", "defer", "mx")
    assert examine(chain, BAD).note == "first: Evil.A" and second.asked == 0
    assert examine(chain, b"\r\nODD").quarantine and second.asked == 1
    assert examine(chain, b"\r\nfine").note == "first: clean; second: clean"


def test_failure_waits_or_passes():
    with pytest.raises(TryLater, match="away") as raised:
        examine(AntiVirus([Fake(fails=True)], "quarantine", "defer", "mx"), BAD)
    assert raised.value.reply.code == 451
    passing = AntiVirus([Fake("gone", fails=True), Fake("second")], "quarantine", "pass", "mx")
    assert examine(passing, b"\r\nok").note == "gone: not available; second: clean"
    assert examine(passing, BAD).quarantine, "the other still looks"
