"""Passwords and keys in files of their own, which nobody but their owner may read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from iems.errors import IemsError

SECRET_OCTETS = 4096


class SecretError(IemsError):
    """A file with a password or key that can't be used; the text never holds what is in it."""


def read_secret(path: Path, least: int = 1) -> bytes:
    """The octets of a file of the owner's alone, without line end. Raises SecretError. least: fewer octets are refused."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SecretError(f"{path}: {error.strerror}") from None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise SecretError(f"{path}: must be a file that its owner alone may read (chmod 600)")
        secret = os.read(fd, SECRET_OCTETS).rstrip(b"\r\n")
    finally:
        os.close(fd)
    if len(secret) < least:
        raise SecretError(f"{path}: holds fewer than {least} octets")
    return secret
