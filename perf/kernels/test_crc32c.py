"""CRC-32C of a record's content: SSE 4.2 or a table, the twin, and zlib's CRC-32 (another polynomial, the usual yardstick)."""

import binascii
from typing import Any

import pytest

from iems._native import crc32c_py, kernel
from perf.kernels.inputs import CONTENT, SIZES

crc = kernel("crc32c")
CASES = {"native": crc.crc32c, "native table": crc.crc32c_table, "twin": crc32c_py.crc32c, "binascii.crc32": binascii.crc32}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_crc32c(benchmark: Any, case: str, size: int) -> None:
    assert benchmark(CASES[case], CONTENT[size]) >= 0
