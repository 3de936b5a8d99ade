"""The client's side of SMTP (RFC 5321) for one connection; no I/O.

    engine.feed(chunk)
    while (event := engine.next_event()) is not NEED_DATA:
        ...                                   # CONTENT: send the content, then engine.content_sent()
    stream.send(engine.take_output())

With PIPELINING (RFC 2920) MAIL, all RCPT and DATA go out together, and those of the next message ride behind the final dot of
the one before ("the actual transfer of message content is explicitly allowed to be the first command in a group"): one
packet each way a message. Extensions used when offered: SIZE, 8BITMIME, SMTPUTF8, DSN, STARTTLS, LIMITS (RFC 9422), and
BINARYMIME with CHUNKING for what can't go otherwise.

8BITMIME: a message in 8 bits goes as it is to a host that does not offer the extension, as almost every host takes it; it is
neither bounced nor converted (docs/rfc.md). What needs SMTPUTF8 and does not get it is refused with 5.6.7.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final

from msgspec import Struct

from iems.model import Envelope, Notify, Recipient, Reply

#: Bounds on what a peer may send as one reply (RFC 5321 4.5.3.1.5 asks for 512 octets a line).
MAX_LINE: Final = 4096
MAX_LINES: Final = 256
#: Recipients in one transaction: every host must take 100 (RFC 5321 4.5.3.1.8).
MAX_RECIPIENTS: Final = 100

NEED_DATA: Final = None


class Wait(IntEnum):
    """What the next reply will answer."""

    GREETING = 0
    EHLO = 1
    HELO = 2
    STARTTLS = 3
    MAIL = 4
    RCPT = 5
    DATA = 6
    END = 7  # the final dot
    EMPTY = 8  # a dot after a 354 that no recipient was accepted for
    RSET = 9
    QUIT = 10
    LAST_RCPT = 11  # of a transaction by BDAT, where no DATA follows


# Members by short names: a look-up of a global is cheaper than one in an enum, and these are on the path of every reply.
_MAIL, _RCPT, _DATA, _END, _LAST_RCPT = Wait.MAIL, Wait.RCPT, Wait.DATA, Wait.END, Wait.LAST_RCPT


class What(IntEnum):
    """Kinds of events."""

    READY = 1  # transactions may begin
    TLS = 2  # do the handshake, then call `tls_started`
    CONTENT = 3  # send the content of `transaction`, then call `content_sent`
    DONE = 4  # every recipient of `transaction` has its reply
    CLOSED = 5  # nothing more can be done here; `reply` says why, None after QUIT


class Event(Struct, frozen=True):
    """What happened; see `What` for the fields that are set."""

    what: What
    transaction: Transaction | None = None
    reply: Reply | None = None


class Stage(IntEnum):
    """How far a transaction got; decides what a lost connection means for it."""

    WAITING = 0  # nothing was sent
    COMMANDS = 1
    CONTENT = 2  # the 354 came; the dot was not sent
    DOT = 3  # the dot was sent: the peer may have taken the message
    DONE = 4


_COMMANDS, _CONTENT, _DOT, _DONE = Stage.COMMANDS, Stage.CONTENT, Stage.DOT, Stage.DONE


class Transaction:
    """One message for up to `MAX_RECIPIENTS` recipients over one connection.

    replies: one per recipient, None while open. reply: what ended the whole of it (the reply to MAIL, DATA or the
    final dot), with `refused_at` saying which. owner: whatever the caller wants to find again. binary: the content goes
    as it is by BDAT (RFC 3030), to a host whose `extensions.binary` is set.
    """

    __slots__ = (
        "_accepted",
        "_commands",
        "_mail_ok",
        "_sent",
        "binary",
        "envelope",
        "owner",
        "recipients",
        "refused_at",
        "replies",
        "reply",
        "size",
        "stage",
    )

    def __init__(
        self,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        size: int,
        owner: Any = None,
        *,
        binary: bool = False,
    ) -> None:
        self.binary = binary
        self.envelope = envelope
        self.recipients = recipients
        self.size = size
        self.owner = owner
        self.replies: list[Reply | None] = [None] * len(recipients)
        self.reply: Reply | None = None
        self.refused_at: Wait | None = None
        self.stage = Stage.WAITING
        self._accepted: list[int] = []
        self._sent: Sequence[int] = ()
        self._commands: deque[tuple[int, bytes]] = deque()
        self._mail_ok = False

    @property
    def accepted(self) -> list[int]:
        """Places in `recipients` of those the peer has said yes to."""
        return self._accepted


class Extensions(Struct, frozen=True):
    """What the peer offered in its reply to EHLO. size: 0 if it states no limit. binary: BINARYMIME with CHUNKING."""

    pipelining: bool = False
    size: int | None = None
    eightbit: bool = False
    smtputf8: bool = False
    dsn: bool = False
    starttls: bool = False
    binary: bool = False
    requiretls: bool = False
    rcpt_max: int = MAX_RECIPIENTS
    mail_max: int = 0


_STATUS = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?: +|$)")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_UNSAFE = re.compile(rb"[\x00-\x1f\x7f]")
_PLAIN = re.compile(rb"[ -~]*\Z")  # nothing unsafe and nothing that needs SMTPUTF8: nearly every path
_XTEXT = re.compile(rb"[!-~]{1,500}\Z")
_NOTIFY = (
    (Notify.NEVER, b"NEVER"),
    (Notify.SUCCESS, b"SUCCESS"),
    (Notify.FAILURE, b"FAILURE"),
    (Notify.DELAY, b"DELAY"),
)
_RET = (b"", b" RET=FULL", b" RET=HDRS")

TOO_BIG = Reply(552, 3, 4, "message is larger than the remote host takes")
NEEDS_UTF8 = Reply(553, 6, 7, "the remote host does not offer SMTPUTF8, which this message needs")
NEEDS_BINARY = Reply(554, 6, 3, "binary content can't be sent to the remote host")
BAD_SENDER = Reply(553, 1, 7, "reverse-path can't be sent")
BAD_RECIPIENT = Reply(553, 1, 3, "recipient address can't be sent")
NEEDS_REQUIRETLS = Reply(550, 7, 30, "REQUIRETLS is asked for, but the remote host does not offer it")
NO_TLS = Reply(451, 7, 4, "TLS is required, but the remote host does not offer it")
NONSENSE = Reply(451, 5, 2, "the remote host answers something that is no SMTP reply")


def parse_reply(lines: Sequence[bytes]) -> Reply:
    """The reply in `lines` (each without its line end); the enhanced status is taken out of the text. Unknown: x.0.0."""
    code = int(lines[0][:3])
    subject = detail = 0
    texts = []
    for line in lines:
        text = line[4:].decode("utf-8", "replace")
        if not text.isascii() or not text.isprintable():
            text = _CONTROL.sub(" ", text)
        text = text.strip()
        status = _STATUS.match(text)
        if status is not None and status[1] == text[:1] == str(code // 100):
            subject, detail = int(status[2]), int(status[3])
            text = text[status.end() :]
        texts.append(text)
    return Reply(code, subject, detail, texts[0][:1000] if len(texts) == 1 else " ".join(texts)[:1000])


def parse_extensions(lines: Sequence[bytes]) -> Extensions:
    """The extensions in the lines of a reply to EHLO."""
    found: dict[str, Any] = {}
    words_seen = set()
    for line in lines[1:]:
        words = line[4:].decode("ascii", "replace").upper().split()
        if not words:
            continue
        words_seen.add(words[0])
        match words[0]:
            case "PIPELINING":
                found["pipelining"] = True
            case "SIZE":
                found["size"] = (
                    int(words[1]) if len(words) > 1 and words[1].isdigit() and len(words[1]) <= 20 else 0
                )
            case "8BITMIME":
                found["eightbit"] = True
            case "SMTPUTF8":
                found["smtputf8"] = True
            case "DSN":
                found["dsn"] = True
            case "STARTTLS":
                found["starttls"] = True
            case "REQUIRETLS":
                found["requiretls"] = True
            case "LIMITS":
                for word in words[1:]:
                    name, _, number = word.partition("=")
                    if name in ("RCPTMAX", "MAILMAX") and number.isdigit() and 0 < int(number[:6]) <= 100_000:
                        found["rcpt_max" if name == "RCPTMAX" else "mail_max"] = int(number[:6])
    found["binary"] = {"BINARYMIME", "CHUNKING"} <= words_seen
    limit = found.get("rcpt_max", MAX_RECIPIENTS)
    found["rcpt_max"] = min(limit, MAX_RECIPIENTS)
    return Extensions(**found)


class Engine:
    """One connection. helo: the name this host gives itself. tls: whether STARTTLS is wanted where offered; must: or nothing."""

    def __init__(self, helo: bytes, *, tls: bool = False, secure: bool = False, must: bool = False) -> None:
        self._must_tls = must
        self._helo = helo
        self._want_tls = tls and not secure
        self.secure = secure
        self.extensions = Extensions()
        self.greeting = b""
        self._pipelining = False
        self.ready = False
        self.closed = False
        self.sent_quit = False
        #: Transactions begun over this connection.
        self.transactions = 0
        self._out: list[bytes] = []
        self._rest = b""
        self._lines: deque[bytes] = deque()
        self._partial: list[bytes] = []
        self._events: deque[Event] = deque()
        self._expected: deque[tuple[Wait, Transaction | None, int]] = deque(((Wait.GREETING, None, 0),))
        self._todo: deque[Transaction] = deque()
        #: The transaction whose commands or content are under way; its dot is not sent yet.
        self._current: Transaction | None = None
        self._reset_first = False
        self._leaving = False

    # ---------------------------------------------------------------- the caller's side

    @property
    def waiting(self) -> Wait | None:
        """What the next reply will answer; None when nothing is under way."""
        return self._expected[0][0] if self._expected else None

    @property
    def idle(self) -> bool:
        """Whether a transaction may begin and none is under way."""
        return (
            self.ready and not self.closed and not self._expected and self._current is None and not self._todo
        )

    @property
    def can_follow(self) -> bool:
        """Whether the commands of another transaction may ride behind the dot of the one under way."""
        return self._pipelining and not self._todo and not self.closed

    def unfinished(self) -> list[Transaction]:
        """Transactions without an outcome, oldest first; for the caller when the connection is gone."""
        found: list[Transaction] = []
        for _, transaction, _ in self._expected:
            if transaction is not None and transaction.stage != Stage.DONE and transaction not in found:
                found.append(transaction)
        if self._current is not None and self._current not in found:
            found.append(self._current)
        return found + list(self._todo)

    def begin(self, transaction: Transaction) -> None:
        """Start a transaction, now or as soon as the one under way allows."""
        self._todo.append(transaction)
        self._go_on()

    def content_sent(self) -> None:
        """The content of the current transaction is sent or queued. By DATA it ended with CRLF, and the dot comes next in the
        output; by BDAT its command was in the output before CONTENT came, and nothing follows."""
        transaction = self._current
        assert transaction is not None and transaction.stage is _CONTENT
        if not transaction.binary:
            self._out.append(b".\r\n")
        transaction.stage = _DOT
        self._expected.append((_END, transaction, 0))
        self._current = None
        if self._todo:
            self._go_on()

    def quit(self) -> None:
        """Say goodbye; the caller closes when CLOSED comes, or soon."""
        if not self.closed and not self.sent_quit:
            self.sent_quit = True
            self._out.append(b"QUIT\r\n")
            self._expected.append((Wait.QUIT, None, 0))

    def tls_started(self) -> None:
        """The handshake succeeded: forget what was said in the clear and introduce ourselves anew (RFC 3207 4.2)."""
        self.secure = True
        self._want_tls = False
        self.extensions = Extensions()
        self._pipelining = False
        self._rest = b""
        self._lines.clear()
        self._partial.clear()
        self._say(b"EHLO " + self._helo + b"\r\n", Wait.EHLO)

    def take_output(self) -> bytes:
        """What is to be sent now; b"" if nothing."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def feed(self, data: bytes | memoryview) -> None:
        """Take what the peer sent; copied."""
        chunk = self._rest + bytes(data) if self._rest else bytes(data)
        lines = chunk.split(b"\n")
        self._rest = lines.pop()
        self._lines.extend(lines)
        if len(self._rest) > MAX_LINE:
            self._nonsense()

    def next_event(self) -> Event | None:
        """The next event, or NEED_DATA."""
        events = self._events
        lines = self._lines
        expected = self._expected
        while not events:
            if not lines or self.closed:
                return NEED_DATA
            line = lines.popleft()
            if (
                line.startswith(b"250 ")
                and self._pipelining
                and expected
                and not self._partial
                and len(line) < MAX_LINE
            ):
                # What nearly every reply of a pipelined transaction is, without a detour.
                wait, transaction, place = expected[0]
                if wait is _RCPT:
                    del expected[0]
                    transaction._accepted.append(place)  # type: ignore[union-attr]
                    continue
                if wait is _MAIL:
                    del expected[0]
                    transaction._mail_ok = True  # type: ignore[union-attr]
                    continue
            line = line.removesuffix(b"\r")
            if len(line) > MAX_LINE or not line[:3].isdigit() or line[3:4] not in (b" ", b"-", b""):
                self._nonsense()
                continue
            code = line[:3]
            if line[3:4] == b"-":
                self._partial.append(line)
                if len(self._partial) > MAX_LINES or code != self._partial[0][:3]:
                    self._nonsense()
                continue
            if self._partial:
                if code != self._partial[0][:3]:
                    self._nonsense()
                    continue
                self._partial.append(line)
                whole, self._partial = self._partial, []
            else:
                whole = [line]
            self._reply(int(code), whole)
        return events.popleft()

    # ---------------------------------------------------------------- replies

    def _reply(self, code: int, lines: list[bytes]) -> None:
        if not self._expected:
            # Unasked: a host that ends an idle session says 421 first (RFC 5321 3.8).
            self._close(parse_reply(lines))
            return
        if not 200 <= code < 600:
            self._nonsense()
            return
        wait, transaction, place = self._expected[0]
        if code == 421 and wait in (_MAIL, _RCPT, _DATA, _LAST_RCPT):
            # The host goes, not the recipient: nothing of this transaction is decided, it stays unfinished.
            assert transaction is not None
            transaction.replies = [None] * len(transaction.recipients)
            transaction.reply = transaction.refused_at = None
            self._close(parse_reply(lines))
            return
        self._expected.popleft()
        self._leaving = code == 421
        if transaction is None:
            self._reply_to_session(wait, code, lines)
            return
        if wait is _END:
            transaction.reply = parse_reply(lines)
            transaction.refused_at = None if code < 300 else _END
            self._done(transaction)
        elif wait is _DATA:
            self._data(transaction, code, lines)
        elif wait is _MAIL:
            if code < 300:
                transaction._mail_ok = True
            else:
                transaction.reply = parse_reply(lines)
                transaction.refused_at = _MAIL
            if not self._pipelining:
                self._next_command(transaction)
        elif wait is _RCPT or wait is _LAST_RCPT:
            if code < 300:
                transaction._accepted.append(place)
            else:
                transaction.replies[place] = parse_reply(lines)
            if wait is _LAST_RCPT:
                self._chunk(transaction)
            elif not self._pipelining:
                self._next_command(transaction)
        else:  # EMPTY
            self._done(transaction)
        if code == 421:
            self._close(parse_reply(lines))

    def _reply_to_session(self, wait: Wait, code: int, lines: list[bytes]) -> None:
        """A reply to what is not about a transaction."""
        if wait == Wait.QUIT:
            self._close(None)
        elif wait != Wait.RSET:
            self._introduce(wait, code, lines)
        elif code == 421:
            self._close(parse_reply(lines))
        else:
            self._go_on()

    def _introduce(self, wait: Wait, code: int, lines: list[bytes]) -> None:
        """Greeting, EHLO or HELO, STARTTLS."""
        if wait == Wait.GREETING and code == 220:
            self.greeting = lines[0][4:]
            self._say(b"EHLO " + self._helo + b"\r\n", Wait.EHLO)
        elif wait == Wait.EHLO and code == 250:
            self.extensions = parse_extensions(lines)
            self._pipelining = self.extensions.pipelining
            if self.extensions.starttls and self._want_tls:
                self._say(b"STARTTLS\r\n", Wait.STARTTLS)
            else:
                self._become_ready()
        elif wait == Wait.EHLO and code >= 500 and not self.secure:
            self._say(b"HELO " + self._helo + b"\r\n", Wait.HELO)
        elif wait == Wait.HELO and code == 250:
            self._become_ready()
        elif wait == Wait.STARTTLS and code == 220:
            # What was pipelined behind the 220 came in the clear: an attacker may have put it there (RFC 3207 6).
            self._rest = b""
            self._lines.clear()
            self._events.append(Event(What.TLS))
        elif wait == Wait.STARTTLS and code != 421:
            self._want_tls = False  # offered, but not now: opportunistic, so go on in the clear
            self._become_ready()
        else:
            self._close(parse_reply(lines))

    def _become_ready(self) -> None:
        if self._must_tls and not self.secure:
            self._close(NO_TLS)
            return
        self.ready = True
        self._events.append(Event(What.READY))
        self._go_on()

    def _data(self, transaction: Transaction, code: int, lines: list[bytes]) -> None:
        accepted = bool(transaction._accepted) and transaction._mail_ok
        if code == 354:
            if accepted:
                transaction.stage = _CONTENT
                self._events.append(Event(What.CONTENT, transaction))
            else:
                # RFC 2920 3.1: all recipients were refused, yet the host waits for content. It gets none.
                self._out.append(b".\r\n")
                self._expected.append((Wait.EMPTY, transaction, 0))
            return
        if accepted:
            transaction.reply = NONSENSE if code < 400 else parse_reply(lines)
            transaction.refused_at = Wait.DATA
        self._reset_first = transaction._mail_ok
        self._done(transaction)

    def _chunk(self, transaction: Transaction) -> None:
        """All recipients are named: the content as one chunk, if anybody is to get it."""
        if transaction._mail_ok and transaction._accepted:
            self._out.append(b"BDAT %d LAST\r\n" % transaction.size)
            transaction.stage = _CONTENT
            self._events.append(Event(What.CONTENT, transaction))
        else:
            self._reset_first = transaction._mail_ok
            self._done(transaction)

    def _done(self, transaction: Transaction) -> None:
        """Give every recipient that is still open the reply that ended the transaction."""
        transaction.stage = _DONE
        reply = transaction.reply
        if reply is not None:
            replies = transaction.replies
            if len(replies) == 1:
                if replies[0] is None or transaction.refused_at == Wait.MAIL:
                    replies[0] = reply
            else:
                everywhere = transaction.refused_at == Wait.MAIL
                for place in transaction._sent:
                    # After a refused MAIL every RCPT gets a 503, which says nothing of the recipient.
                    if replies[place] is None or everywhere:
                        replies[place] = reply
        if self._current is transaction:
            self._current = None
        self._events.append(Event(What.DONE, transaction))
        if self._todo:
            self._go_on()

    def _go_on(self) -> None:
        if self._todo and self._current is None and (self._pipelining or not self._expected):
            self._start()

    def _nonsense(self) -> None:
        self._close(NONSENSE)

    def _close(self, reply: Reply | None) -> None:
        if not self.closed:
            self.closed = True
            self._lines.clear()
            self._events.append(Event(What.CLOSED, None, reply))

    # ---------------------------------------------------------------- commands

    def _say(self, line: bytes, wait: Wait, transaction: Transaction | None = None, place: int = 0) -> None:
        self._out.append(line)
        self._expected.append((wait, transaction, place))

    def _start(self) -> None:
        """Send the first commands of the next transaction; one that this host can't take ends here, unsent."""
        if self.closed or self.sent_quit or self._leaving or not self.ready:
            return
        if self._reset_first and not self._pipelining:
            self._reset_first = False
            self._say(b"RSET\r\n", Wait.RSET)
            return
        transaction = self._todo.popleft()
        self.transactions += 1
        envelope = transaction.envelope
        offers = self.extensions
        path = envelope.reverse_path
        refusal = None
        params = b""
        if not _PLAIN.match(path):
            if _UNSAFE.search(path):
                refusal = BAD_SENDER
            elif not offers.smtputf8:
                refusal = NEEDS_UTF8
        if transaction.binary and not offers.binary:
            refusal = refusal or NEEDS_BINARY
        elif offers.size is not None:
            if 0 < offers.size < transaction.size:
                refusal = refusal or TOO_BIG
            params = b" SIZE=" + str(transaction.size).encode()
        if envelope.requiretls:
            if offers.requiretls and self.secure:
                params += b" REQUIRETLS"
            else:
                refusal = NEEDS_REQUIRETLS
        if transaction.binary:
            params += b" BODY=BINARYMIME"
        elif envelope.body and offers.eightbit:
            params += b" BODY=8BITMIME"
        if envelope.smtputf8 and offers.smtputf8:
            params += b" SMTPUTF8"
        if offers.dsn:
            params += _RET[envelope.ret] if envelope.ret < 3 else b""
            if envelope.envid and _XTEXT.match(envelope.envid):
                params += b" ENVID=" + envelope.envid
        if refusal is not None:
            self._refuse(transaction, refusal)
            return
        commands = []
        sent = []
        for place, recipient in enumerate(transaction.recipients):
            address = recipient.address
            if not _PLAIN.match(address) and _UNSAFE.search(address):
                transaction.replies[place] = BAD_RECIPIENT
            elif not address.isascii() and not (offers.smtputf8 and envelope.smtputf8):
                transaction.replies[place] = NEEDS_UTF8
            else:
                options = (
                    _dsn_params(recipient) if offers.dsn and (recipient.notify or recipient.orcpt) else b""
                )
                commands.append(b"RCPT TO:<" + address + b">" + options + b"\r\n")
                sent.append(place)
        transaction._sent = sent
        if not sent:
            self._refuse(transaction, None)
            return
        self._current = transaction
        transaction.stage = _COMMANDS
        out = self._out
        expected = self._expected
        if self._reset_first:
            self._reset_first = False
            out.append(b"RSET\r\n")
            expected.append((Wait.RSET, None, 0))
        mail = b"MAIL FROM:<" + path + b">" + params + b"\r\n"
        expected.append((_MAIL, transaction, 0))
        if self._pipelining:
            out.append(mail)
            out += commands
            for place in sent:
                expected.append((_RCPT, transaction, place))
            if transaction.binary:
                expected[-1] = (_LAST_RCPT, transaction, sent[-1])
            else:
                out.append(b"DATA\r\n")
                expected.append((_DATA, transaction, 0))
        else:
            out.append(mail)
            transaction._commands.extend(zip(sent, commands, strict=True))

    def _refuse(self, transaction: Transaction, reply: Reply | None) -> None:
        transaction._sent = range(len(transaction.recipients))
        transaction.reply = reply
        transaction.refused_at = Wait.MAIL if reply is not None else None
        self._done(transaction)

    def _next_command(self, transaction: Transaction) -> None:
        """Without PIPELINING: the command after the one just answered."""
        todo = transaction._commands
        if transaction.refused_at is not None:
            self._reset_first = False
            self._done(transaction)
        elif todo:
            place, line = todo.popleft()
            self._say(line, Wait.RCPT, transaction, place)
        elif transaction.binary or not transaction._accepted:
            self._chunk(transaction)
        else:
            self._say(b"DATA\r\n", Wait.DATA, transaction)


def _dsn_params(recipient: Recipient) -> bytes:
    """NOTIFY and ORCPT of one RCPT (RFC 3461 4)."""
    out = b""
    if recipient.notify:
        words = [word for bit, word in _NOTIFY if recipient.notify & bit]
        out = b" NOTIFY=" + (b"NEVER" if recipient.notify & Notify.NEVER else b",".join(words))
    if recipient.orcpt and _XTEXT.match(recipient.orcpt):
        out += b" ORCPT=" + recipient.orcpt
    return out
