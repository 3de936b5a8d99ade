"""Addresses in header fields (RFC 5322 3.4), read as the kernel reads them for ENVELOPE.

Not the paths of SMTP: those have a stricter grammar of their own (iems.smtp.grammar).
"""

from __future__ import annotations

import re

from msgspec import Struct

from iems._native.mime_py import (
    MAX_ADDRESSES,
    comment_end,
    comment_text,
    joined_words,
    measure,
    quoted_end,
    squeezed,
)
from iems.message.header import fields, header_end, header_fields
from iems.message.words import decode, decode_words

_DOT_ATOM = re.compile(r"[^\x00-\x20\x7f()<>\[\]:;@\\,.\"]+(?:\.[^\x00-\x20\x7f()<>\[\]:;@\\,.\"]+)*\Z")
_GAP = re.compile(rb"[^\s.]\s+[^\s.]")
_DOMAIN = re.compile(
    rb"(?:[^\x00-\x20\x7f()<>\[\]:;@\\,.\"]+(?:\.[^\x00-\x20\x7f()<>\[\]:;@\\,.\"]+)*|\[[!-Z^-~]+\])\Z"
)

_FROM = (b"from",)
_ATOMS = rb"[^\x00-\x20\x7f()<>\[\]:;@\\,.\"]+(?:\.[^\x00-\x20\x7f()<>\[\]:;@\\,.\"]+)*"
_PLAIN_SPEC = re.compile(rb"(%b)@(%b)" % (_ATOMS, _ATOMS))
_PLAIN_NAME = re.compile(rb'"[^\x00-\x1f\x7f"\\@]*"|[^\x00-\x1f\x7f()<>\[\]:;@\\,"]*')


class Address(Struct, frozen=True):
    """One mailbox of an address list. local, domain: without quotes and comments; domain b"" if it had none.

    name: display name, or the comment that stands for it, decoded. group: the name of the group it is in, or None.
    """

    local: bytes
    domain: bytes
    name: str = ""
    group: str | None = None

    @property
    def addr_spec(self) -> str:
        """local@domain, the local part quoted if it must be; only the local part if there is no domain."""
        local = decode(self.local)
        if not _DOT_ATOM.match(local):
            local = '"' + re.sub(r'([\\"])', r"\\\1", re.sub(r"[\r\n\0]", "", local)) + '"'
        return f"{local}@{decode(self.domain)}" if self.domain else local


def parse_addresses(value: bytes) -> list[Address]:
    """The mailboxes of an address list, those in groups too; at most MAX_ADDRESSES. What is none is passed over."""
    found: list[Address] = []
    at, group = 0, None
    while at < len(value) and len(found) < MAX_ADDRESSES:
        span = measure(value, at)
        at = span.end + 1
        if span.stop == 58 and group is None:
            group = decode_words(joined_words(value[span.start : span.end]))
            continue
        name = joined_words(value[span.start : span.less]) if span.less >= 0 else b""
        start, end = span.start, span.end
        if span.less >= 0:
            start = max(span.less, span.colon) + 1
            end = span.greater if span.greater >= 0 else span.end
        if span.at >= 0:
            local, domain = squeezed(value[start : span.at]), squeezed(value[span.at + 1 : end])
        else:
            local, domain = joined_words(value[start:end]), b""
        if local or domain:
            if not name and span.comment >= 0:
                name = comment_text(value[span.comment : span.comment_end])
            found.append(Address(local, domain, decode_words(name), group))
        if span.stop == 59:
            group = None
    return found


def author(content: bytes) -> Address | None:
    """The one identity a message claims in From, or None: no From or two, more than one mailbox or none, a group, a
    local part or domain that is no dot-atom, quoted string or domain literal.

    What DMARC (RFC 7489 6.6.1), filters and display must agree on; for None they refuse or treat it as unsigned.
    """
    content = header_fields(content, _FROM)
    froms = [f for f in fields(content, 0, header_end(content)) if f.name == b"from"]
    if len(froms) != 1:
        return None
    value = content[froms[0].value : froms[0].end]
    if value.count(b"\0"):
        return None
    plain = _plain(value)
    if plain is not None:
        return plain
    mailboxes = parse_addresses(value)
    if len(mailboxes) != 1 or mailboxes[0].group is not None or _has_group(value):
        return None
    one = mailboxes[0]
    if not one.local or not _DOMAIN.match(one.domain) or _loose_at(value):
        return None
    return one


def _plain(value: bytes) -> Address | None:
    """`Name <local@domain>` or `local@domain` on one line, without comments, as nearly all mail has it: what all of `author` would say, but fast."""
    text = value.strip(b" \t\r\n")
    name = b""
    if text.endswith(b">"):
        name, less, text = text[:-1].rpartition(b"<")
        name = name.rstrip(b" \t")
        if not less or _PLAIN_NAME.fullmatch(name) is None:
            return None
    spec = _PLAIN_SPEC.fullmatch(text)
    return Address(spec[1], spec[2], decode_words(joined_words(name))) if spec is not None else None


def _has_group(value: bytes) -> bool:
    return measure(value, 0).stop == 58


def _loose_at(value: bytes) -> bool:
    """Whether the mailbox has text that readers could take for another one: an "@" it doesn't use, unquoted."""
    span = measure(value, 0)
    start = span.start
    if span.less >= 0:
        if span.greater < 0 or squeezed(value[span.greater + 1 : span.end]):
            return True
        phrase = _unquoted(value[span.start : span.less])
        # "a@b <a@b>" is no valid phrase, but common and says nothing else.
        if b"@" in phrase and phrase.strip().lower() != squeezed(value[span.less + 1 : span.greater]).lower():
            return True
        start = max(span.less, span.colon) + 1
    local = _unquoted(value[start : span.at]).strip()
    domain = _unquoted(value[span.at + 1 : span.greater if span.less >= 0 else span.end]).strip()
    return b"@" in local or b"<" in local or bool(_GAP.search(local) or _GAP.search(domain))


def _unquoted(value: bytes) -> bytes:
    """`value` without its comments, a letter for each quoted string."""
    out, at = bytearray(), 0
    while at < len(value):
        if value[at] == 34:
            at = quoted_end(value, at)
            out += b"q"
        elif value[at] == 40:
            at = comment_end(value, at)
            out += b" "
        else:
            out.append(value[at])
            at += 1
    return bytes(out)
