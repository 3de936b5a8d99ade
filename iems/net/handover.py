"""A connection that a worker of one role hands to a worker of another, octet by octet over a Unix socket (docs/decisions/0013-reversed-connections.md).

Who gives it keeps the connection and its TLS, and carries octets both ways; who takes it sees a plain stream and what is known of the peer.
The giver connects to HOME/run/ROLE-N.handover, sends a line of JSON and waits for a line that says yes or no; what follows is the
connection. A worker that was killed leaves a socket behind that refuses, so the next one is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from iems.net.local import socket_path
from iems.net.stream import Stream

BACKLOG: Final = 64
#: The first line, and the time for it.
LINE_OCTETS: Final = 65_536
ANSWER_S: Final = 5.0
#: Octets on their way to one side above which the other is not read.
HELD_OCTETS: Final = 262_144

_YES, _NO = b"+\n", b"-\n"
_UCRED = struct.Struct("3i")


class Given(Struct, frozen=True):
    """What is known of a connection. client, port: of the peer. account: who logged in. domains: whose mail it is about.

    secure: it came over TLS. tls: version and cipher, for Received lines.
    """

    client: str = ""
    port: int = 0
    account: str = ""
    domains: tuple[str, ...] = ()
    secure: bool = False
    tls: str = ""


class NobodyTakes(OSError):
    """No worker of the role takes a connection now."""


def place(run: Path, role: str, index: int) -> Path:
    """The socket of a worker. run: HOME/run; index: its number in the pool."""
    return run / f"{role}-{index}.handover"


def bind(path: Path) -> socket.socket:
    """A listening socket for its owner alone, in place of one that an older worker has or left. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        with socket_path(path) as name:
            sock.bind(name)
        os.chmod(path, 0o600)  # nobody can connect before it listens
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


async def give(run: Path, role: str, given: Given) -> socket.socket:
    """A worker that takes the connection, as a socket to it. Raises NobodyTakes."""
    loop = asyncio.get_running_loop()
    paths = list(run.glob(f"{role}-*.handover"))
    random.shuffle(paths)
    line = msgspec.json.encode(given) + b"\n"
    for path in paths:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            async with asyncio.timeout(ANSWER_S):
                with socket_path(path) as name:
                    sock.connect(name)  # of a Unix socket it comes at once, or fails
                await loop.sock_sendall(sock, line)
                if await _line(loop, sock, len(_YES)) == _YES:
                    return sock
        except (OSError, EOFError, ValueError):
            pass
        except BaseException:
            sock.close()
            raise
        sock.close()
    raise NobodyTakes(f"no worker of {role} takes a connection now")


async def take(sock: socket.socket) -> Given:
    """What is said of a connection that is being given; to be answered by `answer`. Raises OSError, EOFError, ValueError."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid not in (0, os.getuid()):
        raise ValueError("not from a process of this server")
    async with asyncio.timeout(ANSWER_S):
        line = await _line(loop, sock, LINE_OCTETS)
    try:
        return msgspec.json.decode(line, type=Given)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


def answer(sock: socket.socket, taken: bool) -> None:
    """Say whether a connection is taken. Raises OSError."""
    sock.send(_YES if taken else _NO)  # a fresh socket has room for two octets


async def _line(loop: asyncio.AbstractEventLoop, sock: socket.socket, most: int) -> bytes:
    """Octets up to a line feed, which ends what the other side says for now."""
    found = b""
    while not found.endswith(b"\n"):
        if len(found) >= most:
            raise ValueError("no line")
        chunk = await loop.sock_recv(sock, most - len(found))
        if not chunk:
            raise EOFError("closed")
        found += chunk
    return found


class _End:
    """One side of a pair: what comes in here goes out there."""

    __slots__ = ("other", "pair", "stream")

    def __init__(self, pair: Pair, stream: Stream) -> None:
        self.pair = pair
        self.stream = stream
        self.other: _End = self

    def data_received(self, view: memoryview) -> None:
        out = self.other.stream
        out.send(view)
        if out.pending_out > HELD_OCTETS:
            self.stream.pause_reading()

    def writable(self) -> None:
        self.other.stream.resume_reading()

    def eof_received(self) -> None:
        self.other.stream.close()
        self.stream.close()

    def connection_lost(self, cause: Exception | None) -> None:
        self.other.stream.close()
        self.pair.lost(cause)


class Pair:
    """Two streams joined: each gets what the other sends, and when one ends, the other ends once it has it all.

    over: called once, when both are gone, with the cause if there was one.
    """

    def __init__(self, one: Stream, other: Stream, over: Callable[[Exception | None], Any]) -> None:
        self._streams = one, other
        self._over = over
        self._left = 2
        self._cause: Exception | None = None
        ends = _End(self, one), _End(self, other)
        ends[0].other, ends[1].other = ends[1], ends[0]
        one.handler, other.handler = ends

    def lost(self, cause: Exception | None) -> None:
        """One side is gone."""
        self._cause = self._cause or cause
        self._left -= 1
        if not self._left:
            self._over(self._cause)

    def abort(self) -> None:
        """End both at once."""
        for stream in self._streams:
            stream.abort()


class Takings:
    """The socket on which a worker takes connections. taken: a coroutine, called with socket and `Given` of each; it owns the socket and answers.

    error: told of one that could not be taken in.
    """

    def __init__(
        self,
        path: Path,
        taken: Callable[[socket.socket, Given], Any],
        error: Callable[[str, BaseException], Any],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._taken = taken
        self._error = error
        self._tasks: set[asyncio.Task[None]] = set()
        self._sock = bind(path)
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._sock.accept()
                task = self._loop.create_task(self._take(sock))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _take(self, sock: socket.socket) -> None:
        try:
            given = await take(sock)
        except (OSError, EOFError, ValueError) as error:
            sock.close()
            self._error("a connection could not be taken over", error)
            return
        try:
            await self._taken(sock, given)
        except Exception as error:
            sock.close()
            self._error("a connection could not be taken over", error)

    def close(self) -> None:
        """Take no more; those under way go on. The path stays: a worker that began later may have it by now."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def cancel(self) -> None:
        """Give up those under way."""
        for task in list(self._tasks):
            task.cancel()


__all__ = ["Given", "NobodyTakes", "Pair", "Takings", "answer", "bind", "give", "place", "take"]
