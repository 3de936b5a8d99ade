"""DNS for the evaluators, from a dictionary: no server, no cache; it counts what was asked."""

from __future__ import annotations

from typing import Any

from iems.net.resolver import Answer, DnsFailure, ascii_name


class Zones:
    """records: {name: {kind: [record, ...]}}, records as `Answer` has them; failing: names whose other types fail."""

    def __init__(self, records: dict[str, dict[str, list[Any]]], failing: tuple[str, ...] = ()) -> None:
        self.records = {name.rstrip(".").lower(): kinds for name, kinds in records.items()}
        self.failing = frozenset(name.lower() for name in failing)
        self.asked: list[tuple[str, str]] = []

    async def query(self, name: str, kind: str, *, loose: bool = False) -> Answer:
        name = ascii_name(name, loose)
        self.asked.append((name, kind))
        for _ in range(9):
            kinds = self.records.get(name)
            if kinds is None:
                if name in self.failing:
                    raise DnsFailure(f"{name}: SERVFAIL")
                return Answer((), False, name, 60.0)
            if kind in kinds:
                return Answer(tuple(kinds[kind]), True, name, 60.0)
            if name in self.failing:
                raise DnsFailure(f"{name}: SERVFAIL")
            if "CNAME" not in kinds:
                return Answer((), True, name, 60.0)
            name = kinds["CNAME"][0]
        raise DnsFailure(f"{name}: a loop of aliases")
