"""What failed log-ins cost: a table that all workers of a home share, so that guessing in turn at six doors gains nothing.

Failures count for an account from one address, and for an address over all accounts; never for an account alone, or anybody could
lock its owner out. From where an account has logged in of late it is never held back, whatever others do from there. Nothing waits
here: an attempt that comes too early is refused at once, without a hash, and does not prolong the wait.

The table is a file of fixed size, mapped by every worker without a lock. A slot is found by a keyed hash, so the file names nobody and
no attacker can aim at another's slot; a full bucket gives up its oldest. Two workers that write one slot at the same moment
lose a count at worst.
"""

from __future__ import annotations

import ipaddress
import mmap
import os
import struct
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

#: Buckets of eight slots, of failures and as many of places that are known to be good: 3 MiB in all.
BUCKETS = 8192
WAYS = 8
#: How long a place where an account logged in is remembered.
KNOWN_S = 30 * 86_400
#: The first wait; it doubles with each further failure.
FIRST_WAIT_S = 2

_SLOT = struct.Struct("<8sIIII")  # key, failures, held until, last seen (s since 1970), unused
_REGION = BUCKETS * WAYS * _SLOT.size


def is_loopback(ip: str) -> bool:
    """Whether an address as a socket gives it is this machine's; "" (no address) counts as such."""
    return ip.startswith(("127.", "::ffff:127.")) or ip in ("", "::1")


def network_of(ip: str) -> str:
    """What counts as one place: an IPv4 address, and a /64 of IPv6, of which every client has all."""
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return ip
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped is not None else str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class Guard:
    """See the module.

    path: of the table, made if missing; None keeps it in this process. secret: the key of the hash. failures, network_failures:
    how many are free, 0 for no limit. longest_s: the longest wait. loopback: whether it counts too. clock: seconds since 1970.
    begun: told when somebody is held back: what ("account", "network"), the name, the network, the wait in s.
    """

    def __init__(
        self,
        path: Path | None,
        secret: bytes,
        *,
        failures: int = 5,
        network_failures: int = 50,
        longest_s: float = 900.0,
        loopback: bool = False,
        clock: Callable[[], float] = time.time,
        begun: Callable[[str, str, str, float], None] = lambda what, login, network, wait_s: None,
    ) -> None:
        self._secret = secret[:64]
        self._failures = failures
        self._network_failures = network_failures
        self._longest_s = longest_s
        self._loopback = loopback
        self._clock = clock
        self._begun = begun
        if path is None:
            self._map = mmap.mmap(-1, 2 * _REGION)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size < 2 * _REGION:
                    os.ftruncate(fd, 2 * _REGION)
                self._map = mmap.mmap(fd, 2 * _REGION)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Give the table up."""
        self._map.close()

    def spares(self, ip: str) -> bool:
        """Whether nothing counts from there."""
        return not self._loopback and is_loopback(ip)

    def held_s(self, login: str, ip: str) -> float:
        """Seconds until a log-in may be tried, 0.0 for now. login: in normal form, of a user or not."""
        if self.spares(ip):
            return 0.0
        network = network_of(ip)
        now = self._clock()
        if self._is_known(login, network, now):
            return 0.0
        until = 0
        for key in (self._key(b"a", login, network), self._key(b"n", "", network)):
            slot = self._find(0, key)
            if slot is not None:
                until = max(until, slot[2])
        # A clock that was set back must not lock anybody out for years.
        return min(until - now, self._longest_s) if until > now else 0.0

    def failed(self, login: str, ip: str) -> None:
        """A log-in failed."""
        if self.spares(ip):
            return
        network = network_of(ip)
        now = self._clock()
        if self._is_known(login, network, now):
            return
        for what, key, free in (
            ("account", self._key(b"a", login, network), self._failures),
            ("network", self._key(b"n", "", network), self._network_failures),
        ):
            if not free:
                continue
            slot = self._find(0, key)
            fresh = slot is None or now - slot[3] > 2 * self._longest_s
            count = 1 if slot is None or fresh else min(slot[1] + 1, 1 << 30)
            wait_s = min(self._longest_s, FIRST_WAIT_S * 2.0 ** min(count - free, 40)) if count >= free else 0.0
            self._write(0, key, count, int(now + wait_s) + 1 if wait_s else 0, int(now))
            if wait_s:
                self._begun(what, login, network, wait_s)

    def succeeded(self, login: str, ip: str) -> None:
        """A log-in was right: its place is known from now on, and what it failed before is forgotten.

        What counts for the address stays: else one account of one's own would be a licence to guess others'.
        """
        if self.spares(ip):
            return
        network = network_of(ip)
        now = self._clock()
        key = self._key(b"k", login, network)
        slot = self._find(_REGION, key)
        if slot is None or not 0 <= now - slot[3] < 3600:
            self._write(_REGION, key, 1, 0, int(now))
        key = self._key(b"a", login, network)
        if self._find(0, key) is not None:
            self._write(0, key, 0, 0, int(now))

    def _is_known(self, login: str, network: str, now: float) -> bool:
        slot = self._find(_REGION, self._key(b"k", login, network))
        return slot is not None and now - slot[3] < KNOWN_S

    def _key(self, kind: bytes, login: str, network: str) -> bytes:
        text = login.encode("utf-8", "surrogatepass")
        digest = blake2b(digest_size=8, key=self._secret, person=kind)
        digest.update(len(text).to_bytes(4, "big") + text + network.encode())
        return digest.digest()

    def _bucket(self, region: int, key: bytes) -> int:
        return region + int.from_bytes(key[:4], "big") % BUCKETS * WAYS * _SLOT.size

    def _find(self, region: int, key: bytes) -> tuple[bytes, int, int, int, int] | None:
        start = self._bucket(region, key)
        for at in range(start, start + WAYS * _SLOT.size, _SLOT.size):
            slot: tuple[bytes, int, int, int, int] = _SLOT.unpack_from(self._map, at)
            if slot[0] == key:
                return slot
        return None

    def _write(self, region: int, key: bytes, count: int, until: int, seen: int) -> None:
        start = self._bucket(region, key)
        oldest, place = 1 << 33, start
        for at in range(start, start + WAYS * _SLOT.size, _SLOT.size):
            slot = _SLOT.unpack_from(self._map, at)
            if slot[0] == key:
                place = at
                break
            if slot[3] < oldest:
                oldest, place = slot[3], at
        _SLOT.pack_into(self._map, place, key, count, until, seen, 0)
