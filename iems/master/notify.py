"""Word to systemd about the service's state (sd_notify(3)), without its library."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Sends `state` (such as "READY=1") to $NOTIFY_SOCKET; False if there is none or it does not take it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
    except OSError:
        return False
    return True
