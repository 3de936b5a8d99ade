"""Port bases for private homes that run side by side."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import secrets
import socket
import tempfile
from pathlib import Path
from typing import IO

#: What a home listens on, added to its base (those of roles to come among them).
OFFSETS = (24, 25, 80, 110, 143, 366, 389, 443, 465, 587, 636, 993, 995, 4190, 9100)
#: Bases are a hundred apart and end where the kernel's own ports for outgoing connections begin (32,768).
BASES = range(12_000, 23_600, 100)
#: A process keeps the claims of so many of its last bases.
KEPT = 8

_claims: collections.deque[IO[bytes]] = collections.deque(maxlen=KEPT)


def free_base() -> int:
    """A base on which every port of a home is free, claimed: other processes that ask here get another one.

    Raises RuntimeError if none is found.
    """
    folder = Path(tempfile.gettempdir()) / f"iems-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for _ in range(1000):
        base = BASES[secrets.randbelow(len(BASES))]
        claim = (folder / str(base)).open("wb")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.ExitStack() as stack:
                for offset in OFFSETS:
                    sock = stack.enter_context(socket.socket())
                    # As the master does: connections that were closed a moment ago keep nobody out.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(("127.0.0.1", base + offset))
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return base
    raise RuntimeError("no free ports on loopback")
