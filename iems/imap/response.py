"""Values as they stand in responses (RFC 3501 section 7): strings, mailbox names, dates."""

from __future__ import annotations

import re
import time
from functools import lru_cache

from iems.imap import names
from iems.imap.grammar import MONTHS

_ATOM = re.compile(rb'[^(){ \x00-\x1f\x7f-\xff%*"\\\]]+')
_CONTROL = re.compile(rb"[\x00\r\n]")
_QUOTABLE = re.compile(rb"[\x01-\x09\x0b\x0c\x0e-\x7f]*")


def string(value: bytes) -> bytes:
    """A quoted string where that is possible, else a literal."""
    if len(value) <= 1024 and _QUOTABLE.fullmatch(value):
        if b"\\" in value or b'"' in value:
            value = value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        return b'"' + value + b'"'
    return b"{%d}\r\n" % len(value) + value


def nstring(value: bytes | None) -> bytes:
    """A string or NIL."""
    return b"NIL" if value is None else string(value)


def astring(value: bytes) -> bytes:
    """An atom where that is possible, else a string."""
    return value if _ATOM.fullmatch(value) and value.upper() != b"NIL" else string(value)


@lru_cache(maxsize=4096)
def mailbox(name: str) -> bytes:
    """A mailbox name in modified UTF-7 as an astring."""
    return astring(names.encode(name))


def utf8_string(value: str) -> bytes:
    """A quoted string in UTF-8 for who can read it (RFC 6855 3, RFC 9051 4.3), else a literal."""
    octets = value.encode("utf-8", "surrogatepass")
    if len(octets) <= 1024 and not _CONTROL.search(octets):
        return b'"' + octets.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
    return b"{%d}\r\n" % len(octets) + octets


def internaldate(seconds: int) -> bytes:
    """A date-time with its quotes, in UTC; seconds since 1970."""
    year, month, day, hour, minute, second = time.gmtime(seconds)[:6]
    return b'"%2d-%s-%04d %02d:%02d:%02d +0000"' % (day, MONTHS[month - 1], year, hour, minute, second)
