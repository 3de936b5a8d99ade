"""The SMTP and LMTP server protocol without I/O (RFC 5321, 2033, 1870, 2920, 3030, 3207, 4954, 6152, 6531).

Octets go in by `feed`, events come out by `next_event` one at a time, each is answered by `reply`, and `take_output`
gives the octets to send. While an event is unanswered no other comes, so a pipelined RCPT sees the verdict on its MAIL.
The connection (who is there) and the transaction (what is being sent) are two objects: RSET drops exactly one.

    START --EHLO--> READY --MAIL--> MAIL --RCPT--> RCPT --DATA--> DATA --CRLF.CRLF--> READY
                    READY <--RSET-- MAIL, RCPT, CHUNKS    RCPT --BDAT--> CHUNK <--BDAT--> CHUNKS --LAST--> READY
                    READY --AUTH--> AUTH --> READY        START, READY --STARTTLS--> TLS --> START
                    READY --ATRN--> REVERSED: on the listener of ODMR, where nothing else moves mail (RFC 2645)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, ClassVar, Protocol

from msgspec import Struct

from iems import sasl
from iems._native import kernel
from iems.model import Recipient, Reply
from iems.sasl import Exchange, Outcome
from iems.smtp import grammar, replies
from iems.smtp.grammar import Mail, Rcpt

_smtp = kernel("smtp")
_command = _smtp.command
_line = _smtp.line
DataDecoder = _smtp.DataDecoder
Buffer = kernel("buffer").Buffer

NEED_DATA = None

#: Arguments of MAIL and RCPT already read, for the next message with the same; bounded by count and octets.
CACHED_ARGUMENTS = 4096
CACHED_OCTETS = 256


class State(IntEnum):
    """Where a session stands; the drawing above shows the moves."""

    START = 0
    READY = 1
    MAIL = 2
    RCPT = 3
    CHUNKS = 4
    DATA = 5
    CHUNK = 6
    AUTH = 7
    TLS = 8
    CLOSED = 9
    REVERSED = 10


# Plain ints inside: comparing members of an enum costs a call each.
_START, _READY, _MAIL, _RCPT, _CHUNKS, _DATA, _CHUNK, _AUTH, _TLS, _CLOSED, _REVERSED = range(11)


class Sink(Protocol):
    """Where content goes: whoever answers `Begin` hands one over."""

    buffer: Any

    def discard(self) -> None:
        """The content is not wanted after all."""


class Settings(Struct, kw_only=True):
    """Limits and names; the same object serves all sessions of a listener.

    qualify: the domain that completes addresses without one, b"" refuses them. size_limit: octets, 0 is none.
    command_octets: RFC 5321 4.5.3.1.4 with room for all parameters; auth_octets: RFC 4954 4. skip_octets: how much of an
    overlong line is thrown away before the connection is closed. normalise: see DataDecoder. offer: of AUTH. odmr: only what RFC 2645 has is done. max_messages, max_recipient_domains: of a session,
    0 is none (MAILMAX, RCPTDOMAINMAX of RFC 9422).
    """

    hostname: bytes
    banner: bytes = b"IEMS"
    qualify: bytes = b""
    lmtp: bool = False
    size_limit: int = 0
    max_recipients: int = 1000
    max_errors: int = 20
    max_idle_commands: int = 1000
    command_octets: int = 2048
    auth_octets: int = 12_288
    skip_octets: int = 1_048_576
    content_line_octets: int = 0
    normalise: bool = False
    offer: sasl.Offer = sasl.NOTHING
    etrn: bool = False
    odmr: bool = False
    max_messages: int = 0
    max_recipient_domains: int = 0
    mail_cache: dict[bytes, Mail | Reply] = {}
    rcpt_cache: dict[bytes, Rcpt | Reply] = {}
    hello_cache: dict[tuple[bool, bool, tuple[bytes, ...], bool], bytes] = {}

    def hello(
        self, tls: bool, xclient: bool, mechanisms: tuple[bytes, ...], secure: bool = False
    ) -> bytes:
        """The reply to EHLO or LHLO. tls, xclient: STARTTLS, XCLIENT are on offer. mechanisms: of AUTH. secure: over TLS."""
        text = self.hello_cache.get((tls, xclient, mechanisms, secure))
        if text is None and self.odmr:
            lines = [self.hostname, b"ENHANCEDSTATUSCODES", b"ATRN"]
            if tls:
                lines.append(b"STARTTLS")
            if mechanisms:
                lines.append(b"AUTH " + b" ".join(mechanisms))
            text = self._remember_hello(lines, (tls, xclient, mechanisms, secure))
        elif text is None:
            lines = [
                self.hostname,
                b"PIPELINING",
                b"SIZE %d" % self.size_limit,
                b"8BITMIME",
                b"ENHANCEDSTATUSCODES",
            ]
            lines += [
                b"DSN",
                b"CHUNKING",
                b"BINARYMIME",
                b"SMTPUTF8",
                self._limits(),
            ]
            if self.etrn:
                lines.append(b"ETRN")
            if tls:
                lines.append(b"STARTTLS")
            if secure and not self.lmtp:
                lines.append(b"REQUIRETLS")
            if mechanisms:
                lines.append(b"AUTH " + b" ".join(mechanisms))
            if xclient:
                lines.append(b"XCLIENT " + b" ".join(grammar.XCLIENT_ATTRIBUTES))
            lines.append(b"HELP")
            text = self._remember_hello(lines, (tls, xclient, mechanisms, secure))
        return text

    def _remember_hello(self, lines: list[bytes], key: tuple[bool, bool, tuple[bytes, ...], bool]) -> bytes:
        text = b"".join(b"250-%b\r\n" % line for line in lines[:-1]) + b"250 %b\r\n" % lines[-1]
        self.hello_cache[key] = text
        return text

    def _limits(self) -> bytes:
        """LIMITS (RFC 9422): what a client may count on."""
        line = b"LIMITS RCPTMAX=%d" % self.max_recipients
        if self.max_messages:
            line += b" MAILMAX=%d" % self.max_messages
        if self.max_recipient_domains:
            line += b" RCPTDOMAINMAX=%d" % self.max_recipient_domains
        return line


class Connection:
    """Who is there. helo: the name given, b"" before. user: who logged in. mechanisms, starttls: on offer now.

    bindings: channel binding types of this TLS connection -> their data.
    early: octets came behind a command that must be the last of its group (RFC 2920 3.1). given_helo: by XCLIENT; it
    stands against the name in EHLO.
    """

    __slots__ = ("bindings", "early", "esmtp", "given_helo", "helo", "mechanisms", "secure", "starttls", "user")

    def __init__(self) -> None:
        self.helo = b""
        self.given_helo = b""
        self.early = False
        self.esmtp = False
        self.secure = False
        self.starttls = False
        self.mechanisms: tuple[bytes, ...] = ()
        self.bindings: Mapping[bytes, bytes] = sasl.NO_BINDINGS
        self.user = ""


class Transaction:
    """What is being sent: the event that DATA or the last BDAT ends in.

    recipients: those accepted. decoder: what the content is like. sink: where it is.
    """

    __slots__ = ("decoder", "mail", "recipients", "scratch", "sink", "verdict")

    def __init__(self, mail: Mail) -> None:
        self.mail = mail
        self.recipients: list[Recipient] = []
        self.decoder: Any = None
        self.sink: Sink | None = None
        self.scratch: Any = None
        self.verdict: Reply | None = None


class Hello(Struct, frozen=True):
    """EHLO, HELO or LHLO with a name that can be one."""

    name: bytes
    esmtp: bool


class Begin(Struct, frozen=True):
    """Content is about to come: the answer is START_CONTENT, once `transaction.sink` is set."""

    chunked: bool


class Login(Struct, frozen=True):
    """An AUTH exchange that can't go on by itself; the answer is 235, 334 with the next challenge, or a refusal."""

    exchange: Exchange
    outcome: Outcome


