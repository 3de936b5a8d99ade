"""Sequence sets to positions and back."""

import random
from array import array

import pytest

from iems.imap import sequence
from iems.imap.grammar import Bad


def at(text, count):
    return list(sequence.positions(sequence.parse(text), count))


def test_numbers():
    assert at(b"1", 3) == [0]
    assert at(b"3:1", 3) == [0, 1, 2]
    assert at(b"*", 3) == [2]
    assert at(b"2:*,1", 3) == [0, 1, 2]
    assert at(b"*:1", 3) == [0, 1, 2]
    assert at(b"1,3,1:1,3", 3) == [0, 2]
    assert at(b"1:*", 0) == at(b"*", 0) == []


@pytest.mark.parametrize("text", [b"4", b"1:4", b"0"])
def test_beyond(text):
    with pytest.raises(Bad):
        at(text, 3)


def test_search_is_lenient():
    assert list(sequence.positions(sequence.parse(b"2:9,100"), 3, strict=False)) == [1, 2]


@pytest.mark.parametrize(
    "text", [b"", b",", b"1,", b"1:", b":", b"1:2:3", b"a", b"4294967296", b"**", b"1-2", b"00000000001"]
)
def test_malformed(text):
    with pytest.raises(Bad):
        sequence.parse(text)


def test_uids():
    uids = array("I", [2, 4, 5, 9])

    def found(text):
        return [uids[i] for i in sequence.uid_positions(sequence.parse(text), uids)]

    assert found(b"1:3,5") == [2, 5]
    assert found(b"*") == [9]
    assert found(b"100:*") == [9]
    assert found(b"3") == []
    assert found(b"4294967295,1") == []
    assert list(sequence.uid_positions(sequence.parse(b"1:*"), array("I"))) == []


def test_against_sets():
    rng = random.Random(3501)
    for _ in range(500):
        count = rng.randrange(1, 12)
        pairs = [
            (rng.randrange(1, count + 1), rng.randrange(1, count + 1)) for _ in range(rng.randrange(1, 5))
        ]
        text = b",".join(b"%d:%d" % pair for pair in pairs)
        wanted = {n - 1 for low, high in pairs for n in range(min(low, high), max(low, high) + 1)}
        assert at(text, count) == sorted(wanted)
        rendered = sequence.render(n + 1 for n in sorted(wanted))
        assert at(rendered, count) == sorted(wanted)


def test_render():
    assert sequence.render([]) == b""
    assert sequence.render([1]) == b"1"
    assert sequence.render([3, 4, 5, 9, 7]) == b"3:5,9,7"
