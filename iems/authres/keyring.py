"""Private keys of DKIM and ARC: HOME/conf/dkim/DOMAIN/SELECTOR.json, one file a key, readable by the owner only.

A key is `new` (its record may be published, nothing is signed with it), `active`, or `retired` (signs no more; its record stays
published until mail signed with it has arrived everywhere, then the key is removed). One key of each algorithm is active for a
domain; with two, mail gets two signatures (RFC 8463 5). Every change touches HOME/conf/dkim/changed, by which readers notice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from iems.authres.asking import ascii_name
from iems.authres.sign import ALGORITHMS, PrivateKey, Signer, key_pem, new_key, read_pem, record
from iems.durable import sync_folder, write_durably
from iems.errors import IemsError

FOLDER: Final = "conf/dkim"
STATES: Final = ("new", "active", "retired")
#: Files of one domain and domains that are read.
MAX_KEYS: Final = 64
MAX_DOMAINS: Final = 10_000

_SELECTOR = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)*\Z")


class KeyringError(IemsError):
    """A key that is not there, can't be read, or is not in the state that a change needs."""


class Key(Struct, frozen=True):
    """One key. created_s, changed_s: since 1970, the second of the last change of state. pem: secret; never shown."""

    domain: str
    selector: str
    algorithm: str
    state: str
    created_s: int
    changed_s: int
    pem: str

    def __repr__(self) -> str:
        return f"Key({self.selector}._domainkey.{self.domain}, {self.algorithm}, {self.state})"

    @property
    def private(self) -> PrivateKey:
        """The key itself. Raises KeyringError."""
        try:
            return read_pem(self.pem.encode())
        except ValueError as cause:
            raise KeyringError(f"{self.selector}._domainkey.{self.domain}: {cause}") from None

    @property
    def name(self) -> str:
        """Where its record stands in DNS."""
        return f"{self.selector}._domainkey.{self.domain}"

    @property
    def record(self) -> str:
        """The text of its TXT record."""
        return record(self.private)


