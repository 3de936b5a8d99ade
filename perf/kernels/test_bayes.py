"""Features of a message and its score, native and twin.

    pytest perf/kernels/test_bayes.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from iems._native import bayes_py, kernel
from iems.bayes.parts import sections
from iems.bayes.side import Side, keys_of
from perf.kernels.inputs import CONTENT

SIDES = {"native": kernel("bayes"), "python": bayes_py}
SIZE = 4_096


@pytest.fixture(params=list(SIDES))
def side(request: pytest.FixtureRequest) -> Any:
    return SIDES[request.param]


def test_features(benchmark: Any, side: Any) -> None:
    parts = sections(CONTENT[SIZE])
    assert len(benchmark(side.features, parts)) > 800


def test_score(benchmark: Any, side: Any) -> None:
    found = SIDES["native"].features(sections(CONTENT[SIZE]))
    good, spam = Side(12), Side(12)
    good.add(keys_of(found)[::2].copy(), 3)
    spam.add(keys_of(found)[::3].copy(), 2)
    assert benchmark(side.score, found, good.table, 12, 40, spam.table, 12, 30)[1] != 0.0


def test_sections(benchmark: Any) -> None:
    """The decoding in front of it: MIME kernel, transfer encodings, charsets."""
    assert benchmark(sections, CONTENT[SIZE])
