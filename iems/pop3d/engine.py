"""POP3 as a protocol: octets in, events out, replies in, octets out. No socket, clock, disk or await.

RFC 1939 whole but for APOP (it needs the password in clear), CAPA and response codes (RFC 2449, 3206), STLS (RFC 2595),
AUTH (RFC 5034; the mechanisms are in `iems.sasl`). One event at a time: the next command is looked at when the event has its answer, so
commands may be pipelined.

| state         | commands                                             | leads to                                     |
| ------------- | ---------------------------------------------------- | -------------------------------------------- |
| AUTHORIZATION | USER PASS AUTH STLS CAPA QUIT                        | TRANSACTION after a login; CLOSED after QUIT |
| TRANSACTION   | STAT LIST UIDL RETR TOP DELE RSET NOOP CAPA QUIT     | CLOSED after the update that QUIT asks for   |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

from msgspec import Struct

from iems import sasl
from iems.pop3d.maildrop import Maildrop
from iems.sasl import Exchange, Outcome

MAX_LINE_OCTETS: Final = 512  # RFC 2449 4: 255, with room for long login names
MAX_SASL_OCTETS: Final = 12_288  # RFC 4954 4 sets this limit for the same exchange
MAX_ERRORS: Final = 20


class State(Enum):
    """Where a session stands (RFC 1939 3)."""

    AUTHORIZATION = 1
    TRANSACTION = 2
    CLOSED = 3


class Login(Struct, frozen=True):
    """Check a name and password; answer with `logged_in` or `refuse_login`."""

    login: str
    password: str


class Sasl(Struct, frozen=True):
    """An AUTH exchange that can't go on by itself; answer with `challenge`, `logged_in`, `refuse_login` or `malformed`."""

    exchange: Exchange
    outcome: Outcome


class StartTls(Struct, frozen=True):
    """Send the output, start TLS, then call `secured`."""


class Retrieve(Struct, frozen=True):
    """Send a message, whole or its header and `lines` lines of the body; answer with `answer` or `refuse`."""

    number: int
    lines: int | None


class Quit(Struct, frozen=True):
    """Remove what is marked in the maildrop; answer with `updated`."""


Event = Login | Sasl | StartTls | Retrieve | Quit


class Refusal(Exception):
    """A command answered with -ERR; never leaves the engine. harmless: a client that means well can get it often."""

    def __init__(self, text: str, harmless: bool = False) -> None:
        super().__init__(text)
        self.harmless = harmless


class Command(Struct, frozen=True):
    """A row of the command table. arguments: (least, most); rest: the argument is all after the first space."""

    run: Callable[[Engine, list[str]], Event | None]
    states: frozenset[State]
    least: int = 0
    most: int = 0
    rest: bool = False


def _never() -> str:
    return "NEVER"


