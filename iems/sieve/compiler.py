"""From the text of a script to closures: everything that can be wrong is found here, all of it at once (RFC 5228 2.10).

What commands and tests there are, and what arguments they take, stands in the tables of `commands` and `tests`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from msgspec import Struct, field

from iems.sieve.errors import Places, Problem, ScriptError
from iems.sieve.match import CASEMAP, COMPARATORS, NUMERIC, RELATIONS, Matcher, compiled, wildcard
from iems.sieve.parser import PROBLEMS_MAX, Argument, Node, Parser
from iems.sieve.run import ACTIONS_MAX, Run
from iems.sieve.variables import BadReference, Text, decode_characters, template

#: Octets of a script.
SCRIPT_MAX: Final = 64 * 1024

#: What `require` may name.
EXTENSIONS: Final = (
    "body", "comparator-i;ascii-casemap", "comparator-i;ascii-numeric", "comparator-i;octet", "copy", "date",
    "encoded-character", "envelope", "ereject", "fileinto", "imap4flags", "index", "mailbox", "regex", "reject",
    "relational", "special-use", "subaddress", "vacation", "vacation-seconds", "variables", "vnd.iems.variables",
)  # fmt: skip

Check = Callable[[Run], bool]
#: Returns whether the script ends.
Step = Callable[[Run], bool]
Texts = Callable[[Run], Sequence[str]]


class Tag(Struct, frozen=True):
    """A tagged argument. takes: "" for none, "string", "list" or "number". group: tags of one group exclude each other."""

    takes: str = ""
    extension: str = ""
    group: str = ""


class Spec(Struct, frozen=True):
    """What a command or test looks like.

    make: (compiler, node, given) -> closure. positional: "string", "list" or "number" each; one that begins with "?" may be
    left out. tests: how many follow: 0, 1, or -1 for a list. block: whether a block follows. extension: names, one of which is needed.
    """

    make: Callable[[Compiler, Node, Given], Any]
    positional: tuple[str, ...] = ()
    tags: dict[str, Tag] = field(default_factory=dict)
    tests: int = 0
    block: bool = False
    extension: tuple[str, ...] = ()


class Given(Struct):
    """The arguments of one command or test, checked. positional: None for one left out."""

    tags: dict[str, Argument]
    positional: list[Argument | None]
    tests: list[Check]


#: Tags of tests that compare.
MATCH_TAGS: Final = {
    "comparator": Tag("string", group="comparator"),
    "is": Tag(group="match"),
    "contains": Tag(group="match"),
    "matches": Tag(group="match"),
    "regex": Tag(extension="regex", group="match"),
    "value": Tag("string", "relational", "match"),
    "count": Tag("string", "relational", "match"),
}
ADDRESS_TAGS: Final = {
    "all": Tag(group="part"),
    "localpart": Tag(group="part"),
    "domain": Tag(group="part"),
    "user": Tag(extension="subaddress", group="part"),
    "detail": Tag(extension="subaddress", group="part"),
}
INDEX_TAGS: Final = {"index": Tag("number", "index"), "last": Tag(extension="index")}


class Script(Struct, frozen=True):
    """A script ready to run: `block` with a `Run`. extensions: what it requires. name: as its owner calls it. rules: lines on which
    the rules of MailSort begin, if it is made of such."""

    block: Step
    extensions: frozenset[str]
    name: str = ""
    rules: tuple[int, ...] = ()

    def place(self, line: int) -> str:
        """What stands on a line, for the owner: `mailsort:2` is his second rule, `mailsort:vacation` his answer to all, else NAME:LINE."""
        if not self.rules:
            return f"{self.name}:{line}"
        number = bisect_right(self.rules, line)
        return f"{self.name}:{number}" if number else f"{self.name}:vacation"


class Failed(Exception):
    """This command or test is wrong and was reported."""


def compile_script(text: str | bytes, limit: int = SCRIPT_MAX) -> Script:
    """A script from its text. limit: octets. Raises ScriptError with all that is wrong with it."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            before = bytes(error.object[: error.start]).decode("utf-8")
            raise ScriptError([Places(before).problem(len(before), "not UTF-8")]) from None
    text = text.removeprefix("\ufeff")
    if len(text) > limit or len(text.encode("utf-8", "replace")) > limit:
        raise ScriptError([Problem(1, 1, f"the script is longer than {limit} octets")])
    places = Places(text)
    nul = text.find("\0")
    if nul >= 0:
        raise ScriptError([places.problem(nul, "NUL in the script")])
    parser = Parser(text, places)
    nodes = parser.parse()
    compiler = Compiler(places, parser.problems)
    block = compiler.script(nodes)
    if compiler.problems:
        raise ScriptError(sorted(set(compiler.problems))[:PROBLEMS_MAX])
    return Script(block, frozenset(compiler.required))


