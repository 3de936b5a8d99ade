"""Mail made to break its readers, through every module: bounded work, a stated limit, and an answer (limits of the parsers themselves: test_limits.py)."""

from __future__ import annotations

import asyncio
import base64
import time

import pytest

from iems.attachment.rules import Rule
from iems.message.words import decode_words
from iems.model import Channel, Envelope, Recipient
from iems.preprocessor.modules import Work
from iems.preprocessor.modules.attachments import Attachments
from iems.preprocessor.modules.authres import Authres
from iems.preprocessor.route import Part
from tests.support.tnef import attachment, stream
from tests.support.zones import Zones
from tests.unit.message.test_limits import HOSTILE
from tests.unit.preprocessor.test_cells import MODULES
from tests.unit.preprocessor.test_mail_authentication import ZONE, Context, Settings


def asked(module, content):
    """(verdict, CPU seconds)."""
    recipient = Recipient(b"u@x.test")

    async def write(octets):
        return octets

    envelope = Envelope(Channel.SMTPD, b"s@t.test", [recipient], 0, client_ip="192.0.2.1")
    work = Work(bytes(16), envelope, [Part(Channel.LOCAL, "", [recipient], [recipient])], [content],
                lambda rope, start, length: b"".join(rope)[start : start + length], write)  # fmt: skip
    begun = time.process_time()
    verdict = asyncio.run(module.examine(work))
    return verdict, time.process_time() - begun


@pytest.mark.parametrize("name", HOSTILE)
def test_work_of_modules_is_bounded(name, tmp_path):
    modules = {key: module for key, (module, _, _) in MODULES.items()} | {"authres": Authres(Context(tmp_path, authres=Settings(verify=True)), Zones(ZONE))}
    for key, module in modules.items():
        _, took_s = asked(module, HOSTILE[name])
        assert took_s < 4.0, (key, took_s)  # 0.6 at most where nothing else runs


def test_wrapped_mail_with_bad_lengths_is_unscannable():
    """The attachment that can't be read to its end goes, or tags the message; the rest stays."""
    good = stream(attachment("b.txt", b"plain words"))
    for bad in (good[:-9], good[:40] + b"\xff\xff\xff\x7f" + good[44:], good[:20] + b"\7" * 30):
        part = b"Content-Type: application/ms-tnef; name=winmail.dat\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(bad).replace(b"\n", b"\r\n")
        content = b"Subject: s\r\nContent-Type: multipart/mixed; boundary=B\r\n\r\n--B\r\n\r\ntext\r\n--B\r\n" + part + b"--B--\r\n"
        rules = [Rule("-", "*.exe", "strip")]
        verdict, _ = asked(Attachments(lambda rules=rules: rules, "strip", "mx.test"), content)
        left = b"".join(verdict.rope)
        assert b"winmail.dat could not be read with certainty" in left.replace(b"=\r\n", b"") and b"\r\ntext\r\n" in left
        verdict, _ = asked(Attachments(lambda rules=rules: rules, "tag", "mx.test"), content)
        assert [(tag.check, tag.subject) for tag in verdict.tags] == [("attachments", "unscannable")] and verdict.rope is None


def test_a_subject_that_cannot_be_folded_gets_its_mark():
    for subject in (b"x" * 100_000, "ж".encode() * 50_000, b"=?utf-8?q?" + b"y" * 5_000 + b"?=", b"a\0b\rc"):
        content = b"Subject: " + subject + b"\r\n\r\nbody\r\n"
        recipient = Recipient(b"u@x.test")
        part = Part(Channel.LOCAL, "", [recipient], [recipient])
        work = Work(bytes(16), Envelope(Channel.SMTPD, b"s@t.test", [recipient], 0), [part], [content],
                    lambda rope, start, length: b"".join(rope)[start : start + length], None)  # fmt: skip
        asyncio.run(MODULES["content"][0].examine(work))
        lines = b"".join(part.rope).split(b"\r\n")
        assert decode_words(lines[0]).startswith("Subject: [SPAM]") and all(len(line) <= 998 for line in lines[: lines.index(b"")])
