"""A file that only takes room, given up when the disk is full, so that settling and expunging can go on and make room again.

While it is missing and the disk still full, new mail is refused (452): the room is not for more of the same.
"""

from __future__ import annotations

import os
import time
from pathlib import Path


class Ballast:
    """path: the file; octets: its size, 0: there is none."""

    def __init__(self, path: Path, octets: int) -> None:
        self.path = path
        self.octets = octets
        self._looked = -1.0
        self._short = False

    def restore(self) -> None:
        """Make the file if it is missing and the disk has room for it four times over. For the janitor."""
        if not self.octets:
            return
        try:
            if self.path.exists() and self.path.stat().st_size >= self.octets:
                return
            if self._free() < 4 * self.octets:
                return
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self.octets)
            finally:
                os.close(fd)
        except OSError:
            self.give_up()

    def give_up(self) -> bool:
        """Remove the file; whether that freed room."""
        self._looked = -1.0
        try:
            self.path.unlink()
            return True
        except OSError:
            return False

    def short(self) -> bool:
        """Whether new mail should be refused: the ballast is gone and its room not free again. Looks once a second."""
        if not self.octets:
            return False
        now = time.monotonic()
        if self._looked < 0 or now - self._looked >= 1.0:
            self._looked = now
            try:
                self._short = not self.path.exists() and self._free() < 2 * self.octets
            except OSError:
                self._short = False
        return self._short

    def _free(self) -> int:
        found = os.statvfs(self.path.parent)
        return found.f_bavail * found.f_frsize
