"""Sequence sets (RFC 3501 section 9): from the wire to positions in a mailbox, and sets of numbers back to the wire.

A position is the 0-based index of a message in the selected mailbox: its sequence number less one.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from iems.imap.grammar import STAR as STAR
from iems.imap.grammar import Bad, parse_set
from iems.imap.grammar import Ranges as Ranges

parse = parse_set


def positions(ranges: Ranges, count: int, strict: bool = True) -> Sequence[int]:
    """The positions that message sequence numbers stand for, ascending and each once.

    count: messages in the mailbox. Raises `Bad` for a number beyond it (RFC 9051 6.4.4), unless `strict` is off: SEARCH
    just finds nothing there. `*` and `1:*` in an empty mailbox are nothing rather than an error, because clients ask
    before they look.
    """
    spans = []
    for low, high in ranges:
        if count == 0 and high == STAR and low in (1, STAR):
            continue
        low = count if low == STAR else low
        high = count if high == STAR else high
        if low > high:
            low, high = high, low
        if not 1 <= low <= high <= count:
            if strict:
                raise Bad("Message sequence number beyond the mailbox")
            high = min(high, count)
            if not 1 <= low <= high:
                continue
        spans.append((low - 1, high))
    return _union(spans)


def uid_positions(ranges: Ranges, uids: array[int]) -> Sequence[int]:
    """The positions of the messages whose UIDs are in the set, ascending and each once; unknown UIDs are skipped.

    uids: ascending. `*` is the highest UID there is, so `n:*` always holds the last message (RFC 3501 6.4.8).
    """
    if not uids:
        return range(0)
    last = uids[-1]
    spans = []
    for low, high in ranges:
        low = last if low == STAR else low
        high = last if high == STAR else high
        if low > high:
            low, high = high, low
        start = bisect_left(uids, low)
        stop = bisect_right(uids, high, start)
        if start < stop:
            spans.append((start, stop))
    return _union(spans)


def _union(spans: list[tuple[int, int]]) -> Sequence[int]:
    """Half-open spans as one ascending sequence of positions; a `range` where there is no gap."""
    if not spans:
        return range(0)
    if len(spans) == 1:
        return range(*spans[0])
    spans.sort()
    merged = [spans[0]]
    for start, stop in spans[1:]:
        if start <= merged[-1][1]:
            if stop > merged[-1][1]:
                merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    if len(merged) == 1:
        return range(*merged[0])
    result = array("I")
    for start, stop in merged:
        result.extend(range(start, stop))
    return result


def contains(ranges: Ranges, number: int, last: int) -> bool:
    """Whether a set holds a number, `*` being `last`."""
    for low, high in ranges:
        low = last if low == STAR else low
        high = last if high == STAR else high
        if low <= number <= high or high <= number <= low:
            return True
    return False


def render(numbers: Iterable[int]) -> bytes:
    """Numbers as a sequence set in the order given, runs of successors as `first:last`."""
    parts: list[str] = []
    first = last = -1
    for number in numbers:
        if first >= 0 and number == last + 1:
            last = number
            continue
        if first >= 0:
            parts.append(str(first) if first == last else f"{first}:{last}")
        first = last = number
    if first >= 0:
        parts.append(str(first) if first == last else f"{first}:{last}")
    return ",".join(parts).encode()
