"""Room on the disk for files that are written through memory: a page for which there is none later ends the process by SIGBUS."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

#: A file system with less room than this may have cut a write of LMDB short.
SHORT_OCTETS = 1 << 20


def cut_short(error: BaseException, folder: Path) -> bool:
    """Whether an error of LMDB in `folder` is that of a full disk: it calls a write that was cut short an I/O error."""
    if os.strerror(errno.EIO) not in str(error):
        return False
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < SHORT_OCTETS or (found.f_files > 0 and found.f_favail == 0)


def lock_file(folder: Path) -> None:
    """Give the lock file of an LMDB environment all its room, if there is one. Nothing is changed where there is no room already.

    LMDB only sets the file's length: a reader's slot beyond the first sixty or so may stand on a page that a full disk can't give.
    Call it before the environment is opened: closing a descriptor of the file drops the locks this process has on it.
    """
    with contextlib.suppress(OSError):
        fd = os.open(folder / "lock.mdb", os.O_RDWR | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if found.st_blocks * 512 < found.st_size:
                os.posix_fallocate(fd, 0, found.st_size)
        finally:
            os.close(fd)
