"""What domains may still keep, and which accounts and domains have come near their quota since the last look (`store.quota_warn_percent`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

if TYPE_CHECKING:
    from iems.store.reader import Reader


class DomainRoom:
    """What the domain of an account may have in the account's partition: its quota less what it has in the others.

    The writer compares that with its own count, in the transaction that adds mail. With one partition the limit is exact; with several, it can
    be passed by what comes into the others between this look and that transaction.
    """

    def __init__(self, reader: Callable[[], Reader], partitions: int) -> None:
        self._make = reader
        self._reader: Reader | None = None
        self._partitions = partitions

    def of(self, account: Any) -> int | None:
        """Octets; None without a quota. account: of the directory. Raises lmdb.Error."""
        quota: int | None = account.domain_quota_octets
        if quota is None or self._partitions == 1:
            return quota
        if self._reader is None:
            self._reader = self._make()
        return max(quota - self._reader.domain_octets(account.domain, account.partition), 0)


def room_of(store: Path, account: Any, partitions: int) -> int | None:
    """The same for a command, which opens the partitions for this look only. store: HOME/store. Raises lmdb.Error."""
    from iems.store.reader import Reader

    reader = Reader(store)
    try:
        return DomainRoom(lambda: reader, partitions).of(account)
    finally:
        reader.close()


class Crossing(Struct):
    """An account that crossed a threshold upward. percent: the highest it has reached."""

    number: int
    address: str
    percent: int
    used_octets: int
    quota_octets: int


class DomainCrossing(Struct):
    """A domain that crossed a threshold upward. addresses: of its accounts."""

    domain: str
    percent: int
    used_octets: int
    quota_octets: int
    addresses: list[str]


class Look(Struct):
    """warnings: to be sent. levels: number -> threshold reached, of the accounts above any. quotas: how many accounts and domains have
    one. domains, domain_levels: the same of domains, by name."""

    warnings: list[Crossing]
    levels: dict[int, int]
    quotas: int
    domains: list[DomainCrossing] = field(default_factory=list)
    domain_levels: dict[str, int] = field(default_factory=dict)


def look(
    accounts: Iterable[tuple[int, str, int | None]], used: dict[int, tuple[int, int]], percents: Sequence[int], known: dict[int, int]
) -> Look:
    """accounts: (number, address, quota). used: of `usage.usages`. known: the levels of the last look.

    An account is warned of once: again only after its use fell below that threshold and crossed it anew.
    """
    found = Look([], {}, 0)
    for number, address, quota in accounts:
        if not quota:
            continue
        found.quotas += 1
        octets = used.get(number, (0, 0))[0]
        level = max((percent for percent in percents if octets * 100 >= percent * quota), default=0)
        if level:
            found.levels[number] = level
        if level > known.get(number, 0):
            found.warnings.append(Crossing(number, address, level, octets, quota))
    return found


def look_at_domains(
    found: Look, accounts: Iterable[tuple[int, str, int | None]], used: dict[int, tuple[int, int]], quotas: dict[str, int],
    percents: Sequence[int], known: dict[str, int],
) -> None:
    """Add the domains to what `look` found; the same policy: one warning for a threshold, again only after use fell below it."""
    found.quotas += len(quotas)
    octets = dict.fromkeys(quotas, 0)
    addresses: dict[str, list[str]] = {name: [] for name in quotas}
    for number, address, _ in accounts:
        name = address.rpartition("@")[2]
        if name in octets:
            octets[name] += used.get(number, (0, 0))[0]
            addresses[name].append(address)
    for name, quota in quotas.items():
        level = max((percent for percent in percents if octets[name] * 100 >= percent * quota), default=0)
        if level:
            found.domain_levels[name] = level
        if level > known.get(name, 0):
            found.domains.append(DomainCrossing(name, level, octets[name], quota, addresses[name]))
