"""Counts of senders: hours and days, signs of a takeover, restarts, the list of those on hold, files that are damaged."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iems.smtpd import outbound as module
from iems.smtpd.outbound import Outbound, Row, Sent

WHO = "anna@example.test"


class Clock:
    def __init__(self):
        self.now = 1_790_000_000

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def opened(tmp_path, clock):
    made = []

    def make(**limits):
        while made:
            made.pop().close()
        made.append(Outbound(tmp_path / "senders", clock=clock, **limits))
        return made[0]

    yield make
    while made:
        made.pop().close()


def people(count, start=0):
    return [b"p%d@else.test" % number for number in range(start, start + count)]


def test_hours_and_days(opened, clock):
    senders = opened(hour=10, day=15)
    clock.now = clock.now // 3600 * 3600
    assert senders.room(WHO) == (10, False)
    senders.sent(WHO, "192.0.2.0/24", people(8))
    assert senders.room(WHO) == (2, False)
    senders.sent(WHO, "192.0.2.0/24", people(2))
    assert senders.room(WHO) == (0, True) and senders.room(WHO) == (0, False)  # one alarm an hour
    assert senders.sent(WHO, "", people(1)) == Sent(over=True)  # of a session that asked when there was room
    assert senders.room("ben@example.test") == (10, False)
    clock.now += 5400  # half of the hour before counts
    assert senders.room(WHO) == (5, False)
    senders.sent(WHO, "192.0.2.0/24", people(5))
    clock.now += 7200
    assert senders.room(WHO) == (0, True)  # the day is used up
    clock.now += 86_400
    assert senders.room(WHO) == (10, False)


def test_counts_survive_a_restart_and_reach_other_workers(opened, tmp_path, clock):
    senders = opened(hour=10)
    senders.sent(WHO, "", people(4))
    senders = opened(hour=10)
    assert senders.room(WHO)[0] == 6


def test_a_burst_puts_mail_on_hold(opened, clock):
    senders = opened(recipients=5)
    for _ in range(20):
        assert senders.sent(WHO, "", people(5)) == Sent()  # the same five again and again
    found = senders.sent(WHO, "", people(1, 5))
    why = found.held
    assert found.news and why == "more than 5 recipients in 10 minutes"
    assert senders.sent(WHO, "", []) == Sent(why)
    clock.now += 100_000
    assert senders.sent(WHO, "", []) == Sent(why)  # until somebody has looked
    assert senders.sent("ben@example.test", "", people(5)) == Sent()


def test_slow_mail_is_no_burst(opened, clock):
    senders = opened(recipients=5)
    for number in range(30):
        assert senders.sent(WHO, "", people(1, number)) == Sent()
        clock.now += 130


def test_many_networks(opened, clock):
    senders = opened(networks=3)
    for number in range(3):
        assert senders.sent(WHO, f"192.0.{number}.0/24", []) == Sent()
        assert senders.sent(WHO, "192.0.0.0/24", []) == Sent()
    clock.now += 3700
    assert senders.sent(WHO, "198.51.100.0/24", []) == Sent()
    for number in range(4):
        found = senders.sent(WHO, f"192.0.{number}.0/24", [])
    assert found.held == "clients in more than 3 networks in an hour"


def test_the_list_outlives_the_counts_and_is_cleared(opened, tmp_path, clock):
    senders = opened(recipients=1)
    why = senders.sent(WHO, "", people(2)).held
    senders.held.change(WHO, why, clock.now)
    senders.close()
    (tmp_path / "senders/counts/boot").write_text("another start of the machine")
    senders = Outbound(tmp_path / "senders", recipients=1, clock=clock)
    assert senders.sent(WHO, "", []) == Sent(why)
    [known] = senders.known()
    assert (known.sender, known.held, known.since) == (WHO, why, clock.now)
    other = module.Held(tmp_path / "senders/held")
    assert other.read() == {WHO: (why, clock.now)}
    assert senders.clear(WHO) and not senders.clear(WHO)
    assert other.read() == {} and senders.known() == []
    assert senders.sent(WHO, "", people(1)) == Sent()
    senders.close()


def test_damage(opened, tmp_path):
    senders = opened(hour=5)
    senders.sent(WHO, "", people(3))
    with senders._env.begin(write=True) as txn:
        txn.put(WHO.encode(), b"\xc1no row")
    assert senders.room(WHO)[0] == 5  # nobody is limited by what can't be read
    (tmp_path / "senders/held").write_text("{")
    assert senders.sent(WHO, "", []) == Sent()
    with pytest.raises(ValueError):
        senders.known()
    (tmp_path / "senders/held").unlink()
    senders.close()
    (tmp_path / "senders/counts/data.mdb").write_bytes(b"x" * 8192)
    assert opened(hour=5).room(WHO)[0] == 5


def test_prune(opened, clock):
    senders = opened(recipients=1)
    senders.sent(WHO, "", people(1))
    senders.sent("held@example.test", "", people(2))
    clock.now += module.STALE_S + 1
    senders.sent("new@example.test", "", people(1))
    senders.prune()
    assert [one.sender for one in senders.known()] == ["held@example.test", "new@example.test"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7200), st.integers(0, 50)), max_size=40))
def test_a_row_never_counts_more_than_was_sent(steps):
    row, now, all_sent = Row(), 1_790_000_000, 0
    for step, number in steps:
        now += step
        row.forget(now)
        row.hours.append((now // 3600, number))
        all_sent += number
        in_hour, in_day = row.used(now)
        assert number <= in_hour <= in_day <= all_sent
        assert len(row.hours) <= 66
