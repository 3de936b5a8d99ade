"""What SMTPD does with octets: command lines, plain paths, and the end of mail data with its dots unstuffed on the way.

Rivals of the decoder: `find` and `replace`, the quickest that Python's bytes can do on a message that is there as a whole, without any of
the checks (bare CR and LF, NUL, lengths); and 16 KiB pieces, as they come from a socket.
"""

from collections.abc import Callable
from typing import Any

import pytest

from iems._native import buffer_py, kernel, smtp_py
from perf.kernels.inputs import CONTENT, SIZES, WIRE

smtp = kernel("smtp")
buffer = kernel("buffer")
PIECE = 16_384


def decoded(module: Any, buffers: Any, wire: bytes, piece: int) -> Any:
    decoder = module.DataDecoder()
    out = buffers.Buffer()
    for start in range(0, len(wire), piece):
        decoder.feed(wire, start, min(len(wire), start + piece), out)
    assert decoder.done
    return out


def replaced(wire: bytes) -> bytes:
    return wire[: wire.index(b"\r\n.\r\n") + 2].replace(b"\r\n..", b"\r\n.")


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "native": lambda wire: decoded(smtp, buffer, wire, len(wire)),
    "native, 16 KiB pieces": lambda wire: decoded(smtp, buffer, wire, PIECE),
    "twin": lambda wire: decoded(smtp_py, buffer_py, wire, len(wire)),
    "bytes.find and replace": replaced,
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", DECODERS)
def test_data(benchmark: Any, case: str, size: int) -> None:
    assert bytes(benchmark(DECODERS[case], WIRE[size])) == CONTENT[size]


TRANSACTION = b"MAIL FROM:<sender@load.test> SIZE=4096\r\nRCPT TO:<a1@load.test>\r\nDATA\r\n"


def scanned(module: Any) -> int:
    at = count = 0
    while at < len(TRANSACTION):
        _code, at, _rest = module.command(TRANSACTION, at, len(TRANSACTION))
        count += 1
    return count


@pytest.mark.parametrize("case", ["native", "twin", "bytes.split"])
def test_three_commands(benchmark: Any, case: str) -> None:
    if case == "bytes.split":
        assert benchmark(lambda: [line.split(b" ", 1)[0].upper() for line in TRANSACTION.split(b"\r\n")[:-1]])[2] == b"DATA"
    else:
        assert benchmark(scanned, smtp if case == "native" else smtp_py) == 3


@pytest.mark.parametrize("case", ["native", "twin"])
def test_plain_path(benchmark: Any, case: str) -> None:
    module = smtp if case == "native" else smtp_py
    assert benchmark(module.plain_path, b"FROM:<first.last+detail@mail.example.org> SIZE=1", 5)[0] > 0
