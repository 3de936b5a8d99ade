"""For all tests."""

from typing import Any

from tests.support import nursery

nursery.install()


def pytest_unconfigure(config: Any) -> None:
    nursery.close()
