"""Search keys (RFC 3501 6.4.4, with MODSEQ of RFC 7162) as a tree.

A tree is made of the classes below; how a key is answered is the business of `imapd.commands.search`.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from iems.imap import flags, sequence
from iems.imap.grammar import SAVED, Arguments, Bad, Refused

#: Keys of one SEARCH, however nested.
MAX_KEYS = 1000
#: One string to look for.
MAX_STRING_OCTETS = 4096


class And(Struct, frozen=True):
    """All keys hold; none: every message."""

    keys: list[Any]


class Or(Struct, frozen=True):
    """One of two holds."""

    left: Any
    right: Any


class Not(Struct, frozen=True):
    """The key does not hold."""

    key: Any


class Sequence(Struct, frozen=True):
    """By number: message sequence numbers or, with `uid`, UIDs."""

    ranges: list[tuple[int, int]]
    uid: bool


class Flag(Struct, frozen=True):
    """All bits of `bits` set (`wanted`) or not all of them."""

    bits: int
    wanted: bool


class Keyword(Struct, frozen=True):
    """A keyword is set or not."""

    name: bytes
    wanted: bool


class Size(Struct, frozen=True):
    """RFC822.SIZE above (`larger`) or below a number of octets."""

    octets: int
    larger: bool


class Date(Struct, frozen=True):
    """INTERNALDATE or, with `sent`, the Date field: the day is `op` ("<", "=", ">=") a day counted from 1970."""

    day: int
    op: str
    sent: bool


class Header(Struct, frozen=True):
    """A field of that name (upper case) holds the text; an empty text: the field is there."""

    name: bytes
    text: str


class Envelope(Struct, frozen=True):
    """SUBJECT, FROM, TO, CC or BCC as the ENVELOPE has it holds the text."""

    name: bytes
    text: str


class Text(Struct, frozen=True):
    """The text occurs in the body or, with `header`, in header or body."""

    text: str
    header: bool


class Modseq(Struct, frozen=True):
    """Changed at or after a mod-sequence (RFC 7162 3.1.5)."""

    value: int


class Age(Struct, frozen=True):
    """INTERNALDATE within the last `seconds` (`younger`) or before (RFC 5032)."""

    seconds: int
    younger: bool


class ObjectId(Struct, frozen=True):
    """EMAILID or THREADID (RFC 8474 4.4) is this."""

    kind: bytes
    value: bytes


class Saved(Struct, frozen=True):
    """The day the message came into the mailbox (RFC 8514) is `op` a day counted from 1970."""

    day: int
    op: str


_FLAGS = {
    b"ANSWERED": Flag(flags.ANSWERED, True),
    b"DELETED": Flag(flags.DELETED, True),
    b"DRAFT": Flag(flags.DRAFT, True),
    b"FLAGGED": Flag(flags.FLAGGED, True),
    b"SEEN": Flag(flags.SEEN, True),
    b"RECENT": Flag(flags.RECENT, True),
    b"UNANSWERED": Flag(flags.ANSWERED, False),
    b"UNDELETED": Flag(flags.DELETED, False),
    b"UNDRAFT": Flag(flags.DRAFT, False),
    b"UNFLAGGED": Flag(flags.FLAGGED, False),
    b"UNSEEN": Flag(flags.SEEN, False),
    b"OLD": Flag(flags.RECENT, False),
    b"NEW": And([Flag(flags.RECENT, True), Flag(flags.SEEN, False)]),
    b"ALL": And([]),
    b"SAVEDATESUPPORTED": And([]),
}
_DATES = {
    b"BEFORE": ("<", False),
    b"ON": ("=", False),
    b"SINCE": (">=", False),
    b"SENTBEFORE": ("<", True),
    b"SENTON": ("=", True),
    b"SENTSINCE": (">=", True),
}
_SAVED = {b"SAVEDBEFORE": "<", b"SAVEDON": "=", b"SAVEDSINCE": ">="}
_HEADERS = {b"BCC", b"CC", b"FROM", b"SUBJECT", b"TO"}
_SYSTEM_KEYWORDS = {rb"\SEEN", rb"\ANSWERED", rb"\FLAGGED", rb"\DELETED", rb"\DRAFT"}


def charset(name: bytes) -> str:
    """The codec of a CHARSET argument. Raises `Refused` with BADCHARSET for what we don't know."""
    known = {b"US-ASCII": "utf-8", b"ASCII": "utf-8", b"UTF-8": "utf-8", b"UTF8": "utf-8"}
    codec = known.get(name.upper())
    if codec is None:
        raise Refused("[BADCHARSET (US-ASCII UTF-8)] Unknown charset")
    return codec


