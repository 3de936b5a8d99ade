"""Dot stuffing and TOP against a plain reference, cut anywhere; cold and short files."""

import os
import random
from itertools import pairwise

import pytest

from iems.pop3d.content import Stuffer, last_octets, read_cached, read_slow


def reference(content, lines):
    """RFC 1939 3 and TOP, the slow way: split at LF."""
    pieces = content.split(b"\n")
    rows = [piece + b"\n" for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])
    if lines is not None:
        end = next((i + 1 for i, row in enumerate(rows) if row in (b"\r\n", b"\n")), len(rows))
        rows = rows[: end + lines]
    out = b"".join(b"." + row if row.startswith(b".") else row for row in rows)
    return out + (b"" if not out or out.endswith(b"\r\n") else b"\r\n") + b".\r\n"


def respond(content, lines, cuts):
    stuffer = Stuffer(lines)
    out = []
    for start, end in pairwise(cuts):
        out.append(stuffer.chunk(content[start:end]))
        if stuffer.done:
            break
    return b"".join(out) + stuffer.end()


def test_against_the_reference():
    rng = random.Random(1939)
    for _ in range(20_000):
        content = b"".join(
            rng.choices((b"\r\n", b".", b"a", b"\n", b"\r", b"..", b": x"), k=rng.randrange(16))
        )
        cuts = sorted({0, len(content), *(rng.randrange(len(content) + 1) for _ in range(rng.randrange(5)))})
        lines = rng.choice((None, 0, 1, 2, 5))
        assert respond(content, lines, cuts) == reference(content, lines), (content, lines, cuts)


def test_reading(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDONLY)
    slices = [b"ab", (fd, 2, 3), b"", (fd, 0, 1)]
    assert read_slow(slices) == b"ab2340"
    assert read_cached(slices) in (b"ab2340", None)
    for cut in range(11):
        assert last_octets([b"x", (fd, 0, cut), (fd, cut, 10 - cut)]) in (b"89", None)
    assert last_octets([b"x"]) == b"x"
    assert last_octets([b"a", b"b", b"", b"c"]) == b"bc"
    with pytest.raises(EOFError):
        read_slow([(fd, 8, 5)])
    assert read_cached([(fd, 8, 5)]) is None
    os.close(fd)
    assert read_cached([(fd, 0, 1)]) is None
    with pytest.raises(OSError):
        read_slow([(fd, 0, 1)])
