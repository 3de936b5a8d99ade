"""Whether a message holds a text: the keys of SEARCH that look at content."""

from __future__ import annotations

import base64
import binascii
import quopri
import re
from email.header import decode_header
from typing import Any

from iems._native import kernel
from iems.message import Structure
from iems.message.header import values

_mime = kernel("mime")
_CHARSET = re.compile(rb"""charset\s*=\s*"?([A-Za-z0-9_.:+-]+)""", re.IGNORECASE)
#: Octets of text looked at in one message; the rest of a longer one is not searched.
MAX_TEXT = 64 * 1024 * 1024


def folded(text: str) -> str:
    """A text as it is compared: without case, runs of white space as one space."""
    return " ".join(text.casefold().split())


def decoded_words(value: bytes) -> str:
    """A field value with its encoded words decoded (RFC 2047)."""
    text = value.decode("utf-8", "replace")
    if "=?" not in text:
        return text
    try:
        return "".join(
            part if isinstance(part, str) else part.decode(charset or "utf-8", "replace")
            for part, charset in decode_header(text)
        )
    except Exception:  # unknown charsets, bad base64: then what is written counts
        return text


def in_header(header: bytes, name: bytes, text: str) -> bool:
    """Whether a field of that name holds the text (folded before); b"" for any field."""
    return any(not text or text in folded(decoded_words(value)) for value in values(header, name))


def in_text(content: bytes, text: str, header: bool) -> bool:
    """Whether the text (folded before) occurs in the decoded text of a message, or in its header too."""
    structure = Structure.parse(content)
    if header:
        part = structure.part("")
        if part is not None and text in folded(decoded_words(content[: part.body_start])):
            return True
    for row in range(len(structure)):
        part = structure.at(row)
        if part.kind != _mime.LEAF:
            if row and header and text in folded(decoded_words(content[part.header_start : part.body_start])):
                return True
            continue
        if text in folded(_decoded(content, part)):
            return True
    return False


def _decoded(content: bytes, part: Any) -> str:
    kind = content[slice(*part.content_type)].lower()
    if kind and not kind.lstrip().startswith((b"text/", b"message/")):
        return ""
    raw = content[part.body_start : min(part.body_end, part.body_start + MAX_TEXT)]
    encoding = content[slice(*part.encoding)].strip().lower()
    if encoding == b"base64":
        try:
            raw = binascii.a2b_base64(raw)
        except binascii.Error:
            raw = base64.b64decode(re.sub(rb"[^A-Za-z0-9+/]", b"", raw)[: len(raw) // 4 * 4] + b"==", validate=False)
    elif encoding == b"quoted-printable":
        raw = quopri.decodestring(raw)
    match = _CHARSET.search(content[part.content_type[0] : part.body_start])
    charset = match.group(1).decode() if match else "utf-8"
    try:
        return raw.decode(charset, "replace")
    except LookupError:
        return raw.decode("utf-8", "replace")
