"""A TNEF stream as ordinary MIME: one part that stands where the wrapped one stood."""

from __future__ import annotations

import re

from iems.message import build, rtf
from iems.message.tnef import Attachment, Tnef

_TYPE = re.compile(r"[A-Za-z0-9!#$&+.^_-]{1,60}/[A-Za-z0-9!#$&+.^_-]{1,60}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
#: By the end of a name, where the sender gave no type.
_TYPES = {
    "txt": "text/plain", "htm": "text/html", "html": "text/html", "pdf": "application/pdf", "doc": "application/msword",
    "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif", "zip": "application/zip", "rtf": "application/rtf",
}  # fmt: skip


def expanded(found: Tnef, body: bool = True) -> bytes:
    """A whole part (header and body): the body, unless the message around it has one already, and every attachment."""
    parts = [_body(found)] if body else []
    parts = [part for part in parts if part]
    parts += [_attachment(attachment) for attachment in found.attachments]
    if not parts:
        parts = [build.text_part("")]
    return parts[0] if len(parts) == 1 else build.multipart("mixed", parts)


def _body(found: Tnef) -> bytes:
    text = found.text
    html = found.html.decode(found.codec if not _is_utf8(found.html) else "utf-8", "replace") if found.html else ""
    if found.rtf and not (html and text):
        taken, is_html = rtf.extract(found.rtf)
        if is_html:
            html = html or taken
        else:
            text = text or taken
    parts = [build.text_part(text)] if text else []
    if html:
        parts.append(build.text_part(html, "html"))
    if len(parts) == 2:
        return build.multipart("alternative", parts)
    return parts[0] if parts else b""


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def clean_name(name: str) -> str:
    """A file name for a header: without folders and control characters, at most 255 characters."""
    return _CONTROL.sub("", re.split(r"[/\\]", name)[-1])[-255:].strip() or "attachment"


def _attachment(attachment: Attachment) -> bytes:
    name = clean_name(attachment.name)
    if attachment.message is not None:
        inner = attachment.message
        head = build.field("Subject", _CONTROL.sub(" ", inner.subject)[:500]) + b"MIME-Version: 1.0\r\n"
        return (
            build.content_type_field("message/rfc822")
            + build.content_type_field("attachment", [("filename", name)], "Content-Disposition")
            + b"\r\n"
            + head
            + expanded(inner)
        )
    kind = attachment.content_type.lower()
    if not _TYPE.match(kind) or kind.startswith(("message/", "multipart/")):
        kind = _TYPES.get(name.rpartition(".")[2].lower(), "application/octet-stream")
    part = build.octets_part(attachment.data, kind, name)
    identifier = attachment.content_id.strip("<> ")
    if identifier and re.fullmatch(r"[!-;=?-~]{1,200}", identifier):
        part = build.raw_field("Content-ID", f"<{identifier}>") + part
    return part
