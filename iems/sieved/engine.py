"""ManageSieve as a protocol: octets in, events out, replies in, octets out. No socket, clock, disk or await.

RFC 5804 whole but for referrals and UNAUTHENTICATE; SASL is PLAIN alone (RFC 4616). One event at a time: the next command
is looked at when the event has its answer, so commands may be pipelined.

| state         | commands                                                                                       | leads to           |
| ------------- | ---------------------------------------------------------------------------------------------- | ------------------ |
| GREETED       | AUTHENTICATE STARTTLS CAPABILITY NOOP LOGOUT                                                   | LOGGED_IN, CLOSED  |
| LOGGED_IN     | HAVESPACE PUTSCRIPT LISTSCRIPTS SETACTIVE GETSCRIPT DELETESCRIPT RENAMESCRIPT CHECKSCRIPT ...   | CLOSED             |
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from enum import Enum
from typing import Final

from msgspec import Struct

from iems.sieve import EXTENSIONS
from iems.sieve.run import REDIRECTS_MAX

#: Octets of the text of a command, its literals not counted; and of all literals of one command, before and after the login.
LINE_MAX: Final = 16_384
LITERALS_UNKNOWN_MAX: Final = 16_384
LITERALS_MAX: Final = 1 << 20
ARGUMENTS_MAX: Final = 4
ERRORS_MAX: Final = 20
#: Longer strings are sent as literals (RFC 5804 4).
QUOTED_MAX: Final = 1024

_ATOM = re.compile(rb"[A-Za-z][A-Za-z0-9]*")
_NUMBER = re.compile(rb"[0-9]{1,10}")
_LITERAL = re.compile(rb"\{([0-9]{1,10})\+\}\r\n")
_LITERAL_BEGUN = re.compile(rb"\{(?:[0-9]{0,10}(?:\+(?:\}\r?)?)?)?\Z")
_QUOTED = re.compile(rb'"((?:[^"\\\r\n\0]|\\["\\])*)"')


class State(Enum):
    """Where a session stands."""

    GREETED = 1
    LOGGED_IN = 2
    CLOSED = 3


class Login(Struct, frozen=True):
    """Check a name and password; answer with `logged_in` or `refuse_login`."""

    login: str
    password: str


class StartTls(Struct, frozen=True):
    """Send the output, start TLS, then call `secured`."""


class Request(Struct, frozen=True):
    """A command on the user's scripts; answer with `ok`, `no`, `script` or `listing`."""

    command: str
    name: str = ""
    text: bytes = b""
    size: int = 0


Event = Login | StartTls | Request
Argument = bytes | int


class _Wrong(Exception):
    """A command that is answered with NO."""


class _Fatal(Exception):
    """Octets after which nothing can be told apart any more: BYE."""


class Command(Struct, frozen=True):
    """A row of the command table. kinds: the types of the arguments; one that begins with "?" may be left out."""

    run: Callable[[Engine, list[Argument]], Event | None]
    states: frozenset[State]
    kinds: tuple[str, ...] = ()


def string(text: str | bytes) -> bytes:
    """A string as the server sends it: quoted, or a literal if it is long or has line ends."""
    octets = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if len(octets) <= QUOTED_MAX and not re.search(rb"[\r\n\0]", octets):
        return b'"' + octets.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
    return b"{%d}\r\n" % len(octets) + octets


