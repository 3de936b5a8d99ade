"""A message as scripts see it: fields, envelope, size, texts of the body, each looked at when first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from iems._native import kernel
from iems.message.address import Address, parse_addresses
from iems.message.header import fields, header_end, unfold
from iems.message.structure import Structure
from iems.message.text import header_text, part_octets
from iems.message.words import content_type, decode, decode_words

_mime = kernel("mime")

#: Characters of body text that tests look at; the rest of a longer body is not searched.
BODY_MAX = 4 << 20


class BodyPart:
    """One part of a body: type ("text/plain") and its text, decoded when first asked for."""

    def __init__(self, kind: str, content: bytes, structure: Structure, row: int) -> None:
        self.kind = kind
        self._content = content
        self._structure = structure
        self._row = row
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The text: of a leaf what is in it, of a multipart what stands before its parts, of a message its header (RFC 5173 5.2)."""
        if self._text is None:
            self._text = _plain(self._read()[:BODY_MAX])
        return self._text

    def _read(self) -> str:
        content, part = self._content, self._structure.at(self._row)
        if part.kind == _mime.LEAF:
            _, _, parameters = content_type(content[slice(*part.content_type)])
            return decode(part_octets(content, part), parameters.get("charset", ""))
        children = self._structure.children[self._row]
        first = self._structure.at(children[0]) if children else part
        if part.kind == _mime.MESSAGE and children:
            return header_text(content, first.header_start, first.body_start)
        end = first.header_start if children else part.body_end
        return decode(content[part.body_start : end])


class Message(Protocol):
    """What scripts ask a message for."""

    reverse_path: str
    recipient: str
    size: int

    def raw(self, name: str) -> Sequence[bytes]:
        """The unfolded values of all fields of a name (any case)."""

    def texts(self, name: str) -> Sequence[str]:
        """The same as text, encoded words decoded."""

    def addresses(self, name: str) -> Sequence[Sequence[Address]]:
        """For each field of a name the addresses in it."""

    def raw_body(self) -> str:
        """The body as it stands, not decoded."""

    def parts(self) -> Sequence[BodyPart]:
        """The parts of the body, in order."""


class ContentMessage:
    """A `Message` over the octets of one. reverse_path: "" is the null path. recipient: as in the envelope."""

    def __init__(self, content: bytes, reverse_path: str, recipient: str) -> None:
        self.content = content
        self.reverse_path = reverse_path
        self.recipient = recipient
        self.size = len(content)
        self._header_end = header_end(content)
        self._raw: dict[str, list[bytes]] | None = None
        self._texts: dict[str, list[str]] = {}
        self._addresses: dict[str, list[list[Address]]] = {}
        self._parts: list[BodyPart] | None = None
        self._body: str | None = None

    def raw(self, name: str) -> list[bytes]:
        """See `Message`."""
        if self._raw is None:
            self._raw = {}
            for field in fields(self.content, 0, self._header_end):
                key = field.name.decode("latin-1")
                self._raw.setdefault(key, []).append(unfold(self.content[field.value : field.end]))
        return self._raw.get(name.lower(), [])

    def texts(self, name: str) -> list[str]:
        """See `Message`."""
        name = name.lower()
        found = self._texts.get(name)
        if found is None:
            found = self._texts[name] = [_plain(decode_words(value)).strip() for value in self.raw(name)]
        return found

    def addresses(self, name: str) -> list[list[Address]]:
        """See `Message`."""
        name = name.lower()
        found = self._addresses.get(name)
        if found is None:
            found = self._addresses[name] = [parse_addresses(value) for value in self.raw(name)]
        return found

    def raw_body(self) -> str:
        """See `Message`."""
        if self._body is None:
            self._body = _plain(decode(self.content[self._header_end : self._header_end + BODY_MAX]))
        return self._body

    def parts(self) -> list[BodyPart]:
        """See `Message`."""
        if self._parts is None:
            structure = Structure.parse(self.content)
            self._parts = []
            for row in range(len(structure)):
                part = structure.at(row)
                start, end = part.content_type
                main, sub, _ = content_type(self.content[start:end]) if start < end else ("text", "plain", {})
                if part.kind == _mime.MULTIPART and main != "multipart":
                    main, sub = "multipart", "mixed"
                self._parts.append(BodyPart(f"{main}/{sub}", self.content, structure, row))
        return self._parts


def _plain(text: str) -> str:
    """Text that can be encoded: lone surrogates (from a broken charset) become `?`."""
    if text.isascii():
        return text
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
