"""MailSort: the simple rules of a user and his vacation answer, kept as a Sieve script that can be read back.

The script begins with the rules as comments and is written from them. Whoever edits the Sieve by hand breaks that tie, and is
told so before the rules overwrite anything. What users write reaches the script in JSON or in quoted strings only.
"""

from __future__ import annotations

import json
import re
from datetime import date
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from iems.errors import IemsError, StoreError
from iems.imap.mailboxes import checked
from iems.sieve.commands import VACATION_DAYS as DAYS
from iems.sieve.commands import address_problem

#: The name of the script that holds the rules.
NAME: Final = "mailsort"
RULES_MAX: Final = 100
PATTERN_MAX: Final = 200
REASON_MAX: Final = 1_000
BODY_MAX: Final = 16_000
DAYS_MAX: Final = 365
VACATION_DAYS: Final = DAYS

_MARK: Final = "# MailSort 1. Written from the rules below; edited by hand it is a script like any other.\n"
_RULE: Final = "# rule "
_VACATION: Final = "# vacation "
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TEXT_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

Header = Literal["from", "to", "cc", "bcc", "subject"]
ActionName = Literal["move", "copy", "forward", "vacation", "reject"]
HEADERS: Final = ("from", "to", "cc", "bcc", "subject")
ACTIONS: Final = ("move", "copy", "forward", "vacation", "reject")


class RuleRefused(IemsError):
    """A rule or vacation answer that can't be."""


class Rule(Struct, frozen=True):
    """One rule. contains: what the header has in it, in any case of letters. target: mailbox, address or reason; "" for vacation.

    proceed: go on to the rules behind it ("filter continuously").
    """

    header: Header
    contains: str
    action: ActionName
    target: str = ""
    proceed: bool = False


class Answer(Struct, frozen=True):
    """The vacation answer. first, last: the days it is given, as 2026-12-24, "" for no limit. all: to all mail, else only
    where a rule says so. days: once a sender in so many days."""

    subject: str
    body: str
    first: str = ""
    last: str = ""
    all: bool = True
    days: int = DAYS


class MailSort(Struct):
    """What one user has set. edited: the script was changed by hand, so it no longer does what the rules say."""

    rules: list[Rule]
    answer: Answer | None = None
    edited: bool = False


def check_rule(rule: Rule) -> Rule:
    """The rule, if it can be kept. Raises RuleRefused."""
    if rule.header not in HEADERS or rule.action not in ACTIONS:
        raise RuleRefused(f"a rule looks at one of {', '.join(HEADERS)} and does one of {', '.join(ACTIONS)}")
    if not rule.contains.strip() or len(rule.contains) > PATTERN_MAX:
        raise RuleRefused(f"a pattern has 1 to {PATTERN_MAX} characters")
    if _CONTROL.search(rule.contains):
        raise RuleRefused("a pattern can't hold line ends or other control characters")
    if rule.action in ("move", "copy"):
        try:
            checked(rule.target)
        except StoreError as error:
            raise RuleRefused(f"{rule.target[:60]!r} is no mailbox: {error}") from None
    elif rule.action == "forward":
        if wrong := address_problem(rule.target):
            raise RuleRefused(wrong)
    elif rule.action == "reject":
        if not rule.target.strip() or len(rule.target) > REASON_MAX or _TEXT_CONTROL.search(rule.target):
            raise RuleRefused(f"reject needs a reason of at most {REASON_MAX} characters, without control characters")
    elif rule.target:
        raise RuleRefused("vacation takes no target: its text is set with `iemsuser vacation set`")
    return rule


def check_answer(answer: Answer) -> Answer:
    """The answer, if it can be given. Raises RuleRefused."""
    if _CONTROL.search(answer.subject) or len(answer.subject) > 200:
        raise RuleRefused("a subject is one line of at most 200 characters, without control characters")
    if not answer.body.strip() or len(answer.body) > BODY_MAX or _TEXT_CONTROL.search(answer.body):
        raise RuleRefused(f"the text has 1 to {BODY_MAX} characters, none of them control characters")
    if not 1 <= answer.days <= DAYS_MAX:
        raise RuleRefused(f"days is 1 to {DAYS_MAX}")
    for text in (answer.first, answer.last):
        if text:
            _day(text)
    if answer.first and answer.last and answer.first > answer.last:
        raise RuleRefused("the last day is before the first")
    return answer


def _day(text: str) -> date:
    try:
        if len(text) == 10:
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise RuleRefused(f"{text[:20]!r} is no day: write 2026-12-24")


def write(sort: MailSort) -> str:
    """The script. Raises RuleRefused for rules that can't be kept."""
    return "".join(_written(sort)[0]).replace("\n", "\r\n")


