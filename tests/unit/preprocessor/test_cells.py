"""Every cell of the matrices: a module runs for a flow if its cell is ticked, and only then; told by messages from every input channel."""

from __future__ import annotations

import asyncio
import base64
import random

import pytest

from iems.attachment.rules import Rule
from iems.message.headerrules import Rule as HeaderRule
from iems.message.headerrules import Rules
from iems.model import Channel, Envelope, Recipient
from iems.preprocessor.absence import Absence
from iems.preprocessor.batch import Plan
from iems.preprocessor.matrix import Matrices
from iems.preprocessor.modules.antispam import AntiSpam
from iems.preprocessor.modules.antivirus import AntiVirus
from iems.preprocessor.modules.attachments import Attachments
from iems.preprocessor.modules.autotext import AutoText, AutoTextInsertion
from iems.preprocessor.modules.content import Content
from iems.preprocessor.modules.headerrules import HeaderRules
from iems.preprocessor.modules.milter import Milters
from iems.preprocessor.modules.tnef import Tnef
from iems.preprocessor.pipeline import examine
from iems.preprocessor.route import Part
from iems.scan import milterwire
from iems.scan.checker import Score
from iems.scan.milter import Answer
from iems.spool import Item
from tests.support.scanners import EICAR
from tests.support.tnef import attachment, stream

INPUTS = [channel for channel in Channel if channel < 32]
OUTPUTS = [channel for channel in Channel if channel >= 32]
CELLS = [(i, o) for i in INPUTS for o in OUTPUTS]
HEAD = b"Received: from x\r\n\tby mx.test with ESMTP\r\nFrom: a@b.test\r\nSubject: prize\r\nMIME-Version: 1.0\r\n"
WRAPPED = base64.encodebytes(stream(attachment("b.txt", b"plain words"))).replace(b"\n", b"\r\n")
MAIL = (
    HEAD + b"Content-Type: multipart/mixed; boundary=B\r\n\r\n--B\r\n\r\ntext\r\n--B\r\nContent-Type: application/ms-tnef; name=winmail.dat\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\n" + WRAPPED + b"--B\r\nContent-Type: a/b; name=a.exe\r\n\r\n" + EICAR + b"\r\n--B--\r\n"
)


class Scanner:
    name = "scanner"

    async def scan(self, content):
        return "Eicar" if EICAR in b"".join([piece async for piece in content]) else ""


class Checker:
    kind = name = "spamd"

    async def check(self, content, **_):
        return Score(True, 9.0, 5.0)


class Milter:
    name = "milter"

    async def examine(self, mail):
        return Answer(changes=[milterwire.HeaderChange(b"h", 0, b"X-Milter", b"yes")])


NEVER = Absence("It", "defer", {}, 1.0)
TEXTS = {channel: AutoText("Small print.\n", "") for channel in INPUTS}
#: Mail that starts anew unwrapped, and our own reports.
UNWRAPPED, REPORTS = {Channel.TNEF}, {Channel.MTA}
#: name -> (module, whether it has done its work on (plan, content), input channels whose mail it lets alone, whatever the matrix says)
MODULES = {
    "antivirus": (AntiVirus([Scanner()], "delete", NEVER, "mx.test"), lambda plan, content: bool(plan.discarded), set()),
    "attachments": (Attachments(lambda: [Rule("-", "*.exe", "strip")], "strip", "mx.test"), lambda plan, content: b"a.exe was removed" in content, set()),
    "tnef": (Tnef(), lambda plan, content: b"ms-tnef" not in content, UNWRAPPED),
    "headerrules": (
        HeaderRules(lambda: Rules([HeaderRule("r", "subject", "prize", "tag")])),
        lambda plan, content: [tag.check for tag in plan.parts[0].tags] == ["headerrule"], REPORTS,
    ),
    "content": (
        Content(Checker(), "subject", {}, subject="[SPAM] ", archive=lambda octets: None, inspector="", refusal="x", max_octets=1 << 20, absence=NEVER),
        lambda plan, content: b"Subject: [SPAM] prize" in content, REPORTS,
    ),
    "milter": (
        Milters([Milter()], hostname="mx.test", rejected="bounce", discarded="delete", absence=NEVER, lifetime_s=1.0),
        lambda plan, content: b"X-Milter: yes" in content, REPORTS,
    ),
    "autotext": (AutoTextInsertion(lambda: TEXTS, False), lambda plan, content: b"Small print." in content, set()),
}  # fmt: skip


def through(modules, matrices, source, target):
    """(plan, content) of one message on its way from an input to an output channel."""
    recipient = Recipient(b"u@x.test")
    envelope = Envelope(source, b"s@t.test", [recipient], 0)
    plan = Plan(Item(bytes(16), 0, "", envelope, [MAIL]), [Part(target, "", [recipient], [recipient])], [])

    def read(rope, start, length):
        return b"".join(rope)[start : start + length]

    async def write(octets):
        return octets  # a piece of the rope like any other

    asyncio.run(examine(plan, matrices, modules, read, write))
    rope = plan.again[1] if plan.again is not None else plan.parts[0].rope or [MAIL]
    return plan, b"".join(rope)


@pytest.mark.parametrize("name", MODULES)
def test_on_and_off_in_each_cell(name):
    module, done, alone = MODULES[name]
    ticked = set(random.Random(name).sample(CELLS, len(CELLS) // 2))
    matrices = Matrices((name,), {name: frozenset(ticked)})
    for source, target in CELLS:
        expected = (source, target) in ticked and source not in alone
        assert done(*through({name: module}, matrices, source, target)) == expected, (source, target)
    assert done(*through({name: module}, Matrices((name,), {}), Channel.SMTPD, Channel.LOCAL)), "without a grid it runs everywhere"


def test_tagged_mail_in_each_cell():
    """`antispam` acts on what another module has tagged, where its own cell is ticked and nobody behind the channel can decide."""
    tagger = MODULES["headerrules"][0]
    ticked = set(random.Random(0).sample(CELLS, len(CELLS) // 2))
    modules = {"headerrules": tagger, "antispam": AntiSpam(lambda channel: "discard", lambda part: False)}
    matrices = Matrices(tuple(modules), {"antispam": frozenset(ticked)})
    for source, target in CELLS:
        plan, _ = through(modules, matrices, source, target)
        expected = (source, target) in ticked and source != Channel.MTA and target not in (Channel.LOCAL, Channel.DL)
        assert bool(plan.discarded) == expected, (source, target)


def test_two_ways_two_contents():
    """Of one message for two channels each gets what its own cells say."""
    name = "attachments"
    matrices = Matrices((name,), {name: frozenset({(Channel.SMTPD, Channel.LOCAL)})})
    recipients = [Recipient(b"a@x.test"), Recipient(b"b@x.test")]
    plan = Plan(
        Item(bytes(16), 0, "", Envelope(Channel.SMTPD, b"", recipients, 0), [MAIL]),
        [Part(Channel.LOCAL, "", recipients[:1], recipients[:1]), Part(Channel.SMTPC, "x", recipients[1:], recipients[1:])], [],
    )  # fmt: skip
    asyncio.run(examine(plan, matrices, {name: MODULES[name][0]}, lambda rope, start, length: b"".join(rope)[start : start + length], None))
    assert EICAR not in b"".join(plan.parts[0].rope) and plan.parts[1].rope is None
