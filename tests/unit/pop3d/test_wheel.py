"""Deadlines on time, activity that moves them, against a plain list."""

import random

from iems.pop3d.wheel import Wheel


class Entry:
    def __init__(self, at):
        self.at = at
        self.expired = None

    def due(self, now):
        return self.at

    def expire(self):
        self.expired = True


def test_on_time():
    wheel = Wheel(1.0)
    early, late, moved = Entry(100.5), Entry(700), Entry(100.5)
    for entry in (early, late, moved):
        wheel.add(entry, 90)
    moved.at = 300
    wheel.turn(100)
    assert not early.expired
    wheel.turn(102)
    assert early.expired and not moved.expired and len(wheel) == 2
    wheel.remove(late)
    wheel.remove(late)
    wheel.turn(1000)
    assert moved.expired and not late.expired and len(wheel) == 0


def test_against_a_list():
    rng = random.Random(1)
    wheel, now, alive = Wheel(1.0), 1000.0, set()
    for _ in range(5000):
        now += rng.random() * 3
        entry = Entry(now + rng.random() * 50)
        wheel.add(entry, now)
        alive.add(entry)
        for other in rng.sample(sorted(alive, key=id), min(3, len(alive))):
            if rng.random() < 0.5:
                other.at = max(other.at, now + rng.random() * 50)  # activity only puts it off
            elif rng.random() < 0.2:
                wheel.remove(other)
                alive.discard(other)
        wheel.turn(now)
        for other in list(alive):
            if other.expired:
                assert other.at <= now
                alive.discard(other)
            else:
                assert other.at > now - 2.0
    assert len(wheel) == len(alive)
