"""An LDAPv3 client that asks one question (RFC 4511): is there an entry that a filter finds? Several questions share a connection.

A filter (RFC 4515) is read once, as a template; what takes the place of `%s` and the like goes into an assertion value as octets, behind its
length, so no character of it means anything. What the server sends is read with bounds; what is no LDAP ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import Struct

from iems.errors import IemsError

#: Octets of one message of the server: an entry without attributes is little more than its name.
MESSAGE_OCTETS: Final = 262_144
FILTER_DEPTH: Final = 16
FILTER_CHARACTERS: Final = 4096
STARTTLS: Final = b"1.3.6.1.4.1.1466.20037"
SCOPES: Final = {"base": 0, "one": 1, "sub": 2}

_SUCCESS, _SIZE_LIMIT = 0, 4
_BIND, _BOUND, _UNBIND, _SEARCH, _ENTRY, _DONE, _REFERENCE, _EXTENDED, _EXTENDED_ANSWER = 0x60, 0x61, 0x42, 0x63, 0x64, 0x65, 0x73, 0x77, 0x78
_PLACE = re.compile(r"%(.)", re.DOTALL)
_ATTRIBUTE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.;-]*")
_HEX = re.compile(rb"\\([0-9A-Fa-f]{2})")


class LdapError(IemsError):
    """The server gave no answer that can be believed, or refused; never with a password in it."""


# ---------------------------------------------------------------- BER (X.690, as far as RFC 4511 5.1 goes)


def tlv(tag: int, value: bytes) -> bytes:
    """An element: tag of one octet, definite length, value."""
    size = len(value)
    if size < 0x80:
        return bytes((tag, size)) + value
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + value


def number(value: int, tag: int = 0x02) -> bytes:
    """An INTEGER or (0x0A) ENUMERATED."""
    return tlv(tag, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def element(data: bytes, at: int = 0) -> tuple[int, bytes, int]:
    """(tag, value, offset behind it) of the element at an offset. Raises LdapError."""
    try:
        tag, size = data[at], data[at + 1]
    except IndexError:
        raise LdapError("an element is cut short") from None
    at += 2
    if size & 0x80:
        count = size & 0x7F
        if not 0 < count <= 4 or at + count > len(data):
            raise LdapError("an element without a good length")
        size = int.from_bytes(data[at : at + count], "big")
        at += count
    if tag & 0x1F == 0x1F or size > len(data) - at:
        raise LdapError("an element is cut short")
    return tag, data[at : at + size], at + size


def integer(value: bytes) -> int:
    """The number in an INTEGER or ENUMERATED. Raises LdapError."""
    if not 0 < len(value) <= 4:
        raise LdapError("a number that is none")
    return int.from_bytes(value, "big", signed=True)


# ---------------------------------------------------------------- filters


class Filter:
    """A filter as a template. text: RFC 4515, with `%s`, `%u`, `%d` in values, `%%` for a percent sign. Raises ValueError."""

    def __init__(self, text: str) -> None:
        if len(text) > FILTER_CHARACTERS:
            raise ValueError(f"more than {FILTER_CHARACTERS} characters")
        self._text = text
        self._at = 0
        #: What it asks for: the letters behind `%`.
        self.places: set[str] = set()
        self._tree = self._node(0)
        if self._at != len(text):
            raise ValueError(f"there is more behind the filter: {text[self._at :]!r}")

    def encode(self, values: Mapping[str, bytes]) -> bytes:
        """The filter with these octets in the places: letter -> value."""
        return _encoded(self._tree, values)

    def _node(self, depth: int) -> Any:
        if depth > FILTER_DEPTH:
            raise ValueError("too deep")
        self._skip("(")
        head = self._text[self._at : self._at + 1]
        if head in ("&", "|", "!") and head:
            self._at += 1
            inner = []
            while self._text[self._at : self._at + 1] == "(":
                inner.append(self._node(depth + 1))
            self._skip(")")
            if head == "!" and len(inner) != 1:
                raise ValueError("! takes one filter")
            return head, inner
        end = self._text.find(")", self._at)
        if end < 0:
            raise ValueError("a ) is missing")
        item = self._text[self._at : end]
        self._at = end + 1
        return self._item(item)

    def _skip(self, char: str) -> None:
        if self._text[self._at : self._at + 1] != char:
            raise ValueError(f"{char} is expected at {self._text[self._at :][:20]!r}")
        self._at += 1

    def _item(self, item: str) -> Any:
        name, equals, value = item.partition("=")
        if not equals or "(" in value:
            raise ValueError(f"({item}) is no filter")
        kind = "="
        if name[-1:] in ("~", ">", "<"):
            kind, name = name[-1], name[:-1]
        elif name.endswith(":"):
            return self._extensible(name[:-1], value)
        if not _ATTRIBUTE.fullmatch(name):
            raise ValueError(f"{name!r} is no attribute")
        if kind == "=" and value == "*":
            return "present", name.encode()
        pieces = value.split("*")
        if len(pieces) > 1 and kind != "=":
            raise ValueError(f"({item}): * stands behind = only")
        parts = [self._value(piece) for piece in pieces]
        return ("part", name.encode(), parts) if len(parts) > 1 else (kind, name.encode(), parts[0])

    def _extensible(self, head: str, value: str) -> Any:
        """`ATTRIBUTE:RULE:=VALUE`, either of the two left out at most, `:dn` between them."""
        name, *words = head.split(":")
        in_names = bool(words) and words[0].lower() == "dn"
        rule = ":".join(words[in_names:])
        if not (name or rule) or "" in words or any(word and not _ATTRIBUTE.fullmatch(word) for word in (name, rule)):
            raise ValueError(f"{head!r} is no attribute with a matching rule")
        return ":", name.encode(), self._value(value), rule.encode(), in_names

    def _value(self, text: str) -> list[bytes | str]:
        """A value in pieces: octets, and letters of places."""
        found: list[bytes | str] = []
        at = 0
        for match in _PLACE.finditer(text):
            found.append(_octets(text[at : match.start()]))
            if match[1] == "%":
                found.append(b"%")
            elif match[1] in "sud":
                self.places.add(match[1])
                found.append(match[1])
            else:
                raise ValueError(f"%{match[1]} is none of %s, %u, %d and %%")
            at = match.end()
        found.append(_octets(text[at:]))
        return found


def _octets(text: str) -> bytes:
    """A piece of a value without its escapes (RFC 4515 3)."""
    if text.endswith("%") or "\0" in text:
        raise ValueError(f"{text!r} is no value")
    octets = text.encode()
    if octets.count(b"\\") != len(_HEX.findall(octets)):
        raise ValueError(f"{text!r}: behind \\ stand two hexadecimal digits")
    return _HEX.sub(lambda match: bytes((int(match[1], 16),)), octets)


_OPERATIONS = {"=": 0xA3, ">": 0xA5, "<": 0xA6, "~": 0xA8}


def _encoded(node: Any, values: Mapping[str, bytes]) -> bytes:
    kind = node[0]
    if kind in "&|!":
        return tlv({"&": 0xA0, "|": 0xA1, "!": 0xA2}[kind], b"".join(_encoded(inner, values) for inner in node[1]))
    if kind == "present":
        return tlv(0x87, node[1])
    if kind == ":":
        rule = tlv(0x81, node[3]) if node[3] else b""
        name = tlv(0x82, node[1]) if node[1] else b""
        return tlv(0xA9, rule + name + tlv(0x83, _joined(node[2], values)) + (tlv(0x84, b"\xff") if node[4] else b""))
    if kind != "part":
        return tlv(_OPERATIONS[kind], tlv(0x04, node[1]) + tlv(0x04, _joined(node[2], values)))
    last = len(node[2]) - 1
    pieces = b""
    for place, parts in enumerate(node[2]):
        octets = _joined(parts, values)
        if octets:
            pieces += tlv(0x80 if place == 0 else 0x82 if place == last else 0x81, octets)
    return tlv(0xA4, tlv(0x04, node[1]) + tlv(0x30, pieces)) if pieces else tlv(0x87, node[1])


def _joined(parts: list[bytes | str], values: Mapping[str, bytes]) -> bytes:
    return b"".join(part if isinstance(part, bytes) else values[part] for part in parts)


# ---------------------------------------------------------------- connections


class Server(Struct, frozen=True):
    """A server to ask. tls: it speaks TLS from the start."""

    host: str
    port: int
    tls: bool

    @classmethod
    def of(cls, uri: str) -> Server:
        """`ldap://HOST[:PORT]` or `ldaps://HOST[:PORT]`. Raises ValueError."""
        parts = urlsplit(uri)
        if parts.scheme not in ("ldap", "ldaps") or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username is not None:
            raise ValueError(f"{uri!r} is not ldap://HOST[:PORT] or ldaps://HOST[:PORT]")
        tls = parts.scheme == "ldaps"
        return cls(parts.hostname, parts.port or (636 if tls else 389), tls)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ldap{'s' * self.tls}://{host}:{self.port}"


class Connection:
    """A connection after its bind, for questions side by side. Made by `open`; `close` in any case."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._last = 0
        self._open: dict[int, tuple[asyncio.Future[bool], list[int]]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._why = "the connection is closed"

    @classmethod
    async def open(
        cls,
        server: Server,
        *,
        context: ssl.SSLContext | None,
        starttls: bool,
        name: str,
        password: bytes,
    ) -> Connection:
        """Connect, start TLS, bind. name, password: "" and b"" for nobody. Raises LdapError, OSError; the caller sets a limit.

        context: for `ldaps` and StartTLS, None without TLS.
        """
        reader, writer = await asyncio.open_connection(
            server.host, server.port, limit=MESSAGE_OCTETS, ssl=context if server.tls else None
        )
        self = cls(reader, writer)
        try:
            if starttls and not server.tls:
                assert context is not None
                self._say(_EXTENDED, tlv(0x80, STARTTLS))
                await self._result(_EXTENDED_ANSWER, "StartTLS")
                # What came behind the answer came in the clear (RFC 4511 4.14): an attacker may have put it there.
                if reader._buffer:  # type: ignore[attr-defined]
                    raise LdapError("octets in the clear behind the answer to StartTLS")
                await writer.start_tls(context, server_hostname=server.host)
            self._say(_BIND, number(3) + tlv(0x04, name.encode()) + tlv(0x80, password))
            await self._result(_BOUND, "bind")
        except BaseException:
            writer.transport.abort()
            raise
        self._listening = asyncio.get_running_loop().create_task(self._listen())
        return self

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._listening is None or self._listening.done() or self._writer.is_closing()

    async def exists(self, base: str, scope: str, encoded_filter: bytes, limit_s: int) -> bool:
        """Whether the search finds an entry. limit_s: told to the server. Raises LdapError; the caller sets a limit of its own."""
        if self.closed:
            raise LdapError(self._why)
        # One entry is enough, and none of its attributes (RFC 4511 4.5.1.8).
        search = tlv(0x04, base.encode()) + number(SCOPES[scope], 0x0A) + number(0, 0x0A) + number(1) + number(limit_s)
        id = self._say(_SEARCH, search + tlv(0x01, b"\xff") + encoded_filter + tlv(0x30, tlv(0x04, b"1.1")))
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._open[id] = answer, []
        try:
            return await answer
        finally:
            self._open.pop(id, None)

    def close(self) -> None:
        """End the connection."""
        if self._listening is not None:
            self._listening.cancel()
        if not self._writer.is_closing():
            with contextlib.suppress(OSError, RuntimeError):
                self._say(_UNBIND, b"")
            self._writer.close()
        self._fail("the connection is closed")

    def _say(self, operation: int, value: bytes) -> int:
        self._last = self._last % 0x7FFFFFFF + 1
        self._writer.write(tlv(0x30, number(self._last) + tlv(operation, value)))
        return self._last

    async def _message(self) -> tuple[int, int, bytes]:
        """(id, operation, its value) of the next message. Raises LdapError, OSError."""
        try:
            head = await self._reader.readexactly(2)
            size = head[1]
            if size & 0x80:
                count = size & 0x7F
                if not 0 < count <= 4:
                    raise LdapError("a message without a good length")
                octets = await self._reader.readexactly(count)
                size = int.from_bytes(octets, "big")
            if head[0] != 0x30 or size > MESSAGE_OCTETS:
                raise LdapError("no LDAP, or a message that is too long")
            data = await self._reader.readexactly(size)
        except asyncio.IncompleteReadError:
            raise LdapError("the server closed the connection") from None
        tag, id, at = element(data)
        if tag != 0x02:
            raise LdapError("a message without a number")
        operation, value, _ = element(data, at)
        return integer(id), operation, value

    async def _result(self, operation: int, what: str) -> None:
        """Wait for the answer to the request sent last. Raises LdapError if it is not success."""
        id, found, value = await self._message()
        if id != self._last or found != operation:
            raise LdapError(f"{what}: an answer to something else")
        code = _code(value)
        if code != _SUCCESS:
            raise LdapError(f"{what}: result {code}")

    async def _listen(self) -> None:
        """Give each answer to who waits for it, until the connection ends."""
        try:
            while True:
                id, operation, value = await self._message()
                if id == 0:  # a notice of disconnection (4.4.1)
                    raise LdapError("the server ends the connection")
                entry = self._open.get(id)
                if entry is None:
                    continue  # nobody waits for it any more
                answer, seen = entry
                if operation in (_ENTRY, _REFERENCE):
                    seen.append(operation)
                elif operation == _DONE and not answer.done():
                    code = _code(value)
                    if _ENTRY in seen and code in (_SUCCESS, _SIZE_LIMIT):
                        answer.set_result(True)
                    elif not seen and code == _SUCCESS:
                        answer.set_result(False)
                    else:
                        answer.set_exception(LdapError(f"search: result {code}" + (", with a reference" if seen else "")))
        except (LdapError, OSError) as error:
            self._fail(str(error) or type(error).__name__)
        finally:
            self._writer.transport.abort()

    def _fail(self, why: str) -> None:
        self._why = why
        for answer, _ in self._open.values():
            if not answer.done():
                answer.set_exception(LdapError(why))


def _code(value: bytes) -> int:
    """The result code of an LDAPResult. Raises LdapError."""
    tag, code, _ = element(value)
    if tag != 0x0A:
        raise LdapError("a result without a code")
    return integer(code)


__all__ = ["Connection", "Filter", "LdapError", "Server", "element", "integer", "number", "tlv"]
