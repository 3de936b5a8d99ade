"""Log-ins beside the loop: threads for the slow hash, and a memory of what was right a moment ago.

The memory holds a keyed HMAC of log-in name and password, never the password; the key lives in this process only.
An entry counts for five minutes and only while the directory still has the same account with the same hash, enabled:
a changed password or a disabled account counts at the next log-in.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

from iems.directory.directory import Directory
from iems.directory.entries import Account
from iems.directory.passwords import octets_of
from iems.errors import DirectoryUnavailable

KEEP_S = 300.0
MAX_KEPT = 8192
MAX_WAITING = 512
MAX_LOGIN_CHARACTERS = 512
MAX_PASSWORD_CHARACTERS = 4096


class Authenticator:
    """Checks passwords without holding up the loop.

    threads: hashes worked on at once (each takes 19 MiB and a core). per_peer: checks of one address under way at once,
    so one guesser can't fill the line; loopback is spared. keep_s: how long a right one is remembered.
    clock: monotonic seconds, for tests.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        threads: int = 2,
        per_peer: int = 16,
        keep_s: float = KEEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="auth")
        self._per_peer = per_peer
        self._keep_s = keep_s
        self._clock = clock
        self._key = os.urandom(32)
        self._kept: dict[bytes, tuple[float, Account]] = {}
        self._waiting = 0
        self._peers: dict[str, int] = {}

    async def check(self, login: str, password: str, peer_ip: str) -> Account | None:
        """The account, or None if name or password is wrong or the account is disabled.

        login: the full address in any case of letters; the local part alone in a home with one domain.
        Raises DirectoryUnavailable if the directory can't be read or too many log-ins wait: "try later", not "wrong".
        """
        if (
            not login
            or not password
            or len(login) > MAX_LOGIN_CHARACTERS
            or len(password) > MAX_PASSWORD_CHARACTERS
        ):
            return None
        tag = self._tag(login, password)
        account = self._remembered(tag)
        if account is not None:
            return account
        spared = peer_ip.startswith("127.") or peer_ip in ("", "::1", "::ffff:127.0.0.1")
        under_way = self._peers.get(peer_ip, 0)
        if self._waiting >= MAX_WAITING or (not spared and under_way >= self._per_peer):
            raise DirectoryUnavailable("too many log-ins at once")
        self._waiting += 1
        self._peers[peer_ip] = under_way + 1
        try:
            loop = asyncio.get_running_loop()
            account = await loop.run_in_executor(self._pool, self.directory.authenticate, login, password)
        finally:
            self._waiting -= 1
            left = self._peers[peer_ip] - 1
            if left:
                self._peers[peer_ip] = left
            else:
                del self._peers[peer_ip]
        if account is not None:
            if len(self._kept) >= MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[tag] = (self._clock() + self._keep_s, account)
        return account

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _tag(self, login: str, password: str) -> bytes:
        # The length parts name and password: ("ab", "c") and ("a", "bc") are two log-ins.
        name = login.encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, len(name).to_bytes(4, "big") + name + octets_of(password), _digest)

    def _remembered(self, tag: bytes) -> Account | None:
        found = self._kept.get(tag)
        if found is None:
            return None
        until, account = found
        if self._clock() >= until:
            del self._kept[tag]
            return None
        try:
            now = self.directory.account_by_number(account.number)
        except DirectoryUnavailable:
            # Who logged in a moment ago may go on while the directory is away.
            return account
        if (
            now is None
            or not now.enabled
            or now.password != account.password
            or now.address != account.address
        ):
            del self._kept[tag]
            return None
        return now


def _digest() -> blake2b:
    return blake2b(digest_size=32)
