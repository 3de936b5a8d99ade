"""Ports for test servers."""

from __future__ import annotations

import random
import socket

#: What a home listens on, added to its base.
WELL_KNOWN = (24, 25, 110, 143, 465, 587, 993, 995, 9100)


def free_base() -> int:
    """A port base below the kernel's ephemeral range with all its ports free at this moment."""
    while True:
        base = random.randrange(10_000, 23_000)
        try:
            for port in WELL_KNOWN:
                with socket.socket() as sock:
                    sock.bind(("127.0.0.1", base + port))
        except OSError:
            continue
        return base
