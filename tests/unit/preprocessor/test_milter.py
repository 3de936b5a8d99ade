"""What the module milter does with what milters say."""

from __future__ import annotations

import asyncio

import pytest

from iems.model import Channel, Envelope, Extent, Recipient, Reply
from iems.model import Verdict as Tag
from iems.net.breaker import NoAnswer
from iems.preprocessor.absence import Absence
from iems.preprocessor.modules import TryLater, Work
from iems.preprocessor.modules.milter import FIELDS_MAX, Milters
from iems.preprocessor.route import Part
from iems.scan import milterwire as wire
from iems.scan.milter import Answer

OWN = b"Received: from c.test (c.test [192.0.2.1])\r\n\tby mx.test with ESMTP id X;\r\n\tMon, 1 Jan 2024 00:00:00 +0000\r\n"
HEAD = OWN + b"Subject: one\r\nno field\r\nSubject: two\r\nTo: x\r\n"
NEW = Extent(7, 0, 5)


class Fake:
    """A client that gives one answer."""

    def __init__(self, answer, name="inet:h:1"):
        self.answer, self.name, self.mails = answer, name, []

    async def examine(self, mail):
        self.mails.append(mail)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def examine(milters, content=HEAD + b"\r\nbody\r\n", *, now_s=0.0, released=False, path=b"s@t", **settings):
    recipients = [Recipient(b"a@x"), Recipient(b"b@x")]
    written = []

    async def write(octets):
        written.append(octets)
        return Extent(9, 0, len(octets))

    given = {"rejected": "bounce", "discarded": "delete"} | settings
    absence = Absence("A mail filter", given.pop("on_failure", "defer"), {}, 1000.0)
    module = Milters(milters, hostname="mx.test", lifetime_s=1000.0, absence=absence, **given)
    part = Part(Channel.LOCAL, "", recipients, recipients)
    work = Work(bytes(16), Envelope(Channel.SMTPD, path, recipients, 0), [part], [content],
                lambda rope, start, length: b"".join(p if isinstance(p, bytes) else b"=NEW=" for p in rope)[start : start + length], write, released, {}, now_s)  # fmt: skip
    return asyncio.run(module.examine(work))


def changes(*rows):
    return Answer(changes=[wire.HeaderChange(*row) for row in rows])


def test_header_changes():
    fake = Fake(changes((b"i", 1, b"X-In", b"i"), (b"i", 99, b"X-Last", b"l"), (b"m", 2, b"subject", b"second"), (b"m", 1, b"To", b""),
                        (b"m", 1, b"Received", b"r"), (b"m", 3, b"X-None", b""), (b"h", 0, b"X-Add", b"a\nb: c")))  # fmt: skip
    rope = examine([fake]).rope
    assert b"".join(rope) == OWN + (
        b"X-In: i\r\nSubject: one\r\nno field\r\nsubject: second\r\nX-Last: l\r\nReceived: r\r\nX-Add: a\r\n\tb: c\r\n\r\nbody\r\n")
    assert [name for name, _ in fake.mails[0].fields] == [b"Subject", b"Subject", b"To"], "neither our line nor what is no field"


@pytest.mark.parametrize("content", [b"", b"Subject: x", b"Subject: x\r\n", b"\r\n", b"\r\nbody", HEAD + b"\r\n"])
def test_header_and_body_stay_apart(content):
    head = b"" if content.startswith(b"\r\n") else content.partition(b"\r\n\r\n")[0]
    rope = examine([Fake(Answer(changes=[wire.HeaderChange(b"h", 0, b"X", b"y")], body=[NEW]))], content).rope
    before, after = rope[:-1], rope[-1]
    assert after == NEW and b"".join(before).endswith(b"X: y\r\n\r\n") and b"".join(before).startswith(head.strip())
    rope = examine([Fake(Answer(body=[NEW]))], content).rope
    assert rope[-1] == NEW and (b"".join(rope[:-1]) == b"\r\n" or b"".join(rope[:-1]).endswith(b"\r\n\r\n"))


