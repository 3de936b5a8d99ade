"""MailSort rules as scripts and back, and the file of a user's scripts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sievelib.parser import Parser

from iems.sieve import Environment, ScriptError, compile_script, run
from iems.sieve.actions import Action, FileInto, Keep, Redirect, Reject, Vacation
from iems.sieve.mailsort import Answer, MailSort, Rule, RuleRefused, read, write
from iems.sieve.message import ContentMessage
from iems.store.scripts import Active, Refused, Scripts, folder

AWAY = Answer('Away "now"', "Back soon.\n\\ and \"quotes\" ${x}", "2026-12-20", "2026-12-31")


def apply(sort: MailSort, head: str, day: int = 24) -> list[Action]:
    environment = Environment(now=datetime(2026, 12, day, tzinfo=UTC))
    outcome = run(compile_script(write(sort)), ContentMessage(head.encode() + b"\r\n\r\n", "a@b.c", "me@x.y"), environment)
    assert not outcome.error
    return outcome.actions


def test_each_header_and_action_and_their_order() -> None:
    sort = MailSort(
        [
            Rule("subject", "copy", "copy", "Copies", True),
            Rule("from", "ANN@", "move", "Friends/Ann"),
            Rule("to", "sales", "forward", "boss@x.y", True),
            Rule("cc", "jörg", "reject", "not\nyou"),
            Rule("bcc", "hidden", "move", "Hidden"),
        ]
    )
    assert apply(sort, "Subject: a COPY") == [FileInto("Copies", create=True), Keep()]
    assert apply(sort, "From: Ann <ann@b.c>\r\nTo: sales\r\nSubject: copy") == [
        FileInto("Copies", create=True), FileInto("Friends/Ann", create=True),
    ]  # fmt: skip
    assert apply(sort, "To: sales@x.y") == [Redirect("boss@x.y"), Keep()]
    assert apply(sort, "Cc: =?utf-8?q?J=C3=96RG?= <j@x.y>") == [Reject("not\r\nyou")]
    assert apply(sort, "Bcc: hidden@x.y") == [FileInto("Hidden", create=True)]
    sort.rules[0], sort.rules[1] = sort.rules[1], sort.rules[0]
    assert apply(sort, "From: ann@b.c\r\nSubject: copy") == [FileInto("Friends/Ann", create=True)]


def test_vacation_days_and_rules() -> None:
    sort = MailSort([Rule("subject", "x", "reject", "no"), Rule("from", "ann", "vacation")], AWAY)
    answer = Vacation('Back soon.\r\n\\ and "quotes" ${x}', 7 * 86400, 'Away "now"', handle="mailsort")
    assert apply(sort, "From: ann@b.c") == [answer, Keep()]
    assert apply(sort, "From: ann@b.c", 19) == apply(sort, "From: ann@b.c", 1) == [Keep()]
    assert apply(sort, "From: bob@b.c", 31) == [answer, Keep()]
    assert apply(sort, "Subject: x") == [Reject("no")]
    sort.answer = Answer("s", "b", all=False)
    assert apply(sort, "From: bob@b.c") == [Keep()]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.builds(Rule, st.sampled_from(["from", "subject"]), _TEXT, st.sampled_from(["move", "forward", "reject", "vacation"]),
                          _TEXT, st.booleans()), max_size=4), st.one_of(st.none(), st.builds(Answer, _TEXT, _TEXT)))  # fmt: skip
def test_whatever_is_kept_compiles_and_reads_back(rules: list[Rule], answer: Answer | None) -> None:
    sort = MailSort(rules, answer)
    try:
        text = write(sort)
    except RuleRefused:
        return
    compile_script(text)
    assert read(text) == read(text.replace("\r\n", "\n")) == sort


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (Rule("from", "a\r\nkeep;", "move", "X"), "line ends"),
        (Rule("from", " ", "move", "X"), "pattern"),
        (Rule("from", "a" * 201, "move", "X"), "pattern"),
        (Rule("from", "a", "move", "X\n"), "no mailbox"),
        (Rule("from", "a", "move", "a//b"), "no mailbox"),
        (Rule("from", "a", "forward", "a@b.c\r\nBcc: x@y.z"), "no address"),
        (Rule("from", "a", "forward", ""), "no address"),
        (Rule("from", "a", "reject", ""), "reason"),
        (Rule("from", "a", "vacation", "x"), "target"),
        (Rule("x-odd", "a", "move", "X"), "looks at"),  # type: ignore[arg-type]
    ],
)
def test_refused_rules(rule: Rule, error: str) -> None:
    with pytest.raises(RuleRefused, match=error):
        write(MailSort([rule]))


def test_refused_answers() -> None:
    for answer in (Answer("a\nb", "c"), Answer("", ""), Answer("", "b", "soon"), Answer("", "b", "2026-12-31", "2026-12-01"), Answer("", "b", days=0)):
        with pytest.raises(RuleRefused):
            write(MailSort([], answer))
    with pytest.raises(RuleRefused, match="set one first"):
        write(MailSort([Rule("from", "a", "vacation")]))


def test_other_parsers_read_what_we_write() -> None:
    rules = [Rule("subject", 'q"\\x', "copy", "C", True), Rule("to", "jörg", "forward", "a@b.c"), Rule("cc", "x", "vacation")]
    parser = Parser()
    assert parser.parse(write(MailSort(rules, AWAY))), parser.error


def test_edits_by_hand_are_seen() -> None:
    text = write(MailSort([Rule("from", "a", "move", "X")]))
    found = read(text)
    assert found is not None and not found.edited
    edited = read(text.replace("stop;", "# stop;"))
    assert edited is not None and edited.edited and edited.rules == found.rules
    assert read("keep;") is None
    assert read(text.replace('"from"', '"nope"', 1)) is None


def test_scripts_are_kept_durably_and_one_is_active(tmp_path: Path) -> None:
    noted: list[bool] = []
    scripts = Scripts(folder(tmp_path, "../a/b@x.y", 7), noted.append)
    assert tmp_path in scripts.place.parents and "/a/" not in str(scripts.place.relative_to(tmp_path))
    active = Active(tmp_path)
    assert active.script("../a/b@x.y", 7) is None
    with pytest.raises(ScriptError):
        scripts.put("bad", "nope;")
    assert not scripts.place.exists()  # nothing half written
    scripts.put("one", "keep;")
    scripts.put("two", "discard;", activate=True)
    first = active.script("../a/b@x.y", 7)
    assert first is not None and active.script("../a/b@x.y", 7) is first
    scripts.put("two", "stop;")
    assert active.script("../a/b@x.y", 7) is not first
    for change, code in (
        (lambda: scripts.delete("two"), "ACTIVE"), (lambda: scripts.delete("no"), "NONEXISTENT"), (lambda: scripts.activate("no"), "NONEXISTENT"),
        (lambda: scripts.rename("one", "two"), "ALREADYEXISTS"), (lambda: scripts.rename("no", "x"), "NONEXISTENT"), (lambda: scripts.get("no"), "NONEXISTENT"),
        (lambda: scripts.put("a\nb", "keep;"), ""), (lambda: scripts.put("", "keep;"), ""), (lambda: scripts.room("x", 70_000), "QUOTA/MAXSIZE"),
    ):  # fmt: skip
        with pytest.raises(Refused) as caught:
            change()
        assert caught.value.code == code
    scripts.rename("two", "three")
    assert scripts.read().active == "three" and scripts.get("three") == "stop;"
    scripts.activate("")
    assert active.script("../a/b@x.y", 7) is None
    scripts.delete("one", even_active=True)
    assert noted[0] is False and True in noted and noted[-1] is False
    for number in range(15):
        scripts.put(f"s{number}", "keep;")
    with pytest.raises(Refused, match="at most 16"):
        scripts.put("more", "keep;")
    scripts.remove_all()
    assert scripts.read().scripts == {}