class Engine:
    """One session.

    tls_offered: whether STARTTLS can be had. plaintext: whether this peer may send a password without TLS. max_failures: logins.
    """

    def __init__(self, *, tls_offered: bool, plaintext: bool, max_failures: int = 5) -> None:
        self.state = State.GREETED
        self.secure = False
        self.owner = ""
        self._plaintext = plaintext
        self._tls_offered = tls_offered
        self._max_failures = max_failures
        self._failures = 0
        self._errors = 0
        self._in = bytearray()
        self._out: list[bytes] = []
        self._waiting = False
        self._sasl = False

    # Octets

    def greet(self) -> None:
        """What the server says first (RFC 5804 1.7)."""
        self._capabilities()
        self.ok("IEMS ready")

    def feed(self, chunk: bytes | memoryview) -> None:
        """Octets from the peer."""
        if self.state is not State.CLOSED:
            self._in += chunk

    @property
    def buffered(self) -> int:
        """Octets not looked at yet."""
        return len(self._in)

    def take_output(self) -> bytes:
        """Octets for the peer since the last call."""
        found, self._out = b"".join(self._out), []
        return found

    def next_event(self) -> Event | None:
        """The next thing to do, or None: more octets or an answer are needed, or the session is closed."""
        while not self._waiting and self.state is not State.CLOSED:
            try:
                found = self._parse()
                if found is None:
                    return None
                event = self._command(found)
            except _Wrong as wrong:
                self._error(str(wrong))
                continue
            except _Fatal as fatal:
                self.end(str(fatal))
                return None
            if event is not None:
                self._waiting = True
                return event
        return None

    def _parse(self) -> list[Argument] | None:
        """The words of the next command, None if it is not whole yet. Raises _Wrong, the command taken; _Fatal."""
        data = self._in
        limit = LITERALS_MAX if self.state is State.LOGGED_IN else LITERALS_UNKNOWN_MAX
        words: list[Argument] = []
        at = text = literals = 0
        while True:
            while data[at : at + 1] == b" ":
                at, text = at + 1, text + 1
            if text > LINE_MAX:
                raise _Fatal("Line too long")
            rest = bytes(data[at : at + 2])
            if rest == b"\r\n":
                del data[: at + 2]
                if not words:
                    raise _Wrong("Empty command")
                return words
            if len(rest) < 2 and rest in (b"", b"\r"):
                return None
            if len(words) > ARGUMENTS_MAX:
                raise _Fatal("Too many arguments")
            end = at
            if rest[:1] == b'"':
                quoted = _QUOTED.match(data, at)
                if quoted is None:
                    self._unfinished(at, text)
                    return None
                words.append(re.sub(rb"\\(.)", rb"\1", quoted[1]))
                end = quoted.end()
            elif rest[:1] == b"{":
                literal = _LITERAL.match(data, at)
                if literal is None:
                    if _LITERAL_BEGUN.match(data, at):
                        return None
                    raise _Fatal("A literal is written as {number+}")
                length = int(literal[1])
                literals += length
                if literals > limit:
                    raise _Fatal("The literal is too long")
                if len(data) < literal.end() + length:
                    return None
                words.append(bytes(data[literal.end() : literal.end() + length]))
                at, text = literal.end() + length, text + literal.end() - at
                continue
            elif number := _NUMBER.match(data, at):
                words.append(int(number[0]))
                end = number.end()
            elif atom := _ATOM.match(data, at):
                words.append(_Word(atom[0].upper()))
                end = atom.end()
            else:
                self._skip("Not a word, string or number")
                return None
            following = data[end : end + 1]
            if not following:
                self._unfinished(at, text)
                return None
            if following[0] not in b" \r":
                self._skip("Words are separated by spaces")
                return None
            text += end - at
            at = end

    def _unfinished(self, at: int, text: int) -> None:
        """A word that has no end yet. Raises what is wrong with it."""
        line_end = self._in.find(b"\n", at)
        if line_end >= 0:
            self._skip("The string has no end on its line")
        elif text + len(self._in) - at > LINE_MAX:
            raise _Fatal("Line too long")

    def _skip(self, text: str) -> None:
        """Take a bad line away, up to where it ends."""
        end = self._in.find(b"\r\n")
        if end < 0:
            if len(self._in) > LINE_MAX:
                raise _Fatal("Line too long")
            return
        if re.search(rb"\{[0-9]+\+?\}\Z", self._in[:end]):
            # What follows may be the literal or a command: nobody can tell.
            raise _Fatal(text)
        del self._in[: end + 2]
        raise _Wrong(text)

    # Answers

    def ok(self, text: str = "", code: bytes = b"") -> None:
        """The command is done."""
        self._finish(b"OK", text, code)

    def no(self, text: str, code: str = "") -> None:
        """The command is refused. code: as RFC 5804 1.3 names it."""
        self._finish(b"NO", text, code.encode())

    def _finish(self, word: bytes, text: str, code: bytes = b"") -> None:
        self._waiting = False
        parts = [word]
        if code:
            parts.append(b"(" + code + b")")
        if text:
            parts.append(string(text))
        self._out.append(b" ".join(parts) + b"\r\n")

    def script(self, text: str) -> None:
        """The answer to GETSCRIPT."""
        octets = text.encode()
        self._out.append(b"{%d}\r\n" % len(octets) + octets + b"\r\n")
        self.ok()

    def listing(self, names: list[tuple[str, bool]]) -> None:
        """The answer to LISTSCRIPTS: names, and whether each is active."""
        self._out += [string(name) + (b" ACTIVE" if active else b"") + b"\r\n" for name, active in names]
        self.ok()

    def logged_in(self, owner: str) -> None:
        """The login is good."""
        self.state = State.LOGGED_IN
        self.owner = owner
        self.ok("Logged in")

    def refuse_login(self, text: str, wrong: bool = False, code: str = "") -> None:
        """The login failed. wrong: name or password; a few of these end the session."""
        if wrong:
            self._failures += 1
            if self._failures >= self._max_failures:
                self.end("Too many failed logins")
                return
        self.no(text, code)

    def secured(self) -> None:
        """TLS stands. What was received before it is forgotten, and the capabilities are told anew (RFC 5804 2.2)."""
        self.secure = True
        self._in.clear()
        self._sasl = False
        self._capabilities()
        self.ok("TLS is on")

    def end(self, text: str) -> None:
        """Say BYE and close."""
        if self.state is not State.CLOSED:
            self._finish(b"BYE", text)
            self._close()

    def _close(self) -> None:
        self.state = State.CLOSED
        self._in.clear()

    def _error(self, text: str) -> None:
        self._errors += 1
        if self._errors >= ERRORS_MAX:
            self.end("Too many errors")
        else:
            self.no(text)

    # Commands

    def _command(self, words: list[Argument]) -> Event | None:
        if self._sasl:
            self._sasl = False
            if len(words) != 1 or not isinstance(words[0], bytes) or isinstance(words[0], _Word):
                raise _Wrong("Expected a string")
            return self._plain(words[0])
        name, *arguments = words
        command = COMMANDS.get(bytes(name)) if isinstance(name, _Word) else None
        if command is None:
            raise _Wrong("Unknown command")
        if self.state not in command.states:
            raise _Wrong("Log in first" if self.state is State.GREETED else "Not after login")
        kinds = command.kinds
        least = sum(not kind.startswith("?") for kind in kinds)
        if not least <= len(arguments) <= len(kinds):
            raise _Wrong("Wrong number of arguments")
        for argument, kind in zip(arguments, kinds, strict=False):
            if isinstance(argument, int) != (kind == "number") or isinstance(argument, _Word):
                raise _Wrong(f"Expected a {kind.lstrip('?')}")
        return command.run(self, arguments)

    def _login_allowed(self) -> bool:
        return self.secure or self._plaintext

    def _capabilities(self) -> None:
        rows: list[tuple[str, str | None]] = [
            ("IMPLEMENTATION", "IEMS"),
            ("SIEVE", " ".join(EXTENSIONS)),
            ("SASL", "PLAIN" if self._login_allowed() else ""),
        ]
        if self._tls_offered and not self.secure and self.state is State.GREETED:
            rows.append(("STARTTLS", None))
        rows += [("MAXREDIRECTS", str(REDIRECTS_MAX)), ("VERSION", "1.0")]
        if self.owner:
            rows.append(("OWNER", self.owner))
        self._out += [
            string(name) + (b" " + string(value) if value is not None else b"") + b"\r\n"
            for name, value in rows
        ]

    def _capability(self, _: list[Argument]) -> Event | None:
        self._capabilities()
        self.ok()
        return None

    def _noop(self, arguments: list[Argument]) -> Event | None:
        self.ok("Done", b"TAG " + string(_octets(arguments[0])) if arguments else b"")
        return None

    def _logout(self, _: list[Argument]) -> Event | None:
        self.ok("Bye")
        self._close()
        return None

    def _starttls(self, _: list[Argument]) -> Event | None:
        if self.secure:
            raise _Wrong("TLS is on already")
        if not self._tls_offered:
            raise _Wrong("TLS can't be had")
        self.ok("Begin TLS")
        # Whatever came in the clear behind it is dropped (command injection).
        self._in.clear()
        return StartTls()

    def _authenticate(self, arguments: list[Argument]) -> Event | None:
        if _octets(arguments[0]).upper() != b"PLAIN":
            raise _Wrong("Unknown mechanism")
        if not self._login_allowed():
            self.no("Passwords need TLS here: use STARTTLS first", "ENCRYPT-NEEDED")
            return None
        if len(arguments) == 2:
            return self._plain(_octets(arguments[1]))
        self._out.append(b'""\r\n')
        self._sasl = True
        return None

    def _plain(self, response: bytes) -> Event | None:
        """The message of PLAIN: authorization identity, NUL, login name, NUL, password (RFC 4616)."""
        if response == b"*":
            raise _Wrong("Cancelled")
        try:
            parts = base64.b64decode(response, validate=True).decode("utf-8").split("\0")
        except (binascii.Error, ValueError):
            raise _Wrong("Not base64 of UTF-8") from None
        if len(parts) != 3 or not parts[1] or not parts[2]:
            raise _Wrong("Not a PLAIN message")
        identity, login, password = parts
        if identity and identity.lower() != login.lower():
            # Nobody may act for another here.
            self.refuse_login("Wrong name or password", wrong=True)
            return None
        return Login(login, password)


