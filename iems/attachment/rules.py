"""Rules about attachments: by media type, by name, by both, with `*` and `?` (product.md 1.3). The first that fits counts.

A rule for `*/*` is meant for every attachment: it stands alone. Type `-` means: by the name only, whatever the type.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from msgspec import Struct

ACTIONS = ("ignore", "tag", "strip", "bounce")
ANY = "*/*"
UNKNOWN = "-"
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


class Rule(Struct, frozen=True):
    """type: a media type pattern, `-` or `*/*`. name: a pattern, `*` for any or none. action: of ACTIONS."""

    type: str
    name: str
    action: str


def normal(name: str) -> str:
    """A name as rules compare it: lower case, no folders, nothing invisible, without the dots and blanks Windows drops at the end."""
    name = re.split(r"[/\\]", _INVISIBLE.sub("", name))[-1]
    return name.rstrip(". ").strip().lower()


def fits(rule: Rule, types: Sequence[str], names: Sequence[str], body: bool) -> bool:
    """Whether a rule is about an attachment. types, names: all it goes by. body: it is the text of the message itself."""
    if rule.type == ANY:
        return not body
    if rule.type != UNKNOWN and not any(fnmatch.fnmatchcase(kind, rule.type) for kind in types):
        return False
    if rule.name == "*":
        return rule.type != UNKNOWN or not body
    return any(fnmatch.fnmatchcase(normal(name), rule.name) for name in names)


def place(rules: Sequence[Rule], types: Sequence[str], names: Sequence[str], body: bool = False) -> int:
    """The place of the first rule that is about an attachment, the number of rules if there is none."""
    for at, rule in enumerate(rules):
        if fits(rule, types, names, body):
            return at
    return len(rules)


def decide(rules: Sequence[Rule], types: Sequence[str], names: Sequence[str], body: bool = False) -> Rule | None:
    """The rule that counts for an attachment, None if there is none or it says to ignore it."""
    at = place(rules, types, names, body)
    return rules[at] if at < len(rules) and rules[at].action != "ignore" else None
