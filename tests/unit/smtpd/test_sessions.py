"""Counts of clients over several workers: sums, minutes, deaths, a table without room, damaged files."""

import os

import pytest

from iems.master.board import Board
from iems.smtpd import sessions
from iems.smtpd.sessions import MESSAGES, RECIPIENTS, SESSIONS, Clients, Table, network_of


class Pool:
    """Workers of a pool in one process."""

    def __init__(self, path):
        self.path = path
        self.now = 600.0
        (path / "run").mkdir()
        self.board = Board.create(path / "run/board")
        self.generation = 1

    def start(self, slot):
        self.generation += 1
        self.board.begin(slot, os.getpid(), "smtpd", slot, self.generation, 1)
        header = self.board.header()
        self.board.set_header(header.master_pid, self.generation, 1, header.started_ns, 0, 0, 1)
        return Clients(self.path / "run", self.board, "smtpd", slot, self.generation, lambda: self.now)


@pytest.fixture
def pool(tmp_path):
    return Pool(tmp_path)


def test_workers_see_each_other(pool):
    one, two = pool.start(3), pool.start(4)
    key = one.digest("192.0.2.1")
    assert key == two.digest("192.0.2.1") != one.digest("192.0.2.2")
    assert one.sessions(key) == 0
    one.enter(key)
    one.enter(key)
    two.enter(key)
    assert one.sessions(key) == two.sessions(key) == 3
    one.leave(key)
    assert two.sessions(key) == 2
    two.leave(key)
    two.leave(key)  # once too often: no count is negative
    assert two.sessions(key) == 1


def test_a_dead_worker_takes_its_counts_with_it(pool):
    one, two = pool.start(3), pool.start(4)
    key = one.digest("x")
    two.enter(key)
    assert one.sessions(key) == 1
    pool.board.clear(4)
    pool.now += sessions.LOOK_S
    assert one.sessions(key) == 0
    two = pool.start(4)  # another one in its slot, seen at once
    assert one.sessions(key) == 0
    two.enter(key)
    assert one.sessions(key) == 1


def test_minutes(pool):
    one, two = pool.start(3), pool.start(4)
    key = one.digest("x")
    for _ in range(6):
        one.add(key, MESSAGES)
    two.add(key, MESSAGES)
    two.add(key, RECIPIENTS)
    assert (one.rate(key, MESSAGES), one.rate(key, RECIPIENTS), one.rate(key, SESSIONS)) == (7, 1, 0)
    pool.now += 90  # half of the minute before still counts
    assert one.rate(key, MESSAGES) == 3.5
    one.add(key, MESSAGES)
    assert one.rate(key, MESSAGES) == 1 + 3 + 0.5
    pool.now += 60
    assert one.rate(key, MESSAGES) == 0.5
    pool.now += 600
    assert one.rate(key, MESSAGES) == 0


def test_a_table_without_room(pool, monkeypatch):
    monkeypatch.setattr(sessions, "ROWS", 32)
    monkeypatch.setattr(sessions, "SIZE", 64 + 32 * 48)
    one = pool.start(3)
    keys = [one.digest(str(number)) for number in range(200)]
    for key in keys:
        one.enter(key)
    kept = [key for key in keys if one.sessions(key)]
    assert len(kept) == 32 and one.lost == 168  # who is here is never put out
    for key in keys:
        one.leave(key)
    pool.now += 60
    late = one.digest("late")
    one.enter(late)
    assert one.sessions(late) == 1 and sum(one.sessions(key) for key in keys) == 0


def test_a_table_that_is_none(pool):
    path = pool.path / "run/door-9"
    assert Table.open(path, 1) is None
    path.write_bytes(b"x" * 100)
    assert Table.open(path, 1) is None
    path.write_bytes(bytes(sessions.SIZE))
    assert Table.open(path, 1) is None
    Table.create(path, 7)
    assert Table.open(path, 1) is None and Table.open(path, 7) is not None


def test_networks():
    assert network_of("192.0.2.77") == "192.0.2.0/24"
    assert network_of("2001:db8:1:2:3::4") == "2001:db8:1:2::/64"
    with pytest.raises(ValueError):
        network_of("nowhere")
