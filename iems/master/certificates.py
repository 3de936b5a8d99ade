"""The master's watch over certificates: reads the pairs, checks each, and hands them on when files change.

The server's own pair is named in the settings; further domains have a folder each, DOMAIN/cert.pem and DOMAIN/key.pem. A pair
that can't be read or does not go together leaves the one before it in use, and is told once.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from iems.config import Tls
from iems.errors import IemsError
from iems.net.certificates import Bundle, Pairs, TooMany, context_of, normal_name

#: Between two looks at the files. A change counts when two looks in a row have seen the same: certificate and key are two files.
LOOK_S = 1.0
MAX_PEM_OCTETS = 1 << 20


class PairRefused(IemsError):
    """A pair that can't be used; the text says which files and why."""


class Certificates:
    """See the module. home: what relative paths belong to. clock: monotonic seconds."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._home = home
        self._clock = clock
        self._bundle = Bundle()
        self._pairs: Pairs | None = None
        self._tls = Tls()
        self._taken: object = None
        self._seen: object = None
        self._next_s = 0.0

    @property
    def fd(self) -> int:
        """The memory file workers inherit."""
        return self._bundle.fd

    def take(self, tls: Tls) -> list[str]:
        """Read all pairs and hand on those that are good; what is wrong with the others, a line each.

        Raises PairRefused if the server's own pair is bad and there is none from before.
        """
        self._tls = tls
        self._taken = self._seen = self._state()
        problems = []
        old = self._pairs
        try:
            default = self._checked(self._home / tls.certificate, self._home / tls.key)
        except PairRefused as refused:
            if old is None:
                raise
            default = old.default
            problems.append(str(refused))
        domains: dict[str, bytes] = {}
        for name, folder in self._folders():
            try:
                domains[name] = self._checked(folder / "cert.pem", folder / "key.pem")
            except PairRefused as refused:
                if old is not None and name in old.domains:
                    domains[name] = old.domains[name]
                problems.append(str(refused))
        pairs = Pairs(default, domains)
        try:
            self._bundle.write(pairs)
        except TooMany as fault:
            if old is None:
                raise PairRefused(str(fault)) from None
            problems.append(str(fault))
        else:
            self._pairs = pairs
        return problems

    def look(self) -> list[str] | None:
        """Take up files that have changed; what is wrong with them, None while nothing has changed. Call it often."""
        now = self._clock()
        if now < self._next_s:
            return None
        self._next_s = now + LOOK_S
        state = self._state()
        settled, self._seen = state == self._seen, state
        if state == self._taken or not settled:
            return None
        return self.take(self._tls)

    def _folders(self) -> list[tuple[str, Path]]:
        """(domain, folder) of the further domains."""
        if not self._tls.domains:
            return []
        try:
            with os.scandir(self._home / self._tls.domains) as entries:
                found = [
                    (normal_name(entry.name), Path(entry.path))
                    for entry in entries
                    if not entry.name.startswith(".") and entry.is_dir()
                ]
        except OSError:
            return []
        return sorted((name, folder) for name, folder in found if name and (folder / "cert.pem").exists())

    def _state(self) -> object:
        """What tells that a file has changed."""
        paths = [self._home / self._tls.certificate, self._home / self._tls.key]
        for _, folder in self._folders():
            paths += [folder / "cert.pem", folder / "key.pem"]
        return tuple((str(path), *_mark(path)) for path in paths)

    def _checked(self, certificate: Path, key: Path) -> bytes:
        try:
            octets = []
            for path in (certificate, key):
                if path.stat().st_size > MAX_PEM_OCTETS:
                    raise PairRefused(f"TLS pair: {path}: more than {MAX_PEM_OCTETS} octets")
                octets.append(path.read_bytes())
        except OSError as exc:
            raise PairRefused(f"TLS pair: {exc.filename}: {exc.strerror}") from None
        pem = b"\n".join(octets)
        try:
            context_of(pem, self._tls.minimum)
        except (ssl.SSLError, OSError) as exc:
            where = [str(path.relative_to(self._home)) if path.is_relative_to(self._home) else str(path) for path in (certificate, key)]
            raise PairRefused(f"TLS pair: {where[0]} and {where[1]} don't go together: {exc}") from None
        return pem


def _mark(path: Path) -> tuple[int, int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0, 0)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
