"""Thresholds of the quota: one warning a crossing."""

from __future__ import annotations

from iems.store.quota import look, look_at_domains

ACCOUNTS = [(1, "a@x.test", 1_000), (2, "b@x.test", None), (3, "c@x.test", 2_000)]


def step(octets: int, known: dict[int, int], percents=(80, 95)) -> tuple[list[tuple[int, int]], dict[int, int]]:
    found = look(ACCOUNTS, {1: (octets, 1), 2: (10**9, 1)}, percents, known)
    assert found.quotas == 2
    return [(warning.number, warning.percent) for warning in found.warnings], found.levels


def test_one_warning_a_crossing():
    levels: dict[int, int] = {}
    told = []
    for octets in (0, 799, 800, 900, 949, 950, 2_000, 940, 960, 700, 810, 790, 999):
        warned, levels = step(octets, levels)
        told.append([percent for _, percent in warned])
    assert told == [[], [], [80], [], [], [95], [], [], [95], [], [80], [], [95]]
    assert step(5_000, {}, ()) == ([], {})


def test_a_domain_is_warned_of_once_a_crossing() -> None:
    accounts = [(1, "a@x.test", None), (2, "b@x.test", 1000), (3, "c@y.test", None)]
    used = {1: (500, 1), 2: (350, 1), 3: (5000, 1)}
    found = look(accounts, used, [80, 95], {})
    look_at_domains(found, accounts, used, {"x.test": 1000, "z.test": 1}, [80, 95], {})
    assert found.quotas == 3 and found.domain_levels == {"x.test": 80}
    [crossing] = found.domains
    assert (crossing.domain, crossing.percent, crossing.used_octets, crossing.addresses) == ("x.test", 80, 850, ["a@x.test", "b@x.test"])
    again = look(accounts, used, [80, 95], {})
    look_at_domains(again, accounts, used, {"x.test": 1000}, [80, 95], found.domain_levels)
    assert again.domains == [] and again.domain_levels == {"x.test": 80}
    used[1] = (900, 2)
    look_at_domains(again, accounts, used, {"x.test": 1000}, [80, 95], found.domain_levels)
    assert [crossing.percent for crossing in again.domains] == [95]
