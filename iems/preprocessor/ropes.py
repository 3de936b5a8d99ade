"""Contents edited without a copy: ranges of a rope cut out or replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from iems.model import Extent, Rope

#: Octets of one inline piece.
INLINE_OCTETS: Final = 4096


def in_front(octets: bytes, rope: Rope) -> Rope:
    """`rope` behind `octets`."""
    return [*(octets[at : at + INLINE_OCTETS] for at in range(0, len(octets), INLINE_OCTETS)), *rope]


def behind(rope: Rope, at: int) -> Rope:
    """What of `rope` stands behind its first `at` octets; equal for two ropes only if it is the same octets in the same place."""
    return replaced(rope, [(0, at, ())])


def replaced(rope: Rope, changes: Sequence[tuple[int, int, Sequence[Extent | bytes]]]) -> Rope:
    """A rope in which ranges of octets are replaced. changes: (start, end, new pieces), ascending, not overlapping; a range may be empty."""
    kept: Rope = []
    pieces = iter(rope)
    piece: Extent | bytes = b""
    at = length = done = 0  # offset of the piece in the content, its length, octets of it dealt with

    def advance(until: int | None, keep: bool) -> None:
        """Go on to an offset of the content (None: the end), keeping what is passed or not."""
        nonlocal piece, at, length, done
        while True:
            last = length if until is None else min(until - at, length)
            if last > done:
                if keep:
                    kept.append(_part(piece, done, last, length))
                done = last
            if done < length or (until is not None and at + length >= until):
                return
            following = next(pieces, None)
            if following is None:
                return
            at, done, piece = at + length, 0, following
            length = len(piece) if isinstance(piece, bytes) else piece.length

    for start, end, new in changes:
        advance(start, True)
        kept.extend(new)
        advance(end, False)
    advance(None, True)
    return kept


def _part(piece: Extent | bytes, start: int, end: int, length: int) -> Extent | bytes:
    if start == 0 and end == length:
        return piece
    if isinstance(piece, bytes):
        return piece[start:end]
    return Extent(piece.blob, piece.offset + start, end - start, piece.codec)
