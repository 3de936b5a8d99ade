"""A script as a tree (RFC 5228 8.2). Goes on after an error at the next command, so that all errors are found at once."""

from __future__ import annotations

from msgspec import Struct, field

from iems.sieve.errors import Places, Problem
from iems.sieve.lexer import END, IDENTIFIER, NUMBER, PUNCTUATION, STRING, TAG, Lexer, LexError, Token

#: Blocks and tests within each other; RFC 5228 2.10.7 asks for 15.
NESTING_MAX = 32
PROBLEMS_MAX = 50
#: Commands and tests in one script.
NODES_MAX = 5_000


class Argument(Struct):
    """One argument. tag: its name, number: its value, strings: a string or a list of strings; two of the three are None."""

    at: int
    tag: str | None = None
    number: int | None = None
    strings: list[str] | None = None
    is_list: bool = False
    places: list[int] = field(default_factory=list)  # offsets of the strings


class Node(Struct):
    """A command or a test. tests: what follows its arguments. block: of a command, None for one that ends with `;`."""

    name: str
    at: int
    arguments: list[Argument] = field(default_factory=list)
    tests: list[Node] = field(default_factory=list)
    block: list[Node] | None = None


class _Wrong(Exception):
    """This command can't be read; the next one may."""


class _Stop(Exception):
    """Nothing more can be read."""


class Parser:
    """Reads one script. `problems` has what was wrong afterwards."""

    def __init__(self, text: str, places: Places) -> None:
        self._lexer = Lexer(text)
        self._places = places
        self.problems: list[Problem] = []
        self._token = Token(END, 0, "")
        self._nodes = 0

    def parse(self) -> list[Node]:
        """The commands; up to where nothing more could be read. Never raises."""
        found: list[Node] = []
        try:
            self._next()
            self._commands(0, found)
            while self._token.kind != END:
                self._say(self._token.at, "a } without its {")
                self._next()
                self._commands(0, found)
        except LexError as end:
            self._say(end.at, str(end))
        except _Stop:
            pass
        return found

    def _say(self, at: int, text: str) -> None:
        self.problems.append(self._places.problem(at, text))

    def _next(self) -> None:
        self._token = self._lexer.next()

    def _is(self, text: str) -> bool:
        return self._token.kind == PUNCTUATION and self._token.text == text

    def _wrong(self, text: str) -> _Wrong:
        self._say(self._token.at, text)
        if len(self.problems) >= PROBLEMS_MAX:
            raise _Stop
        return _Wrong()

    def _shown(self) -> str:
        token = self._token
        if token.kind == END:
            return "the end of the script"
        return "a string" if token.kind == STRING else (":" if token.kind == TAG else "") + token.text[:40]

    def _commands(self, depth: int, found: list[Node]) -> list[Node]:
        while self._token.kind != END and not self._is("}"):
            try:
                found.append(self._command(depth))
            except _Wrong:
                self._recover()
        return found

    def _recover(self) -> None:
        """Go to where the next command begins."""
        depth = 0
        while self._token.kind != END:
            if self._is("{"):
                depth += 1
            elif self._is("}"):
                if depth == 0:
                    return
                depth -= 1
                if depth == 0:
                    self._next()
                    return
            elif self._is(";") and depth == 0:
                self._next()
                return
            self._next()

    def _node(self, what: str) -> Node:
        if self._token.kind != IDENTIFIER:
            raise self._wrong(f"expected {what}, not {self._shown()}")
        self._nodes += 1
        if self._nodes > NODES_MAX:
            self._say(self._token.at, f"more than {NODES_MAX} commands and tests")
            raise _Stop
        node = Node(self._token.text, self._token.at)
        self._next()
        return node

    def _deeper(self, depth: int) -> int:
        if depth >= NESTING_MAX:
            self._say(self._token.at, f"more than {NESTING_MAX} levels within each other")
            raise _Stop
        return depth + 1

    def _command(self, depth: int) -> Node:
        node = self._node("a command")
        self._arguments(node, depth)
        if self._is("{"):
            deeper = self._deeper(depth)
            start = self._token.at
            self._next()
            node.block = self._commands(deeper, [])
            if not self._is("}"):
                self._say(start, "the block that begins here has no }")
                raise _Stop
            self._next()
        elif self._is(";"):
            self._next()
        else:
            raise self._wrong(f"expected ; or {{ after {node.name}, not {self._shown()}")
        return node

    def _arguments(self, node: Node, depth: int) -> None:
        """Arguments, then a test or a list of tests."""
        while True:
            token = self._token
            if token.kind == TAG:
                node.arguments.append(Argument(token.at, tag=token.text))
                self._next()
            elif token.kind == NUMBER:
                node.arguments.append(Argument(token.at, number=token.number))
                self._next()
            elif token.kind == STRING:
                node.arguments.append(Argument(token.at, strings=[token.text], places=[token.at]))
                self._next()
            elif self._is("["):
                node.arguments.append(self._list())
            else:
                break
        if self._token.kind == IDENTIFIER:
            node.tests.append(self._test(depth))
        elif self._is("("):
            self._next()
            while True:
                node.tests.append(self._test(depth))
                if self._is(")"):
                    self._next()
                    return
                if not self._is(","):
                    raise self._wrong(f"expected , or ) between tests, not {self._shown()}")
                self._next()

    def _test(self, depth: int) -> Node:
        deeper = self._deeper(depth)
        node = self._node("a test")
        self._arguments(node, deeper)
        return node

    def _list(self) -> Argument:
        argument = Argument(self._token.at, strings=[], is_list=True)
        assert argument.strings is not None
        self._next()
        while True:
            if self._token.kind != STRING:
                raise self._wrong(f"expected a string in the list, not {self._shown()}")
            argument.strings.append(self._token.text)
            argument.places.append(self._token.at)
            self._next()
            if self._is("]"):
                self._next()
                return argument
            if not self._is(","):
                raise self._wrong(f"expected , or ] in the list, not {self._shown()}")
            self._next()
