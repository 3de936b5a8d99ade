"""Prometheus text from a board, and the small HTTP around it."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from iems.janitor.metrics import REQUEST_OCTETS, answer, exposition, serve_metrics
from iems.master.board import COUNTERS, Board, counters_view


@pytest.fixture
def board(tmp_path: Path) -> Board:
    board = Board.create(tmp_path / "board")
    board.set_workers("smtpd", 2)
    board.begin(0, 100, "smtpd", 0, 1, 1)
    counters_view(board, 0)[COUNTERS.index("sessions_total")] = 7
    counters_view(board, 0)[COUNTERS.index("sessions_now")] = 2
    return board


def test_every_line_is_well_formed(board: Board) -> None:
    board.set_workers("janitor", 1)
    board.begin(1, 101, "janitor", 0, 2, 1)
    counters_view(board, 1)[COUNTERS.index("queue_local_deferred_now")] = 4
    text = exposition(board).decode()
    sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? -?[0-9.e+]+')
    for line in text.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line), line
    assert 'iems_sessions_total{role="smtpd"} 7' in text
    assert "# TYPE iems_sessions_total counter" in text
    assert "# TYPE iems_sessions_now gauge" in text
    assert 'iems_workers_wanted{role="smtpd"} 2' in text and 'iems_workers_alive{role="smtpd"} 1' in text
    assert 'iems_queue_messages{channel="LOCAL",state="deferred"} 4' in text
    assert 'iems_queue_messages{channel="INPUT",state="ready"} 0' in text
    assert "queue_local" not in text


def test_modules(board: Board) -> None:
    board.set_workers("preprocessor", 1)
    board.begin(1, 101, "preprocessor", 0, 2, 1)
    for what, value in (("messages", 2), ("us", 1_500_000), ("cpu_us", 2_000)):
        counters_view(board, 1)[COUNTERS.index(f"module_milter_{what}_total")] = value
    text = exposition(board).decode()
    for line in ("messages_total{module=\"milter\"} 2", "seconds_total{module=\"milter\"} 1.5",
                 "cpu_seconds_total{module=\"milter\"} 0.002", "failures_total{module=\"milter\"} 0"):  # fmt: skip
        assert f"iems_module_{line}\n" in text
    assert "antivirus" not in text and "us_total" not in text, "what has not run is not told, nor what is told in seconds"


def test_requests(board: Board) -> None:
    assert answer(b"GET /metrics HTTP/1.1\r\n\r\n", board).startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer(b"HEAD /metrics HTTP/1.1\r\n\r\n", board).endswith(b"\r\n\r\n")
    assert answer(b"GET /x HTTP/1.1\r\n\r\n", board).startswith(b"HTTP/1.1 404")
    assert answer(b"POST /metrics HTTP/1.1\r\n\r\n", board).startswith(b"HTTP/1.1 405")
    for bad in (b"\r\n\r\n", b"GET\r\n\r\n", b"GET /metrics\r\n\r\n", b"\x00\xff\r\n\r\n"):
        assert answer(bad, board).startswith(b"HTTP/1.1 400")


def test_over_a_socket(board: Board) -> None:
    async def main() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        ctx = SimpleNamespace(board=board, log=SimpleNamespace(event=print))
        serving = asyncio.ensure_future(serve_metrics(ctx, sock))
        try:
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
            await asyncio.sleep(0)
            writer.write(b"\r\n")
            assert b"iems_sessions_total" in await reader.read()
            writer.close()
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            writer.write(b"x" * (REQUEST_OCTETS + 1))
            try:
                assert await reader.read() == b""
            except ConnectionResetError:
                pass
            writer.close()
        finally:
            serving.cancel()
            sock.close()

    asyncio.run(main())
