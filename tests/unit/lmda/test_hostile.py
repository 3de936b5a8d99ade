"""Bad input through all filters of a delivery at once: bounded work, and every message is delivered."""

from __future__ import annotations

import time

import pytest

from iems.bayes.delivered import as_it_came
from iems.bayes.filter import Filter, Filters
from iems.bayes.trainer import Trainer
from iems.directory.bayeschoice import BayesChoice
from iems.directory.spamcontrol import Allowed, SpamControl
from iems.lmda.delivery import Planner, Policy, summary
from iems.lmda.replies import no_answer
from iems.lmda.rules import said_of
from iems.message import verdict
from iems.model import Envelope, Recipient, Verdict
from iems.sieve import run
from iems.sieve.actions import FileInto, Vacation
from iems.sieve.compiler import Script
from iems.sieve.mailsort import Answer, MailSort, Rule, write
from iems.sieve.message import ContentMessage
from iems.spool.items import Item
from iems.store.scripts import named_script
from iems.store.wire import Delivery
from tests.unit.lmda.test_rules import account

HEAD = b"From: a@far.test\r\nTo: me@x\r\n"
HOSTILE = {
    "500,000 addresses": b"From: a@far.test\r\nTo: " + b", ".join(b"u%d@x.test" % n for n in range(500_000)) + b"\r\n\r\nx\r\n",
    "500,000 authors": b"From: " + b", ".join(b"u%d@x.test" % n for n in range(500_000)) + b"\r\n\r\nx\r\n",
    "100,000 parameters": HEAD + b"Content-Type: text/plain" + b"".join(b";\r\n name*%d*=x" % n for n in range(100_000)) + b"\r\n\r\nx\r\n",
    "a line of 1 MB": HEAD + b"Subject: " + b"x" * 1_000_000 + b"\r\n\r\nx\r\n",
    "50,000 encoded words": HEAD + b"Subject: " + b"=?utf-8?q?=C3=A4?= " * 50_000 + b"\r\n\r\nx\r\n",
    "10,000 Received": b"Received: from a by b; x\r\n" * 10_000 + HEAD + b"\r\nx\r\n",
    "10,000 levels": HEAD + b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(10_000)),
    "boundaries in a circle": HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" * 20_000,
    "no end": HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n" + b"<div>" * 50_000,
    "comments": b"From: a@far.test\r\nTo: " + b"(" * 200_000 + b"\r\n\r\nx",
    "records": verdict.PLAIN_LINE * 50_000 + HEAD + b"\r\nx",
    "two authors": b"From: a@far.test\r\nFrom: friend@x.test\r\nTo: me@x\r\n\r\nx\r\n",
    "an author in a name": b'From: "friend@x.test" <a@far.test>\r\nTo: me@x\r\n\r\nx\r\n',
    "an author in an encoded word": b"From: =?utf-8?q?friend=40x.test_=3Cfriend=40x.test=3E?= <a@far.test>\r\nTo: me@x\r\n\r\nx\r\n",
    "a group": b"From: friend@x.test: a@far.test;\r\nTo: me@x\r\n\r\nx\r\n",
    "an at sign in quotes": b'From: "friend@x.test"@far.test\r\nTo: me@x\r\n\r\nx\r\n',
}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Filter:
    place = tmp_path_factory.mktemp("filter")
    with Trainer(place) as trainer:
        for number in range(30):
            trainer.learn(HEAD + b"\r\nmeeting agenda %d budget\r\n" % number, False)
            trainer.learn(HEAD + b"\r\ncasino winner %d pills\r\n" % number, True)
    return Filters(None).of(place)


@pytest.fixture(scope="module")
def script() -> Script:
    rules = [Rule("to", "list@", "move", "L"), Rule("subject", "ää", "copy", "S", True), Rule("from", "far.test", "move", "Far")]
    return named_script("mailsort", write(MailSort(rules, Answer("Away", "away"))))


@pytest.mark.parametrize("name", HOSTILE)
def test_bounded_and_delivered(learnt: Filter, script: Script, name: str) -> None:
    content = HOSTILE[name]
    begun = time.thread_time()
    control = SpamControl(allow=(Allowed("address", "friend@x.test"), Allowed("domain", "x.test")))
    me = account(7, address="me@x", filtered=True, spam=control, bayes=BayesChoice())
    planner = Planner(lambda address: me, Policy(), lambda item: 0)
    envelope = Envelope(1, b"s@far.test", [Recipient(b"me@x", b"me@x")], 10**18, verdicts=(Verdict("dnsbl", "bl.test", "127.0.0.2"),))
    item = Item(b"i" * 16, 32, "", envelope, [content])
    made, _ = summary(content)
    batch: list[Delivery] = []
    work = planner.plan(item, made, len(content), batch, content[: 64 << 10])
    assert work.unjudged == [me], "the white list has not let it in"
    work = planner.plan(item, made, len(content), batch, content[: 64 << 10], {7: learnt.score(content)}, work.known)
    if work.filtered:
        filtered = work.filtered[7]
        message = ContentMessage(filtered.lines + content, "s@far.test", "me@x")
        wanted = run(script, message)
        assert wanted.actions and not wanted.error
        if name.startswith(("10,000", "a line", "two", "an a")):
            assert any(isinstance(action, FileInto) for action in wanted.actions)
        no_answer(message, Vacation("x", 1), ["me@x"], False)
        line = verdict.line(verdict.value([*filtered.said, *said_of(script, wanted)]))
    else:
        [delivery] = batch
        line = delivery.rope[0]  # type: ignore[assignment]
    whole = line + content
    assert as_it_came(whole) in (content, as_it_came(content)) and len(verdict.recorded(whole)) <= verdict.MAX_OCTETS
    assert time.thread_time() - begun < 1.0
