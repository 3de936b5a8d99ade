"""The board: rows, counters, parking, across processes and restarts."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from iems.config import Config
from iems.log import Log
from iems.master.board import (
    COUNTERS,
    MAX_COUNTERS,
    ROLE_CODE,
    Board,
    State,
    blame_path,
    blamed,
    counters_view,
)
from iems.master.child import WorkerContext


def context(board: Board, role: str, slot: int, eventfds: list[int], home: Path) -> WorkerContext:
    board.begin(slot, os.getpid(), role, 0, 1000 + slot, 1)
    return WorkerContext(
        role=role,
        slot=slot,
        index=0,
        generation=1000 + slot,
        config=Config(),
        home=home,
        loop=asyncio.new_event_loop(),
        sockets={},
        tls=None,
        log=Log(None, role),
        board=board,
        eventfds=eventfds,
    )


def test_counters_fit() -> None:
    assert len(COUNTERS) == len(set(COUNTERS)) <= MAX_COUNTERS


def test_spawn_numbers_never_return(tmp_path: Path) -> None:
    first = Board.create(tmp_path / "board").header().last_spawn
    second = Board.create(tmp_path / "board").header().last_spawn
    assert second > first and second < 2**32


def test_a_file_that_is_no_board_is_replaced_and_refused(tmp_path: Path) -> None:
    (tmp_path / "board").write_bytes(b"x")
    with pytest.raises(ValueError):
        Board.open(tmp_path / "board")
    Board.create(tmp_path / "board")
    assert Board.open(tmp_path / "board").rows() == []


def test_counters_outlive_workers(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board")
    for slot in (0, 1):
        board.begin(slot, 1, "smtpd", slot, 1, 1)
        view = counters_view(board, slot)
        view[COUNTERS.index("sessions_total")] = 5
        view[COUNTERS.index("sessions_now")] = 2
    board.clear(0)
    reader = Board.open(tmp_path / "board")
    assert reader.counters("smtpd")["sessions_total"] == 10
    assert reader.counters("smtpd")["sessions_now"] == 2
    assert reader.total("smtpd", "sessions_now") == 2
    assert [row.slot for row in reader.rows()] == [1]
    board.begin(0, 1, "imapd", 0, 2, 1)
    assert reader.counters("imapd")["sessions_total"] == 0


def test_waking_takes_one_parked_worker_of_the_role(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board")
    eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    poster = context(board, "smtpd", 0, eventfds, tmp_path)
    takers = [context(board, "lmda", slot, eventfds, tmp_path) for slot in (1, 2)]
    called: list[int] = []
    for taker in takers:
        taker.on_wake(lambda slot=taker.slot: called.append(slot))

    def wake() -> list[int]:
        called.clear()
        poster.wake("lmda")
        for taker in takers:
            taker._woken()
        return called

    assert wake() == []
    for taker in takers:
        taker.park()
    assert wake() == [1]
    assert wake() == [2]
    assert wake() == []
    takers[0].park()
    takers[0].unpark()
    assert wake() == []


def test_a_draining_worker_hands_its_wake_up_on(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board")
    eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    leaving, staying = (context(board, "lmda", slot, eventfds, tmp_path) for slot in (1, 2))
    leaving.park()
    staying.park()
    staying.wake("lmda")
    leaving.draining = True
    leaving._woken()
    assert os.eventfd_read(eventfds[2]) == 1
    leaving.park()
    assert board.take_parked(ROLE_CODE["lmda"]) == -1


def test_work_and_life_on_the_board(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board")
    ctx = context(board, "lmda", 3, [-1] * 4, tmp_path)
    ctx.working_on(bytes(range(16)), 5.0)
    ctx.writing(True)
    ctx._state(State.READY)
    row = board.row(3)
    assert row is not None and row.message_id == bytes(range(16)) and row.writing and row.jobs == 1
    assert row.state is State.READY and row.job_deadline_ns > row.started_ns
    ctx.working_on(None)
    row = board.row(3)
    assert row is not None and row.message_id == bytes(16) and row.job_deadline_ns == 0 and row.jobs == 1
    assert ctx.alive(3, 1003) and not ctx.alive(3, 1002) and not ctx.alive(2, 1002)
    board.clear(3)
    assert not ctx.alive(3, 1003)


def test_blame_is_counted_and_torn_lines_are_skipped(tmp_path: Path) -> None:
    assert blamed(tmp_path) == {}
    (tmp_path / "run").mkdir()
    one = bytes(range(16))
    blame_path(tmp_path).write_bytes(f"{one.hex()} lmda 1\n{one.hex()} lmda 2\nzz\n{one.hex()[:7]}".encode())
    assert blamed(tmp_path) == {one: 2}
