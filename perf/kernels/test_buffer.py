"""Gathering a message from what a socket gives, 16 KiB at a time: the growing buffer, its twin, and joining a list at the end."""

from typing import Any

import pytest

from iems._native import buffer_py, kernel
from perf.kernels.inputs import CONTENT, SIZES

PIECE = 16_384


def gathered(made: Any, content: bytes) -> Any:
    for start in range(0, len(content), PIECE):
        made.append(memoryview(content)[start : start + PIECE])
    return made


CASES = {
    "native": lambda content: gathered(kernel("buffer").Buffer(), content),
    "twin": lambda content: gathered(buffer_py.Buffer(), content),
    "bytes.join": lambda content: b"".join(gathered([], content)),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_gather(benchmark: Any, case: str, size: int) -> None:
    assert len(benchmark(CASES[case], CONTENT[size])) == len(CONTENT[size])
