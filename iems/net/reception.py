"""Sessions of one worker: how many it takes, who is there, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from iems.net.stream import Server, last_descriptor, serve

if TYPE_CHECKING:
    from iems.master.child import WorkerContext


class Connection(Protocol):
    """What can be cut off."""

    def abort(self) -> None:
        """Close it as it stands."""


class Guest(Protocol):
    """A session, as far as its end goes."""

    @property
    def stream(self) -> Connection:
        """Its connection."""


S = TypeVar("S", bound=Guest)


class Reception(Generic[S]):
    """Accepts connections while there is room. `sessions` are those that `opened` and have not `closed`.

    limit: sessions of the role in all its workers (0: any number). refusal: what one too many hears, unless TLS begins at once.
    """

    def __init__(self, ctx: WorkerContext, limit: int, refusal: bytes) -> None:
        self.sessions: set[S] = set()
        self._ctx = ctx
        self._limit = limit
        self._refusal = refusal
        self._last_descriptor = last_descriptor()
        self._servers: list[Server] = []
        self._empty = asyncio.Event()
        self._empty.set()

    def listen(self, listener: str, accept: Callable[[socket.socket], object], *, implicit_tls: bool = False) -> None:
        """Accept connections of a listener; nothing if it needs TLS and there is none."""
        if implicit_tls and self._ctx.tls is None:
            return
        refusal = b"" if implicit_tls else self._refusal
        for sock in self._ctx.sockets.get(listener, ()):
            self._servers.append(serve(self._ctx.loop, sock, functools.partial(self._arrived, accept, refusal), refusal))

    def _arrived(self, accept: Callable[[socket.socket], object], refusal: bytes, sock: socket.socket) -> None:
        full = self._limit and self._ctx.total("sessions_now") >= self._limit
        if full or sock.fileno() >= self._last_descriptor:
            self._ctx.count("sessions_refused_total")
            with sock, contextlib.suppress(OSError):
                sock.setblocking(False)
                if refusal:
                    sock.send(refusal)
            return
        accept(sock)

    def opened(self, session: S) -> None:
        """A session begins."""
        self.sessions.add(session)
        self._empty.clear()
        self._ctx.count("sessions_total")
        self._ctx.gauge("sessions_now", len(self.sessions))

    def closed(self, session: S) -> None:
        """A session has ended."""
        self.sessions.discard(session)
        self._ctx.gauge("sessions_now", len(self.sessions))
        if not self.sessions:
            self._empty.set()

    def close(self) -> None:
        """Accept nothing more."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def retire(self) -> None:
        """A new generation accepts: let open sessions end by themselves."""
        self.close()
        await self._empty.wait()

    async def drain(self, deadline_s: float, leave: Callable[[S], object]) -> None:
        """Accept nothing more, ask each session to `leave` when it can, and cut off what is there at the deadline."""
        self.close()
        for session in list(self.sessions):
            leave(session)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), deadline_s)
        for session in list(self.sessions):
            session.stream.abort()
        await asyncio.sleep(0)
