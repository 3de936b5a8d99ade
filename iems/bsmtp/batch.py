"""The content of `application/batch-SMTP` (RFC 2442): the client's side of an ESMTP dialogue, as one piece of octets.

Content that is lines with CRLF goes by DATA with dots doubled; any other goes by BDAT as BINARYMIME (RFC 3030), so that it comes back
octet for octet. Reading fails closed: whatever is not understood whole gives no message at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from iems._native import kernel
from iems.errors import IemsError
from iems.model import Envelope, Notify, Recipient, Reply
from iems.smtp import grammar

_smtp = kernel("smtp")
_Buffer = kernel("buffer").Buffer

#: SMTP extensions a batch read here may need.
EXTENSIONS = frozenset({"8BITMIME", "SIZE", "DSN", "SMTPUTF8", "BINARYMIME", "CHUNKING", "PIPELINING", "ENHANCEDSTATUSCODES"})
#: Octets of one command line, its CRLF included: long paths with all their parameters fit.
LINE_OCTETS = 4096
#: Commands that do nothing (NOOP, RSET, HELO) in one batch.
IDLE_COMMANDS = 1000

_BODY = (b"", b" BODY=8BITMIME", b" BODY=BINARYMIME")
_RET = (b"", b" RET=FULL", b" RET=HDRS")
_NOTIFY = (
    (Notify.NEVER, b"NEVER"),
    (Notify.SUCCESS, b"SUCCESS"),
    (Notify.FAILURE, b"FAILURE"),
    (Notify.DELAY, b"DELAY"),
)


class BatchError(IemsError):
    """A batch that can't be read, or an envelope that can't be written; the text says why."""


class Limits(Struct, frozen=True):
    """Bounds on what is read. octets: of one message's content; messages: of one batch; recipients: of one message."""

    octets: int = 104_857_600
    messages: int = 1000
    recipients: int = 1000


class Entry(Struct):
    """One message of a batch: the envelope as MAIL and RCPT give it (RFC 5321, 3461, 6152, 6531), and the content.

    body, ret: as in `model.Envelope`. dot_free: no line of the content begins with a dot.
    """

    reverse_path: bytes
    recipients: list[Recipient]
    content: bytes
    body: int = 0
    smtputf8: bool = False
    ret: int = 0
    envid: bytes | None = None
    dot_free: bool = False

    @classmethod
    def of(cls, envelope: Envelope, content: bytes) -> Entry:
        """The entry for a message of the spool."""
        return cls(
            envelope.reverse_path,
            envelope.recipients,
            content,
            envelope.body,
            envelope.smtputf8,
            envelope.ret,
            envelope.envid,
        )


class Batch(Struct):
    """A batch written. extensions: what its reader must know, for the parameter required-extensions."""

    octets: bytes
    extensions: list[str] = field(default_factory=list)


def is_lines(content: bytes) -> bool:
    """Whether content is nothing but lines that end with CRLF, without NUL: fit for DATA as it is."""
    pairs = content.count(b"\r\n")
    return (
        (not content or content.endswith(b"\r\n"))
        and content.count(b"\n") == pairs
        and content.count(b"\r") == pairs
        and b"\0" not in content
    )


def encode(entries: Sequence[Entry], hello: bytes) -> Batch:
    """Write messages as a batch. hello: the name of this host for EHLO.

    Raises BatchError for an envelope that would not be read back as it is.
    """
    out = [b"EHLO ", hello, b"\r\n"]
    needed: set[str] = set()
    for entry in entries:
        _write(entry, out, needed)
    out.append(b"QUIT\r\n")
    return Batch(b"".join(out), sorted(needed))


def _write(entry: Entry, out: list[bytes], needed: set[str]) -> None:
    content = entry.content
    binary = entry.body == 2 or not is_lines(content)
    body = 2 if binary else entry.body
    mail = b"FROM:<%b>%b%b%b" % (
        entry.reverse_path,
        _BODY[body],
        b" SMTPUTF8" if entry.smtputf8 else b"",
        _RET[entry.ret],
    )
    if entry.envid is not None:
        mail += b" ENVID=" + entry.envid
    read = grammar.mail(mail)
    if isinstance(read, Reply) or read.path.address != entry.reverse_path or len(mail) > LINE_OCTETS - 8:
        raise BatchError("the reverse-path or its parameters can't be written")
    out += [b"MAIL ", mail, b"\r\n"]
    if not entry.recipients:
        raise BatchError("a message without recipients")
    for recipient in entry.recipients:
        rcpt = b"TO:<%b>" % recipient.address
        if recipient.notify:
            rcpt += b" NOTIFY=" + b",".join(word for bit, word in _NOTIFY if recipient.notify & bit)
        if recipient.orcpt is not None:
            rcpt += b" ORCPT=" + recipient.orcpt
        given = grammar.rcpt(rcpt)
        if (
            isinstance(given, Reply)
            or (given.path.address, given.notify, given.orcpt)
            != (recipient.address, recipient.notify, recipient.orcpt)
            or len(rcpt) > LINE_OCTETS - 8
        ):
            raise BatchError("a recipient or its parameters can't be written")
        if recipient.notify or recipient.orcpt is not None:
            needed.add("DSN")
        out += [b"RCPT ", rcpt, b"\r\n"]
    if entry.ret or entry.envid is not None:
        needed.add("DSN")
    if entry.smtputf8:
        needed.add("SMTPUTF8")
    if binary:
        needed.update(("BINARYMIME", "CHUNKING"))
        out += [b"BDAT %d LAST\r\n" % len(content), content]
        return
    if body:
        needed.add("8BITMIME")
    out += [b"DATA\r\n", b"." if content.startswith(b".") else b"", content.replace(b"\r\n.", b"\r\n.."), b".\r\n"]


