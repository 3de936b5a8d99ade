"""The text of ids: native against Python."""

import random

import pytest

from iems._native import ids_py
from iems.model import id_octets, id_text

ids = pytest.importorskip("iems._native.ids")


def test_the_same_text():
    rng = random.Random(32)
    for number in (0, 1, (1 << 128) - 1, *(rng.getrandbits(128) for _ in range(20_000))):
        octets = number.to_bytes(16, "big")
        assert ids.id_text(octets) == ids_py.id_text(octets), octets
    assert id_octets(id_text(octets)) == octets


def test_wrong_lengths_are_errors():
    for module in (ids, ids_py):
        with pytest.raises(ValueError):
            module.id_text(b"short")
