"""What the module antivirus does with what scanners say."""

from __future__ import annotations

import asyncio

import pytest

from iems.model import Channel, Envelope, Recipient
from iems.model import Verdict as Tag
from iems.net.breaker import NoAnswer
from iems.preprocessor.absence import Absence
from iems.preprocessor.modules import TryLater, Verdict, Work
from iems.preprocessor.modules.antivirus import AntiVirus
from iems.preprocessor.route import Part

DEFER = Absence("The virus scanner", "defer", {Channel.SMTPC: "pass", Channel.DL: "defer_then_pass"}, 1000.0)


class Fake:
    """Finds EVIL; or fails."""

    def __init__(self, name="fake", fails=False, mark=b"EVIL"):
        self.name, self.fails, self.mark, self.asked = name, fails, mark, 0

    async def scan(self, content):
        self.asked += 1
        if self.fails:
            raise NoAnswer("away")
        return "Evil.A" if self.mark in b"".join([piece async for piece in content]) else ""


def examine(module, content, path=b"s@t", released=False, channels=(Channel.LOCAL,), age_s=0.0):
    recipients = [Recipient(b"%d@x" % channel) for channel in channels]

    async def write(octets):
        raise AssertionError("short pieces are inline")

    work = Work(b"", Envelope(Channel.SMTPD, path, recipients, 0), [Part(c, "", [r], [r]) for c, r in zip(channels, recipients, strict=True)], [content],
                lambda rope, start, length: b"".join(rope)[start : start + length], write, released, {}, age_s)  # fmt: skip
    return asyncio.run(module.examine(work))


BAD = b"Subject: x\r\n\r\nEVIL\r\n"


@pytest.mark.parametrize("action", ["bounce", "quarantine", "delete", "strip", "tag"])
def test_actions(action):
    verdict = examine(AntiVirus([Fake()], action, DEFER, "mx"), BAD)
    if action == "bounce":
        assert verdict.failed[0][1].text == "Refused: virus Evil.A"
        assert not examine(AntiVirus([Fake()], action, DEFER, "mx"), BAD, path=b"").failed, "a report is not bounced"
    elif action == "quarantine":
        assert verdict.quarantine == "virus Evil.A"
    elif action == "delete":
        assert verdict.discarded[0][1] == "virus Evil.A"
    elif action == "tag":
        assert verdict == Verdict(tags=(Tag("antivirus", "fake", "Evil.A"),), note="fake: Evil.A; tagged")
    else:
        assert b"EVIL" not in b"".join(verdict.rope) and b"removed from this message by mx: Evil.A" in b"".join(verdict.rope)
        header = examine(AntiVirus([Fake(mark=b"Subject")], action, DEFER, "mx"), BAD)
        assert header.quarantine and header.rope is None, "what is in no part can't be taken out"
    assert examine(AntiVirus([Fake()], action, DEFER, "mx"), b"\r\ngood\r\n").note == "fake: clean"
    assert examine(AntiVirus([Fake()], action, DEFER, "mx"), BAD, released=True).note.startswith("released")


def test_chain_stops_at_the_first_that_finds():
    first, second = Fake("first"), Fake("second", mark=b"ODD")
    chain = AntiVirus([first, second], "quarantine", DEFER, "mx")
    assert examine(chain, BAD).note == "first: Evil.A" and second.asked == 0
    assert examine(chain, b"\r\nODD").quarantine and second.asked == 1
    assert examine(chain, b"\r\nfine").note == "first: clean; second: clean"


def test_failure_waits_or_passes():
    with pytest.raises(TryLater, match="away") as raised:
        examine(AntiVirus([Fake(fails=True)], "quarantine", DEFER, "mx"), BAD)
    assert raised.value.reply.code == 451
    passing = AntiVirus([Fake("gone", fails=True), Fake("second")], "quarantine", Absence("The virus scanner", "pass", {}, 1000.0), "mx")
    assert examine(passing, b"\r\nok").note == "gone: not available; second: clean"
    assert examine(passing, BAD).quarantine, "the other still looks"


def test_waits_no_longer_than_its_lifetime():
    module = AntiVirus([Fake(fails=True)], "quarantine", DEFER, "mx")
    for age_s, seconds in ((0.0, 60.0), (999.5, 1.0)):
        with pytest.raises(TryLater) as raised:
            examine(module, BAD, age_s=age_s)
        assert raised.value.seconds == seconds
    old = examine(module, BAD, age_s=1000.0)
    assert [(r.address, reply.code) for r, reply in old.failed] == [(b"%d@x" % Channel.LOCAL, 554)] and old.failures == 1
    assert old.failed[0][1].text == "Not delivered: the virus scanner did not answer for too long"


def test_failure_by_channel():
    module = AntiVirus([Fake(fails=True)], "quarantine", DEFER, "mx")
    assert examine(module, BAD, channels=(Channel.SMTPC,)) == Verdict(note="fake: not available", failures=1)
    for channels in ((Channel.SMTPC, Channel.LOCAL), (Channel.SMTPC, Channel.DL)):
        with pytest.raises(TryLater):
            examine(module, BAD, channels=channels)
    old = examine(module, BAD, channels=(Channel.SMTPC, Channel.DL, Channel.LOCAL), age_s=2000.0)
    assert [r.address for r, _ in old.failed] == [b"%d@x" % Channel.LOCAL], "the others go on unseen"


def test_known_virus_is_never_let_through_by_a_scanner_that_goes_away():
    class Goes(Fake):
        async def scan(self, content):
            self.fails = self.asked > 0
            return await super().scan(content)

    verdict = examine(AntiVirus([Goes()], "strip", Absence("The virus scanner", "pass", {}, 1000.0), "mx"), BAD)
    assert verdict.quarantine == "virus Evil.A"
    behind = AntiVirus([Fake("gone", fails=True), Fake()], "strip", DEFER, "mx")
    verdict = examine(behind, BAD, age_s=2000.0)
    assert verdict.failed and b"EVIL" not in b"".join(verdict.rope)
