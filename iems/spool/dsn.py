"""Delivery status notifications (RFC 3461, 3464, 6533): what a sender is told about the recipients of one message.

Pure: no clock, no disk. Whoever settles an item (smtpc, lmda, preprocessor, janitor) makes the notification here and hands
it to the spool together with the settlement, so a crash between the two can't lose it or send it twice. It enters as a
message of its own from the input channel MTA, so no path goes round the modules.

Nothing a peer wrote (address, reply, header of the returned message) reaches a header line of ours except through `clean`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, Literal

from iems.message.build import encode_quoted_printable
from iems.model import Channel, Envelope, Notify, Outcome, Recipient, Result, child_id, id_text, rope_length

if TYPE_CHECKING:
    from iems.spool.items import Item, Message

Kind = Literal["failed", "delayed", "delivered", "relayed"]

#: How much of the content a caller reads for `content_head`: a message of at most this size is returned whole.
HEAD_OCTETS: Final = 65536
#: Octets of the header returned when the body is not.
HEADER_OCTETS: Final = 32768
#: Recipients named in the part for people; the part for programs names all.
SHOWN: Final = 100

_OUTCOMES: Final[dict[str, int]] = {
    "failed": Outcome.FAILED,
    "delayed": Outcome.DEFERRED,
    "delivered": Outcome.DELIVERED,
    "relayed": Outcome.RELAYED,
}
_SUBJECTS: Final[dict[str, str]] = {
    "failed": "Undelivered mail returned to sender",
    "delayed": "Delayed mail (still being tried)",
    "delivered": "Mail delivered",
    "relayed": "Mail passed on to a system that sends no further notice",
}
_TEXTS: Final[dict[str, str]] = {
    "failed": "Your message could not be delivered to the recipients below, and will not be tried again.",
    "delayed": "Your message could not be delivered to the recipients below yet. It is tried again and again;\r\n"
    "there is nothing you need to do.",
    "delivered": "Your message was delivered to the recipients below.",
    "relayed": "Your message was passed on to the next mail system for the recipients below. That system does\r\n"
    "not send delivery notices, so you will hear no more of it unless delivery fails.",
}
#: To the postmaster, about a notice of ours that nobody took.
_DOUBLE_SUBJECT: Final = "Undelivered notice (double bounce)"
_DOUBLE_TEXT: Final = (
    "A notice that this system sent could not be delivered to the recipients below, and will not be\r\n"
    "tried again. What it told of will not come to the knowledge of those it was meant for."
)
_CLASSES: Final[dict[str, str]] = {"failed": "5", "delayed": "4", "delivered": "2", "relayed": "2"}

# C0, DEL, C1, the Unicode line separators and lone surrogates: nothing that a reader could take for a line end.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SPACE = re.compile(r"[\t\r\n\x0b\x0c ]+")
_MESSAGE_ID = re.compile(rb"^Message-ID:[ \t]*(?:\r\n[ \t]+)?(<[!-;=?-~]{1,250}>)[ \t]*\r$", re.I | re.M)
_XTEXT = re.compile(rb"\+([0-9A-F]{2})")
_UTF8_XTEXT = re.compile(r"\\x\{([0-9A-F]{2,6})\}")
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*/=?^_`{|}~.-]{1,64}\Z")  # an addr-type; no "+": it would be xtext
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


def clean(value: str | bytes) -> str:
    """`value` as one line of text that is safe in a header field: line ends and runs of blanks become one space, other
    control characters and undecodable octets `?`."""
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    return _CONTROL.sub("?", _SPACE.sub(" ", text)).strip()


def unxtext(value: bytes) -> bytes:
    """The octets an xtext stands for (RFC 3461 4); anything malformed stays as it is."""
    return _XTEXT.sub(lambda match: bytes((int(match[1], 16),)), value)


def wanted(recipient: Recipient, kind: Kind) -> bool:
    """Whether the sender asked, or by default expects, to hear `kind` about this recipient (RFC 3461 4.1)."""
    notify = recipient.notify
    if notify & Notify.NEVER:
        return False
    if kind == "failed":
        return not notify or bool(notify & Notify.FAILURE)
    if kind == "delayed":
        # Without NOTIFY a delay notice is the site's choice: the caller doesn't ask for one if it is off.
        return not notify or bool(notify & Notify.DELAY)
    return bool(notify & Notify.SUCCESS)


def heard(envelope: Envelope, recipient: Recipient, double_bounces: bool) -> bool:
    """Whether a recipient's failure is anybody's to hear: the sender's, or the postmaster's if the message is a notice of ours.

    double_bounces: as for `make`.
    """
    return bool(envelope.reverse_path) or (
        double_bounces and envelope.input_channel == Channel.MTA and wanted(recipient, "failed")
    )


def make(
    item: Item,
    results: Sequence[Result],
    kind: Kind,
    *,
    hostname: str,
    postmaster: str,
    content_head: bytes,
    now_ns: int,
    remote: Mapping[bytes, str] | None = None,
    retry_until_ns: int | None = None,
    double_bounces: bool = False,
) -> Message | None:
    """The notification about the recipients in `results` whose outcome is of `kind`, or None if nobody is to hear of it.

    results: may hold other outcomes too; those are left out. hostname, postmaster: of this MTA.
    content_head: the first octets of the content, `HEAD_OCTETS` or all. now_ns: wall clock, ns since 1970.
    remote: recipient's address -> name of the host whose reply the result carries; absent: the reply is ours.
    retry_until_ns: for `delayed`, when the last try will be. double_bounces: whether the postmaster hears of a notice of ours that
    failed; he hears of it once: that report asks for no notice. The message's `settled` is empty: the caller fills it.
    """
    made = compose(
        item,
        results,
        kind,
        hostname=hostname,
        postmaster=postmaster,
        content_head=content_head,
        now_ns=now_ns,
        remote=remote,
        retry_until_ns=retry_until_ns,
        double_bounces=double_bounces,
    )
    if made is None:
        return None
    from iems.spool.items import Message

    message_id, envelope, content = made
    return Message(id=message_id, envelope=envelope, content=content, settled=[])


def compose(
    item: Item,
    results: Sequence[Result],
    kind: Kind,
    *,
    hostname: str,
    postmaster: str,
    content_head: bytes,
    now_ns: int,
    remote: Mapping[bytes, str] | None = None,
    retry_until_ns: int | None = None,
    double_bounces: bool = False,
) -> tuple[bytes, Envelope, list[bytes]] | None:
    """What `make` puts into the message: its id, envelope, and content. Arguments as there."""
    parent = item.envelope
    double = not parent.reverse_path
    if double and not (double_bounces and kind == "failed" and parent.input_channel == Channel.MTA):
        return None  # never a notification about a notification (RFC 5321 6.1)
    sender_path = postmaster.encode() if double else parent.reverse_path
    outcome = _OUTCOMES[kind]
    told = [result for result in results if result.outcome == outcome and wanted(result.recipient, kind)]
    if not told:
        return None
    remote = remote or {}
    cause = b"\0".join(
        [
            b"dsn",
            kind.encode(),
            b"%d" % item.channel,
            item.destination.encode("utf-8", "surrogateescape"),
            *sorted(result.recipient.address for result in told),
        ]
    )
    message_id = child_id(item.id, cause)

    utf8 = not sender_path.isascii() or any(
        not result.recipient.address.isascii() or not result.recipient.original.isascii() for result in told
    )
    returned, whole = _returned(item, content_head, kind)
    if parent.smtputf8 and not returned.partition(b"\r\n\r\n")[0].isascii():
        utf8 = True  # a header in UTF-8 is no message/rfc822

    def octets(text: str) -> bytes:
        return text.encode("utf-8" if utf8 else "ascii", "replace")

    def field(name: str, value: str) -> bytes:
        return _fold(octets(f"{name}: {clean(value)}"))

    boundary = _boundary(message_id, returned)
    sender = clean(sender_path)
    references = _MESSAGE_ID.search(returned.partition(b"\r\n\r\n")[0] + b"\r\n")
    head = [
        field("From", f"Mail Delivery System <{clean(postmaster)}>"),
        field("To", f"<{sender}>"),
        field("Subject", _DOUBLE_SUBJECT if double else _SUBJECTS[kind]),
        field("Date", formatdate(now_ns / 1e9)),
        field("Message-ID", f"<{id_text(message_id)}@{clean(hostname)}>"),
    ]
    if references:
        head += [b"In-Reply-To: ", references[1], b"\r\nReferences: ", references[1], b"\r\n"]
    head += [
        b"Auto-Submitted: auto-replied\r\n",
        b"MIME-Version: 1.0\r\n",
        b'Content-Type: multipart/report; report-type=delivery-status;\r\n boundary="%b"\r\n' % boundary,
    ]

    people = _people(item, told, kind, hostname, remote, whole)
    status = [
        field("Reporting-MTA", f"dns; {hostname}"),
        field("Arrival-Date", formatdate(parent.received_ns / 1e9)),
    ]
    if parent.envid is not None:
        status.insert(0, field("Original-Envelope-Id", clean(unxtext(parent.envid))))
    for result in told:
        status.append(b"\r\n")
        status += _recipient_fields(
            result, kind, remote.get(result.recipient.address, ""), field, retry_until_ns
        )

    text, how = people.encode("utf-8", "replace"), b""
    if not utf8 and not people.isascii():
        # A reason that a recipient gave may be in any script; quoted, the report stays 7bit.
        text, how = encode_quoted_printable(text), b"Content-Transfer-Encoding: quoted-printable\r\n"
    report = b"".join(status)
    dash = b"\r\n--%b\r\n" % boundary
    body = [
        dash[2:],
        b"Content-Type: text/plain; charset=%b\r\n" % (b"us-ascii" if people.isascii() else b"utf-8"),
        how or _encoding(text),
        b"\r\n",
        text,
        dash,
        b"Content-Type: message/%bdelivery-status\r\n" % (b"global-" if utf8 else b""),
        _encoding(report),
        b"\r\n",
        report,
        dash,
        b"Content-Type: %b\r\n" % _returned_type(whole, utf8),
        _encoding(returned),
        b"\r\n",
        returned,
        b"\r\n--%b--\r\n" % boundary,
    ]
    eight = not all(piece.isascii() for piece in body)
    # The multipart's own encoding is the widest of its parts' (RFC 2045 6.4).
    content = [*head, b"Content-Transfer-Encoding: %b\r\n\r\n" % (b"8bit" if eight else b"7bit"), *body]
    envelope = Envelope(
        input_channel=Channel.MTA,
        reverse_path=b"",
        recipients=[
            Recipient(
                address=_lower_domain(sender_path),
                original=sender_path,
                notify=Notify.NEVER if double else 0,  # with it a double bounce ends
            )
        ],
        received_ns=now_ns,
        size=sum(map(len, content)),
        body=1 if eight else 0,
        smtputf8=utf8,
        parent=item.id,
        # Only what is returned can hold a line that begins with a dot: our own lines never do.
        dot_free=not returned.startswith(b".") and b"\n." not in returned,
        requiretls=parent.requiretls,  # what needed TLS on its way out needs it on its way back (RFC 8689 5)
    )
    return message_id, envelope, content


def _lower_domain(path: bytes) -> bytes:
    local, at, domain = path.rpartition(b"@")
    return local + at + domain.lower() if at else path


def _encoding(part: bytes) -> bytes:
    return b"Content-Transfer-Encoding: %b\r\n" % (b"7bit" if part.isascii() else b"8bit")


def _returned_type(whole: bool, utf8: bool) -> bytes:
    if whole:
        return b"message/global" if utf8 else b"message/rfc822"
    return b"message/global-headers" if utf8 else b"text/rfc822-headers"


def _boundary(message_id: bytes, returned: bytes) -> bytes:
    """A boundary that does not occur in the returned part, and the same one each time the step is repeated."""
    number = 0
    while True:
        boundary = b"=_" + hashlib.blake2b(message_id + b"%d" % number, digest_size=16).hexdigest().encode()
        if boundary not in returned:
            return boundary
        number += 1


def _returned(item: Item, content_head: bytes, kind: Kind) -> tuple[bytes, bool]:
    """The third part and whether it is the whole message: only for a failure, unless RET=HDRS, and if we have all of it."""
    whole = (
        kind == "failed"
        and item.envelope.ret != 2
        and item.envelope.body != 2
        and not item.envelope.requiretls
        and len(content_head) == rope_length(item.rope)
        and b"\0" not in content_head
        and not _BARE.search(content_head)
    )
    if whole:
        return content_head if content_head.endswith(b"\r\n") else content_head + b"\r\n", True
    head, end, _ = content_head.partition(b"\r\n\r\n")
    head += b"\r\n" if end else b""
    if len(head) > HEADER_OCTETS or not head.endswith(b"\r\n"):
        head = head[: head.rfind(b"\r\n", 0, HEADER_OCTETS) + 2] if b"\r\n" in head[:HEADER_OCTETS] else b""
    return _BARE.sub(b"\r\n ", head.replace(b"\0", b"?")), False


def _recipient_fields(
    result: Result, kind: Kind, remote: str, field: _Field, retry_until_ns: int | None
) -> list[bytes]:
    """The per-recipient fields of RFC 3464 2.3 (names of address types: RFC 3461 4.2, 6533 3)."""
    recipient = result.recipient
    fields = []
    if recipient.orcpt is not None:
        fields.append(field("Original-Recipient", _original_recipient(recipient.orcpt)))
    kind_of_address = "rfc822" if recipient.address.isascii() else "utf-8"
    fields.append(field("Final-Recipient", f"{kind_of_address}; {clean(recipient.address)}"))
    fields.append(field("Action", kind))
    fields.append(field("Status", _status(result, kind)))
    if remote:
        fields.append(field("Remote-MTA", f"dns; {remote}"))
    if result.reply is not None and kind in ("failed", "delayed"):
        # A reply we made up ourselves is no SMTP reply of another MTA: RFC 3464 2.3.6 wants its own type.
        said = "smtp" if remote else "x-iems"
        fields.append(field("Diagnostic-Code", f"{said}; {_said(result)}"))
    if kind == "delayed" and retry_until_ns is not None:
        fields.append(field("Will-Retry-Until", formatdate(retry_until_ns / 1e9)))
    return fields


def _original_recipient(orcpt: bytes) -> str:
    kind, _, address = orcpt.partition(b";")
    name = clean(kind)
    if not _ATOM.match(name):
        return f"unknown; {clean(orcpt)}"
    text = clean(unxtext(address))
    if name.lower() == "utf-8":
        text = clean(_UTF8_XTEXT.sub(_unicode, text))
    return f"{name}; {text}"


def _unicode(match: re.Match[str]) -> str:
    number = int(match[1], 16)
    return chr(number) if number < 0x110000 else "?"


def _status(result: Result, kind: Kind) -> str:
    """The enhanced status, with the class that `kind` demands: a 4xx that ran out of time is a 5.x.x here."""
    reply = result.reply
    if reply is None:
        return _CLASSES[kind] + ".0.0"
    return f"{_CLASSES[kind]}.{reply.subject}.{reply.detail}"


def _said(result: Result) -> str:
    reply = result.reply
    assert reply is not None
    text = clean(reply.text)
    # x.0.0 stands for "none was given": only what the host said is quoted.
    return f"{reply.code} {reply.status} {text}" if reply.subject or reply.detail else f"{reply.code} {text}"


def _people(
    item: Item, told: Sequence[Result], kind: Kind, hostname: str, remote: Mapping[bytes, str], whole: bool
) -> str:
    """The part for people; every line of a fixed shape, so that no reply can look like one of ours."""
    text = _TEXTS[kind] if item.envelope.reverse_path else _DOUBLE_TEXT
    lines = [f"This is the mail system at {clean(hostname)}.", "", text, ""]
    for result in told[:SHOWN]:
        lines.append(f"  <{_cut(clean(result.recipient.address))}>")
        if result.reply is not None and kind in ("failed", "delayed"):
            host = remote.get(result.recipient.address, "")
            lines.append(
                f"    {clean(host)} said: {_cut(_said(result))}" if host else f"    {_cut(_said(result))}"
            )
    if len(told) > SHOWN:
        lines.append(f"  and {len(told) - SHOWN} more, named in the next part")
    lines += [
        "",
        f"Message {id_text(item.id)}, received {formatdate(item.envelope.received_ns / 1e9)}.",
        "Your message is attached." if whole else "The header of your message is attached.",
        "",
    ]
    return "\r\n".join(lines)


def _cut(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + " ..."


def _fold(line: bytes) -> bytes:
    """One header field with its CRLF, folded at blanks so that no line passes 998 octets (RFC 5322 2.1.1), most stay in 78."""
    out: list[bytes] = []
    while len(line) > 78:
        cut = line.rfind(b" ", 2, 78)
        # The first blank after "Name:" is no place to fold: some readers drop a field whose first line is empty.
        if (not out and cut <= line.find(b": ") + 1) or cut <= 1:
            cut = line.find(b" ", 78)
            if cut < 0 or cut > 990:
                cut = min(len(line), 990) if len(line) > 990 else -1
                while 0 < cut < len(line) and line[cut] & 0xC0 == 0x80:
                    cut -= 1  # not inside one UTF-8 character
            if cut < 0 or cut >= len(line):
                break
        out.append(line[:cut])
        line = b" " + line[cut:].lstrip(b" ")
    out.append(line)
    return b"\r\n".join(out) + b"\r\n"


if TYPE_CHECKING:
    from typing import Protocol

    class _Field(Protocol):
        def __call__(self, name: str, value: str) -> bytes: ...
