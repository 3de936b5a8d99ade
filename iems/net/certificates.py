"""Certificates between the master, which alone reads key files, and the workers, which serve them: one memory file.

`Bundle` is the master's side: it writes all pairs into the file at once. `Served` is a worker's: one context whose handshakes take the
pair of the name the client asks for (SNI, RFC 6066 3), and which takes new pairs up while connections stand. The file can be
written through the master's mapping only, which no worker inherits; a reader that meets half a write sees it by the digest
and keeps what it had.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import ssl
import struct
from collections.abc import Callable
from hashlib import blake2b

import msgspec
from msgspec import Struct

from iems.errors import IemsError
from iems.net.tls import Context, server_context

#: Room for all pairs: some thousand domains. What is not used takes no memory.
OCTETS = 32 << 20
_HEADER = struct.Struct("<QQ32s")  # version, length, digest of the data, which begins behind it
_F_SEAL_FUTURE_WRITE = 0x10


class Pairs(Struct, array_like=True):
    """PEM of chain and key: of the server, and of further domains by name."""

    default: bytes
    domains: dict[str, bytes]


class TooMany(IemsError):
    """The pairs need more than `OCTETS`."""


class Bundle:
    """The master's side. fd: what workers inherit. Raises OSError if the system has no memory files."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("iems-tls", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, OCTETS)
        self._map = mmap.mmap(self.fd, OCTETS)
        self._map.madvise(mmap.MADV_DONTFORK)
        self._version = 0
        self._written = b""
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        try:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals | _F_SEAL_FUTURE_WRITE)
        except OSError:  # a kernel before 5.1
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)

    def write(self, pairs: Pairs) -> bool:
        """Put pairs in the place of those there were; whether anything differs. Raises TooMany."""
        data = msgspec.msgpack.encode(pairs)
        if data == self._written:
            return False
        if _HEADER.size + len(data) > OCTETS:
            raise TooMany(f"the certificates take more than {OCTETS} octets")
        self._version += 1
        self._map[_HEADER.size : _HEADER.size + len(data)] = data
        _HEADER.pack_into(self._map, 0, self._version, len(data), _digest(data))
        self._written = data
        return True


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=32).digest()


def context_of(pem: bytes, minimum: str) -> Context:
    """A server's context from chain and key in PEM. Raises ssl.SSLError if they don't go together, OSError."""
    fd = os.memfd_create("iems-pair", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem)
        return server_context(f"/proc/self/fd/{fd}", minimum)
    finally:
        os.close(fd)


def normal_name(name: str) -> str:
    """A domain as SNI has it: lower case, in A-labels; "" if it is none."""
    name = name.strip().rstrip(".").lower()
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            return ""
    return name


class Served:
    """A worker's side.

    fd: of the bundle. minimum: oldest version of TLS. error: told what went wrong with a pair the master had found good.
    context: to start TLS with, always the same object. Raises OSError, ssl.SSLError if there is no pair that can be used.
    """

    def __init__(self, fd: int, minimum: str, error: Callable[[str, BaseException], None]) -> None:
        self._fd = fd
        self._minimum = minimum
        self._error = error
        self._version = 0
        self._domains: dict[str, bytes] = {}
        self._contexts: dict[str, Context] = {}
        pairs = None
        while pairs is None:  # the master may be at it this very moment
            pairs = self._read()
        self.context = self._default = context_of(pairs.default, minimum)
        self._domains = pairs.domains
        self.context.sni_callback = self._choose

    def refresh(self) -> bool:
        """Take up what the master has written since; whether there was anything. One short read if not."""
        if int.from_bytes(os.pread(self._fd, 8, 0), "little") == self._version:
            return False
        pairs = self._read()
        if pairs is None:
            return False
        try:
            self._default = context_of(pairs.default, self._minimum)
        except OSError as fault:
            self._error("new certificate", fault)
            return False
        self._domains = pairs.domains
        self._contexts = {}
        return True

    def _read(self) -> Pairs | None:
        """The pairs, None if they are being written just now."""
        version, length, digest = _HEADER.unpack(os.pread(self._fd, _HEADER.size, 0))
        data = os.pread(self._fd, length, _HEADER.size) if length < OCTETS else b""
        if _digest(data) != digest:
            return None
        self._version = version
        return msgspec.msgpack.decode(data, type=Pairs)

    def _choose(self, sock: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in a handshake: the pair of the name asked for, or of the nearest domain above it."""
        chosen: Context = self._default
        found = normal_name(name) if name and self._domains else ""
        while found:
            if found in self._domains:
                chosen = self._of_domain(found)
                break
            found = found.partition(".")[2]
        if chosen is not context:
            sock.context = chosen

    def _of_domain(self, name: str) -> Context:
        context = self._contexts.get(name)
        if context is None:
            context = self._default
            # Made when first asked for: a worker need not hold a context of each of a thousand domains.
            try:
                context = context_of(self._domains[name], self._minimum)
            except OSError as fault:
                self._error(f"certificate of {name}", fault)
            self._contexts[name] = context
        return context

    def close(self) -> None:
        """Give the file up."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
