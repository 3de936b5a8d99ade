"""Mailbox names on the wire: modified UTF-7 (RFC 3501 5.1.3), what IMAP clients may make, and the patterns of LIST.

Inside IEMS a name is a `str`, see `mailboxes.py`.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
import unicodedata

from iems.imap.grammar import Bad, Refused
from iems.imap.mailboxes import NAME_OCTETS_MAX, SEPARATOR, normal

#: One level, in octets of UTF-8.
MAX_LEVEL_OCTETS = 255

_SHIFTED = re.compile(r"[^\x20-\x7e]+")
_ENCODED = re.compile(rb"&([A-Za-z0-9+,]*)-")


def encode(name: str) -> bytes:
    """A name in modified UTF-7."""
    text = name.replace("&", "&-")
    if text.isascii() and text.isprintable():
        return text.encode("ascii")

    def shift(match: re.Match[str]) -> str:
        packed = base64.b64encode(match.group().encode("utf-16-be", "surrogatepass")).rstrip(b"=")
        return "&" + packed.replace(b"/", b",").decode() + "-"

    return _SHIFTED.sub(shift, text).encode("ascii")


def decode(wire: bytes) -> str:
    """A name from modified UTF-7. Raises `Bad` if it is malformed.

    Octets above 127 are taken as UTF-8: not RFC 3501, but unambiguous, and what RFC 9051 clients send.
    """
    if b"&" not in wire:
        try:
            return wire.decode("utf-8")
        except UnicodeDecodeError:
            raise Bad("Mailbox name is neither modified UTF-7 nor UTF-8") from None
    parts: list[str] = []
    pos = 0
    while (start := wire.find(b"&", pos)) >= 0:
        match = _ENCODED.match(wire, start)
        if match is None:
            raise Bad("Mailbox name is not modified UTF-7")
        try:
            parts.append(wire[pos:start].decode("utf-8"))
            packed = match.group(1)
            if packed:
                octets = base64.b64decode(
                    packed.replace(b",", b"/") + b"=" * (-len(packed) % 4), validate=True
                )
                parts.append(octets.decode("utf-16-be"))
            else:
                parts.append("&")
        except (UnicodeDecodeError, binascii.Error):
            raise Bad("Mailbox name is not modified UTF-7") from None
        pos = match.end()
    try:
        parts.append(wire[pos:].decode("utf-8"))
    except UnicodeDecodeError:
        raise Bad("Mailbox name is neither modified UTF-7 nor UTF-8") from None
    return "".join(parts)


def plain(wire: bytes) -> str:
    """A name sent as UTF-8 (RFC 6855 3, RFC 9051 5.1). Raises `Bad`."""
    try:
        return wire.decode("utf-8")
    except UnicodeDecodeError:
        raise Bad("Mailbox name is not UTF-8") from None


def mailbox(wire: bytes, utf8: bool = False) -> str:
    """The name of a mailbox argument: decoded, in NFC, INBOX in capitals. It may still be no possible name.

    utf8: it is UTF-8 and `&` is a character like any other.
    """
    name = plain(wire) if utf8 else decode(wire)
    if not name.isascii():
        name = unicodedata.normalize("NFC", name)
    return normal(name)


def check_new(name: str) -> str:
    """The name of a mailbox to be made, without a trailing separator (RFC 3501 6.3.3). Raises `Refused`."""
    name = name.removesuffix(SEPARATOR)
    if not name:
        raise Refused("[CANNOT] A mailbox needs a name")
    if len(name.encode("utf-8", "surrogatepass")) > NAME_OCTETS_MAX:
        raise Refused("[LIMIT] Mailbox name too long")
    for level in name.split(SEPARATOR):
        if not level:
            raise Refused("[CANNOT] Mailbox name has an empty level")
        if len(level.encode("utf-8", "surrogatepass")) > MAX_LEVEL_OCTETS:
            raise Refused("[LIMIT] Mailbox name too long")
        for char in level:
            # RFC 5198 text; separators and controls would make names that can't be shown or typed.
            if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in "%*":
                raise Refused("[CANNOT] Character not allowed in a mailbox name")
    return name


class Pattern:
    """A LIST pattern: `*` matches anything, `%` anything but the separator (RFC 3501 6.3.8).

    Matching takes time linear in the name for each octet of the pattern, whatever the pattern.
    """

    __slots__ = ("_simple", "text")

    def __init__(self, text: str) -> None:
        text = canonical_pattern(re.sub(r"%*\*[%*]*", "*", re.sub(r"%+", "%", text)))
        self.text = text
        self._simple = None if re.search(r"[%*]", text) else text

    def matches(self, name: str) -> bool:
        """Whether the whole name matches."""
        if self.text == "*":
            return True
        if self._simple is not None:
            return name == self._simple
        return _glob(self.text, name)

    def matches_inferior(self, name: str) -> bool:
        """Whether some name below `name` could match and `name` itself does not (RFC 3501 6.3.8, `%` at the end)."""
        return not self.matches(name)


@functools.lru_cache(maxsize=4096)
def _glob(pattern: str, name: str) -> bool:
    states = _closure({0}, pattern)
    for char in name:
        following = set()
        for state in states:
            if state == len(pattern):
                continue
            want = pattern[state]
            if want == "*" or (want == "%" and char != SEPARATOR):
                following.add(state)
            elif want == char:
                following.add(state + 1)
        if not following:
            return False
        states = _closure(following, pattern)
    return len(pattern) in states


def _closure(states: set[int], pattern: str) -> set[int]:
    for state in list(states):
        while state < len(pattern) and pattern[state] in "*%":
            state += 1
            states.add(state)
    return states


def canonical_pattern(text: str) -> str:
    """A pattern whose literal first level is INBOX in any case, with INBOX in capitals."""
    return normal(text)
