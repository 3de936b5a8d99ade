"""Rules about header fields, as the directory keeps them: in the order they were added."""

from __future__ import annotations

import re

import msgspec
from msgspec import structs

from iems.directory import keys
from iems.directory.entries import HEADER_RULE, DirectoryRefusal, Entry
from iems.directory.names import rdn
from iems.directory.view import Change, View
from iems.message.headerrules import ACTING, ACTIONS, Rule, Trial, compiled

MAX_RULES = 1_000
MAX_PATTERN = 1_000
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_FIELD = re.compile(r"[!-9;-~]{1,76}\Z")


def rule_of(name: str, field: str, pattern: str, action: str, draft: bool) -> Rule:
    """A rule in normal form. Raises DirectoryRefusal."""
    name, field = name.lower(), field.removesuffix(":").lower()
    if not _NAME.match(name):
        raise DirectoryRefusal(f"a name is letters, digits, '.', '_' and '-', at most 64, not {name!a}")
    if not _FIELD.match(field):
        raise DirectoryRefusal(f"not a header field: {field!a}")
    if not pattern or len(pattern) > MAX_PATTERN or not pattern.isprintable():
        raise DirectoryRefusal(f"a pattern has 1 to {MAX_PATTERN} printable characters")
    if action not in ACTIONS:
        raise DirectoryRefusal(f"an action is {', '.join(ACTIONS)}, not {action!a}")
    try:
        compiled(pattern)
    except ValueError as error:
        raise DirectoryRefusal(f"not a pattern RE2 takes: {error}") from error
    return Rule(name, field, pattern, action, draft)


def rules(view: View) -> list[Rule]:
    """All of them, in order."""
    return [
        _rule(entry)
        for _, entry in view.of_class(keys.CLASS_HEADER_RULE)
    ]


def _rule(entry: Entry) -> Rule:
    said = entry.first("iemsTested")
    tested = msgspec.json.decode(said, type=Trial) if said else None
    return Rule(
        entry.lookup, entry.first("iemsField"), entry.first("iemsPattern"), entry.first("iemsAction"), entry.first("iemsDraft") == "TRUE", tested
    )


def _values(rule: Rule) -> dict[str, list[str]]:
    return {
        "cn": [rule.name], "iemsField": [rule.field], "iemsPattern": [rule.pattern], "iemsAction": [rule.action],
        "iemsDraft": ["TRUE"] if rule.draft else [], "iemsTested": [msgspec.json.encode(rule.tested).decode()] if rule.tested else [],
    }  # fmt: skip


def add(work: Change, rule: Rule, untested: bool) -> None:
    """Add a rule, last, or change the one of this name in its place; a test of the same field and pattern still counts.

    untested: it may act though it was never tested. Raises DirectoryRefusal.
    """
    found = work.find(keys.KIND_HEADER_RULE, rule.name)
    if found is not None:
        known = _rule(found[1])
        if (known.field, known.pattern) == (rule.field, rule.pattern):
            rule = structs.replace(rule, tested=known.tested)
    if rule.action in ACTING and not rule.draft and rule.tested is None and not untested:
        raise DirectoryRefusal(f"rule {rule.name!a} was never tested with this field and pattern: add it as a draft, and test it")
    values = _values(rule)
    if found is not None:
        work.replace(*found, values)
        return
    if sum(1 for _ in work.numbers(keys.CLASS_HEADER_RULE)) >= MAX_RULES:
        raise DirectoryRefusal(f"there are {MAX_RULES} rules already")
    folder = work.folder("ou=headerrules")
    work.add(Entry(folder, rdn("cn", rule.name), keys.KIND_HEADER_RULE, rule.name, ["top", HEADER_RULE], values))


def note_test(work: Change, rule: Rule, tested: Trial) -> None:
    """Keep what a test has shown, unless the rule is another by now."""
    found = work.find(keys.KIND_HEADER_RULE, rule.name)
    if found is not None and ((known := _rule(found[1])).field, known.pattern) == (rule.field, rule.pattern):
        work.replace(*found, _values(structs.replace(known, tested=tested)))


def remove(work: Change, name: str) -> None:
    """Take a rule away. Raises DirectoryRefusal."""
    found = work.find(keys.KIND_HEADER_RULE, name.lower())
    if found is None:
        raise DirectoryRefusal(f"there is no rule {name!a}")
    work.remove(*found)
