"""The words every part shares: ids, channels, envelope, recipient, reply, outcome, rope.

Vocabulary only: no I/O, no clock. Wire data is `bytes`; the names are those of RFC 5321, 3461 and 3463.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import IntEnum

from msgspec import Struct

from iems._native import kernel

ID_OCTETS = 16
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_DIGIT = {c: i for i, c in enumerate(_ALPHABET)}


#: id_text(message_id: bytes) -> str: the 26 characters (Crockford base32) shown for a 16-octet id; text order is byte order.
id_text: Callable[[bytes], str] = kernel("ids").id_text


def id_octets(text: str) -> bytes:
    """The 16 octets of an id as `id_text` prints it; case does not matter. Raises ValueError."""
    number = 0
    if len(text) != 26:
        raise ValueError(f"an id has 26 characters, not {len(text)}: {text!r}")
    for char in text.upper():
        if char not in _DIGIT:
            raise ValueError(f"not an id: {text!r}")
        number = number << 5 | _DIGIT[char]
    if number >> 128:
        raise ValueError(f"not an id: {text!r}")
    return number.to_bytes(ID_OCTETS, "big")


def child_id(parent: bytes, cause: bytes) -> bytes:
    """The id of a message made because of another one (DSN, forward, list copy): the parent's time, a hash of the cause.

    The same cause gives the same id, so a step repeated after a crash makes no second message.
    """
    return parent[:6] + hashlib.blake2b(parent + cause, digest_size=10).digest()


class Channel(IntEnum):
    """Where a message came in (below 32) and by which way it leaves (32 and above); product.md 1."""

    SMTPD = 1
    BSMTPIN = 2
    WEBCLIENT = 3
    LOCALOUT = 4
    DLOUT = 5
    CCOUT = 6
    NOTESOUT = 7
    TNEF = 8
    MTA = 9
    LOCAL = 32
    SMTPC = 33
    BSMTPOUT = 34
    DL = 35
    CCMAIL = 36
    NOTES = 37


#: The queue every input channel feeds and the preprocessor takes from; beside the output channels in the index.
INPUT = 0


class Notify(IntEnum):
    """Bits of the NOTIFY parameter (RFC 3461 4.1); 0 means it was not given."""

    NEVER = 1
    SUCCESS = 2
    FAILURE = 4
    DELAY = 8


class Outcome(IntEnum):
    """What became of one recipient in one attempt."""

    DELIVERED = 1
    DEFERRED = 2
    FAILED = 3
    DISCARDED = 4
    RELAYED = 5
    EXPANDED = 6


class Reply(Struct, frozen=True, array_like=True):
    """An SMTP reply (RFC 5321 4.2) with its enhanced status (RFC 3463), whose class comes from the code."""

    code: int
    subject: int
    detail: int
    text: str

    @property
    def status(self) -> str:
        """The enhanced status, such as `5.1.1`."""
        return f"{self.code // 100}.{self.subject}.{self.detail}"

    @property
    def transient(self) -> bool:
        """Whether the client may try again (4xx)."""
        return 400 <= self.code < 500


class Extent(Struct, frozen=True, array_like=True):
    """A run of octets in a blob: a segment or the file of one large content."""

    blob: int
    offset: int
    length: int
    codec: int = 0


#: Content as a list of extents and short inline pieces (at most 4 KiB each), read one after the other.
Rope = list[Extent | bytes]


def rope_length(rope: Rope) -> int:
    """Octets of the content a rope stands for."""
    return sum(len(piece) if isinstance(piece, bytes) else piece.length for piece in rope)


class Recipient(Struct, array_like=True):
    """One RCPT TO with its own state (RFC 5321 3.3, DSN parameters RFC 3461).

    address: the address to deliver to, domain in lower case. original: as the client wrote it.
    orcpt: the ORCPT parameter, still xtext, or None. notify: bits of `Notify`.
    channel, identifier: set by the preprocessor. attempts: tries already made.
    """

    address: bytes
    original: bytes = b""
    orcpt: bytes | None = None
    notify: int = 0
    channel: int = 0
    identifier: str = ""
    attempts: int = 0
    reply: Reply | None = None
    delay_noticed: bool = False


class Verdict(Struct, frozen=True, array_like=True):
    """What a check at the door said of a message that was taken all the same.

    check: `dnsbl`, `sender-domain`, `client-name`, `helo`, `unqualified`, `early-talker` or `early-pipelining`. subject: what was looked at, for `dnsbl` the zone.
    answer: what was found, for `dnsbl` the address the zone answered with.
    """

    check: str
    subject: str
    answer: str

    def __str__(self) -> str:
        return f"{self.check} {self.subject}: {self.answer}"


class Envelope(Struct, array_like=True):
    """What a message carries beside its content (RFC 5321 2.3.1); never the header.

    reverse_path: b"" is the null path of a DSN. received_ns: wall clock. body: 0 = 7BIT, 1 = 8BITMIME, 2 = BINARYMIME.
    ret: 0 not given, 1 FULL, 2 HDRS. client_ip: of the sending server, "" for mail made here. auth: the user who logged in.
    parent: the id of the message that caused this one, or b"". verdicts: of the checks at the door that tag. asked: what other checks and
    modules answered, for the record only.
    requiretls: it may travel over verified TLS only (RFC 8689). held: why it is put on hold when it enters the input queue, or "".
    """

    input_channel: int
    reverse_path: bytes
    recipients: list[Recipient]
    received_ns: int
    size: int = 0
    client_ip: str = ""
    helo: bytes = b""
    auth: str = ""
    body: int = 0
    smtputf8: bool = False
    ret: int = 0
    envid: bytes | None = None
    parent: bytes = b""
    dot_free: bool = False
    verdicts: tuple[Verdict, ...] = ()
    requiretls: bool = False
    held: str = ""
    asked: tuple[Verdict, ...] = ()


class Result(Struct, array_like=True):
    """The outcome of one recipient in one attempt. next_attempt_s: seconds from now, for DEFERRED only."""

    recipient: Recipient
    outcome: int
    reply: Reply | None = None
    next_attempt_s: float = 0.0
