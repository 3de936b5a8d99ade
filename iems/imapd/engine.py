"""The IMAP protocol as a machine without I/O: octets in, commands with parsed arguments out (RFC 3501, 7888, 4959).

The engine finds lines and literals, validates tags, knows which command is allowed in which state and has it parsed.
What a command does is the session's business. One command at a time: the caller takes the next event only when the
last command is complete, which keeps the order RFC 3501 5.5 asks for.

States and what moves between them (the session sets `state`; `LOGOUT` ends all):

| state             | reached by                                          |
| ----------------- | --------------------------------------------------- |
| NOT_AUTHENTICATED | the greeting                                        |
| AUTHENTICATED     | LOGIN, AUTHENTICATE, CLOSE, UNSELECT, failed SELECT |
| SELECTED          | SELECT, EXAMINE                                     |
| LOGOUT            | LOGOUT, BYE                                         |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

from msgspec import Struct

from iems.imap.grammar import Arguments, Bad, Refused


class State(IntEnum):
    """Connection states (RFC 3501 3), as bits so that a command names all it is allowed in."""

    NOT_AUTHENTICATED = 1
    AUTHENTICATED = 2
    SELECTED = 4
    LOGOUT = 8


ANY = State.NOT_AUTHENTICATED | State.AUTHENTICATED | State.SELECTED
LOGGED_IN = State.AUTHENTICATED | State.SELECTED


class Updates(IntEnum):
    """Which untagged updates of the mailbox may come before a command's tagged reply (RFC 3501 5.2, 7.4.1)."""

    NONE = 0
    FLAGS = 1
    EXPUNGES = 2
    CHECK = 4  # ask the store's index even if nothing was pushed


ALL_UPDATES = Updates.FLAGS | Updates.EXPUNGES | Updates.CHECK


class Spec(Struct, frozen=True):
    """One row of the command table.

    parse(arguments) gives what `run` takes; the cursor stands after the command's name. run(session, command) gives the
    text of the tagged reply, None if it replies later, or a coroutine for either. stream(arguments, previous) is for
    commands whose literals are content (APPEND): what stands before such a literal, or None if the next literal is an
    argument; previous: what it gave for the literal before, None for the first. tail(arguments, previous): what follows
    the last content; its result becomes the arguments of the command.
    """

    name: bytes
    states: int
    parse: Callable[[Arguments], Any]
    run: Callable[[Any, Any], Any]
    updates: int = ALL_UPDATES
    stream: Callable[[Arguments, Any], Any] | None = None
    tail: Callable[[Arguments, Any], Any] | None = None


class Command(Struct):
    """A complete command. tag: as written. arguments: what its parser gave. uid: the UID form."""

    tag: bytes
    spec: Spec
    arguments: Any


class Content(Struct):
    """A command is about to send content as a literal: answer with `accept` or `refuse`.

    size: octets announced. waiting: the peer waits for the continuation (a synchronizing literal). first: no content
    of this command came before.
    """

    tag: bytes
    spec: Spec
    prefix: Any
    size: int
    waiting: bool
    first: bool


class Line(Struct):
    """A line that is no command, asked for by `expect_line`; without its CRLF."""

    text: bytes


class Close(Struct):
    """The peer broke a limit: send what `take_output` has (a BYE) and close."""

    reason: str


class _NeedData:
    __slots__ = ()

    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA: Final = _NeedData()
Event = Command | Content | Line | Close | _NeedData


class Limits(Struct, frozen=True):
    """line: octets of one line. command: octets of a command with all its literals (content not counted). login_*: the
    same before login. content: one literal of APPEND. bad: BAD replies in a row before BYE."""

    line: int = 64 * 1024
    command: int = 256 * 1024
    login_command: int = 64 * 1024
    content: int = 104_857_600
    bad: int = 20
    login_bad: int = 5


_TAG = re.compile(rb'([^(){ \x00-\x1f\x7f-\xff%*"\\+]{1,200})(?= |$)')
_NAME = re.compile(rb" ([A-Za-z0-9.-]{1,40})(?= |$)")
_LITERAL = re.compile(rb"\{(\d{1,20})(\+?)\}$")

_COMMAND, _LITERAL_DATA, _CONTENT, _CONTENT_LINE, _SKIP_CONTENT, _EXPECTED, _DEAD = range(7)