class _Parser:
    def __init__(self, arguments: Arguments, codec: str) -> None:
        self.arguments = arguments
        self.codec = codec
        self.keys = 0

    def text(self) -> str:
        self.arguments.space()
        raw = self.arguments.astring()
        if len(raw) > MAX_STRING_OCTETS:
            raise Bad("Search string too long")
        try:
            return raw.decode(self.codec)
        except UnicodeDecodeError:
            raise Bad("Search string is not in its charset") from None

    def several(self, closing: bool) -> Any:
        keys = [self.one()]
        while True:
            if closing and self.arguments.accept(b")"):
                break
            if not closing and self.arguments.at_end():
                break
            self.arguments.space()
            keys.append(self.one())
        return keys[0] if len(keys) == 1 else And(keys)

    def one(self) -> Any:
        self.keys += 1
        if self.keys > MAX_KEYS:
            raise Bad("Too many search keys")
        arguments = self.arguments
        if arguments.accept(b"("):
            arguments.enter()
            keys = self.several(closing=True)
            arguments.leave()
            return keys
        first = arguments.data[arguments.pos : arguments.pos + 1]
        if first.isdigit() or first in (b"*", b"$"):
            return Sequence(arguments.sequence_set(), False)
        word = arguments.word()
        known = _FLAGS.get(word)
        if known is not None:
            return known
        if word in _DATES:
            arguments.space()
            return Date(arguments.date(), *_DATES[word])
        if word in _HEADERS:
            return Envelope(word, self.text())
        if word == b"HEADER":
            arguments.space()
            name = arguments.astring().upper()
            if not name or b":" in name or not all(32 < octet < 127 for octet in name):
                raise Bad("Malformed field name")
            return Header(name, self.text())
        if word in (b"BODY", b"TEXT"):
            return Text(self.text(), word == b"TEXT")
        if word in (b"LARGER", b"SMALLER"):
            arguments.space()
            return Size(arguments.number(), word == b"LARGER")
        if word in (b"KEYWORD", b"UNKEYWORD"):
            arguments.space()
            return Keyword(arguments.flag(), word == b"KEYWORD")
        if word == b"UID":
            arguments.space()
            return Sequence(arguments.sequence_set(), True)
        if word in (b"YOUNGER", b"OLDER"):
            arguments.space()
            seconds = arguments.number()
            if not seconds:
                raise Bad("An interval is not zero")  # RFC 5032 3
            return Age(seconds, word == b"YOUNGER")
        if word in _SAVED:
            arguments.space()
            return Saved(arguments.date(), _SAVED[word])
        if word in (b"EMAILID", b"THREADID"):
            arguments.space()
            return ObjectId(word, arguments.astring())
        if word == b"MODSEQ":
            return self.modseq()
        if word in (b"NOT", b"OR"):
            arguments.enter()
            arguments.space()
            key = self.one()
            if word == b"NOT":
                key = Not(key)
            else:
                arguments.space()
                key = Or(key, self.one())
            arguments.leave()
            return key
        raise Bad(f"Unknown search key {word.decode('ascii', 'replace')}")

    def modseq(self) -> Modseq:
        arguments = self.arguments
        arguments.space()
        if arguments.looking_at(b'"'):
            arguments.string()  # the entry name and type tell flags apart, which share one value here
            arguments.space()
            if arguments.word() not in (b"PRIV", b"SHARED", b"ALL"):
                raise Bad("Malformed MODSEQ search key")
            arguments.space()
        return Modseq(arguments.number64())


def parse(arguments: Arguments) -> Any:
    """The keys of a SEARCH up to the end of the command, with an optional CHARSET first.

    Raises `Bad` (grammar, too many or too deeply nested keys) or `Refused` (unknown charset).
    """
    codec = "utf-8"
    if arguments.data[arguments.pos : arguments.pos + 8].upper() == b"CHARSET ":
        arguments.pos += 8
        codec = charset(arguments.astring())
        arguments.space()
    return parse_keys(arguments, codec)


def parse_keys(arguments: Arguments, codec: str) -> Any:
    """The keys up to the end of the command, their texts in `codec`. Raises `Bad`."""
    return _Parser(arguments, codec).several(closing=False)


def uses_numbers(key: Any) -> bool:
    """Whether message sequence numbers occur among the keys (RFC 9586 refuses them)."""
    match key:
        case Sequence(ranges, uid):
            return not uid and ranges is not SAVED
        case And(keys):
            return any(uses_numbers(part) for part in keys)
        case Or(left, right):
            return uses_numbers(left) or uses_numbers(right)
        case Not(inner):
            return uses_numbers(inner)
    return False


def uses_modseq(key: Any) -> bool:
    """Whether MODSEQ occurs among the keys: the answer then tells the highest one (RFC 7162 3.1.5)."""
    match key:
        case Modseq():
            return True
        case And(keys):
            return any(uses_modseq(part) for part in keys)
        case Or(left, right):
            return uses_modseq(left) or uses_modseq(right)
        case Not(inner):
            return uses_modseq(inner)
    return False


__all__ = [
    "Age",
    "And",
    "Date",
    "Envelope",
    "Flag",
    "Header",
    "Keyword",
    "Modseq",
    "Not",
    "ObjectId",
    "Or",
    "Saved",
    "Sequence",
    "Size",
    "Text",
    "charset",
    "parse",
    "sequence",
    "uses_modseq",
]
