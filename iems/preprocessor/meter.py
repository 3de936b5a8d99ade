"""What a module costs: time from its start to its end, and CPU of the loop's thread while it alone ran.

Modules of several messages run together, so time is more than CPU, and sums of it more than the clock. CPU of threads and of other programs a module
asks is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class Metered(Generic[_T]):
    """Awaits a coroutine and measures it. cpu_ns: so far, of its steps alone, whatever else runs between them. took_ns: since it was made."""

    def __init__(self, coroutine: Coroutine[Any, Any, _T]) -> None:
        self._coroutine = coroutine
        self._started_ns = time.monotonic_ns()
        self.cpu_ns = 0

    @property
    def took_ns(self) -> int:
        """Time since the start."""
        return time.monotonic_ns() - self._started_ns

    def __await__(self) -> Generator[Any, Any, _T]:
        step: Callable[..., Any] = self._coroutine.send
        given: Any = None
        while True:
            before = time.thread_time_ns()
            try:
                wanted = step(given)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            finally:
                self.cpu_ns += time.thread_time_ns() - before
            try:
                given = yield wanted
                step = self._coroutine.send
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as thrown:
                given, step = thrown, self._coroutine.throw