def _written(sort: MailSort) -> tuple[list[str], list[int]]:
    """The pieces of the script, and the lines on which its rules begin."""
    if len(sort.rules) > RULES_MAX:
        raise RuleRefused(f"at most {RULES_MAX} rules")
    rules, answer = [check_rule(rule) for rule in sort.rules], sort.answer
    if answer is not None:
        check_answer(answer)
    elif any(rule.action == "vacation" for rule in rules):
        raise RuleRefused("a rule sends the vacation answer: set one first with `iemsuser vacation set`")
    lines = [_MARK]
    lines += [_RULE + _json(rule) + "\n" for rule in rules]
    if answer is not None:
        lines.append(_VACATION + _json(answer) + "\n")
    needs = _needs(rules, answer)
    if needs:
        lines.append(f"require [{', '.join(_quoted(name) for name in needs)}];\n")
    if answer is not None and answer.all:
        lines += ["\n", *_answered(answer, "")]
    starts = []
    for number, rule in enumerate(rules, 1):
        starts.append("".join(lines).count("\n") + 2)
        lines += [
            f"\n# {number}\n",
            f"if header :contains {_quoted(rule.header.capitalize())} {_keys(rule.contains)} {{\n",
        ]
        lines += [f"    {line}" for line in _effect(rule, answer)]
        lines += ["}\n"] if rule.proceed else ["    stop;\n", "}\n"]
    return lines, starts


def _needs(rules: list[Rule], answer: Answer | None) -> list[str]:
    actions = {rule.action for rule in rules}
    needs = []
    if actions & {"copy", "forward"}:
        needs.append("copy")
    if answer is not None and (answer.first or answer.last) and (answer.all or "vacation" in actions):
        needs += ["date", "relational"]
    if actions & {"move", "copy"}:
        needs += ["fileinto", "mailbox"]
    if "reject" in actions:
        needs.append("reject")
    if answer is not None and (answer.all or "vacation" in actions):
        needs.append("vacation")
    return needs


def _json(value: Any) -> str:
    return json.dumps(msgspec.to_builtins(value), separators=(",", ":"))


def _quoted(text: str) -> str:
    """A string of Sieve; line ends within are CRLF once the script is written."""
    return '"' + re.sub(r"\r\n?", "\n", text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _keys(pattern: str) -> str:
    """The keys of a test: comparators fold ASCII only, so other letters are looked for in both cases."""
    forms = [pattern] if pattern.isascii() else list(dict.fromkeys((pattern, pattern.lower(), pattern.upper())))
    return _quoted(forms[0]) if len(forms) == 1 else "[" + ", ".join(map(_quoted, forms)) + "]"


def _effect(rule: Rule, answer: Answer | None) -> list[str]:
    if rule.action == "move":
        return [f"fileinto :create {_quoted(rule.target)};\n"]
    if rule.action == "copy":
        return [f"fileinto :copy :create {_quoted(rule.target)};\n"]
    if rule.action == "forward":
        return [f"redirect :copy {_quoted(rule.target)};\n"]
    if rule.action == "reject":
        return [f"reject {_quoted(rule.target)};\n"]
    assert answer is not None
    return _answered(answer, "    ")


def _answered(answer: Answer, indent: str) -> list[str]:
    subject = f" :subject {_quoted(answer.subject)}" if answer.subject else ""
    command = f'vacation :days {answer.days}{subject} :handle "mailsort" {_quoted(answer.body)};\n'
    tests = []
    if answer.first:
        tests.append(f'currentdate :value "ge" "date" {_quoted(answer.first)}')
    if answer.last:
        tests.append(f'currentdate :value "le" "date" {_quoted(answer.last)}')
    if not tests:
        return [command]
    test = tests[0] if len(tests) == 1 else f"allof({', '.join(tests)})"
    return [f"if {test} {{\n", f"{indent}    {command}", f"{indent}}}\n" if indent else "}\n"]


def rule_lines(text: str) -> tuple[int, ...]:
    """The lines (from 1) on which the rules begin; none if the script is not as `write` made it."""
    sort = read(text)
    if sort is None or sort.edited:
        return ()
    return tuple(_written(sort)[1])


def read(text: str) -> MailSort | None:
    """The rules in a script; None if it was not written by `write`, or its rules can't be read any more."""
    text = text.replace("\r\n", "\n")
    if not text.startswith(_MARK):
        return None
    rules: list[Rule] = []
    answer: Answer | None = None
    try:
        for line in text[len(_MARK) :].split("\n"):
            if line.startswith(_RULE):
                rules.append(msgspec.json.decode(line[len(_RULE) :], type=Rule))
            elif line.startswith(_VACATION):
                answer = msgspec.json.decode(line[len(_VACATION) :], type=Answer)
            else:
                break
        sort = MailSort(rules, answer)
        sort.edited = write(sort).replace("\r\n", "\n") != text
    except (msgspec.DecodeError, RuleRefused):
        return None
    return sort
