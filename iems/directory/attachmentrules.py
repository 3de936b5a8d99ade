"""Rules about attachments, as the directory keeps them: in the order they were added."""

from __future__ import annotations

import re

from iems.attachment.rules import ACTIONS, ANY, UNKNOWN, Rule
from iems.directory import keys
from iems.directory.entries import ATTACHMENT, DirectoryRefusal, Entry
from iems.directory.names import rdn
from iems.directory.view import Change, View

MAX_RULES = 1_000
_TYPE = re.compile(r"[a-z0-9!#$&+.^_*?-]{1,80}/[a-z0-9!#$&+.^_*?-]{1,80}\Z")


def rule_of(type: str, name: str, action: str) -> Rule:
    """A rule in normal form. Raises DirectoryRefusal."""
    kind = type.strip().lower() or UNKNOWN
    pattern = name.strip().lower() or "*"
    if kind != UNKNOWN and not _TYPE.match(kind):
        raise DirectoryRefusal(f"a type is like image/png, image/* or -, not {type!a}")
    if len(pattern) > 255 or not pattern.isprintable():
        raise DirectoryRefusal(f"not a pattern for names: {name!a}")
    if action not in ACTIONS:
        raise DirectoryRefusal(f"an action is {', '.join(ACTIONS)}, not {action!a}")
    return Rule(kind, "*" if kind == ANY else pattern, action)


def rules(view: View) -> list[Rule]:
    """All of them, in order."""
    return [
        Rule(entry.first("iemsType"), entry.first("iemsName"), entry.first("iemsAction"))
        for _, entry in view.of_class(keys.CLASS_ATTACHMENT)
    ]


def add(work: Change, rule: Rule) -> None:
    """Add a rule, last; one for every attachment takes the place of all others. Raises DirectoryRefusal."""
    known = list(work.of_class(keys.CLASS_ATTACHMENT))
    if rule.type == ANY:
        for number, entry in known:
            work.remove(number, entry)
        known = []
    elif any(entry.first("iemsType") == ANY for _, entry in known):
        raise DirectoryRefusal("there is a rule for every attachment (*/*); remove it first")
    name = f"{rule.type} {rule.name}"
    found = work.find(keys.KIND_ATTACHMENT, name)
    values = {"cn": [name], "iemsType": [rule.type], "iemsName": [rule.name], "iemsAction": [rule.action]}
    if found is not None:
        work.replace(*found, values)
        return
    if len(known) >= MAX_RULES:
        raise DirectoryRefusal(f"there are {MAX_RULES} rules already")
    folder = work.folder("ou=attachments")
    work.add(Entry(folder, rdn("cn", name), keys.KIND_ATTACHMENT, name, ["top", ATTACHMENT], values))


def remove(work: Change, rule: Rule) -> None:
    """Take a rule away, whatever its action. Raises DirectoryRefusal."""
    found = work.find(keys.KIND_ATTACHMENT, f"{rule.type} {rule.name}")
    if found is None:
        raise DirectoryRefusal(f"there is no rule for type {rule.type} and name {rule.name}")
    work.remove(*found)