class Keyring:
    """The keys of a home."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.folder = home / FOLDER
        self._state: tuple[int, int] = (-1, -1)
        self._signers: dict[str, tuple[Signer, ...]] = {}

    # ---------------------------------------------------------------- reading

    def find(self, domain: str = "") -> list[Key]:
        """All keys, or those of one domain, by domain and age. Raises KeyringError if a file can't be read."""
        wanted = [_domain(domain)] if domain else self._domains()
        found: list[Key] = []
        for name in wanted:
            found += sorted(self._of(name), key=lambda key: (key.created_s, key.selector))
        return found

    def _domains(self) -> list[str]:
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir())
        except FileNotFoundError:
            return []
        return names[:MAX_DOMAINS]

    def _of(self, domain: str) -> Iterator[Key]:
        try:
            paths = sorted((self.folder / domain).glob("*.json"))[:MAX_KEYS]
        except OSError:
            return
        for path in paths:
            try:
                yield msgspec.json.decode(path.read_bytes(), type=Key)
            except FileNotFoundError:
                continue
            except (OSError, msgspec.MsgspecError) as cause:
                raise KeyringError(f"{path}: {cause}") from None

    def signers(self, domain: str) -> tuple[Signer, ...]:
        """Who signs for a domain, () if nobody does. Looks for a change first, by one call of stat. Raises KeyringError."""
        try:
            seen = os.stat(self.folder / "changed")
            state = seen.st_mtime_ns, seen.st_ino
        except FileNotFoundError:
            return ()
        if state != self._state:
            self._signers = {}
            self._state = state
        found = self._signers.get(domain)
        if found is None:
            if len(self._signers) >= MAX_DOMAINS:
                self._signers.clear()
            found = self._signers[domain] = self._load(domain)
        return found

    def _load(self, domain: str) -> tuple[Signer, ...]:
        try:
            name = _domain(domain)
        except KeyringError:
            return ()
        return tuple(Signer(key.domain, key.selector, key.private) for key in self._of(name) if key.state == "active")

    # ---------------------------------------------------------------- changing

    def create(self, domain: str, algorithm: str = "rsa", selector: str = "", pem: bytes = b"") -> Key:
        """A new key. selector: by default made of date and algorithm. pem: a key made elsewhere. Raises KeyringError.

        It is active at once where the domain has no active key of its algorithm.
        """
        domain = _domain(domain)
        now_s = int(time.time())
        try:
            private = read_pem(pem) if pem else new_key(algorithm)
        except ValueError as cause:
            raise KeyringError(str(cause)) from None
        text = key_pem(private)
        algorithm = "ed25519" if Signer(domain, "x", private).algorithm.startswith("ed") else "rsa"
        with self._changing() as change:
            known = list(self._of(domain))
            if len(known) >= MAX_KEYS:
                raise KeyringError(f"{domain} has {len(known)} keys: remove retired ones first")
            selector = selector.lower() or _free(known, algorithm, now_s)
            if not _SELECTOR.match(selector) or len(selector) > 63:
                raise KeyringError(f"{selector!r} is no selector")
            if any(key.selector == selector for key in known):
                raise KeyringError(f"{selector}._domainkey.{domain} is there already")
            active = not any(key.algorithm == algorithm and key.state == "active" for key in known)
            key = Key(domain, selector, algorithm, "active" if active else "new", now_s, now_s, text)
            self._write(key)
            change.append(("dkim key create", key, None))
        return key

    def activate(self, domain: str, selector: str) -> list[Key]:
        """Let a key sign; the one of its algorithm that signed until now retires. The changed keys. Raises KeyringError."""
        with self._changing() as change:
            chosen = self._one(domain, selector)
            if chosen.state == "active":
                return []
            changed = [
                (key, "retired")
                for key in self._of(chosen.domain)
                if key.state == "active" and key.algorithm == chosen.algorithm
            ]
            # First the new one: a crash between the two leaves two signatures, not none.
            found = [self._move(chosen, "active", change)]
            return found + [self._move(key, state, change) for key, state in changed]

    def retire(self, domain: str, selector: str) -> Key:
        """A key signs no more. Raises KeyringError."""
        with self._changing() as change:
            return self._move(self._one(domain, selector), "retired", change)

    def remove(self, domain: str, selector: str) -> Key:
        """Remove a key that does not sign. Raises KeyringError."""
        with self._changing() as change:
            key = self._one(domain, selector)
            if key.state == "active":
                raise KeyringError(f"{key.name} signs: retire it first")
            (self.folder / key.domain / f"{key.selector}.json").unlink()
            change.append(("dkim key remove", key, key.state))
            with contextlib.suppress(OSError):
                (self.folder / key.domain).rmdir()  # the last one
        return key

    def _one(self, domain: str, selector: str) -> Key:
        for key in self._of(_domain(domain)):
            if key.selector == selector.lower():
                return key
        raise KeyringError(f"there is no key {selector}._domainkey.{domain}")

    def _move(self, key: Key, state: str, change: list[tuple[str, Key, str | None]]) -> Key:
        moved = msgspec.structs.replace(key, state=state, changed_s=int(time.time()))
        self._write(moved)
        change.append((f"dkim key {state}", moved, key.state))
        return moved

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[tuple[str, Key, str | None]]]:
        """One change at a time; it is told to readers and to the audit log at its end."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.folder / "changed", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            change: list[tuple[str, Key, str | None]] = []
            try:
                yield change
            finally:
                if change:
                    os.utime(fd)
                    for action, key, before in change:
                        self._audit(action, key, before)
        finally:
            os.close(fd)

    def _write(self, key: Key) -> None:
        """Durable, and whole or not there."""
        folder = self.folder / key.domain
        folder.mkdir(mode=0o700, exist_ok=True)
        write_durably(folder / f"{key.selector}.json", msgspec.json.encode(key))
        sync_folder(self.folder)

    def _audit(self, action: str, key: Key, before: str | None) -> None:
        """A line in log/directory.log, as changes of policy leave one; the secret is not in it."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "who": os.environ.get("SUDO_USER") or f"uid {os.getuid()}",
            "action": action, "entry": key.name, "old": before, "new": None if action.endswith("remove") else key.state,
        }  # fmt: skip
        with contextlib.suppress(OSError), (self._home / "log/directory.log").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _domain(name: str) -> str:
    try:
        found = ascii_name(name)
    except ValueError as cause:
        raise KeyringError(str(cause)) from None
    if "/" in found or "*" in found:
        raise KeyringError(f"no domain name: {name!r}")
    return found


def _free(known: list[Key], algorithm: str, now_s: int) -> str:
    """A selector that tells date and kind: `r20261124`, `e20261124`, `r20261124-2`."""
    stem = ("e" if algorithm == "ed25519" else "r") + time.strftime("%Y%m%d", time.gmtime(now_s))
    taken = {key.selector for key in known}
    return next(name for name in [stem, *(f"{stem}-{n}" for n in range(2, MAX_KEYS + 2))] if name not in taken)


__all__ = ["ALGORITHMS", "Key", "Keyring", "KeyringError"]
