"""What the filter reads of a message: its header, the headers of its parts, and the text in them, decoded and bounded."""

from __future__ import annotations

import re
import unicodedata

from iems._native import kernel
from iems._native.mime_py import single_token
from iems.message.text import decode_transfer
from iems.message.words import content_type, decode, decode_words

_mime = kernel("mime")
_bayes = kernel("bayes")

#: Octets of one message that are looked at: of its header, of decoded text in all parts together, and parts.
MAX_HEADER = 32_768
MAX_TEXT = 32_768
MAX_PARTS = 50
#: Octets of a message that are handed to the MIME kernel; what follows is not looked at.
MAX_MESSAGE = 1 << 20


def sections(content: bytes) -> list[tuple[int, bytes]]:
    """The sections of a message for `features` of the kernel. Never fails."""
    content = content[:MAX_MESSAGE]
    table = _mime.scan(content)
    m = _mime
    found: list[tuple[int, bytes]] = []
    left = MAX_TEXT
    for row in range(min(len(table), MAX_PARTS)):
        start, body = table[row, m.HEADER_START], table[row, m.BODY_START]
        header = content[start : min(body, start + MAX_HEADER)]
        if not header.isascii() or b"=?" in header:
            header = _decoded_header(header)
        found.append((_bayes.PART if row else _bayes.HEADER, header))
        if table[row, m.KIND] != m.LEAF or left <= 0:
            continue
        kind = content[table[row, m.TYPE_START] : table[row, m.TYPE_END]]
        plain = kind.lstrip(b" \t\r\n")[:10].lower()
        if plain and not plain.startswith((b"text/", b"message/", b"multipart/")):
            continue
        # Four octets of base64 make three, of quoted-printable a third at least.
        raw = content[body : min(table[row, m.BODY_END], body + 3 * left)]
        encoding = content[table[row, m.ENCODING_START] : table[row, m.ENCODING_END]]
        if encoding:
            raw = decode_transfer(raw, single_token(encoding))
        raw = raw[:left]
        if not raw.isascii():
            raw = folded(decode(raw, _charset(kind)))[:left]
        left -= len(raw)
        html = plain.startswith(b"text/html") or (plain.startswith(b"text/") is False and raw[:512].lstrip()[:5].lower() == b"<html")
        found.append((_bayes.HTML if html else _bayes.TEXT, raw))
    return found


#: A field that any parser reads in the same way, up to so many octets (the pattern goes back and forth over spaces).
MAX_PLAIN = 200
_PLAIN = re.compile(
    rb"[ \t\r\n]*[a-z]+/[a-z0-9.+-]+[ \t\r\n]*;[ \t\r\n]*charset[ \t\r\n]*=[ \t\r\n]*(\"?)([a-z0-9_.:+-]+)\1"
    rb"(?:[ \t\r\n]*;[ \t\r\n]*(?!charset)[a-z-]+[ \t\r\n]*=[ \t\r\n]*(\"?)[a-z0-9_.-]+\3)*[ \t\r\n]*;?[ \t\r\n]*", re.I,
)  # fmt: skip


def _charset(kind: bytes) -> str:
    """The charset that a Content-Type names, "" if none."""
    plain = _PLAIN.fullmatch(kind) if len(kind) <= MAX_PLAIN else None
    return plain[2].decode("ascii") if plain else content_type(kind)[2].get("charset", "")


def folded(text: str) -> bytes:
    """A text in UTF-8, NFKC and lower case."""
    return unicodedata.normalize("NFKC", text).lower().encode("utf-8", "replace")


def _decoded_header(header: bytes) -> bytes:
    """A header with encoded words and charsets undone. The names of fields keep their case."""
    lines: list[bytes] = []
    for line in header.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ").replace(b"\n ", b" ").replace(b"\n\t", b" ").split(b"\n"):
        if line.isascii() and b"=?" not in line:
            lines.append(line)
        else:
            name, colon, value = line.partition(b":")
            lines.append(name + colon + folded(decode_words(value)).replace(b"\n", b" "))
    return b"\n".join(lines)
