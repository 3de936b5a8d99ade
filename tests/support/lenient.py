"""How mail programs that forgive much would read a message: (name, type) of every part any of them sees."""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator

import fast_mail_parser

_BOUNDARY = re.compile(rb"boundary[ \t]*=[ \t]*(?:\"([^\"\r\n]+)\"?|([^\s;\"]+))", re.I)
_NAME = re.compile(rb"\b(?:file)?name[ \t]*=[ \t]*(?:\"([^\"\r\n]*)\"?|([^\s;\"]+))", re.I)
_TYPE = re.compile(rb"^content-type[ \t]*:[ \t]*([a-z0-9.+-]+/[a-z0-9.+-]+)", re.I | re.M)


def pythons(content: bytes) -> Iterator[tuple[str, str]]:
    """Python's two readings."""
    for policy in (email.policy.compat32, email.policy.default):
        try:
            parts = list(email.message_from_bytes(content, policy=policy).walk())
        except Exception:  # its own faults on such input are not ours
            continue
        for part in parts:
            try:
                name = part.get_filename()
                kind = part.get_content_type()
            except Exception:
                continue
            yield str(name) if name else "", kind


def rusts(content: bytes) -> Iterator[tuple[str, str]]:
    """fast-mail-parser's."""
    try:
        message = fast_mail_parser.parse_email(content)
    except fast_mail_parser.ParseError:
        return
    for attachment in message.attachments:
        yield attachment.filename, attachment.mimetype


def crude(content: bytes) -> Iterator[tuple[str, str]]:
    """A program without a sense of structure: a part begins at every line that begins with the boundary any field names, in whatever line ends."""
    content = re.sub(rb"\r\n?", b"\n", content)
    marks = {b"--" + (match[1] or match[2]).rstrip() for match in _BOUNDARY.finditer(content)}
    at = 0
    starts = [0]
    for line in content.split(b"\n"):
        at += len(line) + 1
        if any(line.startswith(mark) for mark in marks):
            starts.append(at)
    for start in starts:
        head = re.sub(rb"\n[ \t]+", b" ", (b"\n" + content[start:]).partition(b"\n\n")[0][1:])
        kind = _TYPE.search(head)
        for line in head.split(b"\n"):
            if re.match(rb"content-(?:type|disposition)[ \t]*:", line, re.I):
                for match in _NAME.finditer(line):
                    yield (match[1] or match[2] or b"").decode("utf-8", "replace"), kind[1].decode().lower() if kind else "text/plain"


READERS = (pythons, rusts, crude)
