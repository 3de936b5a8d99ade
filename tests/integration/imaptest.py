"""Plays ImapTest scripts (tests/corpus/imaptest) against an IMAP server.

Understands the script format as far as these scripts use it: states, several connections, variables, unordered lists,
`!` for replies that must not come, `$n` for sequence numbers as they were when the command began.

    python tests/integration/imaptest.py PORT USER PASSWORD [SCRIPT ...]
"""

from __future__ import annotations

import re
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parents[1] / "corpus" / "imaptest"
_STATUS = ("ok", "no", "bad", "preauth", "bye")
_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z_][A-Za-z0-9_]*)|(\$))")


class Failed(AssertionError):
    """The server answered otherwise than the script says."""


# -------------------------------------------------------------------- values: str, or list of values


class Code(list[Any]):
    """A response code, in brackets."""


def parse(data: bytes) -> list[Any]:
    """A response (without tag or `*`) as a list of values; strings are decoded as latin-1."""
    values, _pos = _parse_list(data.decode("latin-1"), 0, "")
    return values


def _parse_list(text: str, pos: int, closing: str) -> tuple[list[Any], int]:
    values: list[Any] = []
    while pos < len(text):
        char = text[pos]
        if char == closing:
            return values, pos + 1
        if char in " \r\n":
            pos += 1
        elif char == "(":
            inner, pos = _parse_list(text, pos + 1, ")")
            values.append(inner)
        elif char == "[" and not closing and len(values) == 1:
            inner, pos = _parse_list(text, pos + 1, "]")
            values.append(Code(inner))
            return values, len(text)  # what follows is for people
        elif char == '"':
            match = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL).match(text, pos)
            if match is None:
                raise Failed(f"quoted string not closed: {text!r}")
            values.append(re.sub(r"\\(.)", r"\1", match[1]))
            pos = match.end()
        elif text.startswith("~{", pos):
            pos += 1
        elif text.startswith("{{{", pos):
            end = text.index("\n}}}", pos)
            values.append(text[pos + 4 : end].replace("\n", "\r\n"))
            pos = end + 4
        elif (match := re.compile(r"\{(\d+)\+?\}\r\n").match(text, pos)) is not None:
            end = match.end() + int(match[1])
            values.append(text[match.end() : end])
            pos = end
        else:
            start = pos
            depth = 0
            while pos < len(text):
                char = text[pos]
                if char == "[":
                    depth += 1
                elif char == "]" and depth:
                    depth -= 1
                elif not depth and (char in ' ()"\r\n' or char == closing):
                    break
                elif char == "{" and text[pos - 1] == "$":
                    pos = text.index("}", pos)
                pos += 1
            if pos == start:  # an unbalanced parenthesis in text for people
                pos += 1
            values.append(text[start:pos])
            if (
                len(values) == 1
                and not closing
                and values[0].lower() in _STATUS
                and not text[pos:].startswith(" [")
            ):
                return values, len(text)
    return values, pos


# -------------------------------------------------------------------- scripts


@dataclass
class Step:
    connection: int
    tag: str
    command: str
    line: int
    expected: list[tuple[bool, list[Any]]] = field(default_factory=list)
    result: list[Any] = field(default_factory=list)


@dataclass
class Script:
    name: str
    headers: dict[str, str]
    groups: list[list[Step]]


def load(path: Path) -> Script:
    """Read a script."""
    text = path.read_text()
    lines = text.split("\n")
    headers: dict[str, str] = {}
    at = 0
    while at < len(lines) and (lines[at].startswith("#") or re.match(r"[a-z_]+:", lines[at])):
        if not lines[at].startswith("#"):
            key, _, value = lines[at].partition(":")
            headers[key.strip()] = value.strip()
        at += 1
    connections = int(headers.get("connections", "1"))
    groups: list[list[Step]] = []
    open_tags: dict[tuple[int, str], Step] = {}
    current: Step | None = None
    while at < len(lines):
        line = lines[at]
        number = at + 1
        at += 1
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("?"):  # may come or not
            continue
        while line.count("{{{") > line.count("}}}"):
            line += "\n" + lines[at]
            at += 1
        if line.startswith(("*", "!")):
            assert groups, number
            groups[-1][-1].expected.append((line[0] == "*", parse(line[1:].strip().encode("latin-1"))))
            continue
        connection = 1
        if connections > 1 and re.match(r"\d+ ", line):
            first, _, line = line.partition(" ")
            connection = int(first)
        word, _, rest = line.partition(" ")
        if word.lower() in ("ok", "no", "bad", '""') and current is None:
            status = "" if word == '""' else word.lower()
            groups.append([Step(connection, "", rest, number, result=[status] if status else [])])
        elif word.lower() in ("ok", "no", "bad", '""') and current is not None:
            current.result = [] if word == '""' else parse(line.encode())
            current = None
        elif (connection, word) in open_tags:
            step = open_tags.pop((connection, word))
            step.result = [] if rest == '""' else parse(rest.encode())
        elif re.fullmatch(r"tag\d*", word):
            step = Step(connection, word, rest, number)
            if open_tags:
                groups[-1].append(step)
            else:
                groups.append([step])
            open_tags[connection, word] = step
        else:
            current = Step(connection, "", line, number)
            groups.append([current])
    return Script(path.name, headers, groups)