class _Word(bytes):
    """An atom, to be told from strings."""


def _octets(argument: Argument) -> bytes:
    return argument if isinstance(argument, bytes) else b""


def _name(argument: Argument) -> str:
    try:
        return _octets(argument).decode("utf-8")
    except UnicodeDecodeError:
        raise _Wrong("A name is UTF-8") from None


def _named(command: str) -> Callable[[Engine, list[Argument]], Event]:
    return lambda engine, arguments: Request(command, _name(arguments[0]))


def _put(engine: Engine, arguments: list[Argument]) -> Event:
    return Request("PUTSCRIPT", _name(arguments[0]), _octets(arguments[1]))


def _rename(engine: Engine, arguments: list[Argument]) -> Event:
    return Request("RENAMESCRIPT", _name(arguments[0]), _name(arguments[1]).encode())


def _space(engine: Engine, arguments: list[Argument]) -> Event:
    size = arguments[1]
    return Request("HAVESPACE", _name(arguments[0]), size=size if isinstance(size, int) else 0)


_ANY = frozenset({State.GREETED, State.LOGGED_IN})
_BEFORE = frozenset({State.GREETED})
_AFTER = frozenset({State.LOGGED_IN})

COMMANDS: Final[dict[bytes, Command]] = {
    b"AUTHENTICATE": Command(Engine._authenticate, _BEFORE, ("string", "?string")),
    b"STARTTLS": Command(Engine._starttls, _BEFORE),
    b"CAPABILITY": Command(Engine._capability, _ANY),
    b"NOOP": Command(Engine._noop, _ANY, ("?string",)),
    b"LOGOUT": Command(Engine._logout, _ANY),
    b"HAVESPACE": Command(_space, _AFTER, ("string", "number")),
    b"PUTSCRIPT": Command(_put, _AFTER, ("string", "string")),
    b"CHECKSCRIPT": Command(
        lambda engine, given: Request("CHECKSCRIPT", text=_octets(given[0])), _AFTER, ("string",)
    ),
    b"LISTSCRIPTS": Command(lambda engine, given: Request("LISTSCRIPTS"), _AFTER),
    b"SETACTIVE": Command(_named("SETACTIVE"), _AFTER, ("string",)),
    b"GETSCRIPT": Command(_named("GETSCRIPT"), _AFTER, ("string",)),
    b"DELETESCRIPT": Command(_named("DELETESCRIPT"), _AFTER, ("string",)),
    b"RENAMESCRIPT": Command(_rename, _AFTER, ("string", "string")),
}
