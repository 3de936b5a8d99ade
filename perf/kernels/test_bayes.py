"""Features of a message and its score, native and twin; features beside bogofilter's lexer, where that is installed.

    pytest perf/kernels/test_bayes.py --benchmark-only
"""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest

from iems._native import bayes_py, kernel
from iems.bayes.parts import sections
from iems.bayes.side import Side, keys_of
from perf.kernels.inputs import CONTENT, SIZES

SIDES = {"native": kernel("bayes"), "python": bayes_py}
SIZE = 4_096
BOGOLEXER = shutil.which("bogolexer")
#: Messages at once, so that the start of the rival's process counts little.
BATCH = 20


@pytest.fixture(params=list(SIDES))
def side(request: pytest.FixtureRequest) -> Any:
    return SIDES[request.param]


def test_features(benchmark: Any, side: Any) -> None:
    parts = sections(CONTENT[SIZE])
    assert len(benchmark(side.features, parts)) > 800


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", [*SIDES, pytest.param("bogolexer", marks=pytest.mark.skipif(BOGOLEXER is None, reason="needs bogofilter"))])
def test_20_messages_to_features(benchmark: Any, case: str, size: int) -> None:
    """From the octets of mail to its tokens, decoding and all; bogolexer gets the same as an mbox, and prints what it finds."""
    content = CONTENT[size]
    if case == "bogolexer":
        mbox = b"".join(b"From a@b Mon Jan  1 00:00:00 2024\n" + content.replace(b"\r\n", b"\n") + b"\n" for _ in range(BATCH))

        def lex() -> bytes:
            return subprocess.run([str(BOGOLEXER), "-p", "-M"], input=mbox, capture_output=True, check=True).stdout

        assert benchmark(lex).count(b"\n") > 100 * BATCH
        return
    features = SIDES[case].features

    def read() -> int:
        return sum(len(features(sections(content))) for _ in range(BATCH))

    assert benchmark(read) > 100 * BATCH


def test_score(benchmark: Any, side: Any) -> None:
    found = SIDES["native"].features(sections(CONTENT[SIZE]))
    good, spam = Side(12), Side(12)
    good.add(keys_of(found)[::2].copy(), 3)
    spam.add(keys_of(found)[::3].copy(), 2)
    assert benchmark(side.score, found, good.table, 12, 40, spam.table, 12, 30)[1] != 0.0


def test_sections(benchmark: Any) -> None:
    """The decoding in front of it: MIME kernel, transfer encodings, charsets."""
    assert benchmark(sections, CONTENT[SIZE])