class Verify(Struct, frozen=True):
    """VRFY with its argument."""

    argument: bytes


class Expand(Struct, frozen=True):
    """EXPN with its argument."""

    argument: bytes


class Etrn(Struct, frozen=True):
    """ETRN with its node (RFC 1985): a domain in lower case, `@` and a domain, or `#` and the name of a queue."""

    node: str


class Atrn(Struct, frozen=True):
    """ATRN with its domains (RFC 2645), () if none is named. After the answer REVERSING whoever has the connection lets another play the client on it."""

    domains: tuple[str, ...]


class StartTls(Struct, frozen=True):
    """STARTTLS: after TLS_READY is sent the worker begins the handshake, then calls `tls_started`."""


class Xclient(Struct, frozen=True):
    """XCLIENT: a proxy tells who its client is. The answer is OK if the address is one."""

    attributes: dict[bytes, bytes]


_BEGIN_DATA = Begin(False)
_BEGIN_CHUNKS = Begin(True)
_START_TLS = StartTls()

Event = Hello | Mail | Rcpt | Begin | Transaction | Login | Verify | Expand | Etrn | Atrn | StartTls | Xclient


class Engine:
    """One session. `connection` is the caller's to read and, for its offers and user, to set; `state` is a State's number."""

    __slots__ = (
        "_chunk_before",
        "_chunk_last",
        "_chunk_left",
        "_end",
        "_event",
        "_exchange",
        "_input",
        "_out",
        "_pos",
        "_skipped",
        "announced",
        "connection",
        "domains",
        "draining",
        "errors",
        "idle_commands",
        "mails",
        "may_xclient",
        "receipt",
        "refused",
        "settings",
        "size_limit",
        "state",
        "transaction",
        "waiting",
    )

    #: What reads the argument of a command, by its verb.
    begin_of: ClassVar[list[Callable[[Any, bytes], Any]]]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connection = Connection()
        self.transaction: Transaction | None = None
        self.state = _START
        self.waiting = False
        self.draining = False
        self.errors = 0
        self.idle_commands = 0
        #: MAIL commands of the session, and domains of its recipients where they are limited.
        self.mails = 0
        self.domains: set[bytes] = set()
        #: Whether this client may use XCLIENT; set by whoever knows its address.
        self.may_xclient = False
        #: Octets: the limit named in the answer to EHLO, and the one for content that may come now; 0 is none.
        self.announced = self.size_limit = settings.size_limit
        #: Keeps a refusal: called with the reply, the address or argument it is about, and the transaction, if any; gives the end
        #: of the reply in place of CRLF, or b"". None: nothing is kept.
        self.receipt: Callable[[Reply, bytes, Transaction | None], bytes] | None = None
        #: The refusal of the content read last, for whoever keeps a log; he sets it back to None.
        self.refused: Reply | None = None
        self._event: Any = None
        self._exchange: Exchange | None = None
        self._input: bytes | memoryview = b""
        self._pos = 0
        self._end = 0
        self._skipped = 0
        self._chunk_left = 0
        self._chunk_last = False
        self._chunk_before: int | None = None
        self._out = b""

    # ---------------------------------------------------------------- octets in and out

    @property
    def closed(self) -> bool:
        """Whether the session is over: send the output and close."""
        return self.state == _CLOSED

    @property
    def backlog(self) -> int:
        """Octets received and not looked at yet."""
        return self._end - self._pos

    def greet(self) -> None:
        """Put the greeting into the output."""
        settings = self.settings
        name = b"LMTP" if settings.lmtp else b"ESMTP"
        self._out += b"220 " + settings.hostname + b" " + name + b" " + settings.banner + b"\r\n"

    def feed(self, view: memoryview | bytes) -> None:
        """Take octets from the peer. `view` is read by `next_event` and let go by `keep`."""
        if self._pos < self._end:
            joined = bytes(self._input[self._pos : self._end]) + view
            self._input, self._pos, self._end = joined, 0, len(joined)
        else:
            self._input, self._pos, self._end = view, 0, len(view)

    def keep(self) -> None:
        """Copy what is not looked at yet; the view of the last `feed` is free for other use afterwards."""
        if self._pos < self._end:
            if self._pos or type(self._input) is not bytes:
                self._input = bytes(self._input[self._pos : self._end])
                self._end -= self._pos
                self._pos = 0
        else:
            self._input, self._pos, self._end = b"", 0, 0

    def take_output(self) -> bytes:
        """The octets to send now; they are given once."""
        out = self._out
        self._out = b""
        return out

    # ---------------------------------------------------------------- events

    def next_event(self) -> Event | None:
        """The next thing to decide, or NEED_DATA while octets or a reply are missing."""
        while not self.waiting:
            state = self.state
            event: Any
            if state < _DATA:
                start = self._pos
                if start == self._end:
                    return NEED_DATA
                verb, self._pos, argument = _command(self._input, start, self._end)
                if argument is None or self._skipped:
                    if not self._broken(verb, self.settings.auth_octets, replies.LINE_TOO_LONG):
                        return NEED_DATA
                    continue
                if not _ALLOWED[verb] >> state & 1:
                    self._refuse(self._out_of_order(verb, state))
                    continue
                if self._pos - start > self.settings.command_octets and verb != _AUTH_VERB:
                    self._refuse(replies.LINE_TOO_LONG)
                    continue
                event = self.begin_of[verb](self, argument)
                if _LAST[verb] and self._pos < self._end:
                    self.connection.early = True
            elif state == _CHUNK:
                if self._chunk_left and self._pos >= self._end:
                    return NEED_DATA
                event = self._take_chunk()
            elif self._pos >= self._end:
                return NEED_DATA
            elif state == _DATA:
                event = self._take_data()
            elif state == _AUTH:
                event = self._take_response()
                if event is False:
                    return NEED_DATA
            else:
                # After QUIT and STARTTLS nothing of the plain text counts (RFC 3207 4.2, 6); ATRN is the last command, too.
                self._pos = self._end
                return NEED_DATA
            if event is not None:
                self._event = event
                self.waiting = True
                return event  # type: ignore[no-any-return]
        return NEED_DATA

    def reply(self, reply: Reply) -> bool:
        """Answer the event given last; whether `next_event` has something to look at.

        Before START_CONTENT the transaction gets the sink that its content goes to.
        """
        event = self._event
        if event is None:
            return False  # the session ended meanwhile
        self._event = None
        self.waiting = False
        _SETTLE[type(event)](self, event, reply)
        if self.draining and self.state < _MAIL:
            self.close(replies.SHUTTING_DOWN)
        # A chunk may be of no octets.
        return self._pos < self._end or self.state == _CHUNK

    def refuse_content(self, reply: Reply) -> None:
        """Go on reading the content, keep none of it and answer `reply` at its end."""
        transaction = self.transaction
        if transaction is not None and transaction.verdict is None:
            transaction.verdict = reply
            if transaction.sink is not None:
                transaction.sink.discard()
                transaction.sink = None
            transaction.scratch = Buffer()

    def close(self, reply: Reply) -> None:
        """End the session with a last reply (221 or 421)."""
        if self.state != _CLOSED:
            self._out += replies.wire(reply) if reply.code < 400 else self._kept(reply)
            self.end()

    def end(self) -> None:
        """The session is over without another word; content under way is dropped."""
        self._drop()
        self.state = _CLOSED
        self.waiting = False
        self._event = None

    def drain(self) -> None:
        """Finish the transaction, then close with 421; at once if there is none."""
        self.draining = True
        if not self.waiting and (self.state < _MAIL or self.state == _AUTH):
            self.close(replies.SHUTTING_DOWN)

    def tls_started(self) -> None:
        """The handshake is done: all that was known of the client is forgotten (RFC 3207 4.2)."""
        self._drop()
        self.connection = Connection()
        self.connection.secure = True
        self._input, self._pos, self._end = b"", 0, 0
        self._skipped = 0
        if self.state != _CLOSED:
            self.state = _START
            if self.draining:
                self.close(replies.SHUTTING_DOWN)

    # ---------------------------------------------------------------- lines that are none

    def _broken(self, verb: int, limit: int, too_long: Reply) -> bool:
        """Deal with a line that is not whole, not well formed or too long. True: look for the next one."""
        if verb == _smtp.NEED:
            have = self._end - self._pos
            if self._skipped or have > limit:
                self._skipped += have
                self._pos = self._end
                if self._skipped > self.settings.skip_octets:
                    self.close(replies.TOO_MANY_ERRORS)
            return False
        skipped, self._skipped = self._skipped, 0
        self._refuse(too_long if skipped else replies.BARE_LINE_END)
        return True

    def _kept(
        self, reply: Reply, wire: bytes = b"", about: bytes = b"", transaction: Transaction | None = None
    ) -> bytes:
        """A refusal on the wire, with the id under which it is kept."""
        out = wire or replies.wire(reply)
        if self.receipt is not None:
            end = self.receipt(reply, about, transaction or self.transaction)
            if end:
                return out[:-2] + end
        return out

    def _refuse(
        self, reply: Reply, wire: bytes = b"", about: bytes = b"", transaction: Transaction | None = None
    ) -> None:
        """Send a refusal and count it; one too many ends the session. wire: what to send, if not the usual form.

        about: the address or argument refused. transaction: the one it is about, if it is dropped already.
        """
        if reply.code >= 500 and not (self.settings.lmtp and reply.code == 550):
            self.errors += 1
            if self.errors > self.settings.max_errors:
                self.close(replies.TOO_MANY_ERRORS)
                return
        self._out += self._kept(reply, wire, about, transaction)

    def _out_of_order(self, verb: int, state: int) -> Reply:
        """The refusal of a command that is known but not allowed now."""
        if state == _START:
            return replies.HELLO_FIRST
        if self.settings.odmr:
            return replies.NOT_IMPLEMENTED
        if verb == _smtp.MAIL:
            return replies.NESTED_MAIL
        if verb == _smtp.DATA and state == _MAIL:
            # RFC 5321 4.1.4 against RFC 2033 4.2: LMTP wants 503.
            return replies.NEED_RCPT if self.settings.lmtp else replies.NO_VALID_RECIPIENTS
        if state == _READY and verb in (_smtp.RCPT, _smtp.DATA):
            return replies.NEED_MAIL
        return replies.BAD_SEQUENCE

    def _idle(self) -> bool:
        """Count a command that moves no mail; True when there were too many."""
        self.idle_commands += 1
        if self.idle_commands > self.settings.max_idle_commands:
            self.close(replies.TOO_MANY_ERRORS)
            return True
        return False

    def _drop(self) -> None:
        """Drop the transaction and its content."""
        transaction, self.transaction = self.transaction, None
        if transaction is not None and transaction.sink is not None:
            transaction.sink.discard()
            transaction.sink = None

    # ---------------------------------------------------------------- commands

    def _unknown(self, argument: bytes) -> Event | None:
        # The kernel has no verb for what comes once in an hour.
        if self.settings.etrn and argument[:4].upper() == b"ETRN" and argument[4:5] in b" \t":
            return self._etrn(argument[4:].strip(b" \t"))
        if self.settings.odmr and argument[:4].upper() == b"ATRN" and argument[4:5] in b" \t":
            return self._atrn(argument[4:].strip(b" \t"))
        self._refuse(replies.UNKNOWN_COMMAND)
        return None

    def _etrn(self, argument: bytes) -> Event | None:
        if self.state == _START:
            self._refuse(replies.HELLO_FIRST)
        elif self.state != _READY:
            self._refuse(replies.BAD_SEQUENCE)
        else:
            node = grammar.etrn_node(argument)
            if isinstance(node, Reply):
                self._refuse(node)
            elif not self._idle():
                return Etrn(node)
        return None

    def _atrn(self, argument: bytes) -> Event | None:
        if self.state == _START:
            self._refuse(replies.HELLO_FIRST)
        elif not self.connection.user:
            self._refuse(replies.NEED_AUTH)
        else:
            domains = grammar.atrn_domains(argument)
            if isinstance(domains, Reply):
                self._refuse(domains)
            elif not self._idle():
                return Atrn(domains)
        return None

    def _atrn_done(self, event: Atrn, reply: Reply) -> None:
        if reply.code == 250:
            self._out += replies.wire(reply)
            self.state = _REVERSED
            self._pos = self._end
        elif reply.code == 453:
            self._out += self._kept(reply)  # no error of the site's: it asks every few minutes
        else:
            self._refuse(reply)

    def _not_here(self) -> bool:
        """Refuse a command that a connection of ODMR does not have; whether it was one."""
        if self.settings.odmr:
            self._refuse(replies.NOT_IMPLEMENTED)
        return self.settings.odmr

    def _hello(self, argument: bytes, esmtp: bool) -> Event | None:
        name = grammar.hello(argument)
        if isinstance(name, Reply):
            self._refuse(name)
            return None
        return None if self._idle() else Hello(name, esmtp)

    def _ehlo(self, argument: bytes) -> Event | None:
        if self.settings.lmtp:
            self._refuse(replies.USE_LHLO)
            return None
        return self._hello(argument, True)

    def _helo(self, argument: bytes) -> Event | None:
        if self.settings.lmtp:
            self._refuse(replies.USE_LHLO)
            return None
        return None if self._not_here() else self._hello(argument, False)

    def _lhlo(self, argument: bytes) -> Event | None:
        if not self.settings.lmtp:
            self._refuse(replies.LHLO_IS_LMTP)
            return None
        return self._hello(argument, True)

    def _hello_done(self, event: Hello, reply: Reply) -> None:
        if reply.code != 250:
            # No enhanced status in the answer to EHLO (RFC 2034 4).
            self._refuse(reply, f"{reply.code} {reply.text}\r\n".encode("ascii", "replace"))
            return
        self._drop()
        connection = self.connection
        connection.helo = connection.given_helo or event.name
        connection.esmtp = event.esmtp
        self.state = _READY
        if event.esmtp:
            settings = self.settings
            text = settings.hello(
                connection.starttls, self.may_xclient, connection.mechanisms, connection.secure
            )
            if self.announced != settings.size_limit:
                text = text.replace(b"SIZE %d\r\n" % settings.size_limit, b"SIZE %d\r\n" % self.announced, 1)
            self._out += text
        else:
            self._out += b"250 " + self.settings.hostname + b"\r\n"

    def _mail(self, argument: bytes) -> Event | None:
        settings = self.settings
        if settings.max_messages:
            self.mails += 1
            if self.mails > settings.max_messages:
                self.close(replies.MAILMAX)
                return None
        mail = settings.mail_cache.get(argument)
        if mail is None:
            mail = grammar.mail(argument, settings.qualify)
            _remember(settings.mail_cache, argument, mail)
        if type(mail) is not Mail:
            self._refuse(mail, about=argument)  # type: ignore[arg-type]
            return None
        if mail.requiretls and (settings.lmtp or not self.connection.secure):
            self._refuse(replies.UNKNOWN_PARAMETER, about=argument)
            return None
        if self.announced and mail.size > self.announced:
            self._refuse(replies.TOO_BIG, about=mail.path.original)
            return None
        return mail

    def _mail_done(self, mail: Mail, reply: Reply) -> None:
        if reply.code == 250:
            self._out += replies.wire(reply)
            self.transaction = Transaction(mail)
            self.state = _MAIL
        else:
            self._refuse(reply, about=mail.path.original)

    def _rcpt(self, argument: bytes) -> Event | None:
        settings = self.settings
        rcpt = settings.rcpt_cache.get(argument)
        if rcpt is None:
            rcpt = grammar.rcpt(argument, settings.qualify)
            _remember(settings.rcpt_cache, argument, rcpt)
        if type(rcpt) is not Rcpt:
            self._refuse(rcpt, about=argument)  # type: ignore[arg-type]
            return None
        transaction = self.transaction
        assert transaction is not None
        if rcpt.path.utf8 and not transaction.mail.smtputf8:
            self._refuse(replies.NEED_SMTPUTF8, about=rcpt.path.original)
            return None
        if len(transaction.recipients) >= settings.max_recipients:
            self._refuse(replies.TOO_MANY_RECIPIENTS, about=rcpt.path.original)
            return None
        if settings.max_recipient_domains and not self._domain_fits(rcpt.path.address):
            self._refuse(replies.TOO_MANY_DOMAINS)
            return None
        return rcpt

    def _domain_fits(self, address: bytes) -> bool:
        """Whether a recipient's domain is among those of this session, or one more is allowed."""
        domain = address.rpartition(b"@")[2]
        if domain not in self.domains:
            if len(self.domains) >= self.settings.max_recipient_domains:
                return False
            self.domains.add(domain)
        return True

    def _rcpt_done(self, rcpt: Rcpt, reply: Reply) -> None:
        if reply.code == 250:
            self._out += replies.wire(reply)
            path = rcpt.path
            assert self.transaction is not None
            self.transaction.recipients.append(
                Recipient(path.address, path.original, rcpt.orcpt, rcpt.notify)
            )
            self.state = _RCPT
        else:
            self._refuse(reply, about=rcpt.path.original)

    def _rset(self, argument: bytes) -> None:
        if self._not_here():
            return
        if argument:
            self._refuse(replies.NO_ARGUMENT)
        elif not self._idle():
            self._drop()
            if self.state != _START:
                self.state = _READY
            self._out += replies.wire(replies.FLUSHED)
            if self.draining:
                self.close(replies.SHUTTING_DOWN)

    def _noop(self, argument: bytes) -> None:
        if not self._not_here() and not self._idle():
            self._out += replies.wire(replies.OK)

    def _help(self, argument: bytes) -> None:
        if not self._not_here() and not self._idle():
            self._out += replies.wire(replies.HELP)

    def _vrfy(self, argument: bytes) -> Event | None:
        if self._not_here():
            return None
        if not argument:
            self._refuse(replies.SYNTAX)
        elif not self._idle():
            return Verify(argument)
        return None

    def _expn(self, argument: bytes) -> Event | None:
        if self._not_here():
            return None
        if not argument:
            self._refuse(replies.SYNTAX)
        elif not self._idle():
            return Expand(argument)
        return None

    def _answered(self, event: Event, reply: Reply) -> None:
        if reply.code < 400:
            self._out += replies.wire(reply)
        else:
            self._refuse(reply)

    def _quit(self, argument: bytes) -> None:
        if argument:
            self._refuse(replies.NO_ARGUMENT)
        else:
            self.close(replies.CLOSING)

    def _xclient(self, argument: bytes) -> Event | None:
        if not self.may_xclient:
            self._refuse(replies.NO_XCLIENT)
            return None
        attributes = grammar.xclient(argument)
        if isinstance(attributes, Reply):
            self._refuse(attributes)
            return None
        return Xclient(attributes)

    def _xclient_done(self, event: Xclient, reply: Reply) -> None:
        if reply.code != 250:
            self._refuse(reply)
            return
        secure = self.connection.secure
        connection = self.connection = Connection()
        connection.secure = secure
        connection.given_helo = event.attributes.get(b"HELO", b"")
        connection.user = event.attributes.get(b"LOGIN", b"").decode("utf-8", "replace")
        self._drop()
        self.state = _START
        self.greet()

    # ---------------------------------------------------------------- STARTTLS and AUTH

    def _starttls(self, argument: bytes) -> Event | None:
        if argument:
            self._refuse(replies.NO_ARGUMENT)
        elif self.connection.secure:
            self._refuse(replies.TLS_TWICE)
        elif not self.connection.starttls:
            self._refuse(replies.NOT_IMPLEMENTED)
        else:
            return _START_TLS
        return None

    def _starttls_done(self, event: StartTls, reply: Reply) -> None:
        self._out += replies.wire(reply)
        if reply.code == 220:
            self.state = _TLS
            self._pos = self._end

    def _auth(self, argument: bytes) -> Event | None:
        connection = self.connection
        if connection.user:
            self._refuse(replies.AUTH_TWICE)
            return None
        if not connection.mechanisms:
            self._refuse(
                replies.AUTH_NEEDS_TLS
                if connection.starttls and not self.settings.lmtp
                else replies.NOT_IMPLEMENTED
            )
            return None
        mechanism, _, initial = argument.partition(b" ")
        mechanism = mechanism.upper()
        initial = initial.strip()
        if not mechanism:
            self._refuse(replies.SYNTAX)
            return None
        exchange = None
        if mechanism in connection.mechanisms:
            exchange = sasl.begin(mechanism, self.settings.offer, connection.bindings)
        if exchange is None:
            self._refuse(replies.UNKNOWN_MECHANISM)
            return None
        self._exchange = exchange
        self.state = _AUTH
        return self._outcome(exchange, sasl.first(exchange, initial or None))

    def _take_response(self) -> Any:
        """The next line of an AUTH exchange; False when it is not whole."""
        verb, self._pos, line = _line(self._input, self._pos, self._end)
        if line is None or self._skipped:
            if not self._broken(verb, self.settings.auth_octets, replies.AUTH_LINE_TOO_LONG):
                return False
            if self.state == _AUTH:
                self._auth_over()
            return None
        if len(line) > self.settings.auth_octets:
            self._auth_over()
            self._refuse(replies.AUTH_LINE_TOO_LONG)
            return None
        if line == b"*":
            self._auth_over()
            self._refuse(replies.AUTH_CANCELLED)
            return None
        return self._response(line)

    def _auth_over(self) -> None:
        self._exchange = None
        if self.state == _AUTH:
            self.state = _READY

    def _response(self, line: bytes) -> Event | None:
        """One response of the client: a Login when somebody else has to say something."""
        exchange = self._exchange
        assert exchange is not None
        octets = sasl.decode(line)
        return self._outcome(
            exchange, sasl.Refused(sasl.MALFORMED) if octets is None else exchange.step(octets)
        )

    def _outcome(self, exchange: Exchange, outcome: Outcome) -> Event | None:
        if isinstance(outcome, sasl.Challenge):
            self._out += b"334 " + sasl.encode(outcome.octets) + b"\r\n"
            return None
        if isinstance(outcome, sasl.Refused) and outcome.why == sasl.MALFORMED:
            self._auth_over()
            self._refuse(replies.BAD_BASE64)
            return None
        return Login(exchange, outcome)

    def _login_done(self, event: Login, reply: Reply) -> None:
        if reply.code == 334:
            self._out += replies.wire(reply)
            return
        self._auth_over()
        if reply.code == 235:
            self._out += replies.wire(reply)
        elif reply.code == 421:
            self.close(reply)
        else:
            self._refuse(reply)

    # ---------------------------------------------------------------- content

    def _data(self, argument: bytes) -> Event | None:
        assert self.transaction is not None
        if argument:
            self._refuse(replies.NO_ARGUMENT)
        elif self.transaction.mail.body == 2:
            self._refuse(replies.BINARY_NEEDS_BDAT)
        else:
            return _BEGIN_DATA
        return None

    def _begin_done(self, event: Begin, reply: Reply) -> None:
        transaction = self.transaction
        assert transaction is not None
        settings = self.settings
        if event.chunked:
            binary = transaction.mail.body == 2
            transaction.decoder = DataDecoder(self.size_limit, settings.normalise, True, binary)
            if reply.code != 354:
                self.refuse_content(reply)
            self._chunk_begins()
        elif reply.code != 354:
            self._refuse(reply)
        else:
            transaction.decoder = DataDecoder(self.size_limit, settings.normalise)
            self._out += replies.wire(reply)
            self.state = _DATA

    def _take_data(self) -> Event | None:
        """Content up to CRLF.CRLF; the transaction is the event when it is complete."""
        transaction = self.transaction
        assert transaction is not None
        sink = transaction.sink
        consumed, done = transaction.decoder.feed(
            self._input, self._pos, self._end, sink.buffer if sink is not None else transaction.scratch
        )
        self._pos += consumed
        if sink is None:
            transaction.scratch.truncate(0)
        return self._complete() if done else None

    def _complete(self) -> Event | None:
        """All content is here: refuse it, or give the transaction as the event to answer."""
        transaction = self.transaction
        assert transaction is not None
        decoder = transaction.decoder
        verdict = transaction.verdict
        if verdict is None:
            if decoder.too_big:
                verdict = replies.TOO_BIG
            elif decoder.refused:
                verdict = replies.BARE_CONTENT
            elif 0 < self.settings.content_line_octets < decoder.longest:
                verdict = replies.CONTENT_LINE_TOO_LONG
            else:
                return transaction
        self.refused = verdict
        self._content_done(transaction, verdict)
        if self.draining and self.state == _READY:
            self.close(replies.SHUTTING_DOWN)
        return None

    def _content_done(self, transaction: Transaction, reply: Reply | Sequence[Reply]) -> None:
        """Answer content: one reply, in LMTP one for each recipient accepted (RFC 2033 4.2)."""
        self.state = _READY
        accepted = isinstance(reply, Reply) and reply.code == 250
        if not accepted:
            self._drop()
        self.transaction = None
        self.idle_commands = 0
        if isinstance(reply, Reply):
            if accepted:
                self.errors = 0
            if not self.settings.lmtp:
                if accepted:
                    self._out += replies.wire(reply)
                else:
                    self._refuse(reply, transaction=transaction)
                return
            wire = replies.wire(reply) if accepted else self._kept(reply, transaction=transaction)
            self._out += b"".join(wire for _ in transaction.recipients)
        else:
            self._out += b"".join(
                replies.wire(one) if one.code < 400 else self._kept(one, transaction=transaction) for one in reply
            )

    def _bdat(self, argument: bytes) -> Event | None:
        size = grammar.chunk(argument)
        if isinstance(size, Reply):
            # How many octets follow can't be known, and none of them may be taken for a command.
            self._out += self._kept(size)
            self.end()
            return None
        self._chunk_left, self._chunk_last = size
        state = self.state
        if state == _RCPT:
            return _BEGIN_CHUNKS
        if state != _CHUNKS:
            # The chunk is thrown away before the refusal is sent (RFC 3030 2): its octets are no commands.
            self._chunk_before = state
        self._chunk_begins()
        return None

    def _chunk_begins(self) -> None:
        self.state = _CHUNK
        limit = self.size_limit
        transaction = self.transaction
        wanted = transaction if self._chunk_before is None else None
        if limit and wanted is not None and wanted.decoder.octets + self._chunk_left > limit:
            self.refuse_content(replies.TOO_BIG)

    def _take_chunk(self) -> Event | None:
        """Octets of a chunk; the transaction is the event when the last one is complete."""
        size = min(self._chunk_left, self._end - self._pos)
        transaction = self.transaction
        if self._chunk_before is None and transaction is not None and transaction.sink is not None:
            transaction.decoder.feed(self._input, self._pos, self._pos + size, transaction.sink.buffer)
        self._pos += size
        self._chunk_left -= size
        return None if self._chunk_left else self._chunk_ends()

    def _chunk_ends(self) -> Event | None:
        before = self._chunk_before
        if before is not None:
            self._chunk_before = None
            self.state = before
            self._refuse(self._out_of_order(_smtp.DATA, before))
            return None
        transaction = self.transaction
        assert transaction is not None
        if transaction.verdict is not None:
            return self._complete()
        if not self._chunk_last:
            self.state = _CHUNKS
            self._out += b"250 2.0.0 Chunk received\r\n"
            return None
        if not transaction.decoder.octets:
            transaction.verdict = replies.EMPTY_CONTENT
        else:
            assert transaction.sink is not None
            transaction.decoder.finish(transaction.sink.buffer)
        return self._complete()


