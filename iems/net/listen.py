"""Listening sockets: bound by the master, inherited by the workers.

One SO_REUSEPORT socket per worker slot: the kernel spreads connections over them, and each worker accepts only from its
own. The master keeps every one for ever, so a worker that dies or retires loses no queued connection.
"""

from __future__ import annotations

import errno
import os
import socket

from iems.errors import IemsError

#: First descriptor systemd passes (sd_listen_fds(3)).
LISTEN_FDS_START = 3


class ListenError(IemsError):
    """An address that can't be listened on; the text says which and why."""


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _socket(address: str) -> socket.socket:
    sock = socket.socket(_family(address), socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        # Its own socket for IPv4: an IPv4 peer must not show up as ::ffff:192.0.2.1.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def probe(address: str, port: int) -> None:
    """Raises ListenError if someone already listens there.

    SO_REUSEPORT alone would let two servers of one user share a port and its mail without a word.
    """
    try:
        with _socket(address) as sock:
            sock.bind((address, port))
            sock.listen(1)
    except OSError as exc:
        raise ListenError(_why(address, port, exc)) from None


def listen(address: str, port: int, backlog: int) -> socket.socket:
    """A bound, listening, non-blocking SO_REUSEPORT socket. Raises ListenError."""
    try:
        sock = _socket(address)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((address, port))
            sock.listen(backlog)
        except OSError:
            sock.close()
            raise
    except OSError as exc:
        raise ListenError(_why(address, port, exc)) from None
    return sock


def _why(address: str, port: int, exc: OSError) -> str:
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if exc.errno == errno.EADDRINUSE:
        return f"{where} is in use by another process (see: iemsctl doctor)"
    if exc.errno == errno.EACCES:
        return f"{where}: ports below 1024 need root or socket activation"
    return f"{where}: {exc.strerror}"


def has_ipv6() -> bool:
    """Whether this machine can bind an IPv6 socket at all."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
        return True
    except OSError:
        return False


def activated() -> dict[str, list[socket.socket]]:
    """Sockets passed by the service manager (LISTEN_FDS), by their FileDescriptorName; {} if there are none.

    The variables are removed, so that no child takes them for its own.
    """
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    found: dict[str, list[socket.socket]] = {}
    for number in range(int(count)):
        fd = LISTEN_FDS_START + number
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        found.setdefault(names[number] if number < len(names) else "unknown", []).append(sock)
    return found
