"""One request to an HTTP server (RFC 9112), in the loop and with bounds; and the reading of a response that is there as octets."""

from __future__ import annotations

import asyncio
import http.client
import io
import ssl
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

#: Octets of a response, header included.
RESPONSE_OCTETS: Final = 262_144
CHUNK: Final = 16_384


class Place(Struct, frozen=True):
    """Where a request goes. target: path and query. tls: by HTTPS."""

    host: str
    port: int
    target: str
    tls: bool

    @classmethod
    def of(cls, url: str) -> Place:
        """Of an http or https URL. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.fragment:
            raise ValueError(f"{url!r} is no http or https address")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not target.isascii() or not target.isprintable() or " " in target or not parts.hostname.isascii():
            raise ValueError(f"{url!r}: write what is not ASCII in its % form")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), target, tls)

    @property
    def name(self) -> str:
        """The Host field."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class _Sock:
    """Octets in the place of a socket, for the standard library's reader of HTTP."""

    def __init__(self, octets: bytes) -> None:
        self._file = io.BytesIO(octets)

    def makefile(self, mode: str) -> io.BytesIO:
        """The octets as a file."""
        return self._file


def response_of(octets: bytes) -> http.client.HTTPResponse:
    """A response that came whole; its body is still to be read. Raises http.client.HTTPException."""
    response = http.client.HTTPResponse(_Sock(octets))  # type: ignore[arg-type]
    response.begin()
    return response


async def post(place: Place, body: bytes, fields: Mapping[str, str], context: ssl.SSLContext | None) -> tuple[int, bytes]:
    """Status and body of the answer to a POST; no redirect is followed. The caller sets a limit.

    context: for HTTPS. Raises OSError, ValueError, http.client.HTTPException.
    """
    head = {"Host": place.name, "Connection": "close", "Content-Length": str(len(body))} | dict(fields)
    if any(char in text for name, value in head.items() for text in (name, value) for char in "\r\n\0"):
        raise ValueError("a header field that can't be said")
    reader, writer = await asyncio.open_connection(
        place.host, place.port, ssl=context if place.tls else None, server_hostname=place.host if place.tls else None
    )
    try:
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        writer.write(f"POST {place.target} HTTP/1.1\r\n{lines}\r\n".encode("ascii") + body)
        octets = bytearray()
        while chunk := await reader.read(CHUNK):
            octets += chunk
            if len(octets) > RESPONSE_OCTETS:
                raise ValueError("the server sends too much")
    finally:
        writer.transport.abort()
    response = response_of(bytes(octets))
    return response.status, response.read()