def mbox(path: Path) -> list[tuple[str, bytes]]:
    """The messages of an mbox file, with CRLF, each with the date of its From line as APPEND takes it ("" without one)."""
    text = path.read_text(encoding="latin-1")
    if text.endswith("\n\n"):
        text = text[:-1]  # the empty line that ends each message
    messages: list[tuple[str, bytes]] = []
    parts = re.split(r"(?:^|\n)From ([^\n]*)\n", text)[1:]
    for line, part in zip(parts[::2], parts[1::2], strict=True):
        found = re.search(r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) +(\d+) (\d\d:\d\d:\d\d) (\d{4})(?: ([+-]\d{4}))?$", line)
        date = ""
        if found is not None:
            month, day, clock, year, zone = found.groups()
            date = f'"{int(day):2d}-{month}-{year} {clock} {zone or "+0000"}"'
        messages.append((date, part.replace("\n", "\r\n").encode("latin-1")))
    return messages


# -------------------------------------------------------------------- connections


class Connection:
    """One client connection."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=15)
        self.file = self.sock.makefile("rb")
        self.number = 0
        self.greeting = self.response()

    def response(self) -> bytes:
        """One response with its literals, without the last CRLF."""
        data = b""
        while True:
            line = self.file.readline()
            if not line:
                raise Failed(f"connection closed after {data!r}")
            data += line
            match = re.search(rb"\{(\d+)\}\r\n$", line)
            if match is None:
                return data[:-2]
            data += self.file.read(int(match[1]))

    def send(self, command: bytes, literal: bytes | None = None) -> bytes:
        """Send a command under a new tag; the tag."""
        self.number += 1
        tag = b"t%d" % self.number
        if literal is not None:
            command += b" {%d}" % len(literal)
        self.sock.sendall(tag + b" " + command + b"\r\n")
        if literal is not None:
            answer = self.response()
            if answer.startswith(b"+"):
                self.sock.sendall(literal + b"\r\n")
            else:
                raise Failed(f"no continuation: {answer!r}")
        return tag

    def until(self, tags: set[bytes]) -> tuple[list[bytes], dict[bytes, bytes]]:
        """(untagged responses, tagged replies) until all of `tags` are answered."""
        untagged, tagged = [], {}
        while tags - set(tagged):
            answer = self.response()
            first, _, rest = answer.partition(b" ")
            if first in tags:
                tagged[first] = rest
            else:
                untagged.append(rest)
        return untagged, tagged

    def ask(self, command: bytes, literal: bytes | None = None) -> bytes:
        """Send a command; its tagged reply."""
        tag = self.send(command, literal)
        return self.until({tag})[1][tag]

    def close(self) -> None:
        self.file.close()
        self.sock.close()


# -------------------------------------------------------------------- matching


class Matcher:
    """Compares expected values with what came, keeping the variables found."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.variables = variables

    def expand(self, text: str) -> str:
        """A text with its known variables filled in."""

        def value(match: re.Match[str]) -> str:
            if match[3]:
                return "$"
            name = match[1] if match[1] is not None else match[2]
            if name not in self.variables:
                raise KeyError(name)
            return self.variables[name]

        return _VARIABLE.sub(value, text)

    def reply(self, expected: list[Any], actual: list[Any], original: int | None) -> bool:
        """Whether a whole untagged reply matches; variables are kept only if it does."""
        kept = dict(self.variables)
        expected, actual = list(expected), list(actual)
        if expected and isinstance(expected[0], str) and re.fullmatch(r"\$\d+", expected[0]):
            if original != int(expected[0][1:]):
                return False
            expected, actual = expected[1:], actual[1:]
        kind = ""
        words = [value.lower() for value in actual[:2] if isinstance(value, str)]
        if "fetch" in words:
            kind = "fetch"
        elif words[:1] in (["list"], ["lsub"]):
            kind = "list"
        elif words[:1] == ["status"]:
            kind = "status"
        if self.values(expected, actual, kind, prefix=kind in ("", "list")):
            return True
        self.variables.clear()
        self.variables.update(kept)
        return False

    def values(self, expected: list[Any], actual: list[Any], kind: str, prefix: bool = False) -> bool:
        if len(expected) > len(actual) or (len(expected) < len(actual) and not prefix):
            return False
        previous = ""
        for wanted, value in zip(expected, actual, strict=False):
            if not self.value(wanted, value, kind, previous):
                return False
            previous = value.lower() if isinstance(value, str) else ""
        return True

    def value(self, wanted: Any, value: Any, kind: str, previous: str = "") -> bool:
        if wanted == "$":
            return True
        if isinstance(wanted, list):
            if not isinstance(value, list):
                return False
            return self.list(wanted, value, kind, previous)
        return isinstance(value, str) and self.text(wanted, value)

    def list(self, wanted: list[Any], value: list[Any], kind: str, previous: str) -> bool:
        directives = [w for w in wanted if isinstance(w, str) and w.startswith("$!")]
        rest = [w for w in wanted if not (isinstance(w, str) and w.startswith("$!"))]
        chain, extra, ignore, ban = 0, False, set(), set()
        if directives:
            for text in directives:
                name, _, argument = text[2:].partition("=")
                if name == "unordered":
                    chain, extra = int(argument or 1), True
                elif name == "noextra":
                    extra = False
                elif name == "extra":
                    chain, extra = chain or 1, True
                elif name == "ignore":
                    ignore.add(argument.lower())
                elif name == "ban":
                    ban.add(argument.lower())
        elif kind == "fetch" and previous == "fetch":
            chain, extra = 2, True
        elif kind == "fetch" and previous == "flags":
            chain, ignore = 1, {r"\recent"}
        elif kind == "list":
            chain, extra = 1, True
        elif kind == "status":
            chain, extra = 2, True
        if not chain:
            return self.values(rest, value, kind)
        found = [value[at : at + chain] for at in range(0, len(value), chain)]
        for at in range(0, len(rest), chain):
            part = rest[at : at + chain]
            for candidate in found:
                kept = dict(self.variables)
                if self.values(part, candidate, kind):
                    found.remove(candidate)
                    break
                self.variables.clear()
                self.variables.update(kept)
            else:
                return False
        left = {str(candidate[0]).lower() for candidate in found}
        if left & ban:
            return False
        return extra or not left - ignore

    def text(self, wanted: str, value: str) -> bool:
        names: list[str] = []
        pattern = ""
        pos = 0
        for match in _VARIABLE.finditer(wanted):
            pattern += re.escape(wanted[pos : match.start()])
            pos = match.end()
            name = match[1] if match[1] is not None else match[2]
            if match[3]:
                pattern += re.escape("$")
            elif name in self.variables:
                pattern += re.escape(self.variables[name])
            else:
                names.append(name)
                pattern += "(.*)"
        pattern += re.escape(wanted[pos:])
        # A number as it was when the command began: the server tells these before any EXPUNGE.
        pattern = re.sub(r"\\\$(?=\d)", "", pattern)
        pattern = pattern.replace("\\\r", "")  # line ends count as one, whatever they are
        found = re.fullmatch(pattern, value.replace("\r", ""), re.IGNORECASE | re.DOTALL)
        if found is None:
            return False
        self.variables.update(zip(names, found.groups(), strict=True))
        return True


