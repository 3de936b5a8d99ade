"""Unix sockets whatever the length of their path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: sockaddr_un.sun_path holds 108 octets, the last one NUL (unix(7)).
MOST_OCTETS = 107


@contextmanager
def socket_path(path: Path) -> Iterator[str]:
    """A name for `path` that fits a socket address, good for bind or connect inside the block.

    A longer path goes through a descriptor of its folder. Raises OSError if the folder is not there.
    """
    if len(os.fsencode(path)) <= MOST_OCTETS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
