"""Benchmarks are shown in groups: one kernel on one size of input."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def grouped(request: pytest.FixtureRequest) -> Iterator[None]:
    if "benchmark" in request.fixturenames:
        parameters: dict[str, Any] = getattr(getattr(request.node, "callspec", None), "params", {})
        name = request.node.originalname.removeprefix("test_")
        request.getfixturevalue("benchmark").group = f"{name} {parameters['size']:,} octets" if "size" in parameters else name
    yield
