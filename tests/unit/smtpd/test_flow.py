"""Water marks: closed at the high one, open at the low one, one event a change, workers in step."""

import os

import pytest

from iems.config import Smtpd
from iems.smtpd import flow
from iems.smtpd.flow import Flow, Level
from tests.transcripts.smtp_server import FakeLog


class Pool:
    """Gauges that workers share."""

    def __init__(self):
        self.gauges = {}
        self.log = FakeLog()

    def worker(self, number, *levels):
        return Flow(
            list(levels),
            self.log,
            lambda name, value: self.gauges.__setitem__((number, name), value),
            lambda name: sum(value for (_, found), value in self.gauges.items() if found == name),
        )

    def events(self):
        return [(event, detail["what"]) for event, _, _, detail in self.log.events]


def test_hysteresis():
    pool = Pool()
    value = [0.0]
    door = pool.worker(1, Level("queue", 10, 5, "messages", lambda: value[0]))
    seen = []
    for now, length in enumerate((0, 9, 10, 9, 6, 5, 6, 9, 11)):
        value[0] = length
        door.look(float(now))
        seen.append(door.closed)
    assert seen == [False, False, True, True, True, False, False, False, True]
    assert pool.events() == [("flow-closed", "queue"), ("flow-open", "queue"), ("flow-closed", "queue")]
    assert door.mail.code == 452 and door.connection is None


def test_not_oftener_than_once_a_second():
    calls = []
    door = Pool().worker(1, Level("queue", 10, 5, "messages", lambda: calls.append(1) or 0))
    for now in (0.0, 0.5, 0.9, 1.0, 1.5):
        door.look(now)
    assert len(calls) == 2


def test_workers_follow_each_other_between_the_marks():
    pool = Pool()
    value = [20.0]
    one = pool.worker(1, Level("disk", 10, 5, "percent", lambda: value[0]))
    two = pool.worker(2, Level("disk", 10, 5, "percent", lambda: value[0]))
    one.look(0)
    value[0] = 7
    two.look(0)
    assert one.closed and two.closed and pool.events() == [("flow-closed", "disk")]
    value[0] = 4
    one.look(1)
    assert pool.events() == [("flow-closed", "disk")]  # one of them still finds it too high
    two.look(1)
    assert pool.events()[-1] == ("flow-open", "disk") and len(pool.log.events) == 2


def test_memory_turns_clients_away():
    pool = Pool()
    door = pool.worker(1, Level("memory", 10, 5, "percent", lambda: 99.0))
    door.look(0)
    assert (door.connection.code, door.mail.code) == (421, 452)
    door.leave()
    assert not door.closed and not sum(pool.gauges.values())


def test_what_cannot_be_measured_is_not_too_high():
    pool = Pool()
    answers = iter((99.0, OSError("gone"), 1.0))

    def measure():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    door = pool.worker(1, Level("disk", 10, 5, "percent", measure))
    door.look(0)
    assert door.closed
    door.look(1)
    assert not door.closed and pool.log.events[-1][3]["cause"] == "gone"


def test_a_low_mark_above_the_high_one():
    level = flow.levels(Smtpd(flow_queue_high=10), None, lambda: 0)[0]
    assert (level.high, level.low) == (10, 9)


def test_no_marks_measure_nothing():
    door = Pool().worker(1, Level("queue", 0, 0, "messages", lambda: 1 / 0))
    door.look(0)
    assert not door.closed


def test_disk(tmp_path):
    found = flow.disk_percent(tmp_path)
    assert 0 <= found <= 100
    room = os.statvfs(tmp_path)
    assert found >= 100 * (room.f_blocks - room.f_bfree) / room.f_blocks - 1
    with pytest.raises(OSError):
        flow.disk_percent(tmp_path / "none")


def test_memory(tmp_path, monkeypatch):
    assert 0 < flow.memory_percent() < 100
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:    250 kB\n")
    monkeypatch.setattr(flow, "_MEMINFO", info)
    monkeypatch.setattr(flow, "_group_percent", lambda: 0.0)
    assert flow.memory_percent() == 75
    info.write_text("MemTotal: x kB\n")
    with pytest.raises(ValueError):
        flow.memory_percent()
    info.write_text("")
    with pytest.raises(ValueError):
        flow.memory_percent()
