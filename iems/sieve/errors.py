"""What is wrong with a script, and where."""

from __future__ import annotations

from bisect import bisect_right

from msgspec import Struct

from iems.errors import IemsError


class Problem(Struct, frozen=True, order=True):
    """One error of a script. line, column: from 1; a column counts characters."""

    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.text}"


class ScriptError(IemsError):
    """A script that can't be used; `problems` has all that is wrong with it, in the order of the text."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class RunError(Exception):
    """A script that went wrong on a message (RFC 5228 2.10.6): the message is kept, nothing else is done."""


class Places:
    """Turns offsets into lines and columns."""

    def __init__(self, text: str) -> None:
        self._starts = [0]
        at = text.find("\n")
        while at >= 0:
            self._starts.append(at + 1)
            at = text.find("\n", at + 1)

    def problem(self, at: int, text: str) -> Problem:
        """An error at an offset."""
        line = bisect_right(self._starts, at)
        return Problem(line, at - self._starts[line - 1] + 1, text)
