"""Ports for test servers."""

from __future__ import annotations

import os
import random
import socket

#: What a home listens on, added to its base.
WELL_KNOWN = (24, 25, 110, 143, 465, 587, 993, 995, 9100)


def free_base() -> int:
    """A port base below the kernel's ephemeral range with all its ports free at this moment.

    Test processes that run side by side draw from different ranges.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]
    lowest = 10_000 + 1_600 * (int(worker) % 8)
    while True:
        base = random.randrange(lowest, lowest + 1_500)
        try:
            for port in WELL_KNOWN:
                with socket.socket() as sock:
                    sock.bind(("127.0.0.1", base + port))
        except OSError:
            continue
        return base
