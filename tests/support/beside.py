"""Asynchronous servers of a test, in a loop and thread of their own beside it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def beside(*servers: Any) -> Iterator[None]:
    """Asynchronous context managers, such as `DnsServer` and `SmtpServer`, entered one after the other."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    entered = []
    try:
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(60)
            entered.append(server)
        yield
    finally:
        for server in reversed(entered):
            asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
