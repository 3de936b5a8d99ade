"""Spools in a temporary folder, for tests of whoever uses one."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from iems.model import Channel, Envelope, Recipient
from iems.spool import Item, Message, Spool, SpoolParams


def envelope(*addresses: str, sender: bytes = b"a@example.org") -> Envelope:
    """An envelope with these recipients."""
    return Envelope(
        Channel.SMTPD,
        sender,
        [Recipient(a.encode(), a.encode()) for a in addresses or ("b@example.test",)],
        time.time_ns(),
    )


def routed(item: Item, channel: int = Channel.LOCAL, destination: str = "") -> Item:
    """What the preprocessor makes of an INPUT item when all goes one way."""
    return Item(item.id, channel, destination, item.envelope, item.rope)


class Harness:
    """Opens spools of one home; records what they tell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.woken: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    def params(self, **changes: Any) -> SpoolParams:
        """Parameters of a worker in this home."""
        values: dict[str, Any] = {
            "path": self.path / "spool",
            "wake": self.woken.append,
            "event": lambda name, **detail: self.events.append((name, detail)),
            "map_octets": 1 << 30,
        }
        return SpoolParams(**(values | changes))

    def open(self, **changes: Any) -> Spool:
        """A spool of this home."""
        return Spool.open(self.params(**changes))

    async def accept(self, spool: Spool, *contents: bytes, to: str = "b@example.test") -> list[bytes]:
        """Submit messages with these contents; their ids."""
        messages = [Message(spool.new_id(), envelope(to), [content]) for content in contents]
        assert await spool.append(messages) == [None] * len(messages)
        return [message.id for message in messages]

    async def quiet(self, spool: Spool) -> None:
        """Wait until all that came has been announced, then forget who was woken."""
        async with asyncio.timeout(60):
            while spool._announcing:
                await asyncio.sleep(0.001)
        self.woken.clear()

    async def heard(self) -> None:
        """Wait until somebody was woken."""
        async with asyncio.timeout(60):
            while not self.woken:
                await asyncio.sleep(0.001)

    def die_after(self, body: Callable[[Spool], Coroutine[Any, Any, None]], **changes: Any) -> None:
        """Run `body` with a spool in a process of its own, which then dies by SIGKILL."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:

                async def run() -> None:
                    await body(self.open(**changes))
                    os.kill(os.getpid(), signal.SIGKILL)

                asyncio.run(run())
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
