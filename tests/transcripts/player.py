"""Plays C:/S: dialogues against a server without sockets: whole, byte by byte, and cut at random places.

A transcript is a text file:

    # a comment, most often the RFC and section
    @ option value          what the server is made with (the test's `make` reads it); before the first line of dialogue
    S: 220 mx.test ...      a line the server must send; `*` in it stands for any characters
    S: ...                  any number of lines, up to the next one expected
    C: NOOP                 a line the client sends, with CRLF; several in a row are one pipelined group
    C> a\\r\\nb\\x00          octets the client sends as they are, with Python's escapes
    ! tls                   something else that happens (`Server.happen`)
    X:                      the server has closed the connection

The output of the server is compared after each group of client lines, so a cut inside a group must not change it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol


class Server(Protocol):
    """What a transcript is played against."""

    def connect(self) -> bytes:
        """The client is there; the output of the server."""

    def feed(self, data: bytes) -> bytes:
        """Octets from the client; the output of the server, answers that come later included."""

    def happen(self, what: str) -> bytes:
        """Something of a `!` line; the output of the server."""

    @property
    def closed(self) -> bool:
        """Whether the server has ended the session."""


Step = tuple[str, bytes | str, int]


class Transcript:
    """A dialogue read from a file. options: of the `@` lines. steps: (kind, text, line number)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.options: dict[str, str] = {}
        self.steps: list[Step] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            kind, text = line[:2], line[2:].removeprefix(" ")
            if kind == "@ ":
                name, _, value = line[2:].strip().partition(" ")
                self.options[name] = value
            elif kind == "C:":
                self.steps.append(("C", text.encode() + b"\r\n", number))
            elif kind == "C>":
                self.steps.append(
                    ("C", text.encode("latin-1").decode("unicode_escape").encode("latin-1"), number)
                )
            elif kind in ("S:", "! ", "X:"):
                self.steps.append((kind[0], text, number))
            else:
                raise ValueError(f"{path}:{number}: not a line of a transcript: {line}")

    def client(self) -> bytes:
        """All that the client sends, for fuzzing."""
        return b"".join(text for kind, text, _ in self.steps if kind == "C" and isinstance(text, bytes))


def whole(data: bytes) -> Iterator[bytes]:
    """Each group at once."""
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    """One octet at a time."""
    for at in range(len(data)):
        yield data[at : at + 1]


def cut_at_random(seed: int) -> Callable[[bytes], Iterator[bytes]]:
    """Pieces of random lengths, the same for the same seed."""
    rng = random.Random(seed)

    def cut(data: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            end = min(len(data), at + rng.choice((1, 2, 3, 7, 20, 100)))
            yield data[at:end]
            at = end

    return cut


#: The ways every transcript is played.
WAYS: dict[str, Callable[[], Callable[[bytes], Iterator[bytes]]]] = {
    "whole": lambda: whole,
    "byte": lambda: byte_by_byte,
    **{f"cut{seed}": (lambda seed=seed: cut_at_random(seed)) for seed in range(4)},
}


def play(transcript: Transcript, server: Server, way: Callable[[bytes], Iterator[bytes]]) -> None:
    """Play the dialogue; raises AssertionError where the server says something else."""
    steps = transcript.steps
    got = server.connect()
    at = 0
    while at < len(steps):
        expected = []
        while at < len(steps) and steps[at][0] == "S":
            expected.append(steps[at])
            at += 1
        _compare(transcript, expected, got, steps[at - 1][2] if at else 1)
        got = b""
        if at == len(steps):
            return
        kind, text, number = steps[at]
        if kind == "X":
            assert server.closed, f"{transcript.path}:{number}: the session is still open"
            at += 1
        elif kind == "!":
            got = server.happen(str(text))
            at += 1
        else:
            group = b""
            while at < len(steps) and steps[at][0] == "C":
                piece = steps[at][1]
                assert isinstance(piece, bytes)
                group += piece
                at += 1
            for piece in way(group):
                got += server.feed(piece)


def _compare(transcript: Transcript, expected: list[Step], got: bytes, number: int) -> None:
    lines = got.decode("latin-1").split("\r\n")
    assert lines.pop() == "", f"{transcript.path}:{number}: the output ends in half a line: {got!r}"
    at = 0
    skip = False
    for _, text, number in expected:
        assert isinstance(text, str)
        if text == "...":
            skip = True
            continue
        pattern = re.compile(".*".join(map(re.escape, text.split("*"))), re.S)
        while skip and at < len(lines) and not pattern.fullmatch(lines[at]):
            at += 1
        skip = False
        assert at < len(lines), f"{transcript.path}:{number}: expected {text!r}, got nothing more"
        assert pattern.fullmatch(lines[at]), (
            f"{transcript.path}:{number}: expected {text!r}, got {lines[at]!r}"
        )
        at += 1
    assert skip or at == len(lines), f"{transcript.path}:{number}: more output than expected: {lines[at:]!r}"
