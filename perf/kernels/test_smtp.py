"""The SMTP kernel and its twin: command lines, paths, the end of mail data, ids; and a whole session without sockets.

pytest perf/kernels/test_smtp.py --benchmark-only --benchmark-group-by=param:size
"""

import pytest

from iems._native import buffer_py, ids_py, kernel, smtp_py
from tests.transcripts.smtp_server import SmtpServer

smtp, buffers, ids = kernel("smtp"), kernel("buffer"), kernel("ids")
SIDES = {"native": (smtp, buffers, ids), "python": (smtp_py, buffer_py, ids_py)}
LINE = b"RCPT TO:<user1@example.test>\r\n"


def content(size: int, every: int) -> memoryview:
    """Lines of 76 octets, one of `every` stuffed, with the end of data."""
    lines = [b".." + b"x" * 74 if every and n % every == 0 else b"x" * 76 for n in range(1, size // 78 + 1)]
    return memoryview(bytearray(b"\r\n".join([*lines, b".", b""])))


@pytest.mark.parametrize("side", SIDES)
def test_command(benchmark, side):
    benchmark(SIDES[side][0].command, memoryview(bytearray(LINE)), 0, len(LINE))


@pytest.mark.parametrize("side", SIDES)
def test_plain_path(benchmark, side):
    benchmark(SIDES[side][0].plain_path, LINE[5:-2], 3)


@pytest.mark.parametrize("side", SIDES)
def test_id_text(benchmark, side):
    benchmark(SIDES[side][2].id_text, bytes(range(16)))


@pytest.mark.parametrize("every", [0, 20])
@pytest.mark.parametrize("size", [4_096, 250_000])
@pytest.mark.parametrize("side", SIDES)
def test_data(benchmark, side, size, every):
    module, room, _ = SIDES[side]
    data = content(size, every)
    out = room.Buffer()

    def run():
        out.truncate(0)
        return module.DataDecoder(1 << 30).feed(data, 0, len(data), out)

    assert benchmark(run) == (len(data), True)


def test_transaction(benchmark):
    """Engine and handlers with fakes: MAIL, RCPT, DATA, 4 KB of content, the answer."""
    server = SmtpServer()
    server.connect()
    server.feed(b"EHLO client.test\r\n")
    group = [b"MAIL FROM:<a@example.test>\r\n", b"RCPT TO:<john@mx.test>\r\n", b"DATA\r\n", content(4_096, 0)]

    def run():
        for piece in group:
            server.engine.feed(piece)
            server.turned(server.turn())
        server.spool.run()
        server.spool.messages.clear()
        server.log.events.clear()
        out, server.output = server.output, b""
        return out

    assert benchmark(run).startswith(b"250 2.1.0 ")
