"""The text of a message as a person reads it: transfer encodings and charsets undone, and texts compared.

Serves SEARCH (RFC 3501 6.4.4: substring, without case), filters and previews. Raw octets are `structure`'s business.
"""

from __future__ import annotations

import binascii
import re
import unicodedata
from collections.abc import Iterator

from iems._native import kernel
from iems._native.mime_py import single_token
from iems.message.header import fields, header_end, unfold, values
from iems.message.structure import Part, Structure
from iems.message.words import content_type, decode, decode_words, unbase64

_mime = kernel("mime")

#: Octets of decoded text looked at in one message; the rest of a longer one is not searched.
MAX_TEXT = 64 * 1024 * 1024


_TRAILING = re.compile(rb"(?<![ \t])[ \t]++(?=\r?\n|\Z)")


def decode_transfer(raw: bytes, encoding: bytes) -> bytes:
    """A body with its Content-Transfer-Encoding (any case) undone; unchanged for an unknown one. Lenient, never fails."""
    encoding = encoding.strip().lower()
    if encoding == b"base64":
        return unbase64(raw)
    if encoding == b"quoted-printable":
        # White space at the end of a line was added in transport (RFC 2045 6.7 (3)).
        return binascii.a2b_qp(_TRAILING.sub(b"", raw) if _trails(raw) else raw)
    if encoding in (b"x-uuencode", b"uuencode", b"x-uue", b"uue"):
        return _uudecode(raw)
    return raw


def _trails(raw: bytes) -> bool:
    """Whether white space stands at the end of a line; five searches cost a tenth of the pattern."""
    return any(ending in raw for ending in (b" \n", b"\t\n", b" \r\n", b"\t\r\n")) or raw[-1:] in (b" ", b"\t")


def _uudecode(raw: bytes) -> bytes:
    out = bytearray()
    inside = False
    for line in raw.split(b"\n"):
        line = line.rstrip(b"\r")
        if not inside:
            inside = line.startswith(b"begin ")
            continue
        if line == b"end" or not line:
            break
        try:
            out += binascii.a2b_uu(line)
        except binascii.Error:
            # A length that says less than there is: what it says counts.
            length = (line[0] - 32) & 63
            try:
                out += binascii.a2b_uu(line[: 1 + (length + 2) // 3 * 4])
            except binascii.Error:
                break
    return bytes(out)


def part_octets(content: bytes, part: Part) -> bytes:
    """The body of a part with its transfer encoding undone, its first MAX_TEXT octets."""
    raw = content[part.body_start : min(part.body_end, part.body_start + MAX_TEXT)]
    return decode_transfer(raw, single_token(content[slice(*part.encoding)]))


def part_text(content: bytes, part: Part) -> str:
    """The body of a text part as text. Without a charset: UTF-8 if it is that, else windows-1252."""
    _, _, parameters = content_type(content[slice(*part.content_type)])
    return decode(part_octets(content, part), parameters.get("charset", ""))


def header_text(content: bytes, start: int, stop: int) -> str:
    """The fields of a header as text, one a line, unfolded, encoded words decoded."""
    lines = []
    for field in fields(content, start, stop):
        name = content[field.start : field.value].decode("latin-1")
        lines.append(name + " " + decode_words(unfold(content[field.value : field.end])))
    return "\n".join(lines)


def fold(text: str) -> str:
    """A text as it is compared: without case and compatibility forms (RFC 5051 in spirit), white space runs as one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    else:
        text = text.lower()
    return " ".join(text.split())


class Searchable:
    """The texts of one message, decoded and folded when first asked for, for any number of keys.

    Compare with `fold(key) in searchable.text`. Attachments that are no text count by the header of their part (name).
    """

    def __init__(self, content: bytes) -> None:
        self.content = bytes(content)
        self._header_end = header_end(self.content)
        self._body: str | None = None
        self._header: str | None = None

    def field(self, name: bytes) -> list[str]:
        """The values of a field, for HEADER, FROM, TO, CC, BCC and SUBJECT."""
        return [fold(decode_words(value)) for value in values(self.content, name, 0, self._header_end)]

    @property
    def header(self) -> str:
        """The whole header."""
        if self._header is None:
            self._header = fold(header_text(self.content, 0, self._header_end))
        return self._header

    @property
    def body(self) -> str:
        """For BODY: all text parts, and the headers of the parts and messages within."""
        if self._body is None:
            self._body = "\n".join(fold(piece) for piece in _body_texts(self.content))
        return self._body

    def in_field(self, name: bytes, key: str) -> bool:
        """Whether a field of that name holds `key` (folded); "" asks whether there is one."""
        return any(key in value for value in self.field(name))

    def in_body(self, key: str) -> bool:
        """Whether the body holds `key` (folded)."""
        return key in self.body

    def in_text(self, key: str) -> bool:
        """Whether header or body hold `key` (folded)."""
        return key in self.header or key in self.body


def _is_text(content: bytes, part: Part) -> bool:
    if part.content_type[0] >= part.content_type[1]:
        return True
    # A multipart or message that was not taken apart is shown as text, so it is searched as text.
    return content_type(content[slice(*part.content_type)])[0] in ("text", "message", "multipart")


def _body_texts(content: bytes) -> Iterator[str]:
    structure = Structure.parse(content)
    left = MAX_TEXT
    for row in range(len(structure)):
        part = structure.at(row)
        if row:
            yield header_text(content, part.header_start, part.body_start)
        if part.kind != _mime.LEAF or left <= 0:
            continue
        if _is_text(content, part):
            text = part_text(content, part)
            left -= len(text)
            yield text


def text_octets(content: bytes) -> int:
    """At most so many octets of a message are decoded for `Searchable`: headers and what is shown as text."""
    if len(content) < 65_536:
        return len(content)
    structure = Structure.parse(content)
    count = header_end(content)
    for row in range(len(structure)):
        part = structure.at(row)
        count += part.body_start - part.header_start if row else 0
        if part.kind == _mime.LEAF and _is_text(content, part):
            count += part.body_end - part.body_start
    return count


def search_text(content: bytes, what: str) -> str:
    """The folded text that SEARCH looks at. what: "TEXT", "BODY", "HEADER" (all of it) or the name of a field."""
    searchable = Searchable(content)
    if what == "TEXT":
        return searchable.header + "\n" + searchable.body
    if what == "BODY":
        return searchable.body
    if what == "HEADER":
        return searchable.header
    return "\n".join(searchable.field(what.encode("ascii", "replace")))


_TAGS = re.compile(r"<(?:(script|style)\b.*?</\1\s*>|!--.*?-->|[^>]*>)", re.I | re.S)


def preview(content: bytes, characters: int = 200) -> str:
    """The first characters of the first text part on one line (RFC 8970); HTML without its tags."""
    structure = Structure.parse(content)
    for row in range(len(structure)):
        part = structure.at(row)
        if part.kind != _mime.LEAF:
            continue
        main, sub, _ = content_type(content[slice(*part.content_type)])
        if main != "text":
            continue
        short = Part(part.row, part.kind, part.header_start, part.body_start, min(part.body_end, part.body_start + 16_384),
                     part.lines, part.content_type, part.encoding)  # fmt: skip
        text = part_text(content, short)
        if sub == "html":
            from html import unescape

            text = unescape(_TAGS.sub(" ", text))
        return " ".join(text.split())[:characters]
    return ""
