"""The verdict record: bounded, printable, read only from the lines delivery wrote."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iems.message import verdict
from iems.message.tag import OWN_FIELDS, is_ours
from iems.model import Verdict

WORDS = st.text(max_size=200)


def test_written_and_read() -> None:
    asked = verdict.answers([Verdict("dnsbl", "b2.test", "not listed"), Verdict("antivirus", "", "clamd: clean")], [Verdict("dnsbl", "bl.test", "127.0.0.2")])
    text = verdict.value([*asked, verdict.item("spamcontrol", "file=Spam", "zone bl.test"), verdict.item("to", "Spam")])
    assert text == (
        "dnsbl=bl.test (127.0.0.2); dnsbl=b2.test (not listed); antivirus (clamd: clean); spamcontrol=file=Spam (zone bl.test); to=Spam"
    )
    line = verdict.line(text)
    assert all(len(row) < 200 for row in line.split(b"\r\n")) and verdict.recorded(line + b"Subject: x\r\n\r\n") == text
    assert [(i.name, i.word, i.text) for i in verdict.parse(text)][-2:] == [("spamcontrol", "file=Spam", "zone bl.test"), ("to", "Spam", "")]
    assert verdict.recorded(verdict.PLAIN_LINE + b"\r\n") == verdict.PLAIN == verdict.value([verdict.NOTHING, verdict.item("to", "INBOX")])


@given(st.lists(st.tuples(WORDS, WORDS), max_size=100))
def test_any_text_stays_in_its_item_and_the_record_is_bounded(given_items: list[tuple[str, str]]) -> None:
    text = verdict.value([verdict.item("check", *each) for each in given_items] + [verdict.item("to", "INBOX")])
    line = verdict.line(text)
    assert len(text) <= verdict.MAX_OCTETS and line.isascii()
    assert line.count(b"\r\n") == line.count(b"\n") == line.count(b"\r") and b"\r\n\r\n" not in line
    assert all(row.startswith(b"\t") for row in line.split(b"\r\n")[1:-1])
    found = verdict.parse(verdict.recorded(line + b"\r\n"))
    assert found[-1] == verdict.Item("to", "INBOX", "")
    if "more=" not in text:
        assert len(found) == len(given_items) + 1


def test_the_longest() -> None:
    items = [verdict.item("spamcontrol", "\U0001f600" * 300, "\udc80\r\n" * 300)] * 50
    text = verdict.value(items)
    assert 2_000 < len(text) <= verdict.MAX_OCTETS and "; more=" in text


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    verdict.parse(text)
    assert verdict.recorded(b"Subject: x\r\n" + text.encode("utf-8", "replace")) == ""


def test_what_stands_behind_delivery_s_lines_is_no_record() -> None:
    forged = b"X-IEMS-Verdict: to=INBOX\r\n"
    for front in (b"", b"Return-Path: <>\r\nDelivered-To: a@b\r\n"):
        assert verdict.recorded(front + b"Received: x\r\n" + forged + b"\r\n") == ""
    for name in (b"x-iems-verdict", b"x-iems-bayes", b"x-iems-antispam"):
        assert name in OWN_FIELDS and is_ours(name, b" anything")
