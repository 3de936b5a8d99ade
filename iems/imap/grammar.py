"""The pieces of command arguments (RFC 3501 section 9) read from one command as it came over the wire.

A command is one `bytes` object with its literals in place (`{3}\\r\\nabc`); the engine has already seen that it is
complete. `Arguments` is a cursor over it. All faults of the peer are `Bad`.
"""

from __future__ import annotations

import calendar
import re

#: Lists and search keys may nest this deep; deeper is refused before Python's own stack is at risk.
MAX_NESTING = 64

#: Largest `number` of RFC 3501: an unsigned 32-bit integer.
MAX_NUMBER = 0xFFFFFFFF
#: Stands for `*` in a parsed sequence set; greater than every number.
STAR = MAX_NUMBER + 1

Ranges = list[tuple[int, int]]

#: Stands for `$` in place of a sequence set: what the last SEARCH saved (RFC 5182).
SAVED: Ranges = [(0, 0)]

_ATOM = re.compile(rb'[^(){ \x00-\x1f\x7f-\xff%*"\\\]]+')
_ASTRING = re.compile(rb'[^(){ \x00-\x1f\x7f-\xff%*"\\]+')
_LIST_MAILBOX = re.compile(rb'[^(){ \x00-\x1f\x7f-\xff"\\]+')
# 8-bit octets in quoted strings are not RFC 3501, but clients send UTF-8 passwords and names so.
_QUOTED = re.compile(rb'"((?:[^"\\\r\n\x00]|\\["\\])*)"')
_ESCAPE = re.compile(rb'\\(["\\])')
_LITERAL = re.compile(rb"~?\{(\d{1,10})\+?\}\r\n")
_NUMBER = re.compile(rb"\d{1,20}")
_SEQUENCE_SET = re.compile(rb"[0-9*:,]+")
_FLAG = re.compile(rb'\\?[^(){ \x00-\x1f\x7f-\xff%*"\\\]]+')
_DATE = re.compile(rb'("?)(\d{1,2})-([A-Za-z]{3})-(\d{4})\1')
_DATE_TIME = re.compile(rb'"( \d|\d\d)-([A-Za-z]{3})-(\d{4}) (\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)"')

MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_MONTH = {name.upper(): number for number, name in enumerate(MONTHS, 1)}


class Bad(Exception):
    """The command breaks the grammar; the text goes to the client after BAD."""


class Refused(Exception):
    """The command is well formed but can't be done; the text (with its response code) goes to the client after NO."""


