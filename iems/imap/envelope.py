"""Reading ENVELOPE back (RFC 3501 7.4.2): what SEARCH, SORT and THREAD compare without opening a message."""

from __future__ import annotations

import re
from collections.abc import Iterator

from iems.message.words import decode_words

_PLAIN = rb'(?:NIL|"(?:[^"\\]++|\\.)*+")'
_LIST = rb"(NIL|\((?:\(" + _PLAIN + rb"(?: " + _PLAIN + rb"){3}\))++\))"
_ENVELOPE = re.compile(
    rb"\((" + _PLAIN + rb") (" + _PLAIN + rb")" + (rb" " + _LIST) * 6 + rb" (" + _PLAIN + rb") (" + _PLAIN + rb")\)",
    re.DOTALL,
)
_HEAD = re.compile(rb"\((" + _PLAIN + rb") (" + _PLAIN + rb") ", re.DOTALL)
_ITEM = re.compile(_PLAIN + rb"|\{(\d+)\}\r\n|[()]", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_ADDRESS = re.compile(rb"\((" + _PLAIN + rb") (" + _PLAIN + rb") (" + _PLAIN + rb") (" + _PLAIN + rb")\)", re.DOTALL)

#: Places of the fields within the ten of an ENVELOPE.
DATE, SUBJECT, FROM, SENDER, REPLY_TO, TO, CC, BCC, IN_REPLY_TO, MESSAGE_ID = range(10)

Address = tuple[bytes | None, bytes | None, bytes | None, bytes | None]


def unquote(text: bytes) -> bytes | None:
    """An nstring that is no literal, as octets."""
    if text == b"NIL":
        return None
    text = text[1:-1]
    return _ESCAPE.sub(rb"\1", text) if b"\\" in text else text


class Envelope:
    """One ENVELOPE, its fields read when asked for."""

    __slots__ = ("_fields", "_groups", "_raw")

    def __init__(self, text: bytes) -> None:
        self._raw = text
        self._groups: tuple[bytes, ...] | None = None
        self._fields: list[object] | None = None

    def _read(self) -> None:
        match = None if b"}\r\n" in self._raw else _ENVELOPE.fullmatch(self._raw)
        if match is not None:
            self._groups = match.groups()
        else:
            self._fields = _parsed(self._raw)

    def text(self, place: int) -> bytes | None:
        """A string field (DATE, SUBJECT, IN_REPLY_TO, MESSAGE_ID)."""
        if place <= SUBJECT and (head := _HEAD.match(self._raw)) is not None:
            return unquote(head.group(place + 1))
        if self._groups is None and self._fields is None:
            self._read()
        if self._groups is not None:
            return unquote(self._groups[place])
        assert self._fields is not None
        found = self._fields[place] if place < len(self._fields) else None
        return found if isinstance(found, bytes) else None

    def addresses(self, place: int) -> list[Address]:
        """The addresses of a field, the marks of groups (no host) among them."""
        if self._groups is None and self._fields is None:
            self._read()
        if self._groups is not None:
            raw = self._groups[place]
            if raw == b"NIL":
                return []
            return [
                (unquote(name), unquote(route), unquote(local), unquote(host))
                for name, route, local, host in _ADDRESS.findall(raw)
            ]
        assert self._fields is not None
        found = self._fields[place] if place < len(self._fields) else None
        if not isinstance(found, list):
            return []
        return [tuple(item) for item in found if isinstance(item, list) and len(item) == 4]


def _parsed(text: bytes) -> list[object]:
    """Nested lists of an ENVELOPE with literals; [] for what is none."""
    stack: list[list[object]] = [[]]
    pos = 0
    while pos < len(text):
        match = _ITEM.match(text, pos)
        if match is None:
            pos += 1
            continue
        pos = match.end()
        item = match.group()
        if item == b"(":
            stack.append([])
        elif item == b")":
            if len(stack) > 1:
                done = stack.pop()
                stack[-1].append(done)
        elif match.group(1) is not None:
            length = int(match.group(1))
            stack[-1].append(text[pos : pos + length])
            pos += length
        else:
            stack[-1].append(unquote(item))
    first = stack[0][0] if stack[0] else []
    return first if isinstance(first, list) else []


def subject(envelope: Envelope) -> str:
    """The subject, encoded words decoded; "" without one."""
    return decode_words(envelope.text(SUBJECT) or b"")


def address_texts(envelope: Envelope, place: int) -> Iterator[str]:
    """The addresses of a field as people write them: `Name <local@host>`, with and without quotes round the name."""
    for name, _route, local, host in envelope.addresses(place):
        if host is None:
            if local is not None:
                yield decode_words(local) + ":"
            continue
        spec = f"{decode_words(local or b'')}@{decode_words(host)}" if host else decode_words(local or b"")
        if name:
            shown = decode_words(name)
            yield f"{shown} <{spec}>"
            yield f'"{shown}" <{spec}>'
        else:
            yield spec


def first_mailbox(envelope: Envelope, place: int) -> str:
    """The local part of the first address, for SORT (RFC 5256 3); "" without one."""
    for _name, _route, local, _host in envelope.addresses(place):
        return decode_words(local or b"")
    return ""


def display(envelope: Envelope, place: int) -> str:
    """What a client shows of the first address (RFC 5957 2): the name, else local@host."""
    for name, _route, local, host in envelope.addresses(place):
        if name:
            return decode_words(name)
        if host is None:
            return decode_words(local or b"")  # the name of a group
        return decode_words(local or b"") + (f"@{decode_words(host)}" if host else "")
    return ""
