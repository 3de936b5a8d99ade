"""Thresholds of the quota: one warning a crossing."""

from __future__ import annotations

from iems.store.quota import look

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
