"""Weights: ranges, words, and their sum."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.config import Smtpc
from iems.spool.weight import Weights, precedence_of, ranges, words


def test_off_unless_a_multiplier_is_set():
    assert Weights.of(Smtpc()) is None


def test_the_sum_of_the_three():
    weights = Weights.of(Smtpc(weight_precedence=100, weight_size=10, weight_deferred=-1))
    assert weights is not None
    assert weights.weight("", 9_999, 0.0) == 200 + 0 - 1
    assert weights.weight("bulk", 10_000, 3_600.0) == 600 + 20 - 4
    assert weights.weight("special-delivery", 1_000_000, 12 * 3600.0) == 0 + 40 - 20
    assert weights.weight("junk", 10_000_000, 11.9 * 3600) == 1000 + 100 - 6
    assert weights.weight("whatever", 0, 0.0) == 199
    longer_first = Weights.of(Smtpc(weight_deferred=-3))
    assert longer_first is not None and longer_first.weight("junk", 1, 86_400.0) == -60


def test_an_item():
    head = b"Subject: x\r\nPRECEDENCE:\r\n bulk\r\n\r\nPrecedence: junk\r\n"
    blobs = SimpleNamespace(read_range=lambda rope, start, length: head[start : start + length])
    weights = Weights.of(Smtpc(weight_precedence=1, weight_deferred=1))
    item = SimpleNamespace(rope=[head], attempts=0)
    assert weights.of_item(item, blobs, 99 * 3600.0) == 6 + 1  # not tried yet: it is not deferred
    item.attempts = 1
    assert weights.of_item(item, blobs, 99 * 3600.0) == 6 + 20

    def gone(*_):
        raise OSError("gone")

    assert weights.of_item(item, SimpleNamespace(read_range=gone), 0.0) == 2 + 1


@pytest.mark.parametrize(
    "lines", [[], ["1:1"], ["*:1", "2:2"], ["5:1", "5:2", "*:3"], ["x:1", "*:2"], ["1:1.5", "*:2"], ["nan:1", "*:2"], ["-1:1", "*:2"],
              ["1", "*:2"], ["*:99999999"]])
def test_ranges_that_make_no_sense(lines):
    with pytest.raises(ValueError, match=r"LIMIT:VALUE|limit|range"):
        ranges(lines)


@pytest.mark.parametrize("lines", [[], ["bulk:1"], ["*:x"], ["bulk:1", "Bulk:2", "*:0"], [":1", "*:0"]])
def test_words_that_make_no_sense(lines):
    with pytest.raises(ValueError, match=r"WORD|word|missing"):
        words(lines)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_header(head):
    word = precedence_of(head)
    assert word == word.lower() and len(word) <= 40
    assert precedence_of(b"X: y\r\nPrecedence: List \r\n\r\n" + head) == "list"


def test_the_weight_in_a_listing(harness, tmp_path: Path):
    import asyncio

    from iems.model import INPUT, Channel
    from iems.spool import Item, admin

    async def body():
        spool = harness.open()
        await harness.accept(spool, b"Subject: a\r\n\r\n" + b"x" * 20_000, b"Precedence: junk\r\n\r\nb\r\n", to="b@far.test")
        items, _ = spool.take(INPUT, 5)
        spool.move([(i, [Item(i.id, Channel.SMTPC, "far.test", i.envelope, i.rope)]) for i in items])
        await harness.accept(spool, b"Subject: c\r\n\r\n", to="local@x.test")
        spool.close()

    asyncio.run(body())
    found = admin.list_items(harness.path, weights=Weights.of(Smtpc(weight_precedence=1, weight_size=100)))
    plain = admin.list_items(harness.path)
    assert sorted((entry["weight"] is None, entry["weight"] or 0) for entry in found) == [(False, 10), (False, 202), (True, 0)]
    assert all("weight" not in entry for entry in plain)
