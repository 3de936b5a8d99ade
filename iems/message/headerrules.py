"""Rules about header fields: a regular expression of RE2, which takes time linear in the text whatever the pattern.

The first rule that fits counts. RE2 is imported when there is a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from iems.message.header import fields, header_end
from iems.message.words import decode_words

ACTIONS = ("tag", "discard", "bounce", "quarantine", "ignore")
#: Those after which mail does not arrive: such a rule is tested first.
ACTING = frozenset({"discard", "bounce", "quarantine"})
#: What is looked at: octets of the header, values of one field, characters of each.
HEAD_OCTETS = 256 << 10
VALUES = 1_000
CHARACTERS = 10_000
_MEMORY = 4 << 20


class Trial(Struct, frozen=True):
    """What a test on earlier mail has shown. time_s: when, since 1970. days: how far back. messages: looked at. hits: of the rule."""

    time_s: int
    days: int
    messages: int
    hits: int


class Rule(Struct, frozen=True):
    """field: in lower case. pattern: found anywhere in the decoded value on one line. draft: it does not act yet, it can be tested.

    tested: the last test of this field and pattern, None if there was none.
    """

    name: str
    field: str
    pattern: str
    action: str
    draft: bool = False
    tested: Trial | None = None


def compiled(pattern: str) -> Any:
    """The pattern, ready to search. Raises ValueError if RE2 does not take it."""
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0] if error.args else ""
        raise ValueError(said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)) from error


class Rules:
    """Rules in the order they count, drafts left out."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [(rule, compiled(rule.pattern)) for rule in rules if not rule.draft]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def first(self, head: bytes) -> tuple[Rule, str] | None:
        """The first rule that fits the message that begins with `head`, and the value it fits; None if none does."""
        wanted = {rule.field for rule, _ in self._rules}
        found: dict[str, list[str]] = {}
        for field in fields(head, 0, header_end(head)):
            name = field.name.decode("ascii", "replace")
            if name in wanted and len(values := found.setdefault(name, [])) < VALUES:
                text = decode_words(head[field.value : field.end]).strip()[:CHARACTERS]
                values.append(text.encode("utf-8", "replace").decode("utf-8"))
        for rule, pattern in self._rules:
            for value in found.get(rule.field, ()):
                if pattern.search(value) is not None:
                    return rule, value
        return None