class Command(Struct, frozen=True):
    """A row of the table: what reads the argument, where it is allowed, whether it must be last in a group (RFC 2920)."""

    name: bytes
    begin: Callable[[Engine, bytes], Any]
    states: frozenset[State]
    last: bool = False


_ANYWHERE = frozenset((State.START, State.READY, State.MAIL, State.RCPT, State.CHUNKS))
_GREETED = _ANYWHERE - {State.START}

#: BDAT is allowed anywhere because its chunk has to be read before it can be refused.
_TABLE = (
    Command(b"EHLO", Engine._ehlo, _ANYWHERE, True),
    Command(b"HELO", Engine._helo, _ANYWHERE, True),
    Command(b"LHLO", Engine._lhlo, _ANYWHERE, True),
    Command(b"MAIL", Engine._mail, frozenset((State.READY,))),
    Command(b"RCPT", Engine._rcpt, frozenset((State.MAIL, State.RCPT))),
    Command(b"DATA", Engine._data, frozenset((State.RCPT,)), True),
    Command(b"BDAT", Engine._bdat, _ANYWHERE),
    Command(b"RSET", Engine._rset, _ANYWHERE),
    Command(b"NOOP", Engine._noop, _ANYWHERE, True),
    Command(b"VRFY", Engine._vrfy, _GREETED, True),
    Command(b"EXPN", Engine._expn, _GREETED, True),
    Command(b"HELP", Engine._help, _ANYWHERE),
    Command(b"QUIT", Engine._quit, _ANYWHERE, True),
    Command(b"STARTTLS", Engine._starttls, frozenset((State.START, State.READY)), True),
    Command(b"AUTH", Engine._auth, frozenset((State.READY,)), True),
    Command(b"XCLIENT", Engine._xclient, frozenset((State.START, State.READY)), True),
)
COMMANDS: list[Command] = [Command(b"", Engine._unknown, _ANYWHERE) for _ in range(_smtp.UNKNOWN + 1)]
for _row, _name in zip(_TABLE, _smtp.VERBS, strict=True):
    if _row.name != _name:
        raise ImportError("the command table and the kernel's verbs differ")
    COMMANDS.append(_row)

#: The table by columns, as the loop of `next_event` reads it.
_AUTH_VERB = int(_smtp.AUTH)
Engine.begin_of = [row.begin for row in COMMANDS]
_LAST = [row.last for row in COMMANDS]
_ALLOWED = [sum(1 << state for state in row.states) for row in COMMANDS]

_SETTLE: dict[type, Callable[[Engine, Any, Any], None]] = {
    Hello: Engine._hello_done,
    Mail: Engine._mail_done,
    Rcpt: Engine._rcpt_done,
    Begin: Engine._begin_done,
    Transaction: Engine._content_done,
    Login: Engine._login_done,
    Verify: Engine._answered,
    Expand: Engine._answered,
    Etrn: Engine._answered,
    Atrn: Engine._atrn_done,
    StartTls: Engine._starttls_done,
    Xclient: Engine._xclient_done,
}


def _remember(cache: dict[bytes, Any], argument: bytes, value: Any) -> None:
    if len(argument) <= CACHED_OCTETS:
        if len(cache) >= CACHED_ARGUMENTS:
            cache.clear()
        cache[argument] = value
