"""The exclusive lock on a maildrop (RFC 1939 4): one session an account on this machine, gone with its process.

One file for all accounts; account n is its octet n, locked by an open-file-description lock (fcntl F_OFD_SETLK). The
kernel drops the locks when the process dies, however it dies; nothing has to be cleaned up. Within a process the locks
belong to one descriptor and would not exclude each other, so a set does.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid (0 for these locks).
_FLOCK = struct.Struct("@hhqqi4x")


class MaildropLocks:
    """Locks held by this process. path: the file, made if missing. Open it after the fork."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._held: set[int] = set()

    def take(self, account: int) -> bool:
        """Lock a maildrop; False if another session has it. Raises OSError."""
        if account in self._held:
            return False
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, account, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        self._held.add(account)
        return True

    def release(self, account: int) -> None:
        """Unlock a maildrop; nothing if it is not held here."""
        if account in self._held:
            self._held.discard(account)
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, account, 1, 0))

    def close(self) -> None:
        """Unlock all."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._held.clear()