def test_chain():
    first, second = Fake(changes((b"i", 0, b"X-First", b"1"))), Fake(Answer(body=[NEW]), "unix:/x")
    verdict = examine([first, second])
    assert second.mails[0].fields[0] == (b"X-First", b" 1")
    assert verdict.note == "inet:h:1: 1 fields changed; unix:/x: body replaced" and NEW in verdict.rope
    first, second = Fake(Answer(reply=Reply(550, 7, 1, "no"))), Fake(Answer())
    assert examine([first, second]).failed and not second.mails, "the first that ends it decides"


def test_ends():
    refusal = Answer(reply=Reply(550, 7, 1, "no"))
    assert [reply.text for _, reply in examine([Fake(refusal)]).failed] == ["no", "no"]
    assert examine([Fake(refusal)], rejected="quarantine").quarantine == "milter inet:h:1: 550 5.7.1 no"
    assert len(examine([Fake(refusal)], rejected="delete").discarded) == 2
    assert len(examine([Fake(Answer(discard=True))]).discarded) == 2
    assert examine([Fake(Answer(discard=True))], discarded="quarantine").quarantine
    assert examine([Fake(Answer(quarantine="odd"))]).quarantine == "milter inet:h:1: odd"
    assert examine([Fake(refusal)], released=True).note.startswith("released")
    assert examine([Fake(Answer())], HEAD + b"X: y\r\n" * FIELDS_MAX + b"\r\n").quarantine
    assert examine([Fake(Answer())], b"X: " + b"y" * (5 << 20)).quarantine


def test_a_refusal_that_tags_lets_the_mail_go_on():
    chain = [Fake(changes((b"i", 0, b"X-First", b"1"))), Fake(Answer(reply=Reply(550, 7, 1, "no")), "inet:h:2"), Fake(Answer(body=[NEW]), "inet:h:3")]
    verdict = examine(chain, rejected="tag")
    assert verdict.tags == (Tag("milter", "inet:h:2", "550 5.7.1 no"),) and not verdict.failed and not verdict.quarantine
    assert chain[2].mails and NEW in verdict.rope and verdict.rope[-1] == NEW, "those behind it are asked, and what others changed stays"
    one = examine([Fake(Answer(refused=[(b"a@x", Reply(550, 1, 1, "who"))]))], rejected="tag")
    assert [r.address for r, _ in one.failed] == [b"a@x"] and not one.tags, "one recipient refused is nothing about the message"
    with pytest.raises(TryLater):
        examine([Fake(Answer(reply=Reply(451, 7, 1, "later")))], rejected="tag")


def test_recipients():
    verdict = examine([Fake(Answer(refused=[(b"a@x", Reply(550, 1, 1, "who"))], removed=[b"<B@X>"]))])
    assert [(r.address, reply.text) for r, reply in verdict.failed] == [(b"a@x", "who")] and [r.address for r, _ in verdict.discarded] == [b"b@x"]
    assert examine([Fake(Answer(removed=[b"c@x"]))]).discarded == []


def test_put_off():
    later = Answer(reply=Reply(451, 7, 1, "later"))
    with pytest.raises(TryLater, match="later") as raised:
        examine([Fake(later)])
    assert raised.value.seconds == 60 and raised.value.reply.code == 451
    with pytest.raises(TryLater) as raised:
        examine([Fake(later)], now_s=900.0)
    assert raised.value.seconds == 225
    assert examine([Fake(later)], now_s=1001.0).failed[0][1].code == 554, "it does not wait for ever"
    with pytest.raises(TryLater, match="away"):
        examine([Fake(NoAnswer("away"))])
    away = examine([Fake(NoAnswer("away")), Fake(Answer(), "unix:/x")], now_s=1001.0)
    assert len(away.failed) == 2 and away.failed[0][1].code == 554 and away.note == "inet:h:1: not available", "nor does what nobody looks at"
    assert examine([Fake(NoAnswer("away")), Fake(Answer(), "unix:/x")], on_failure="pass").note == "inet:h:1: not available; unix:/x: accept"
