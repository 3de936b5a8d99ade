"""A coroutine that was begun without a task: commands that need not wait cost none."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any


class Resumed:
    """The rest of a coroutine that was run up to its first wait; pending: what it waits for."""

    __slots__ = ("_coroutine", "_pending")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], pending: Any) -> None:
        self._coroutine = coroutine
        self._pending = pending

    def __await__(self) -> Generator[Any, Any, Any]:
        pending = self._pending
        try:
            while True:
                try:
                    value = yield pending
                except GeneratorExit:
                    self._coroutine.close()
                    raise
                except BaseException as fault:
                    pending = self._coroutine.throw(fault)
                else:
                    pending = self._coroutine.send(value)
        except StopIteration as end:
            return end.value
