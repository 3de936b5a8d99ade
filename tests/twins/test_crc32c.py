"""CRC-32C: native (with and without the instruction) against the twin, and the vectors of RFC 3720 B.4."""

import random

import pytest

from iems._native import crc32c_py

native = pytest.importorskip("iems._native.crc32c")

VECTORS = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"123456789", 0xE3069283),
    (b"", 0),
]


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_vectors(data: bytes, expected: int) -> None:
    assert native.crc32c(data) == native.crc32c_table(data) == crc32c_py.crc32c(data) == expected


def test_lengths_and_alignment() -> None:
    rng = random.Random(3720)
    data = rng.randbytes(60_000)
    view = memoryview(data)
    for _ in range(300):
        start = rng.randrange(64)
        length = rng.choice((rng.randrange(64), rng.randrange(1200), rng.randrange(700, 26000)))
        piece = view[start : start + length]
        assert native.crc32c(piece) == native.crc32c_table(piece)
    for length in (0, 1, 7, 8, 767, 768, 769, 24575, 24576, 24577, 50000):
        assert native.crc32c(view[3 : 3 + length]) == crc32c_py.crc32c(view[3 : 3 + length])


def test_pieces_add_up() -> None:
    rng = random.Random(4)
    data = rng.randbytes(5000)
    for side in (native, crc32c_py):
        crc = 0
        at = 0
        while at < len(data):
            step = rng.randrange(1, 900)
            crc = side.crc32c(data[at : at + step], crc)
            at += step
        assert crc == native.crc32c(data)