def _everything(steps: Sequence[Step], run: Run) -> bool:
    for step in steps:
        run.spend(5)
        if step(run):
            return True
    return False


#: Commands that decide what becomes of a message.
_ACTING: Final = frozenset({"discard", "ereject", "fileinto", "keep", "redirect", "reject", "vacation"})


def _acts(what: tuple[int, str], step: Step, run: Run) -> bool:
    """A command that acts, noted for the record of the message."""
    if len(run.acted) < ACTIONS_MAX:
        run.acted.append(what)
    return step(run)


class Compiler:
    """Makes closures of nodes; `problems` gathers what is wrong."""

    def __init__(self, places: Places, problems: list[Problem]) -> None:
        from iems.sieve.commands import COMMANDS
        from iems.sieve.tests import TESTS

        self._commands = COMMANDS
        self._tests = TESTS
        self._places = places
        self.problems = problems
        self.required: set[str] = set()

    # Problems

    def say(self, at: int, text: str) -> None:
        """Note an error."""
        if len(self.problems) < 2 * PROBLEMS_MAX:
            self.problems.append(self._places.problem(at, text))

    def fail(self, at: int, text: str) -> Failed:
        """Note an error that ends this command or test; raise what this returns."""
        self.say(at, text)
        return Failed()

    # The tree

    def script(self, nodes: list[Node]) -> Step:
        """All of a script: first `require`, then the rest."""
        rest = 0
        for number, node in enumerate(nodes):
            if node.name != "require":
                continue
            if rest != number:
                self.say(node.at, "require stands before all other commands")
            rest = number + 1
            self._require(node)
        return self.block([node for node in nodes if node.name != "require"])

    def _require(self, node: Node) -> None:
        if len(node.arguments) != 1 or node.arguments[0].strings is None or node.tests or node.block is not None:
            self.say(node.at, "require takes a string or a list of strings, and nothing else")
            return
        argument = node.arguments[0]
        assert argument.strings is not None
        for at, name in zip(argument.places, argument.strings, strict=True):
            if name not in EXTENSIONS:
                self.say(at, f"there is no extension {name[:60]!a} here")
            self.required.add(name)

    def block(self, nodes: list[Node]) -> Step:
        """A list of commands; `if` with its `elsif` and `else` is one step."""
        steps: list[Step] = []
        at = 0
        while at < len(nodes):
            node = nodes[at]
            at += 1
            if node.name == "if":
                chain = [node]
                while at < len(nodes) and chain[-1].name != "else" and nodes[at].name in ("elsif", "else"):
                    chain.append(nodes[at])
                    at += 1
                steps.append(self._if(chain))
            elif node.name in ("elsif", "else"):
                self.say(node.at, f"{node.name} without if before it")
                self._if([node])
            elif node.name == "require":
                self.say(node.at, "require stands before all other commands")
            else:
                step = self._one(node, self._commands, "command")
                if step is not None:
                    if node.name in _ACTING:
                        step = partial(_acts, (self._places.problem(node.at, "").line, node.name), step)
                    steps.append(step)
        return partial(_everything, tuple(steps))

    def _if(self, chain: list[Node]) -> Step:
        branches: list[tuple[Check | None, Step]] = []
        for node in chain:
            wanted = 0 if node.name == "else" else 1
            for argument in node.arguments:
                self.say(argument.at, f"{node.name} takes no argument")
            if len(node.tests) != wanted:
                self.say(node.at, f"{node.name} takes {'one test' if wanted else 'no test'}")
            check = self.test(node.tests[0]) if node.tests else None
            if node.block is None:
                self.say(node.at, f"{node.name} needs a block in {{ }}")
            branches.append((check, self.block(node.block or [])))
        return partial(_branch, tuple(branches))

    def test(self, node: Node) -> Check | None:
        """A test; None if it is wrong."""
        check: Check | None = self._one(node, self._tests, "test")
        return check

    def _one(self, node: Node, table: dict[str, Spec], what: str) -> Any:
        """Check a command or test against its row and make its closure; None if it is wrong."""
        spec = table.get(node.name)
        if spec is None:
            other = "a test, no command" if what == "command" else "a command, no test"
            known = node.name in (self._tests if what == "command" else self._commands)
            self.say(node.at, f"{node.name} is {other}" if known else f"there is no {what} {node.name[:40]}")
            for test in node.tests:
                self.test(test)
            if node.block:
                self.block(node.block)
            return None
        before = len(self.problems)
        if spec.extension and not self.required.intersection(spec.extension):
            self.say(node.at, f'{node.name} needs require "{spec.extension[0]}"')
        if node.block is not None and not spec.block:
            self.say(node.at, f"{node.name} takes no block")
            self.block(node.block)
        given = self._arguments(node, spec)
        if len(self.problems) > before:
            return None
        try:
            return spec.make(self, node, given)
        except Failed:
            return None

    def _arguments(self, node: Node, spec: Spec) -> Given:
        tags: dict[str, Argument] = {}
        groups: set[str] = set()
        positional: list[Argument | None] = []
        arguments = iter(node.arguments)
        for argument in arguments:
            if argument.tag is None:
                positional.append(argument)
                continue
            name = argument.tag
            tag = spec.tags.get(name)
            if tag is None:
                self.say(argument.at, f"{node.name} has no argument :{name[:40]}")
                continue
            if positional:
                self.say(argument.at, f":{name} stands before the other arguments")
            if tag.extension and tag.extension not in self.required:
                self.say(argument.at, f':{name} needs require "{tag.extension}"')
            if name in tags or (tag.group and tag.group in groups):
                self.say(argument.at, f":{name} can't go together with one before it")
            groups.add(tag.group)
            value = argument
            if tag.takes:
                following = next(arguments, None)
                if following is None or following.tag is not None or not _fits(following, tag.takes):
                    self.say(argument.at, f":{name} takes a {_shown(tag.takes)}")
                    if following is None:
                        break
                    continue
                value = following
            tags[name] = value
        self._positional(node, spec, positional)
        wanted = spec.tests
        if (wanted >= 0 and len(node.tests) != wanted) or (wanted < 0 and not node.tests):
            amount = {0: "no test", 1: "one test"}.get(wanted, "a list of tests")
            self.say(node.at, f"{node.name} takes {amount}")
        checks = [self.test(test) for test in node.tests]
        return Given(tags, positional, [check for check in checks if check is not None])

    def _positional(self, node: Node, spec: Spec, found: list[Argument | None]) -> None:
        kinds = spec.positional
        if kinds and kinds[0].startswith("?"):
            if len(found) == len(kinds) - 1:
                found.insert(0, None)
            kinds = (kinds[0][1:], *kinds[1:])
        if len(found) != len(kinds):
            names = " and ".join(_shown(kind) for kind in kinds) or "nothing"
            self.say(node.at, f"{node.name} takes {names}, not {len(found)} arguments")
            return
        for argument, kind in zip(found, kinds, strict=True):
            if argument is not None and not _fits(argument, kind):
                self.say(argument.at, f"{node.name} takes a {_shown(kind)} here")

    # Arguments

    def string(self, text: str, at: int) -> Text | str:
        """A string: itself, or what gives it when the script runs."""
        try:
            if "encoded-character" in self.required:
                text = decode_characters(text)
            if "variables" in self.required:
                return template(text, "vnd.iems.variables" in self.required) or text
        except BadReference as error:
            raise self.fail(at, str(error)) from None
        return text

    def text(self, argument: Argument | None, check: Callable[[str], str] | None = None) -> Text:
        """What gives a string argument. check: says what is wrong with a constant one, "" if nothing."""
        assert argument is not None
        value = self.string((argument.strings or [""])[0], argument.at)
        if isinstance(value, str):
            constant = value
            if check is not None and (wrong := check(constant)):
                raise self.fail(argument.at, wrong)
            return lambda run: constant
        return value

    def texts(self, argument: Argument | None, check: Callable[[str], str] | None = None) -> Texts:
        """What gives a list of strings."""
        assert argument is not None
        pieces: list[Text | str] = []
        for at, text in zip(argument.places, argument.strings or [], strict=True):
            piece = self.string(text, at)
            if check is not None and isinstance(piece, str) and (wrong := check(piece)):
                self.say(at, wrong)
            pieces.append(piece)
        if all(isinstance(piece, str) for piece in pieces):
            constant = tuple(map(str, pieces))
            return lambda run: constant
        return lambda run: [piece if isinstance(piece, str) else piece(run) for piece in pieces]

    def constant(self, argument: Argument) -> str:
        """A string argument that must be known before the script runs."""
        value = self.string((argument.strings or [""])[0], argument.at)
        if not isinstance(value, str):
            raise self.fail(argument.at, "no variables can stand here")
        return value

    def matcher(self, given: Given, capture: bool = True) -> Matcher:
        """How a test compares; match variables are set only if the script can read them."""
        tags = given.tags
        kind = next((name for name in MATCH_TAGS if name in tags and name != "comparator"), "is")
        comparator = CASEMAP
        if "comparator" in tags:
            comparator = self.constant(tags["comparator"])
            if comparator not in COMPARATORS:
                raise self.fail(tags["comparator"].at, f"there is no comparator {comparator[:40]!a} here")
            if comparator == NUMERIC:
                if "comparator-" + NUMERIC not in self.required:
                    raise self.fail(tags["comparator"].at, f'{NUMERIC} needs require "comparator-{NUMERIC}"')
                if kind in ("contains", "matches", "regex"):
                    raise self.fail(tags["comparator"].at, f"{NUMERIC} can't be used with :{kind}")
        relation = ""
        if kind in ("value", "count"):
            relation = self.constant(tags[kind]).lower()
            if relation not in RELATIONS:
                raise self.fail(tags[kind].at, f":{kind} takes one of {', '.join(RELATIONS)}")
        return Matcher(kind, comparator, relation, capture and "variables" in self.required)

    def keys(self, argument: Argument | None, matcher: Matcher) -> Texts:
        """The keys of a test; patterns that are known already are checked."""

        def check(key: str) -> str:
            try:
                if matcher.kind == "regex":
                    compiled(key, matcher.comparator == CASEMAP)
                elif matcher.kind == "matches":
                    wildcard(key)
            except ValueError as error:
                return f"not a pattern: {error}"
            return ""

        return self.texts(argument, check)


def _branch(branches: tuple[tuple[Check | None, Step], ...], run: Run) -> bool:
    for check, block in branches:
        if check is None or check(run):
            return block(run)
    return False


def _fits(argument: Argument, kind: str) -> bool:
    if kind == "number":
        return argument.number is not None
    if argument.strings is None:
        return False
    return kind == "list" or not argument.is_list


def _shown(kind: str) -> str:
    return {"list": "string or a list of strings", "string": "string", "number": "number"}[kind]
