"""What each level writes, and that no secret is in a logged dialogue."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.levels import LEVELS
from iems.log import Log
from iems.smtp import replies
from iems.smtpc.loud import LoudEngine as Outgoing
from iems.smtpd.engine import Hello, Login, Settings
from iems.smtpd.loud import LoudEngine


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("errors", ["error", "spool-prepare-failed"]),
        ("warning", ["error", "spool-prepare-failed", "refused", "started"]),
        *((level, ["error", "spool-prepare-failed", "refused", "started", "accepted", "leased"]) for level in LEVELS[2:]),
    ],
)
def test_levels(tmp_path, level, written):
    log = Log(tmp_path / "mail.log", "smtpd", form="text", level=level)
    for event in ("error", "spool-prepare-failed", "refused", "started", "accepted", "leased"):
        log.event(event)
    log.close()
    assert [line.split()[2] for line in (tmp_path / "mail.log").read_text().splitlines()] == written
    log.set_level("errors")
    assert log.level == 1


def loud(reads=False):
    lines: list[str] = []
    engine = LoudEngine(Settings(hostname=b"mx.test"), lambda way, line: lines.append(f"{way} {line.decode()}"), reads)
    return engine, lines


def answer(engine, event, reply=replies.OK):
    if isinstance(event, Hello):
        engine.connection.mechanisms = (b"PLAIN", b"LOGIN")
    engine.reply(replies.BAD_CREDENTIALS if isinstance(event, Login) else reply)


def drive(engine, octets):
    engine.feed(octets)
    while (event := engine.next_event()) is not None:
        answer(engine, event)
    engine.keep()
    engine.take_output()


def test_a_dialogue_both_ways():
    engine, lines = loud(reads=True)
    engine.greet()
    engine.take_output()
    drive(engine, b"EHLO c.test\r\nMAIL FROM:<a@b.test>\r\nDATA\r\nbare\nline\r\n")
    assert lines[0] == "> 220 mx.test ESMTP IEMS" and lines[1].startswith("< (") and "< EHLO c.test" in lines
    assert "> 250-PIPELINING" in lines and "< MAIL FROM:<a@b.test>" in lines and "< DATA (out of order)" in lines
    assert any(line.startswith("> 500 5.5.2 ") for line in lines) and "< (no line)" in lines


SECRET = "Tr0ub4dor&3"
PLAIN = base64.b64encode(b"\0ann@b.test\0" + SECRET.encode())


@pytest.mark.parametrize(
    "dialogue",
    [
        b"AUTH PLAIN " + PLAIN + b"\r\n",
        b"AUTH PLAIN\r\n" + PLAIN + b"\r\n",
        b"AUTH LOGIN\r\nYW5uQGIudGVzdA==\r\n" + base64.b64encode(SECRET.encode()) + b"\r\n",
        b"AUTH LOGIN YW5uQGIudGVzdA==\r\n" + base64.b64encode(SECRET.encode()) + b"\r\n",
        b"AUTH NONSENSE " + PLAIN + b"\r\n" + PLAIN + b"\r\n",  # sent ahead of a refusal: no command
        b"AUTH PLAIN *\r\n" + PLAIN + b"\r\n" + SECRET.encode() + b"\r\n",
    ],
)
@pytest.mark.parametrize("octets_at_once", [1, 7, 10_000])
def test_no_secret_in_a_dialogue(dialogue, octets_at_once):
    engine, lines = loud()
    for at in range(0, len(dialogue), octets_at_once):
        if not at:
            drive(engine, b"EHLO c.test\r\n")
        drive(engine, dialogue[at : at + octets_at_once])
    text = "\n".join(lines)
    for secret in (SECRET, PLAIN.decode(), base64.b64encode(SECRET.encode()).decode()):
        assert secret not in text, text
    assert "< AUTH" in text


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([b"EHLO c\r\n", b"AUTH PLAIN\r\n", PLAIN + b"\r\n", b"AUTH LOGIN\r\n", b"*\r\n", b"RSET\r\n", b"MAIL FROM:<>\r\n"])))
def test_no_secret_whatever_the_order(pieces):
    engine, lines = loud()
    drive(engine, b"".join(pieces))
    assert PLAIN.decode() not in "\n".join(lines)


def test_the_other_way():
    lines: list[str] = []
    engine = Outgoing(lambda way, line: lines.append(f"{way} {line.decode()}"), b"me.test")
    engine.feed(b"220 there\r\n")
    while engine.next_event() is not None:
        pass
    engine.take_output()
    engine.feed(b"250-there\r\n250 AU")
    engine.feed(b"TH PLAIN\r\n")
    assert lines == ["< 220 there", "> EHLO me.test", "< 250-there", "< 250 AUTH PLAIN"]
    # a login, as one whose engine can would send it
    engine._out += [b"AUTH PLAIN " + PLAIN + b"\r\n"]
    engine.take_output()
    engine.feed(b"334 c2VjcmV0\r\n")
    engine._out += [PLAIN + b"\r\n"]
    engine.take_output()
    engine.feed(b"235 2.7.0 fine\r\n")
    assert lines[4:] == ["> AUTH PLAIN ***", "< ***", "> ***", "< 235 2.7.0 fine"]
