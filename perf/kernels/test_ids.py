"""The text of a message id: the kernel, its twin, and base64.b32encode (another alphabet and order, the standard library's nearest)."""

import base64
from typing import Any

import pytest

from iems._native import ids_py, kernel

CASES = {"native": kernel("ids").id_text, "twin": ids_py.id_text, "base64.b32encode": base64.b32encode}


@pytest.mark.parametrize("case", CASES)
def test_id_text(benchmark: Any, case: str) -> None:
    assert len(benchmark(CASES[case], bytes(range(16)))) >= 26
