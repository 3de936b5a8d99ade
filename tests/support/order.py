"""Tests in another order: `pytest -p tests.support.order --order SEED`. No test may need what another did before it.

Tests of a module stay together, as they share its servers; SEED `back` turns their order round, a number shuffles it.
"""

from __future__ import annotations

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.addoption("--order", default="", help="Run the tests of each module backwards (`back`), or shuffled by this number.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put them in order."""
    order = config.getoption("--order")
    if not order:
        return
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    for tests in modules.values():
        if order == "back":
            tests.reverse()
        else:
            random.Random(int(order)).shuffle(tests)
    items[:] = [item for tests in modules.values() for item in tests]
