"""Vocabulary of messages (RFC 5322, MIME): structure, header fields, addresses, dates, words, text, and made mail.

Bytes in, values out; nothing here opens a file or asks a clock it was not given.
"""

from __future__ import annotations

from iems._native import kernel
from iems.message.header import header_fields
from iems.message.structure import Part, Structure

_mime = kernel("mime")


def summarize(content: bytes | bytearray | memoryview) -> tuple[bytes, bytes]:
    """(ENVELOPE, BODYSTRUCTURE) of a message in IMAP syntax, ready to follow the item's name in FETCH.

    Strings with octets above 127 or more than 1,000 octets are literals, the others quoted. Never fails.
    """
    envelope, structure = _mime.summarize(content)
    return envelope, structure


def body(content: bytes | bytearray | memoryview) -> bytes:
    """BODY of a message: its structure without extension data (RFC 3501 7.4.2)."""
    return bytes(_mime.body(content))


__all__ = ["Part", "Structure", "body", "header_fields", "summarize"]