#: Commands in their plain form, answered without the general parser: the pattern (with a group `tag`) and what makes the
#: arguments of it.
Shortcut = tuple[re.Pattern[bytes], Spec, Callable[[re.Match[bytes]], Any]]


class Engine:
    """One connection's protocol state.

    table: commands by name in upper case, `UID FETCH` being one name. shortcut: see `Shortcut`, used in state SELECTED.
    """

    __slots__ = (
        "_bad",
        "_buffer",
        "_content_left",
        "_mode",
        "_offer",
        "_output",
        "_pos",
        "_prefix",
        "_refusal",
        "_scan",
        "_sink",
        "_spec",
        "_start",
        "_table",
        "_tag",
        "limits",
        "shortcut",
        "shortened",
        "state",
        "utf8",
    )

    def __init__(
        self, table: dict[bytes, Spec], limits: Limits | None = None, shortcut: Shortcut | None = None
    ) -> None:
        self._table = table
        self.limits = limits or Limits()
        self.shortcut = shortcut
        self.shortened = False  # whether the last event came by the shortcut
        self.state = State.NOT_AUTHENTICATED
        self.utf8 = False  # names come as UTF-8, not as modified UTF-7 (RFC 6855, 9051)
        self._buffer: bytearray | None = None
        self._start = 0  # of the command
        self._pos = 0  # of the line or literal being read
        self._scan = 0  # no line end before it
        self._mode = _COMMAND
        self._tag = b""
        self._spec: Spec | None = None
        self._offer: Content | None = None
        self._sink: Callable[[memoryview], None] | None = None
        self._content_left = 0
        self._prefix: Any = None  # of the last content offered
        self._refusal: bytes | None = None
        self._output: list[bytes] | None = None
        self._bad = 0

    # ------------------------------------------------------------------ input

    @property
    def buffered(self) -> int:
        """Octets received and not yet consumed."""
        return len(self._buffer) - self._start if self._buffer is not None else 0

    @property
    def pipelined(self) -> bool:
        """Whether the start of another command is already here."""
        return self._mode == _COMMAND and self.buffered > 0

    @property
    def idle(self) -> bool:
        """Whether no command has begun to arrive."""
        return self._mode == _COMMAND and not self._buffer

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take octets from the peer. Content goes straight to its sink where nothing is in the way."""
        if self._mode == _DEAD:
            return
        if not self._buffer and (self._mode == _CONTENT or self._mode == _SKIP_CONTENT):
            count = min(self._content_left, len(chunk))
            self._content_left -= count
            if self._sink is not None and count:
                self._sink(memoryview(chunk)[:count])
            if count == len(chunk):
                return
            chunk = memoryview(chunk)[count:]
        if self._buffer is None:
            self._buffer = bytearray(chunk)
        else:
            self._buffer += chunk

    def use(self, table: dict[bytes, Spec], shortcut: Shortcut | None) -> None:
        """Other commands from now on (RFC 9586 takes some away)."""
        self._table = table
        self.shortcut = shortcut

    def discard_input(self) -> None:
        """Drop what was pipelined (after STARTTLS, RFC 3501 6.2.1)."""
        self._buffer = None
        self._start = self._pos = self._scan = 0
        self._mode = _COMMAND

    # ------------------------------------------------------------------ output

    def _say(self, text: bytes) -> None:
        if self._output is None:
            self._output = [text]
        else:
            self._output.append(text)

    def take_output(self) -> bytes:
        """What the engine itself answers (BAD, BYE, continuation requests), to be sent before anything later."""
        output, self._output = self._output, None
        return b"".join(output) if output else b""

    @property
    def has_output(self) -> bool:
        """Whether `take_output` has something to give."""
        return self._output is not None

    # ------------------------------------------------------------------ events

    def next_event(self) -> Event:
        """The next thing to act on, or NEED_DATA."""
        while True:
            mode = self._mode
            if mode == _COMMAND:
                event = self._command_line()
            elif mode == _LITERAL_DATA:
                event = self._literal_data()
            elif mode in (_CONTENT, _SKIP_CONTENT):
                event = self._content_data()
            elif mode == _CONTENT_LINE:
                event = self._content_line()
            elif mode == _EXPECTED:
                event = self._expected_line()
            else:
                return NEED_DATA
            if event is not None:
                return event

    def _compact(self) -> None:
        """Forget consumed octets."""
        buffer = self._buffer
        if buffer is None:
            return
        if self._start >= len(buffer):
            self._buffer = None
            self._start = self._pos = self._scan = 0
        elif self._start > 16 * 1024:
            del buffer[: self._start]
            self._pos -= self._start
            self._scan -= self._start
            self._start = 0

    def _line_end(self) -> int:
        """Offset of the LF that ends the line at `_pos`, -1 if it isn't here yet, -2 if a limit was broken."""
        buffer = self._buffer
        if buffer is None:
            return -1
        end = buffer.find(b"\n", self._scan)
        length = (end if end >= 0 else len(buffer)) - self._pos
        if length > self.limits.line or length + self._pos - self._start > self._command_limit():
            return -2
        if end < 0:
            self._scan = len(buffer)
        return end

    def _command_limit(self) -> int:
        return self.limits.login_command if self.state == State.NOT_AUTHENTICATED else self.limits.command

    def _die(self, reason: str) -> Close:
        self._say(b"* BYE " + reason.encode("ascii", "replace") + b"\r\n")
        self._mode = _DEAD
        self._buffer = None
        return Close(reason)

    def _next_command(self, consumed: int) -> None:
        self._start = self._pos = self._scan = consumed
        self._mode = _COMMAND
        self._spec = None
        self._compact()

    def _complain(self, tag: bytes, text: str, consumed: int) -> Close | None:
        """BAD for a command, which is over; BYE after too many."""
        self._next_command(consumed)
        self._bad += 1
        self._say(tag + b" BAD " + text.encode("ascii", "replace") + b"\r\n")
        limit = self.limits.login_bad if self.state == State.NOT_AUTHENTICATED else self.limits.bad
        if self._bad >= limit:
            return self._die("Too many invalid commands")
        return None

    def _command_line(self) -> Event | None:
        buffer = self._buffer
        if buffer is None:
            return NEED_DATA
        if self.shortcut is not None and self._pos == self._start and self.state == State.SELECTED:
            pattern, spec, arguments = self.shortcut
            match = pattern.match(buffer, self._pos)
            if match is not None:
                command = Command(bytes(match.group(1)), spec, arguments(match))
                self.shortened = True
                self._bad = 0
                if match.end() == len(buffer):
                    del match
                    self._buffer = None
                    self._start = self._pos = self._scan = 0
                else:
                    self._next_command(match.end())
                return command
        self.shortened = False
        end = self._line_end()
        if end == -1:
            return NEED_DATA
        if end == -2:
            return self._die("Command line too long")
        consumed = end + 1
        if end == self._pos or buffer[end - 1] != 13:
            return self._complain(self._peek_tag(), "Line does not end with CRLF", consumed)
        literal = _LITERAL.search(buffer, max(self._pos, end - 24), end - 1)
        first_line = self._pos == self._start
        if first_line:
            fault = self._begin(end - 1)
            if fault is not None:
                tag, text = fault
                if literal is not None and literal.group(2):
                    # The octets of a non-synchronizing literal are on their way whatever we say.
                    return self._refuse_argument(tag, text, int(literal.group(1)), consumed)
                return self._complain(tag, text, consumed)
        if literal is None:
            return self._complete(end - 1, consumed)
        size = int(literal.group(1))
        waiting = not literal.group(2)
        begun = self._spec
        assert begun is not None
        if begun.stream is not None:
            offer = self._offer_content(literal.start(), size, waiting)
            if offer is not None:
                return offer if isinstance(offer, Content) else self._complain(self._tag, offer[0], consumed)
        if consumed - self._start + size > self._command_limit():
            if waiting:
                return self._complain(self._tag, "[TOOBIG] Literal too large", consumed)
            return self._die("Literal too large")
        if waiting:
            self._say(b"+ OK\r\n")
        self._mode = _LITERAL_DATA
        self._content_left = size
        self._pos = self._scan = consumed
        return None

    def _peek_tag(self) -> bytes:
        assert self._buffer is not None
        match = _TAG.match(self._buffer, self._start)
        return match.group(1) if match else b"*"

    def _begin(self, stop: int) -> tuple[bytes, str] | None:
        """Read tag and name at the start of a command; what to complain about, or None."""
        buffer = self._buffer
        assert buffer is not None
        match = _TAG.match(buffer, self._start, stop)
        if match is None:
            return b"*", "Invalid tag"
        tag = self._tag = match.group(1)
        name = _NAME.match(buffer, match.end(), stop)
        if name is None:
            return tag, "Command expected"
        word = name.group(1).upper()
        if word == b"UID":
            second = _NAME.match(buffer, name.end(), stop)
            if second is None:
                return tag, "Command expected after UID"
            word = b"UID " + second.group(1).upper()
        spec = self._table.get(word)
        if spec is None:
            return tag, f"Unknown command {word.decode('ascii', 'replace')}"
        if not spec.states & self.state:
            return tag, f"{word.decode('ascii')} is not allowed in this state"
        self._spec = spec
        return None

    def _refuse_argument(self, tag: bytes, text: str, size: int, consumed: int) -> Event | None:
        if size > self._command_limit():
            return self._die("Literal too large")
        self._tag = tag
        self._refusal = tag + b" BAD " + text.encode("ascii", "replace") + b"\r\n"
        self._sink = None
        self._content_left = size
        self._start = self._pos = self._scan = consumed
        self._mode = _SKIP_CONTENT
        self._compact()
        return None

    def _arguments(self, stop: int) -> Arguments:
        """A cursor after the name of the command, over all of it up to `stop`."""
        buffer = self._buffer
        assert buffer is not None
        arguments = Arguments(bytes(buffer[self._start : stop]))
        match = _TAG.match(arguments.data)
        assert match is not None
        name = _NAME.match(arguments.data, match.end())
        assert name is not None
        if name.group(1).upper() == b"UID":
            name = _NAME.match(arguments.data, name.end())
            assert name is not None
        arguments.pos = name.end()
        arguments.utf8 = self.utf8
        return arguments

    def _complete(self, stop: int, consumed: int) -> Event | None:
        """The command from `_start` to `stop` is whole: have it parsed."""
        spec = self._spec
        assert spec is not None
        arguments = self._arguments(stop)
        try:
            if b"\r" in arguments.data or b"\0" in arguments.data:
                self._check_controls(arguments.data)
            parsed = spec.parse(arguments)
        except Bad as fault:
            return self._complain(self._tag, str(fault), consumed)
        except Refused as fault:
            self._next_command(consumed)
            self._say(self._tag + b" NO " + str(fault).encode("ascii", "replace") + b"\r\n")
            return None
        self._next_command(consumed)
        self._bad = 0
        return Command(self._tag, spec, parsed)

    @staticmethod
    def _check_controls(data: bytes) -> None:
        """A bare CR or NUL outside of literals is an error, whatever the argument."""
        pos = 0
        while pos < len(data):
            cr = data.find(b"\r", pos)
            end = len(data) if cr < 0 else cr
            if b"\0" in data[pos:end]:
                raise Bad("NUL in the command")
            if cr < 0:
                return
            literal = _LITERAL.search(data, max(pos, cr - 24), cr)
            if data[cr + 1 : cr + 2] != b"\n" or literal is None:
                raise Bad("Bare CR in the command")
            pos = cr + 2 + int(literal.group(1))

    def _literal_data(self) -> Event | None:
        buffer = self._buffer
        if buffer is None or len(buffer) - self._pos < self._content_left:
            return NEED_DATA
        self._pos += self._content_left
        self._scan = self._pos
        self._mode = _COMMAND
        # The literal is an argument like any other; the line goes on behind it.
        return None

    # ------------------------------------------------------------------ content (APPEND)

    def _offer_content(self, stop: int, size: int, waiting: bool) -> Content | tuple[str] | None:
        spec = self._spec
        assert spec is not None and spec.stream is not None
        try:
            prefix = spec.stream(self._arguments(stop), None)
        except (Bad, Refused) as fault:
            if not waiting:
                return None  # the literal comes anyway; the parser complains when the command is complete
            return (str(fault),)
        if prefix is None:
            return None
        buffer = self._buffer
        assert buffer is not None
        self._prefix = prefix
        self._offer = Content(self._tag, spec, prefix, size, waiting, True)
        end = buffer.index(b"\n", stop)
        self._start = self._pos = self._scan = end + 1
        return self._offer

    def accept(self, sink: Callable[[memoryview], None]) -> None:
        """Take the content offered: it goes to `sink` piece by piece (the views are valid only during the call)."""
        offer, self._offer = self._offer, None
        assert offer is not None
        if offer.waiting:
            self._say(b"+ OK\r\n")
        self._sink = sink
        self._content_left = offer.size
        self._mode = _CONTENT
        self._compact()

    def refuse(self, text: str) -> Close | None:
        """Do not take the content offered: the command ends with NO and this text.

        A peer that does not wait for us sends it all the same; it is skipped, or the connection ends if that is more
        than the content limit.
        """
        offer, self._offer = self._offer, None
        assert offer is not None
        reply = offer.tag + b" NO " + text.encode("ascii", "replace") + b"\r\n"
        self._sink = None
        if offer.waiting:
            self._say(reply)
            self._next_command(self._start)
            return None
        if offer.size > self.limits.content > 0:
            self._say(reply)
            return self._die("Literal too large")
        self._refusal = reply
        self._content_left = offer.size
        self._mode = _SKIP_CONTENT
        self._compact()
        return None

    def abandon(self, text: str) -> None:
        """Skip the rest of the content being received; the command ends with NO and this text."""
        self._sink = None
        self._refusal = self._tag + b" NO " + text.encode("ascii", "replace") + b"\r\n"
        if self._mode == _CONTENT:
            self._mode = _SKIP_CONTENT

    def _content_data(self) -> Event | None:
        buffer = self._buffer
        if self._content_left:
            if buffer is None:
                return NEED_DATA
            count = min(self._content_left, len(buffer) - self._start)
            if self._sink is not None and count:
                with memoryview(buffer) as view:
                    self._sink(view[self._start : self._start + count])
            self._content_left -= count
            self._start += count
            self._pos = self._scan = self._start
            self._compact()
            if self._content_left:
                return NEED_DATA
        self._mode = _CONTENT_LINE
        return None

    def _content_line(self) -> Event | None:
        """What follows content: the end of the command, or more arguments and another literal (RFC 3502)."""
        end = self._line_end()
        if end == -1:
            return NEED_DATA
        if end == -2:
            return self._die("Command line too long")
        buffer = self._buffer
        assert buffer is not None
        line = bytes(buffer[self._pos : end + 1])
        consumed = end + 1
        literal = _LITERAL.search(line, 0, len(line) - 2)
        if self._refusal is not None:
            if literal is not None:
                size, waiting = int(literal.group(1)), not literal.group(2)
                if not waiting:
                    if size > max(self.limits.content, self._command_limit()):
                        return self._die("Literal too large")
                    self._start = self._pos = self._scan = consumed
                    self._content_left = size
                    self._mode = _SKIP_CONTENT
                    self._compact()
                    return None
            self._say(self._refusal)
            self._refusal = None
            self._bad += 1
            self._next_command(consumed)
            limit = self.limits.login_bad if self.state == State.NOT_AUTHENTICATED else self.limits.bad
            return self._die("Too many invalid commands") if self._bad >= limit else None
        spec = self._spec
        assert spec is not None and spec.stream is not None
        if not line.endswith(b"\r\n"):
            return self._complain(self._tag, "Line does not end with CRLF", consumed)
        try:
            if literal is None:
                assert spec.tail is not None
                parsed = spec.tail(Arguments(line[:-2]), self._prefix)
                self._next_command(consumed)
                self._prefix = None
                self._bad = 0
                return Command(self._tag, spec, parsed)
            prefix = self._prefix = spec.stream(Arguments(line[: literal.start()]), self._prefix)
        except Bad as fault:
            if literal is not None and literal.group(2):
                return self._refuse_argument(self._tag, str(fault), int(literal.group(1)), consumed)
            return self._complain(self._tag, str(fault), consumed)
        self._start = self._pos = self._scan = consumed
        self._offer = Content(self._tag, spec, prefix, int(literal.group(1)), not literal.group(2), False)
        return self._offer

    # ------------------------------------------------------------------ lines that are no commands

    def expect_line(self, prompt: bytes | None = None) -> None:
        """The next line is not a command (AUTHENTICATE, IDLE): it comes as `Line`. prompt: sent after `+ `."""
        if prompt is not None:
            self._say(b"+ " + prompt + b"\r\n")
        self._mode = _EXPECTED

    def _expected_line(self) -> Event | None:
        end = self._line_end()
        if end == -1:
            return NEED_DATA
        if end == -2:
            return self._die("Line too long")
        buffer = self._buffer
        assert buffer is not None
        line = bytes(buffer[self._pos : end])
        self._next_command(end + 1)
        return Line(line.removesuffix(b"\r"))
