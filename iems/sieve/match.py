"""Comparators (RFC 4790) and match types (RFC 5228 2.7, relational RFC 5231, regex).

Patterns of users run on RE2 alone: linear time whatever they are. Values are text; octets of i;octet are their UTF-8.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import re2
from msgspec import Struct

from iems.sieve.errors import RunError

if TYPE_CHECKING:
    from iems.sieve.run import Run

#: Memory of one pattern at most (as many are kept as the caches below hold), and characters in one.
PATTERN_OCTETS = 1 << 19
PATTERN_MAX = 4_096

_UPPER = {code: code + 32 for code in range(65, 91)}
_DIGITS = re.compile(r"[0-9]+")

OCTET = "i;octet"
CASEMAP = "i;ascii-casemap"
NUMERIC = "i;ascii-numeric"
COMPARATORS = (OCTET, CASEMAP, NUMERIC)

RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le, "eq": operator.eq, "ne": operator.ne,
}  # fmt: skip


def casemap(text: str) -> str:
    """The text with A to Z as a to z (i;ascii-casemap); as many characters as before."""
    return text.lower() if text.isascii() else text.translate(_UPPER)


def numeric(text: str) -> float:
    """The number a text begins with (i;ascii-numeric): infinity if it begins with none."""
    digits = _DIGITS.match(text)
    return math.inf if digits is None else int(digits[0]) if len(digits[0]) < 400 else math.inf


def _same(text: str) -> str:
    return text


_KEYS: dict[str, Callable[[str], Any]] = {OCTET: _same, CASEMAP: casemap, NUMERIC: numeric}


def _options(ignore_case: bool) -> Any:
    options = re2.Options()
    options.max_mem = PATTERN_OCTETS
    options.log_errors = False
    options.case_sensitive = not ignore_case
    return options


@lru_cache(maxsize=128)
def wildcard(pattern: str) -> Any:
    """The RE2 of a pattern with * and ? (RFC 5228 2.7.1), each a group that takes as little as it can."""
    out = [r"(?s)\A"]
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\" and at + 1 < len(pattern):
            at += 1
            out.append(re2.escape(pattern[at]))
        elif char == "*":
            # Two stars in a row take what one takes; the second group is empty.
            out.append("(.*?)")
        else:
            out.append("(.)" if char == "?" else re2.escape(char))
        at += 1
    out.append(r"\z")
    return compiled.__wrapped__("".join(out), False)


@lru_cache(maxsize=128)
def compiled(pattern: str, ignore_case: bool) -> Any:
    """The RE2 of an expression. Raises ValueError for one that is none, or too large."""
    if len(pattern) > PATTERN_MAX * 4:
        raise ValueError("the pattern is too long")
    try:
        return re2.compile(pattern, _options(ignore_case))
    except re2.error as error:
        why = error.args[0] if error.args else ""
        raise ValueError(why.decode("utf-8", "replace") if isinstance(why, bytes) else str(why)) from None
    except UnicodeError:
        raise ValueError("the pattern is no Unicode text") from None


class Matcher(Struct, frozen=True):
    """How values are compared with keys. kind: is, contains, matches, regex, value or count. capture: sets ${1}... (RFC 5229)."""

    kind: str = "is"
    comparator: str = CASEMAP
    relation: str = ""
    capture: bool = False

    def __call__(self, run: Run, values: Sequence[str], keys: Sequence[str]) -> bool:
        """Whether any of the values matches any of the keys. Raises RunError."""
        if self.kind == "count":
            return self.counted(run, len(values), keys)
        key_of = _KEYS[self.comparator]
        kind = self.kind
        if kind in ("matches", "regex"):
            return any(self._pattern(run, value, key) for value in values for key in keys)
        if kind == "value":
            relate = RELATIONS[self.relation]
            run.spend(20 * len(values) * len(keys))
            return any(relate(key_of(value), key_of(key)) for value in values for key in keys)
        folded = [key_of(key) for key in keys]
        for value in values:
            run.spend(len(value) // 16 + 5 + len(folded) * (2 if kind == "is" else 2 + len(value) // 64))
            own = key_of(value)
            if own in folded if kind == "is" else any(key in own for key in folded):
                return True
        return False

    def counted(self, run: Run, count: int, keys: Sequence[str]) -> bool:
        """As `:count` compares (RFC 5231 4.2)."""
        run.spend(len(keys))
        relate = RELATIONS[self.relation]
        if self.comparator == NUMERIC:
            return any(relate(count, numeric(key)) for key in keys)
        key_of = _KEYS[self.comparator]
        return any(relate(str(count), key_of(key)) for key in keys)

    def _pattern(self, run: Run, value: str, key: str) -> bool:
        if len(key) > PATTERN_MAX:
            raise RunError("a pattern is too long")
        run.spend(50 + len(key))
        fold = self.comparator == CASEMAP
        try:
            if self.kind == "matches":
                pattern = wildcard(casemap(key) if fold else key)
                text = casemap(value) if fold else value
            else:
                pattern, text = compiled(key, fold), value
            # At its worst RE2 looks at all of its program for each character; what stars and marks become is no such case.
            run.spend(8 * pattern.programsize + len(text) * (1 + pattern.programsize // (16 if self.kind == "matches" else 6)))
            found = pattern.search(text)
        except ValueError as error:
            if isinstance(error, UnicodeError):
                return False  # lone surrogates: no text of any pattern
            raise RunError(f"not a pattern: {error}") from None
        if found is None:
            return False
        if self.capture:
            groups = found.re.groups
            spans = [found.span(number) for number in range(min(groups, 99) + 1)]
            run.matched = [value[start:end] if start >= 0 else "" for start, end in spans]
        return True