class Arguments:
    """A cursor over the arguments of one command.

    data: the whole command. pos: where the next argument starts. utf8: how mailbox names come. Every method that reads moves `pos` past what it
    read and raises `Bad` if something else is there.
    """

    __slots__ = ("data", "nesting", "pos", "utf8")

    def __init__(self, data: bytes, pos: int = 0) -> None:
        self.data = data
        self.pos = pos
        self.nesting = 0
        self.utf8 = False  # mailbox names are UTF-8 (RFC 6855, 9051), not modified UTF-7

    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self.pos >= len(self.data)

    def end(self) -> None:
        """Nothing more may follow."""
        if self.pos < len(self.data):
            raise Bad("Unexpected text after the arguments")

    def space(self) -> None:
        """Exactly one space."""
        if self.data[self.pos : self.pos + 1] != b" ":
            raise Bad("Missing argument" if self.at_end() else "Space expected")
        self.pos += 1

    def accept(self, token: bytes) -> bool:
        """Read `token` if it comes next (case counts)."""
        if self.data.startswith(token, self.pos):
            self.pos += len(token)
            return True
        return False

    def expect(self, token: bytes) -> None:
        """Read `token`."""
        if not self.accept(token):
            raise Bad(f"{token.decode('ascii', 'replace')} expected")

    def looking_at(self, token: bytes) -> bool:
        """Whether `token` comes next; reads nothing."""
        return self.data.startswith(token, self.pos)

    def _take(self, pattern: re.Pattern[bytes], what: str) -> bytes:
        match = pattern.match(self.data, self.pos)
        if match is None:
            raise Bad(f"{what} expected")
        self.pos = match.end()
        return match.group()

    def atom(self) -> bytes:
        """An atom, as written."""
        return self._take(_ATOM, "Atom")

    def word(self) -> bytes:
        """An atom that is a keyword of the protocol, in upper case."""
        return self._take(_ATOM, "Keyword").upper()

    def number(self) -> int:
        """A number of 32 bits."""
        value = int(self._take(_NUMBER, "Number"))
        if value > MAX_NUMBER:
            raise Bad("Number too large")
        return value

    def number64(self) -> int:
        """A number of 63 bits (mod-sequence values, RFC 7162)."""
        value = int(self._take(_NUMBER, "Number"))
        if value >= 1 << 63:
            raise Bad("Number too large")
        return value

    def string(self) -> bytes:
        """A quoted string or a literal."""
        data = self.data
        first = data[self.pos : self.pos + 1]
        if first == b'"':
            match = _QUOTED.match(data, self.pos)
            if match is None:
                raise Bad("Quoted string not closed")
            self.pos = match.end()
            text = match.group(1)
            return _ESCAPE.sub(rb"\1", text) if b"\\" in text else text
        if first in (b"{", b"~"):
            match = _LITERAL.match(data, self.pos)
            if match is None:
                raise Bad("Malformed literal")
            start = match.end()
            stop = start + int(match.group(1))
            if stop > len(data):
                raise Bad("Literal cut short")
            self.pos = stop
            text = data[start:stop]
            if b"\0" in text:
                raise Bad("NUL in a literal")
            return text
        raise Bad("String expected")

    def astring(self) -> bytes:
        """An atom (`]` allowed), quoted string or literal."""
        match = _ASTRING.match(self.data, self.pos)
        if match is not None:
            self.pos = match.end()
            return match.group()
        return self.string()

    def nstring(self) -> bytes | None:
        """A string or NIL."""
        if self.data[self.pos : self.pos + 3].upper() == b"NIL":
            self.pos += 3
            return None
        return self.string()

    def list_mailbox(self) -> bytes:
        """A mailbox pattern of LIST: like `astring` but with the wildcards `%` and `*`."""
        match = _LIST_MAILBOX.match(self.data, self.pos)
        if match is not None:
            self.pos = match.end()
            return match.group()
        return self.string()

    def sequence_set(self) -> Ranges:
        """A sequence-set; see `parse_set`. `$` gives `SAVED` itself."""
        if self.accept(b"$"):
            return SAVED
        return parse_set(self._take(_SEQUENCE_SET, "Sequence set"))

    def flag(self) -> bytes:
        """One flag or keyword, as written."""
        return self._take(_FLAG, "Flag")

    def flag_list(self) -> list[bytes]:
        """A parenthesized list of flags, maybe empty."""
        self.expect(b"(")
        flags: list[bytes] = []
        if self.accept(b")"):
            return flags
        while True:
            flags.append(self.flag())
            if self.accept(b")"):
                return flags
            self.space()

    def date(self) -> int:
        """A date (`1-Feb-1994`, maybe quoted) as days since 1970-01-01."""
        match = _DATE.match(self.data, self.pos)
        if match is None:
            raise Bad("Date expected")
        self.pos = match.end()
        return days(int(match.group(2)), match.group(3), int(match.group(4)))

    def date_time(self) -> int:
        """A quoted date-time as seconds since 1970 UTC."""
        match = _DATE_TIME.match(self.data, self.pos)
        if match is None:
            raise Bad("Date and time expected")
        self.pos = match.end()
        day, month, year, hour, minute, second, sign, zone_h, zone_m = match.groups()
        if int(hour) > 23 or int(minute) > 59 or int(second) > 60 or int(zone_m) > 59:
            raise Bad("No such time")
        east = int(zone_h) * 3600 + int(zone_m) * 60
        seconds = days(int(day), month, int(year)) * 86400 + int(hour) * 3600 + int(minute) * 60 + int(second)
        return seconds - (east if sign == b"+" else -east)

    def enter(self) -> None:
        """One level deeper; `leave` comes back. Raises `Bad` beyond `MAX_NESTING`."""
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise Bad("Nested too deeply")

    def leave(self) -> None:
        """Undo `enter`."""
        self.nesting -= 1


def days(day: int, month: bytes, year: int) -> int:
    """Days since 1970-01-01 of a date with an English month name. Raises `Bad` if there is no such day."""
    number = _MONTH.get(month.upper())
    if (
        number is None
        or not 1 <= day <= calendar.monthrange(max(year, 1), number)[1]
        or not 1 <= year <= 9999
    ):
        raise Bad("No such date")
    return calendar.timegm((year, number, day, 0, 0, 0)) // 86400


def parse_set(text: bytes) -> Ranges:
    """A sequence set as (low, high) pairs in the order written; `STAR` stands for `*`. Raises `Bad`."""
    ranges = []
    for part in text.split(b","):
        low, colon, high = part.partition(b":")
        first = _set_number(low)
        last = _set_number(high) if colon else first
        ranges.append((first, last) if first <= last else (last, first))
    return ranges


def _set_number(text: bytes) -> int:
    if text == b"*":
        return STAR
    if not text.isdigit() or len(text) > 10 or not 1 <= int(text) <= MAX_NUMBER:
        raise Bad("Malformed sequence set")
    return int(text)
