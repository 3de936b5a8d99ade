"""Small files put in place so that a crash leaves the old content or the new one, and names that outlast a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync_folder(path: Path) -> None:
    """Make names made in or removed from a folder durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """Put a small file in place, readable by its owner only, wholly or not at all, on the disk when this returns. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, data) != len(data):  # the disk is full, or about to be
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(fresh))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(fresh, path)
    sync_folder(path.parent)