def check_extensions(parameter: str) -> None:
    """Raises BatchError if the parameter required-extensions names one that is not known here."""
    for word in parameter.split(","):
        if word.strip() and word.split()[0].upper() not in EXTENSIONS:
            raise BatchError(f"needs the extension {word.strip()[:40]!r}, which is not known here")


def decode(octets: bytes, limits: Limits | None = None) -> list[Entry]:
    """The messages of a batch, in order. Raises BatchError: then none of it counts."""
    return _Reader(octets, limits or Limits()).run()


class _Reader:
    def __init__(self, octets: bytes, limits: Limits) -> None:
        self._octets = octets
        self._limits = limits
        self._at = 0
        self._entries: list[Entry] = []
        self._mail: grammar.Mail | None = None
        self._recipients: list[Recipient] = []
        self._idle = 0

    def run(self) -> list[Entry]:
        """Read to QUIT."""
        octets, end = self._octets, len(self._octets)
        if octets.endswith(b"QUIT"):  # the line end before a MIME boundary belongs to the boundary
            octets += b"\r\n"
            self._octets, end = octets, len(octets)
        while True:
            code, after, argument = _smtp.command(octets, self._at, min(end, self._at + LINE_OCTETS))
            if code == _smtp.NEED:
                more = end - self._at >= LINE_OCTETS
                raise self._error("a command line is too long" if more else "ends without QUIT")
            if argument is None:
                raise self._error("a line with a bare CR, bare LF or NUL")
            self._at = after
            if code == _smtp.QUIT:
                break
            self._command(code, argument)
        if self._mail is not None:
            raise self._error("QUIT within a message")
        if octets[self._at :].strip(b"\r\n"):
            raise self._error("goes on after QUIT")
        if not self._entries:
            raise self._error("holds no message")
        return self._entries

    def _error(self, what: str) -> BatchError:
        return BatchError(f"batch, octet {self._at}: {what}")

    def _command(self, code: int, argument: bytes) -> None:
        if code == _smtp.MAIL:
            self._mail_from(argument)
        elif code == _smtp.RCPT:
            self._rcpt_to(argument)
        elif code in (_smtp.DATA, _smtp.BDAT):
            self._content(code, argument)
        elif code in (_smtp.EHLO, _smtp.HELO, _smtp.RSET, _smtp.NOOP):
            self._idle += 1
            if self._idle > IDLE_COMMANDS:
                raise self._error("too many commands that do nothing")
            if code != _smtp.NOOP:  # EHLO ends a transaction as RSET does (RFC 5321 4.1.4)
                self._mail, self._recipients = None, []
        else:
            raise self._error("a command that has no place in a batch")

    def _mail_from(self, argument: bytes) -> None:
        if self._mail is not None:
            raise self._error("MAIL within a message")
        if len(self._entries) >= self._limits.messages:
            raise self._error(f"more than {self._limits.messages} messages")
        mail = grammar.mail(argument)
        if isinstance(mail, Reply):
            raise self._error(f"MAIL: {mail.text}")
        self._mail = mail

    def _rcpt_to(self, argument: bytes) -> None:
        if self._mail is None:
            raise self._error("RCPT without MAIL")
        if len(self._recipients) >= self._limits.recipients:
            raise self._error(f"more than {self._limits.recipients} recipients")
        rcpt = grammar.rcpt(argument)
        if isinstance(rcpt, Reply):
            raise self._error(f"RCPT: {rcpt.text}")
        if rcpt.path.utf8 and not self._mail.smtputf8:
            raise self._error("RCPT: an address in UTF-8 without SMTPUTF8")
        self._recipients.append(Recipient(rcpt.path.address, rcpt.path.original, rcpt.orcpt, rcpt.notify))

    def _content(self, code: int, argument: bytes) -> None:
        mail, recipients = self._mail, self._recipients
        if mail is None or not recipients:
            raise self._error("content without a recipient")
        binary = mail.body == 2
        chunked = code == _smtp.BDAT
        if binary and not chunked:
            raise self._error("BINARYMIME by DATA")
        decoder = _smtp.DataDecoder(self._limits.octets, raw=chunked, binary=binary)
        buffer = _Buffer()
        if chunked:
            self._chunks(decoder, buffer, argument)
        else:
            if argument:
                raise self._error("DATA takes no argument")
            taken, done = decoder.feed(self._octets, self._at, len(self._octets), buffer)
            if not done:
                raise self._error("content without its end")
            self._at += taken
        if decoder.too_big:
            raise self._error(f"content of more than {self._limits.octets} octets")
        if decoder.refused:
            raise self._error("content with a bare CR, bare LF or NUL")
        self._entries.append(
            Entry(
                mail.path.address,
                recipients,
                bytes(buffer),
                mail.body,
                mail.smtputf8,
                mail.ret,
                mail.envid,
                decoder.dot_free,
            )
        )
        self._mail, self._recipients = None, []

    def _chunks(self, decoder: object, buffer: object, argument: bytes) -> None:
        """All chunks of one content (RFC 3030 2)."""
        octets = self._octets
        while True:
            given = grammar.chunk(argument)
            if isinstance(given, Reply):
                raise self._error(f"BDAT: {given.text}")
            size, last = given
            if size > len(octets) - self._at:
                raise self._error("a chunk without its end")
            decoder.feed(octets, self._at, self._at + size, buffer)  # type: ignore[attr-defined]
            self._at += size
            if last:
                decoder.finish(buffer)  # type: ignore[attr-defined]
                return
            code, after, text = _smtp.command(octets, self._at, min(len(octets), self._at + LINE_OCTETS))
            if code != _smtp.BDAT or text is None:
                raise self._error("a content without its last chunk")
            self._at, argument = after, text
