"""Forwarding with rewritten reverse paths: the secret of a home, and a look-up that finds the way back.

Used by smtpd at RCPT and by the preprocessor, so both give one answer about an address.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from iems.directory.entries import Resolution
from iems.model import Reply
from iems.smtp.srs import Forged, Rewriter

if TYPE_CHECKING:
    from iems.config import Config
    from iems.directory.directory import Directory

FORGED = Reply(550, 1, 1, "No such address: it is none that was made here, or too old")
_DAY_S = 86_400


def secret_of(path: Path) -> bytes:
    """The secret in a file; made, readable by its owner only, if there is no such file. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes().strip()
    part = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, secrets.token_hex(32).encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    with contextlib.suppress(FileExistsError):  # another process was first: its secret counts
        os.link(part, path)
    part.unlink()
    return path.read_bytes().strip()


def forwarding(config: Config, home: Path, directory: Directory) -> ForwardingLookup | None:
    """The look-up of a home that forwards so; None if `smtpc.srs` is off. Raises OSError, ValueError for an unusable secret."""
    if not config.smtpc.srs:
        return None
    secret = secret_of(home / (config.smtpc.srs_secret_file or "conf/srs.key"))
    return ForwardingLookup(directory, Rewriter(secret, config.domain or config.hostname))


class ForwardingLookup:
    """`Directory.resolve`, with addresses of the scheme led back. now: wall clock, seconds since 1970."""

    def __init__(
        self, directory: Directory, rewriter: Rewriter, now: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._rewriter = rewriter
        self._now = now

    @property
    def seen(self) -> int:
        """The version of the directory that the last answer belongs to."""
        return self._directory.seen

    def resolve(self, address: bytes, explain: bool = False) -> Resolution:
        """Where mail to an address goes. Raises DirectoryUnavailable."""
        if address[:3].lower() == b"srs":
            try:
                back = self._rewriter.decode(address, int(self._now()) // _DAY_S)
            except Forged:
                return Resolution(True, False, [], FORGED, True)
            if back is not None:
                # Only we can have made it, so it is taken from anybody.
                return structs.replace(self._directory.resolve(back, explain), ours=True)
        return self._directory.resolve(address, explain)

    def reverse_path(self, reverse_path: bytes, recipients: list[bytes] | None) -> bytes:
        """The reverse path for mail that leaves. recipients: as they were given; one in a local domain makes it a forward. None: it
        is one.

        Raises DirectoryUnavailable.
        """
        local = self._directory.is_local
        if not reverse_path or local(_domain(reverse_path)):
            return reverse_path
        if recipients is not None and not any(local(_domain(recipient)) for recipient in recipients):
            return reverse_path
        return self._rewriter.encode(reverse_path, int(self._now()) // _DAY_S)


def _domain(address: bytes) -> str:
    return address.rpartition(b"@")[2].decode("utf-8", "replace")
