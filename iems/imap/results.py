"""What a SEARCH, SORT or THREAD is to return (RFC 4731, 5182, 5267, 9394) and how it is written."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from iems.imap import sequence
from iems.imap.grammar import Arguments, Bad
from iems.imap.response import string

#: Options without arguments.
_OPTIONS = frozenset((b"MIN", b"MAX", b"ALL", b"COUNT", b"SAVE", b"CONTEXT", b"UPDATE"))


class Returned(Struct, frozen=True):
    """The options of RETURN.

    options: names among MIN MAX ALL COUNT SAVE CONTEXT UPDATE. partial: first and last result wanted, counted from 1,
    or from the end and negative (RFC 9394); None without PARTIAL.
    """

    options: frozenset[bytes] = frozenset((b"ALL",))
    partial: tuple[int, int] | None = None

    def cut(self, found: Sequence[int]) -> Sequence[int]:
        """The results PARTIAL asks for, in their order."""
        if self.partial is None:
            return found
        first, last = self.partial
        if first > 0:
            return found[first - 1 : last]
        return found[max(len(found) + last, 0) : max(len(found) + first + 1, 0)]

    def told(self, positions: Sequence[int]) -> Sequence[int]:
        """The positions whose highest mod-sequence is told (RFC 7162 3.1.10): of MIN and MAX alone, only those two."""
        options = self.options
        if not positions or options & {b"ALL", b"COUNT"}:
            return positions
        if self.partial is not None:
            return self.cut(positions)
        if not options & {b"MIN", b"MAX"}:
            return positions
        return [positions[0]] * (b"MIN" in options) + [positions[-1]] * (b"MAX" in options)

    def saved(self, positions: Sequence[int]) -> Sequence[int]:
        """The positions SAVE keeps (RFC 5182 2.4, RFC 9394 3.3)."""
        if self.partial is not None:
            return self.cut(positions)
        return self.told(positions)


def parse(arguments: Arguments) -> Returned | None:
    """`RETURN (...)` and the space behind it; None if it is not there. Raises `Bad`."""
    if arguments.data[arguments.pos : arguments.pos + 8].upper() != b"RETURN (":
        return None
    arguments.pos += 8
    found = set()
    partial = None
    if not arguments.accept(b")"):
        while True:
            word = arguments.word()
            if word == b"PARTIAL":
                if partial is not None:
                    raise Bad("PARTIAL occurs twice")
                arguments.space()
                partial = partial_range(arguments)
            elif word in _OPTIONS:
                found.add(word)
            else:
                raise Bad("Unknown RETURN option")
            if arguments.accept(b")"):
                break
            arguments.space()
    arguments.space()
    if partial is not None and b"ALL" in found:
        raise Bad("PARTIAL and ALL exclude each other")
    if partial is None and not found & {b"MIN", b"MAX", b"ALL", b"COUNT", b"SAVE", b"UPDATE"}:
        found.add(b"ALL")
    return Returned(frozenset(found), partial)


def partial_range(arguments: Arguments) -> tuple[int, int]:
    """`first:last` of PARTIAL, the end nearer to where it counts from first. Raises `Bad`."""
    first = _bound(arguments)
    arguments.expect(b":")
    last = _bound(arguments)
    if (first > 0) != (last > 0):
        raise Bad("A partial range counts from one end")
    return (first, last) if abs(first) <= abs(last) else (last, first)


def _bound(arguments: Arguments) -> int:
    negative = arguments.accept(b"-")
    number = arguments.number()
    if not number:
        raise Bad("A partial range starts at 1")
    return -number if negative else number


def esearch(
    tag: bytes, uid: bool, returned: Returned, numbers: Sequence[int], highest: int = 0, ordered: bool = True
) -> bytes:
    """The ESEARCH response. numbers: all results in their order; ordered: ascending. highest: mod-sequence or 0."""
    options = returned.options
    parts = [b"* ESEARCH (TAG " + string(tag) + b")"]
    if uid:
        parts.append(b"UID")
    if numbers:
        if b"MIN" in options:
            parts.append(b"MIN %d" % (numbers[0] if ordered else min(numbers)))
        if b"MAX" in options:
            parts.append(b"MAX %d" % (numbers[-1] if ordered else max(numbers)))
        if b"ALL" in options:
            parts.append(b"ALL " + sequence.render(numbers))
    if b"COUNT" in options:
        parts.append(b"COUNT %d" % len(numbers))
    if returned.partial is not None:
        chosen = returned.cut(numbers)
        parts.append(b"PARTIAL (%d:%d %b)" % (*returned.partial, sequence.render(chosen) if chosen else b"NIL"))
    if highest and numbers:
        parts.append(b"MODSEQ %d" % highest)
    return b" ".join(parts) + b"\r\n"
