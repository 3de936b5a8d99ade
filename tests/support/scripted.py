"""A server that answers lines by a script, for clients of line protocols."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any


def talk(
    script: Mapping[str, bytes | None], client: Any, session: Callable[[], Awaitable[Any]], what: bytes, limit_s: float = 20
) -> tuple[Any, list[str]]:
    """What `session()` gave, and the lines the server heard. client: connected before, closed after.

    script: line -> answer, None to close; "": the greeting. what: the answer to any other line.
    """
    heard: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(script[""] or b"")
        try:
            while line := await reader.readline():
                heard.append(line.decode().strip())
                answer = script.get(heard[-1], what)
                if answer is None:
                    break
                for at in range(0, len(answer), 7):  # in small pieces
                    writer.write(answer[at : at + 7])
                    await writer.drain()
        finally:
            writer.close()

    async def run() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            await client.connect("127.0.0.1", server.sockets[0].getsockname()[1], "none", None)
            return await session()
        finally:
            client.close()
            server.close()

    return asyncio.run(asyncio.wait_for(run(), limit_s)), heard
