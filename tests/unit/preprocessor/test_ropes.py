"""Lines in front and pieces left out, against the same on octets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iems.model import Extent
from iems.preprocessor.ropes import INLINE_OCTETS, in_front, replaced

BLOB = bytes(range(256)) * 4


def read(rope):
    return b"".join(piece if isinstance(piece, bytes) else BLOB[piece.offset : piece.offset + piece.length] for piece in rope)


PIECE = st.one_of(st.binary(max_size=30), st.builds(Extent, st.just(1), st.integers(0, 900), st.integers(0, 60)))


@given(st.lists(PIECE, max_size=5), st.lists(st.integers(0, 200), max_size=8, unique=True))
def test_left_out(rope, cuts):
    cuts = sorted(cuts)[: len(cuts) // 2 * 2]
    spans = list(zip(cuts[::2], cuts[1::2], strict=True))
    octets = read(rope)
    kept = bytes(o for at, o in enumerate(octets) if not any(low <= at < high for low, high in spans))
    found = replaced(rope, [(low, high, ()) for low, high in spans])
    assert read(found) == kept and all(isinstance(one, Extent) or one for one in found if one not in rope)


def test_in_front():
    rope = in_front(b"x" * (INLINE_OCTETS + 1), [Extent(1, 0, 9)])
    assert [len(one) if isinstance(one, bytes) else one for one in rope] == [INLINE_OCTETS, 1, Extent(1, 0, 9)]
    assert in_front(b"", [b"y"]) == [b"y"]
