"""A client of HOME/run/mta.sock in plain Python: nothing but the standard library, no event loop. docs/api-mta.md has an example.

    with Client("/var/lib/iems/run/mta.sock", name="ccmail") as mta:
        while True:
            for item in mta.take("CCMAIL", wait_s=60):
                store(item.destination, item.content())
                item.ack()

One object is one connection, for one thread. What was taken and not acked is offered again when the connection ends.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

_CHUNK = 65_536


class ApiError(Exception):
    """A request that was refused. error: `bad`, `denied`, `lease`, `limit`, `full`, `failed` or `damaged`."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(f"{error}: {text}")
        self.error = error


class Client:
    """A connection. path: of the socket. name: for log and Received lines. timeout_s: wait for each answer.

    Raises OSError if nobody serves the socket, ConnectionError when the connection ends: connect again, and take again.
    """

    def __init__(self, path: str | os.PathLike[str], *, name: str = "", timeout_s: float = 330.0) -> None:
        self._timeout_s = timeout_s
        self._sock = _connect(os.fspath(path), timeout_s)
        self._file = self._sock.makefile("rb")
        try:
            #: What the server said of itself: version, hostname, insert, take, max_octets, max_leases, lease_s.
            self.server: dict[str, Any] = self._ask({"op": "hello", "name": name})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; what is in hand goes back to the queue."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._sock.close()

    def insert(
        self,
        channel: str,
        reverse_path: str,
        recipients: Iterable[str | dict[str, Any]],
        content: bytes,
        **more: Any,
    ) -> str:
        """Hand a message in; its id, once it is on the disk. more: smtputf8, ret, envid. Raises ApiError.

        recipients: addresses, or {"address", "notify", "orcpt"}. An end of the connection before the answer leaves it open whether the
        message was taken.
        """
        request = {
            "op": "insert",
            "channel": channel,
            "reverse_path": reverse_path,
            "recipients": list(recipients),
            "octets": len(content),
            **more,
        }
        found = self._ask(request, content)
        return str(found["id"])

    def take(
        self, channel: str, *, limit: int = 1, wait_s: float = 0.0, lease_s: float = 0.0, pieces: bool = False
    ) -> list[Item]:
        """Items that are due, each in hand for `lease_s` (0: 300 s); none if none came in `wait_s`. Raises ApiError."""
        request = {"op": "take", "channel": channel, "limit": limit, "wait_s": wait_s, "lease_s": lease_s, "pieces": pieces}
        found = self._ask(request, wait_s=wait_s)
        return [Item(self, item) for item in found["items"]]

    def _send(self, request: dict[str, Any], content: bytes = b"", wait_s: float = 0.0) -> None:
        self._sock.settimeout(self._timeout_s + wait_s)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # what it said before it closed is still to be read
            self._sock.sendall(json.dumps(request).encode() + b"\n")
            if content:
                self._sock.sendall(content)

    def _answer(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the connection ended before the answer")
        found: dict[str, Any] = json.loads(line)
        if not found["ok"]:
            raise ApiError(found["error"], found["text"])
        return found

    def _ask(self, request: dict[str, Any], content: bytes = b"", wait_s: float = 0.0) -> dict[str, Any]:
        self._send(request, content, wait_s)
        return self._answer()


class Item:
    """A message in hand, for some recipients. `data` is all the server said of it.

    id and part name it for as long as it is queued; key is both: use it to tell what was done before a crash.
    """

    def __init__(self, client: Client, data: dict[str, Any]) -> None:
        self._client = client
        self.data = data
        self.lease: str = data["lease"]
        self.id: str = data["id"]
        self.key: str = f"{data['id']}-{data['part']}"
        self.destination: str = data["destination"]
        self.reverse_path: str = data["reverse_path"]
        self.recipients: list[str] = [to["address"] for to in data["recipients"]]
        self.octets: int = data["octets"]

    def chunks(self) -> Iterator[bytes]:
        """The content, piece by piece. Read it to its end before the next request. Raises ApiError."""
        client = self._client
        client._send({"op": "content", "lease": self.lease})
        left = client._answer()["octets"]
        while left:
            data = client._file.read(min(left, _CHUNK))
            if not data:
                raise ConnectionResetError("the connection ended within a content")
            left -= len(data)
            yield data

    def content(self) -> bytes:
        """The content, whole. Raises ApiError."""
        return b"".join(self.chunks())

    def from_files(self) -> Iterator[bytes]:
        """The content read from the spool's own files, of an item taken with `pieces`. Raises OSError."""
        for piece in self.data["pieces"]:
            if isinstance(piece, dict):
                yield base64.b64decode(piece["base64"])
                continue
            path, offset, left = piece
            with open(path, "rb") as file:
                file.seek(offset)
                while left:
                    data = file.read(min(left, _CHUNK))
                    if not data:
                        raise EOFError(f"{path} is shorter than it should be")
                    left -= len(data)
                    yield data

    def ack(self, results: Iterable[dict[str, Any]] | None = None) -> None:
        """All recipients have it; or what became of each: {"recipient", "outcome", "reply", "seconds"}. On the disk on return."""
        request: dict[str, Any] = {"op": "ack", "lease": self.lease}
        if results is not None:
            request["results"] = list(results)
        self._client._ask(request)

    def nack(self, seconds: float = 0.0, reason: str = "") -> None:
        """Not now: it is offered again at once, or after so many seconds."""
        self._client._ask({"op": "nack", "lease": self.lease, "seconds": seconds, "reason": reason})

    def renew(self, lease_s: float = 0.0) -> None:
        """Keep it in hand for so long from now on (0: 300 s)."""
        self._client._ask({"op": "renew", "lease": self.lease, "lease_s": lease_s})


def _connect(path: str, timeout_s: float) -> socket.socket:
    """A connected socket; a path too long for an address goes through a descriptor of its folder."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        if len(os.fsencode(path)) <= 107:
            sock.connect(path)
        else:
            folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                sock.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
            finally:
                os.close(folder)
    except BaseException:
        sock.close()
        raise
    return sock