# -------------------------------------------------------------------- running


def run(path: Path, port: int, user: str, password: str) -> str:
    """Play a script: "" if all went as it says, else why it was skipped. Raises Failed."""
    script = load(path)
    headers = script.headers
    state = headers.get("state", "selected")
    source = path.with_suffix(".mbox")
    messages = mbox(source if source.exists() else path.parent / "default.mbox")
    wanted = headers.get("messages", "all")
    count = len(messages) if wanted == "all" else int(wanted)
    connections = [Connection(port) for _ in range(int(headers.get("connections", "1")))]
    matcher = Matcher(
        {
            "user": user,
            "username": user.partition("@")[0],
            "domain": user.partition("@")[2],
            "password": password,
            "mailbox": "imaptest",
            "mailbox_url": "imaptest",
        }
    )
    appended = 0
    try:
        tag = connections[0].send(b"CAPABILITY")
        known = b" ".join(connections[0].until({tag})[0]).lower()
        if state != "nonauth":
            for connection in connections:
                answer = connection.ask(b"LOGIN %b %b" % (user.encode(), password.encode()))
                if not answer.startswith(b"OK"):
                    raise Failed(f"login: {answer!r}")
            tag = connections[0].send(b"CAPABILITY")
            known = b" ".join(connections[0].until({tag})[0]).lower()
        for capability in headers.get("capabilities", "").lower().split():
            if capability.encode() not in known.split():
                return f"server has no {capability}"
        first = connections[0]
        if state != "nonauth":
            tag = first.send(b'LIST "" imaptest*')
            names = [parse(line)[-1] for line in first.until({tag})[0] if line.upper().startswith(b"LIST")]
            for name in sorted(names, key=len, reverse=True):
                first.ask(b"DELETE " + name.encode())
        if state in ("created", "appended", "selected"):
            first.ask(b"CREATE imaptest")
        if state in ("appended", "selected"):
            for number in range(count):
                date, content = messages[number % len(messages)]
                answer = first.ask(f"APPEND imaptest {date}".rstrip().encode(), content)
                if not answer.startswith(b"OK"):
                    raise Failed(f"append: {answer!r}")
        if state == "selected":
            for connection in connections:
                answer = connection.ask(b"SELECT imaptest")
                if not answer.startswith(b"OK"):
                    raise Failed(f"select: {answer!r}")
        for group in script.groups:
            connection = connections[group[0].connection - 1]
            tags = {}
            for step in group:
                command = matcher.expand(step.command)
                literal = None
                if re.fullmatch(r"(?i)append( \S+)?( \([^()]*\))?", command):
                    date, literal = messages[appended % len(messages)]
                    appended += 1
                    if " " not in command:
                        command += " imaptest"
                    command = f"{command} {date}".rstrip()
                tags[connection.send(_literals(command).encode("latin-1"), literal)] = step
            untagged, tagged = connection.until(set(tags))
            replies = [parse(line) for line in untagged]
            originals = _originals(replies)
            matcher.variables["tag"] = next(iter(tags)).decode()
            for step in group:
                _check_untagged(script, step, matcher, list(zip(replies, originals, strict=True)))
            for tag, step in tags.items():
                answer = parse(tagged[tag])
                if step.result and not matcher.values(step.result, answer, "", prefix=True):
                    raise Failed(f"{script.name}:{step.line}: {tagged[tag]!r}, expected {step.result}")
        return ""
    finally:
        for connection in connections:
            connection.close()


