"""Client of clamd (its INSTREAM command), over TCP or a Unix socket: content is streamed, never held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from iems.scan.breaker import Breaker, Guard, ScanFailure

_CHUNK_MAX = 1 << 20
_ANSWER_MAX = 4096


class Clamd:
    """place: HOST:PORT or the path of a socket. timeout_s: for one message. at_once: messages at the same time."""

    def __init__(self, place: str, *, timeout_s: float, at_once: int, breaker: Breaker) -> None:
        self.place = place
        self.name = f"clamd:{place}"
        self._guard = Guard(self.name, timeout_s=timeout_s, at_once=at_once, breaker=breaker)

    async def scan(self, content: AsyncIterator[bytes]) -> str:
        """The name of the virus, "" if none is found. Raises ScanFailure."""
        async with self._guard.asking():
            return await self._ask(content)

    async def _ask(self, content: AsyncIterator[bytes]) -> str:
        if self.place.startswith("/"):
            reader, writer = await asyncio.open_unix_connection(self.place)
        else:
            host, _, port = self.place.rpartition(":")
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            writer.write(b"zINSTREAM\0")
            try:
                async for octets in content:
                    for at in range(0, len(octets), _CHUNK_MAX):
                        piece = octets[at : at + _CHUNK_MAX]
                        writer.write(len(piece).to_bytes(4, "big") + piece)
                    await writer.drain()
                writer.write(bytes(4))
                await writer.drain()
            except ConnectionError:
                pass  # it says why before it closes: too much for its limits
            answer = await reader.readuntil(b"\0")
        except asyncio.IncompleteReadError as error:
            raise ScanFailure(f"it closed: {error.partial[:200]!r}") from error
        except asyncio.LimitOverrunError as error:
            raise ScanFailure("it answers without end") from error
        finally:
            writer.close()
        return _verdict(answer[:_ANSWER_MAX])


def _verdict(answer: bytes) -> str:
    text = answer.rstrip(b"\0\n ").decode("utf-8", "replace")
    if not text.startswith("stream: "):
        raise ScanFailure(f"no answer of clamd: {text[:200]!r}")
    text = text.removeprefix("stream: ")
    if text == "OK":
        return ""
    if text.endswith(" FOUND"):
        return text.removesuffix(" FOUND")[:200] or "unnamed"
    raise ScanFailure(text[:200])