class Engine:
    """One session.

    hostname: for the greeting. tls_offered: whether STLS can be had. secure: whether the connection is TLS already.
    plaintext: whether this peer may send a password without TLS. offer, bindings: mechanisms of AUTH, and what the TLS
    connection gives them. Limits: see the module; max_failures: logins.
    """

    __slots__ = (
        "_errors",
        "_exchange",
        "_failures",
        "_in",
        "_max_errors",
        "_max_failures",
        "_max_line",
        "_out",
        "_tls_offered",
        "_user",
        "_waiting",
        "bindings",
        "expire",
        "hostname",
        "maildrop",
        "offer",
        "plaintext",
        "secure",
        "state",
    )

    def __init__(
        self,
        *,
        hostname: str,
        secure: bool = False,
        tls_offered: bool = False,
        plaintext: bool = False,
        offer: sasl.Offer = sasl.NOTHING,
        max_line: int = MAX_LINE_OCTETS,
        max_errors: int = MAX_ERRORS,
        max_failures: int = 5,
    ) -> None:
        self.hostname = hostname
        #: What CAPA says after EXPIRE (RFC 2449 6.7): of all users before the login, of this one after it.
        self.expire: Callable[[], str] = _never
        self.secure = secure
        self.plaintext = plaintext
        self.offer = offer
        self.bindings: Mapping[bytes, bytes] = sasl.NO_BINDINGS
        self.state = State.AUTHORIZATION
        self.maildrop: Maildrop | None = None
        self._tls_offered = tls_offered
        self._max_line = max_line
        self._max_errors = max_errors
        self._max_failures = max_failures
        self._errors = 0
        self._failures = 0
        self._in = bytearray()
        self._out: list[bytes] = []
        self._user: str | None = None
        self._exchange: Exchange | None = None
        self._waiting = False

    # Octets.

    def greet(self) -> None:
        """The first line (RFC 1939 4); no timestamp, as there is no APOP."""
        self._say(f"+OK {self.hostname} POP3 ready")

    def feed(self, chunk: bytes | memoryview) -> None:
        """Octets from the peer."""
        if self.state is not State.CLOSED:
            self._in += chunk

    @property
    def buffered(self) -> int:
        """Octets not looked at yet; the caller stops reading when there are many."""
        return len(self._in)

    def take_output(self) -> bytes:
        """Octets for the peer since the last call."""
        out = self._out
        if not out:
            return b""
        found = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return found

    def next_event(self) -> Event | None:
        """The next thing to do, or None: more octets or an answer are needed, or the session is closed."""
        buffer = self._in
        while not self._waiting and self.state is not State.CLOSED:
            end = buffer.find(b"\n")
            limit = MAX_SASL_OCTETS if self._exchange is not None else self._max_line
            if end < 0 or end >= limit:
                if end >= limit or len(buffer) >= limit:
                    # What follows can't be told from the rest of the line: end the session.
                    self._say("-ERR Line too long")
                    self._close()
                return None
            line = bytes(buffer[: end + 1])
            del buffer[: end + 1]
            event = self._line(line)
            if event is not None:
                self._waiting = True
                return event
        return None

    # Answers to events.

    def answer(self, line: bytes) -> None:
        """`+OK ...` for `Retrieve`; the content follows from the caller."""
        self._waiting = False
        self._out.append(line)

    def refuse(self, text: str) -> None:
        """-ERR for `Retrieve`."""
        self._waiting = False
        self._say(f"-ERR {text}")

    def challenge(self, octets: bytes) -> None:
        """The next challenge of an exchange."""
        self._waiting = False
        self._out.append(b"+ " + sasl.encode(octets) + b"\r\n")

    def malformed(self) -> None:
        """The client's message made no sense."""
        self._waiting = False
        self._exchange = None
        self._error("Not a message of this mechanism")

    def logged_in(self, maildrop: Maildrop) -> None:
        """The login is good and the maildrop is locked."""
        self._waiting = False
        self._exchange = None
        self.maildrop = maildrop
        self.state = State.TRANSACTION
        self._say(f"+OK {maildrop.count} messages ({maildrop.octets} octets)")

    def refuse_login(self, text: str, wrong: bool = False) -> None:
        """The login failed. text: with its response code. wrong: name or password; a few of these end the session."""
        self._waiting = False
        self._user = None
        self._exchange = None
        self._say(f"-ERR {text}")
        if wrong:
            self._failures += 1
            if self._failures >= self._max_failures:
                self._close()

    def secured(self) -> None:
        """TLS stands. What was known or received before it is forgotten (RFC 2595 4)."""
        self._waiting = False
        self.secure = True
        self._in.clear()
        self._user = None
        self._exchange = None

    def updated(self, text: str = "") -> None:
        """The update is done; text: what went wrong in it."""
        self._waiting = False
        self._say(f"-ERR {text}" if text else "+OK Bye")
        self._close()

    def end(self, text: str) -> None:
        """Say why and close, without an update: the server stops."""
        if self.state is not State.CLOSED:
            self._say(f"-ERR {text}")
            self._close()

    def _close(self) -> None:
        self.state = State.CLOSED
        self._in.clear()

    def _say(self, text: str) -> None:
        self._out.append(text.encode("ascii", "replace") + b"\r\n")

    def _error(self, text: str) -> None:
        self._say(f"-ERR {text}")
        self._errors += 1
        if self._errors >= self._max_errors:
            self._say("-ERR Too many errors")
            self._close()

    # Commands.

    def _line(self, line: bytes) -> Event | None:
        # CRLF and nothing else ends a line: a lone CR or LF would be seen as one by some and not by others.
        if not line.endswith(b"\r\n") or b"\r" in line[:-2] or b"\0" in line:
            self._exchange = None
            self._error("Lines end with CRLF; bare CR, bare LF and NUL are not allowed")
            return None
        body = line[:-2]
        try:
            if self._exchange is not None:
                return self._response(self._exchange, body)
            name, _, rest = body.partition(b" ")
            command = COMMANDS.get(name.upper())
            if command is None:
                raise Refusal("Unknown command")
            if self.state not in command.states:
                raise Refusal("Log in first" if self.state is State.AUTHORIZATION else "Not after login")
            try:
                text = rest.decode("utf-8")
            except UnicodeDecodeError:
                raise Refusal("Not UTF-8") from None
            arguments = ([text] if text else []) if command.rest else text.split()
            if not command.least <= len(arguments) <= command.most:
                raise Refusal("Wrong number of arguments")
            return command.run(self, arguments)
        except Refusal as refusal:
            self._exchange = None
            if refusal.harmless:
                self._say(f"-ERR {refusal}")
            else:
                self._error(str(refusal))
            return None

    def _login_allowed(self) -> bool:
        return self.secure or self.plaintext

    def _user_command(self, arguments: list[str]) -> Event | None:
        if not self._login_allowed():
            raise Refusal("[AUTH] Passwords need TLS here: use STLS first")
        # The same answer for every name: it must not tell who exists.
        self._user = arguments[0]
        self._say("+OK Password?")
        return None

    def _pass_command(self, arguments: list[str]) -> Event | None:
        if self._user is None:
            raise Refusal("USER first")
        user, self._user = self._user, None
        return Login(user, arguments[0])

    def _auth_command(self, arguments: list[str]) -> Event | None:
        if not arguments:
            # RFC 5034 4 leaves it out; clients older than it ask for the list this way.
            self._list("+OK", self._mechanisms() if self._login_allowed() else [])
            return None
        name = arguments[0].upper()
        exchange = None
        if name in self._mechanisms():
            exchange = sasl.begin(name.encode(), self.offer, self.bindings)
        if exchange is None:
            raise Refusal("Unknown mechanism")
        if not self._login_allowed():
            raise Refusal("[AUTH] Passwords need TLS here: use STLS first")
        self._exchange = exchange
        initial = arguments[1].encode() if len(arguments) == 2 else None
        return self._outcome(exchange, sasl.first(exchange, initial))

    def _mechanisms(self) -> list[str]:
        """Mechanisms of AUTH; LOGIN, which is USER and PASS again, is none here."""
        return [name.decode() for name in self.offer.names(self.bindings) if name != b"LOGIN"]

    def _response(self, exchange: Exchange, line: bytes) -> Event | None:
        """The client's answer to a challenge."""
        if line == b"*":
            raise Refusal("Cancelled")
        # RFC 5034 4 knows "=" in the command only; the older servers' habit of taking it here too harms nobody.
        octets = b"" if line == b"=" else sasl.decode(line)
        if octets is None:
            raise Refusal("Not base64")
        return self._outcome(exchange, exchange.step(octets))

    def _outcome(self, exchange: Exchange, outcome: Outcome) -> Event | None:
        if isinstance(outcome, sasl.Challenge):
            self.challenge(outcome.octets)
            return None
        if isinstance(outcome, sasl.Refused) and outcome.why == sasl.MALFORMED:
            raise Refusal("Not a message of this mechanism")
        return Sasl(exchange, outcome)

    def _stls(self, _: list[str]) -> Event | None:
        if self.secure:
            raise Refusal("TLS is on already")
        if not self._tls_offered:
            raise Refusal("TLS can't be had")
        self._say("+OK Begin TLS")
        # Whatever came in the clear after STLS is dropped (command injection).
        self._in.clear()
        return StartTls()

    def _capa(self, _: list[str]) -> Event | None:
        lines = ["TOP", "UIDL", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE", f"EXPIRE {self.expire()}"]
        if self.state is State.TRANSACTION or self._login_allowed():
            lines += ["USER", "SASL " + " ".join(self._mechanisms())]
        if self._tls_offered and not self.secure and self.state is State.AUTHORIZATION:
            lines.append("STLS")
        lines.append("IMPLEMENTATION IEMS")
        self._list("+OK", lines)
        return None

    def _quit(self, _: list[str]) -> Event | None:
        if self.state is State.TRANSACTION:
            return Quit()
        self._say("+OK Bye")
        self._close()
        return None

    def _noop(self, _: list[str]) -> Event | None:
        self._say("+OK")
        return None

    def _drop(self) -> Maildrop:
        assert self.maildrop is not None
        return self.maildrop

    def _number(self, text: str) -> int:
        """A message number that can be used. Raises Refusal."""
        if not (text.isascii() and text.isdigit() and len(text) <= 10):
            raise Refusal("Not a message number")
        number = int(text)
        if not self._drop().has(number):
            raise Refusal("No such message", harmless=True)
        return number

    def _stat(self, _: list[str]) -> Event | None:
        drop = self._drop()
        self._say(f"+OK {drop.count} {drop.octets}")
        return None

    def _listing(self, arguments: list[str]) -> Event | None:
        drop = self._drop()
        if arguments:
            number = self._number(arguments[0])
            self._say(f"+OK {number} {drop.size(number)}")
            return None
        self._list(
            f"+OK {drop.count} messages ({drop.octets} octets)",
            [f"{n} {drop.sizes[n - 1]}" for n in drop.numbers()],
        )
        return None

    def _uidl(self, arguments: list[str]) -> Event | None:
        drop = self._drop()
        if arguments:
            number = self._number(arguments[0])
            self._say(f"+OK {number} {drop.unique_id(number)}")
            return None
        self._list("+OK", [f"{number} {drop.unique_id(number)}" for number in drop.numbers()])
        return None

    def _list(self, first: str, lines: list[str]) -> None:
        self._out.append("\r\n".join([first, *lines, ".\r\n"]).encode())

    def _retr(self, arguments: list[str]) -> Event | None:
        return Retrieve(self._number(arguments[0]), None)

    def _top(self, arguments: list[str]) -> Event | None:
        number = self._number(arguments[0])
        lines = arguments[1]
        if not (lines.isascii() and lines.isdigit() and len(lines) <= 10):
            raise Refusal("Not a number of lines")
        return Retrieve(number, int(lines))

    def _dele(self, arguments: list[str]) -> Event | None:
        number = self._number(arguments[0])
        self._drop().delete(number)
        self._say(f"+OK Message {number} marked")
        return None

    def _rset(self, _: list[str]) -> Event | None:
        drop = self._drop()
        drop.reset()
        self._say(f"+OK {drop.count} messages ({drop.octets} octets)")
        return None


_AUTHORIZATION = frozenset({State.AUTHORIZATION})
_TRANSACTION = frozenset({State.TRANSACTION})
_BOTH = _AUTHORIZATION | _TRANSACTION

COMMANDS: dict[bytes, Command] = {
    b"USER": Command(Engine._user_command, _AUTHORIZATION, 1, 1, rest=True),
    # A password may hold spaces: it is all after the first one (RFC 1939 7).
    b"PASS": Command(Engine._pass_command, _AUTHORIZATION, 1, 1, rest=True),
    b"AUTH": Command(Engine._auth_command, _AUTHORIZATION, 0, 2),
    b"STLS": Command(Engine._stls, _AUTHORIZATION),
    b"CAPA": Command(Engine._capa, _BOTH),
    b"QUIT": Command(Engine._quit, _BOTH),
    b"NOOP": Command(Engine._noop, _TRANSACTION),
    b"STAT": Command(Engine._stat, _TRANSACTION),
    b"LIST": Command(Engine._listing, _TRANSACTION, 0, 1),
    b"UIDL": Command(Engine._uidl, _TRANSACTION, 0, 1),
    b"RETR": Command(Engine._retr, _TRANSACTION, 1, 1),
    b"TOP": Command(Engine._top, _TRANSACTION, 2, 2),
    b"DELE": Command(Engine._dele, _TRANSACTION, 1, 1),
    b"RSET": Command(Engine._rset, _TRANSACTION),
}
