"""Which accounts have come near their quota since the last look (`store.quota_warn_percent`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct


class Crossing(Struct):
    """An account that crossed a threshold upward. percent: the highest it has reached."""

    number: int
    address: str
    percent: int
    used_octets: int
    quota_octets: int


class Look(Struct):
    """warnings: to be sent. levels: number -> threshold reached, of the accounts above any. quotas: how many accounts have one."""

    warnings: list[Crossing]
    levels: dict[int, int]
    quotas: int


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
