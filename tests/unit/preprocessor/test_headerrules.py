"""Rules about header fields: what fits, what is refused, what becomes of mail."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.directory import Directory
from iems.directory.entries import DirectoryRefusal
from iems.message.headerrules import Rule, Rules, Trial, compiled
from iems.model import Channel, Envelope, Recipient
from iems.preprocessor.modules import Work
from iems.preprocessor.modules.headerrules import HeaderRules
from iems.preprocessor.route import Part

HEAD = b"From: a@b\r\nSubject: =?utf-8?q?you_have_w=C3=B6n?=\r\n a prize\r\nX: one\r\nx: two\r\n\r\nSubject: body\r\n"


def rule(pattern, field="subject", action="tag", name="r", draft=False):
    return Rule(name, field, pattern, action, draft)


def test_what_fits():
    assert Rules([rule("have wön a prize$")]).first(HEAD)[1] == "you have wön a prize"
    assert Rules([rule("^two$", "x")]).first(HEAD)[1] == "two", "every field of the name"
    assert Rules([rule("body")]).first(HEAD) is None and Rules([rule("x", "to")]).first(b"") is None
    assert Rules([rule("(?i)YOU"), rule("won", name="second")]).first(HEAD)[0].name == "r"
    assert not Rules([rule("x", draft=True)])


def test_time_is_linear():
    started = time.process_time()
    assert Rules([rule(r"^(a+)+$")]).first(b"Subject: " + b"a" * 9_000 + b"!\r\n\r\n") is None
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("pattern", ["(?=x)", r"(a)\1", "[", "((a{1000}){1000}){1000}"])
def test_patterns_that_are_refused(pattern):
    with pytest.raises(ValueError, match=r"."):
        compiled(pattern)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_octets(octets):
    rules = Rules([rule(".*"), rule("a", "x")])
    for head in (octets, b"Subject: " + octets):
        found = rules.first(head)
        assert found is None or isinstance(found[1], str)


@pytest.mark.parametrize("action", ["tag", "discard", "bounce", "quarantine", "ignore"])
def test_actions(action):
    recipient = Recipient(b"a@x")
    module = HeaderRules(lambda: Rules([rule("wön", action=action)]))
    envelope = Envelope(Channel.SMTPD, b"s@t", [recipient], 0)
    assert module.wants(envelope) and not module.wants(Envelope(Channel.MTA, b"", [recipient], 0))
    work = Work(b"", envelope, [Part(Channel.LOCAL, "", [recipient], [recipient])], [HEAD],
                lambda rope, start, length: b"".join(rope)[start : start + length], None)  # fmt: skip
    verdict = asyncio.run(module.examine(work))
    assert bool(verdict.tags) == (action == "tag") and bool(verdict.discarded) == (action == "discard")
    assert bool(verdict.failed) == (action == "bounce") and bool(verdict.quarantine) == (action == "quarantine")
    assert verdict.note == f"r: {action}"
    work.released = True
    assert asyncio.run(module.examine(work)).note.startswith("released")


def test_in_the_directory(tmp_path):
    directory = Directory(tmp_path, create=True)
    with pytest.raises(DirectoryRefusal, match="never tested"):
        directory.add_header_rule("Two", "Subject:", "x", "bounce")
    directory.add_header_rule("Two", "Subject:", "x", "bounce", untested=True)
    directory.add_header_rule("one", "X-Y", "y", "tag", True)
    directory.add_header_rule("two", "To", "z", "discard", untested=True)
    assert directory.header_rules() == [Rule("two", "to", "z", "discard"), Rule("one", "x-y", "y", "tag", True)]
    for bad in (("n n", "To", "x", "tag"), ("n", "T o", "x", "tag"), ("n", "To", "", "tag"), ("n", "To", "(", "tag"), ("n", "To", "x", "eat")):
        with pytest.raises(DirectoryRefusal):
            directory.add_header_rule(*bad)
    directory.remove_header_rule("TWO")
    with pytest.raises(DirectoryRefusal):
        directory.remove_header_rule("two")
    assert len(directory.header_rules()) == 1
    directory.close()


def test_tested_before_it_acts(tmp_path):
    directory = Directory(tmp_path, create=True)
    given = ("r", "Subject", "x", "discard")
    directory.add_header_rule(*given, draft=True)
    [draft] = directory.header_rules()
    for action in ("discard", "bounce", "quarantine"):
        with pytest.raises(DirectoryRefusal, match="never tested"):
            directory.add_header_rule("r", "Subject", "x", action)
    assert directory.header_rules() == [draft]
    directory.add_header_rule("r", "Subject", "x", "tag")
    tested = Trial(1_700_000_000, 7, 100, 3)
    directory.note_header_rule_test(draft, tested)
    directory.add_header_rule(*given)
    assert directory.header_rules() == [Rule("r", "subject", "x", "discard", False, tested)]
    with pytest.raises(DirectoryRefusal, match="never tested"):
        directory.add_header_rule("r", "Subject", "y", "discard")
    directory.add_header_rule("r", "Subject", "y", "discard", draft=True)
    directory.note_header_rule_test(draft, tested)
    assert directory.header_rules() == [Rule("r", "subject", "y", "discard", True)], "a test of what it was before"
    directory.close()
