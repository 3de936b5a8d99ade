"""Keys that sign tags between MTAs that trust each other: HOME/conf/tag.keys, a line `ID HEX` or `ID HEX signs` each, mode 0600.

Every key checks what comes in; the one that `signs` makes what goes out. So a key is changed without a gap: add the new one on both
sides, let it sign, remove the old one a week later.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from iems.directory.entries import DirectoryRefusal
from iems.durable import write_durably

FILE = "conf/tag.keys"
MIN_OCTETS = 16
MAX_KEYS = 32
_ID = re.compile(r"[A-Za-z0-9._-]{1,40}\Z")


class TagKeys:
    """The keys of a home, read again when the file changes; none if there is no file."""

    def __init__(self, home: Path) -> None:
        self.path = home / FILE
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, bytes] = {}
        self._signs = ""

    def _look(self) -> None:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            self._stamp, self._keys, self._signs = None, {}, ""
            return
        stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
        if stamp == self._stamp:
            return
        keys: dict[str, bytes] = {}
        signs = ""
        for line in self.path.read_text("ascii").splitlines():
            words = line.split()
            if len(words) >= 2:
                keys[words[0]] = bytes.fromhex(words[1])
                if words[2:] == ["signs"]:
                    signs = words[0]
        self._stamp, self._keys, self._signs = stamp, keys, signs

    @property
    def all(self) -> dict[str, bytes]:
        """Key id -> secret. Raises OSError, ValueError for a file that is none of ours."""
        self._look()
        return self._keys

    @property
    def signing(self) -> tuple[str, bytes] | None:
        """(id, secret) of the key that signs, None if there is none."""
        self._look()
        return (self._signs, self._keys[self._signs]) if self._signs else None

    # --- changes, by the command line

    def add(self, key: str, secret: bytes = b"") -> bytes:
        """Add a key; the first one signs. secret: made if empty. Gives the secret. Raises DirectoryRefusal."""
        if not _ID.match(key):
            raise DirectoryRefusal("a key's id is 1 to 40 letters, digits, dots, dashes or underscores")
        if secret and len(secret) < MIN_OCTETS:
            raise DirectoryRefusal(f"a secret has {MIN_OCTETS} octets or more")
        keys = dict(self.all)
        if key in keys:
            raise DirectoryRefusal(f"there is a key {key} already")
        if len(keys) >= MAX_KEYS:
            raise DirectoryRefusal(f"there are {MAX_KEYS} keys already; remove old ones")
        keys[key] = secret or secrets.token_bytes(32)
        self._write(keys, self._signs or key)
        return keys[key]

    def use(self, key: str) -> None:
        """Let a key sign. Raises DirectoryRefusal."""
        self._known(key)
        self._write(self._keys, key)

    def remove(self, key: str) -> None:
        """Forget a key: what it signed is believed no more. Raises DirectoryRefusal."""
        self._known(key)
        if key == self._signs and len(self._keys) > 1:
            raise DirectoryRefusal(f"{key} signs; let another key sign first")
        self._write({name: secret for name, secret in self._keys.items() if name != key}, self._signs)

    def _known(self, key: str) -> None:
        if key not in self.all:
            raise DirectoryRefusal(f"there is no key {key}")

    def _write(self, keys: dict[str, bytes], signs: str) -> None:
        lines = [f"{name} {secret.hex()}{' signs' if name == signs else ''}\n" for name, secret in keys.items()]
        write_durably(self.path, "".join(lines).encode("ascii"))
        self._look()
