"""Relaxed form of a body, with and without its SHA-256, and of a header field: kernel and twin."""

import hashlib
from typing import Any

import pytest

from iems._native import canonical_py, kernel
from perf.kernels.inputs import CONTENT, SIZES

SIDES = {"native": kernel("canonical"), "twin": canonical_py}
FIELD = b"Received: from mx1.example.net (mx1.example.net [192.0.2.1])\r\n\tby mx.d.example with ESMTP id abc;\r\n\tMon, 1 Jan 2026 00:00:00 +0000"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_body(benchmark: Any, side: str, hashed: bool, size: int) -> None:
    def whole() -> int:
        one, digest = SIDES[side].Relaxed(), hashlib.sha256()
        add = digest.update if hashed else len
        one.feed(CONTENT[size], add)
        one.finish(add)
        return int(one.length)

    assert benchmark(whole) > 0


@pytest.mark.parametrize("side", SIDES)
def test_field(benchmark: Any, side: str) -> None:
    assert benchmark(SIDES[side].relaxed_field, b"received", FIELD).startswith(b"received:from")