def _literals(command: str) -> str:
    """A command with its `{{{...}}}` as literals that need no answer."""

    def literal(match: re.Match[str]) -> str:
        text = match[1].replace("\n", "\r\n")
        return f"{{{len(text)}+}}\r\n{text}"

    return re.sub(r"\{\{\{\n(.*?)\n\}\}\}", literal, command, flags=re.DOTALL)


def _originals(replies: list[list[Any]]) -> list[int | None]:
    """The sequence number each FETCH and EXPUNGE had when the command began."""
    numbers = list(range(1, 2001))
    found: list[int | None] = []
    for reply in replies:
        if len(reply) > 1 and str(reply[0]).isdigit() and str(reply[1]).lower() in ("fetch", "expunge"):
            at = int(reply[0]) - 1
            found.append(numbers[at])
            if reply[1].lower() == "expunge":
                del numbers[at]
        else:
            found.append(None)
    return found


def _check_untagged(
    script: Script, step: Step, matcher: Matcher, replies: list[tuple[list[Any], int | None]]
) -> None:
    left = list(replies)
    for wanted, expected in step.expected:
        match = next((pair for pair in left if matcher.reply(expected, *pair)), None)
        if wanted and match is None:
            raise Failed(
                f"{script.name}:{step.line}: {step.command}: no {expected} in {[r for r, _ in replies]}"
            )
        if not wanted and match is not None:
            raise Failed(f"{script.name}:{step.line}: {step.command}: unexpected {match[0]}")
        if match is not None:
            left.remove(match)


def scripts() -> list[Path]:
    """The scripts of the corpus."""
    return sorted(path for path in CORPUS.iterdir() if path.suffix == "" and path.name != "LICENSE")


def main() -> int:
    port, user, password, *names = sys.argv[1:]
    bad = 0
    for path in [CORPUS / name for name in names] if names else scripts():
        try:
            why = run(path, int(port), user, password)
            print(f"{path.name}: {'skipped: ' + why if why else 'ok'}")
        except (Failed, OSError, KeyError) as fault:
            bad += 1
            print(f"{path.name}: FAILED: {fault}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
