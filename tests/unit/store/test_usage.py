"""Sums of mailboxes, and the history of days."""

from __future__ import annotations

from iems.store import usage, wire
from tests.unit.store.home import Home, delivery

DAY_S = 86_400


def test_usages(home: Home):
    home.deliver(*(delivery(n, account) for account in (1, 2, 7) for n in range(1, account + 1)))
    home.ask(wire.Drop(7))
    home.ask(wire.Ensure(9))
    expected = {account: home.reader.usage(account) for account in (1, 2, 9)}
    assert expected[2][1] == 2
    home.close()
    assert usage.usages(home.path / "store") == expected
    assert usage.disk_octets(home.path / "store") >= 1 << 20
    assert usage.usages(home.path / "none") == {} and usage.disk_octets(home.path / "none") == 0


def test_sums_by_domain():
    day = usage.summed([(1, "a@x.test"), (2, "b@x.test"), (3, "c@y.test")], {1: (10, 1), 3: (5, 2)}, 0)
    assert day == usage.Day("1970-01-01", 0, usage.Sum(15, 3, 3), {"x.test": usage.Sum(10, 1, 2), "y.test": usage.Sum(5, 2, 1)})


def test_history_is_bounded_and_survives_damage(tmp_path):
    assert usage.history(tmp_path) == []
    for number in range(usage.DAYS + 5):
        usage.note(tmp_path, usage.summed([(1, "a@x.test")], {1: (number, 1)}, number * DAY_S))
    found = usage.history(tmp_path)
    assert len(found) == usage.DAYS and found[-1].total.octets == usage.DAYS + 4
    usage.note(tmp_path, usage.summed([(1, "a@x.test")], {1: (77, 1)}, (usage.DAYS + 4) * DAY_S))
    assert len(usage.history(tmp_path)) == usage.DAYS and usage.history(tmp_path)[-1].total.octets == 77, "a day has one line"
    path = tmp_path / usage.NAME
    path.write_bytes(path.read_bytes()[:-20] + b"\nnot json\n\xff\xfe\n")
    assert len(usage.history(tmp_path)) == usage.DAYS - 3
    many = [(number, f"a@d{number}.test") for number in range(usage.DOMAINS + 9)]
    usage.note(tmp_path, usage.summed(many, {5: (1, 1)}, 9_000 * DAY_S))
    last = usage.history(tmp_path)[-1]
    assert len(last.domains) == usage.DOMAINS and "d5.test" in last.domains
