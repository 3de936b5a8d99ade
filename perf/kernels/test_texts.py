"""Looking for a word in one message of 4, 50 and 250 KB: the kernel, and what it stands in for.

    pytest perf/kernels/test_texts.py --benchmark-only --benchmark-group-by=param:size

The message is that of `test_mime.py`: text, HTML and an attachment; the word is nowhere, so that all of it is looked at.
"""

from __future__ import annotations

from typing import Any

import pytest

from iems._native import kernel
from iems.message import sift
from iems.message.text import Searchable
from perf.kernels.test_mime import SIZES, message


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", ["kernel", "reference"])
def test_text(benchmark: Any, size: int, side: str) -> None:
    content = message(size)
    if side == "kernel":
        assert benchmark(kernel("texts").judge, content, [(b"zzqqxx", True)]) == bytes((sift.NO,))
    else:
        assert not benchmark(lambda: Searchable(content).in_text("zzqqxx"))
