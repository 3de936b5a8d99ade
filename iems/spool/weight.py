"""What leaves first: the weight of a message that waits for a remote host; the lowest is sent first.

weight = precedence * Mp + size * Ms + deferred time * Md, where each of the three is the value of the range it falls into. Values
that rise with the time let mail that waited longer go last; a negative Md turns that round.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from iems.model import rope_length

if TYPE_CHECKING:
    from iems.blobs import Blobs
    from iems.config import Smtpc
    from iems.spool.items import Item

#: Octets of the header looked at for Precedence.
HEAD_OCTETS: Final = 8192
_PRECEDENCE = re.compile(rb"^precedence:[ \t]*(?:\r\n[ \t]+)?([a-z0-9-]{1,40})[ \t]*\r$", re.I | re.M)


def ranges(lines: Sequence[str]) -> list[tuple[float, int]]:
    """The ranges that `LIMIT:VALUE` lines name, the last one `*:VALUE`: (limit, value), rising. Raises ValueError."""
    found: list[tuple[float, int]] = []
    for line in lines:
        bound, _, value = line.partition(":")
        try:
            limit = math.inf if bound.strip() == "*" else float(bound)
            number = int(value)
        except ValueError:
            raise ValueError(f"{line!r} is not LIMIT:VALUE") from None
        if math.isnan(limit) or limit < 0 or abs(number) > 1_000_000:
            raise ValueError(f"{line!r}: a limit is at least 0, a value within a million of it")
        if found and limit <= found[-1][0]:
            raise ValueError(f"{line!r}: limits must rise")
        found.append((limit, number))
    if not found or found[-1][0] != math.inf:
        raise ValueError("the last range must be *:VALUE")
    return found


def words(lines: Sequence[str]) -> dict[str, int]:
    """The values of `WORD:VALUE` lines; `*` stands for every other word and for none. Raises ValueError."""
    found: dict[str, int] = {}
    for line in lines:
        word, _, value = line.partition(":")
        try:
            number = int(value)
        except ValueError:
            raise ValueError(f"{line!r} is not WORD:VALUE") from None
        if not word.strip() or word.strip().lower() in found or abs(number) > 1_000_000:
            raise ValueError(f"{line!r}: each word once, with a value within a million of 0")
        found[word.strip().lower()] = number
    if "*" not in found:
        raise ValueError("*:VALUE is missing")
    return found


def precedence_of(head: bytes) -> str:
    """The word in the Precedence field of a header, in lower case; "" if there is none."""
    match = _PRECEDENCE.search(head.partition(b"\r\n\r\n")[0] + b"\r\n")
    return match[1].decode().lower() if match else ""


class Weights(Struct, frozen=True):
    """The three multipliers, and the values they apply to."""

    precedence: int
    size: int
    deferred: int
    words: dict[str, int]
    sizes: list[tuple[float, int]]
    times: list[tuple[float, int]]

    @classmethod
    def of(cls, config: Smtpc) -> Weights | None:
        """Those of the settings; None if mail leaves in the order in which it falls due."""
        if not (config.weight_precedence or config.weight_size or config.weight_deferred):
            return None
        return cls(
            config.weight_precedence,
            config.weight_size,
            config.weight_deferred,
            words(config.precedence_values),
            ranges(config.size_values),
            ranges(config.deferred_values),
        )

    def weight(self, precedence: str, size_octets: int, deferred_s: float) -> int:
        """The weight of a message. deferred_s: 0 before its first try."""
        found = 0
        if self.precedence:
            found += self.precedence * self.words.get(precedence, self.words["*"])
        if self.size:
            found += self.size * _value(self.sizes, size_octets / 1000)
        if self.deferred:
            found += self.deferred * _value(self.times, deferred_s / 3600)
        return found

    def of_item(self, item: Item, blobs: Blobs, age_s: float) -> int:
        """The weight of an item in the queue. age_s: of its message. A header that can't be read has no precedence."""
        precedence = ""
        length = rope_length(item.rope)
        if self.precedence:
            try:
                precedence = precedence_of(blobs.read_range(item.rope, 0, min(HEAD_OCTETS, length)))
            except (OSError, EOFError):
                pass
        return self.weight(precedence, length, age_s if item.attempts else 0.0)


def _value(found: list[tuple[float, int]], number: float) -> int:
    for limit, value in found:
        if number < limit:
            return value
    return found[-1][1]
