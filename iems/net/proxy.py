"""The PROXY protocol header (HAProxy, versions 1 and 2): the first octets a proxy sends tell who its client is."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable

from msgspec import Struct

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V1_OCTETS = 107
_V2_OCTETS = 4096


class Header(Struct, frozen=True):
    """length: octets of the header. ip: of the client, "" when the proxy speaks for itself or for no TCP client."""

    length: int
    ip: str


def parse(data: bytes) -> Header | None:
    """The header at the start of `data`, None while it is not whole. Raises ValueError if there is none."""
    if data[:12] == _SIGNATURE[: len(data)]:
        return _version_2(data)
    if data[:6] == b"PROXY "[: len(data)]:
        return _version_1(data)
    raise ValueError("no PROXY header")


def _version_1(data: bytes) -> Header | None:
    end = data.find(b"\n", 0, _V1_OCTETS)
    if end < 0:
        if len(data) >= _V1_OCTETS:
            raise ValueError("a PROXY header without an end")
        return None
    line = data[: end + 1]
    words = line.split(b" ")
    if not line.endswith(b"\r\n") or not line.isascii():
        raise ValueError("a malformed PROXY header")
    if words[1].rstrip() == b"UNKNOWN":
        return Header(len(line), "")
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise ValueError("a malformed PROXY header")
    address = ipaddress.ip_address(words[2].decode())
    if address.version != int(words[1][3:]):
        raise ValueError("a malformed PROXY header")
    return Header(len(line), str(address))


def _version_2(data: bytes) -> Header | None:
    if len(data) < 16:
        return None
    length = 16 + int.from_bytes(data[14:16], "big")
    if data[12] >> 4 != 2 or length > _V2_OCTETS:
        raise ValueError("a malformed PROXY header")
    if len(data) < length:
        return None
    command, family = data[12] & 15, data[13]
    if command > 1:
        raise ValueError("a malformed PROXY header")
    size = {0x11: 4, 0x21: 16}.get(family, 0)
    if command == 0 or not size:
        return Header(length, "")
    if length < 16 + 2 * size + 4:
        raise ValueError("a malformed PROXY header")
    return Header(length, str(ipaddress.ip_address(data[16 : 16 + size])))


class Reader:
    """Takes the header off a socket just accepted, and not one octet more: TLS may begin right behind it.

    done: called with the client's address ("" : the proxy's own counts), or None if no header came within `timeout_s`.
    The socket is the caller's again then.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        done: Callable[[str | None], None],
        timeout_s: float = 5.0,
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._done = done
        self._data = b""
        self._timer = loop.call_later(timeout_s, self._end, None)
        loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            seen = self._sock.recv(_V2_OCTETS, socket.MSG_PEEK)
            if not seen:
                self._end(None)
                return
            header = parse(self._data + seen)
            # Of a header that is not whole, all that is there belongs to it.
            rest = len(seen) if header is None else header.length - len(self._data)
            self._data += self._sock.recv(rest)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ValueError):
            self._end(None)
            return
        if header is not None:
            self._end(header.ip)

    def _end(self, ip: str | None) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._done(ip)
