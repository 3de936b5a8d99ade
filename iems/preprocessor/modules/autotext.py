"""Module `autotext`: adds a text (a disclaimer, say) to mail by the channel it came from, in the form each body has (product.md 1.4).

Plain text goes to plain bodies, HTML to HTML bodies. Signed and encrypted mail is left alone, as is mail that quotes the text already and,
unless set otherwise, mail that came in with a DKIM signature, which would break.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Callable, Mapping

from msgspec import Struct

from iems._native import kernel
from iems.message import build, header
from iems.message.structure import Part, Structure
from iems.message.text import fold, part_text
from iems.message.words import content_type, disposition
from iems.model import Envelope, rope_length
from iems.preprocessor.modules import Verdict, Work
from iems.preprocessor.parts import Change, edited

_mime = kernel("mime")

#: A longer message is passed on as it is: its body would have to be held in memory. So is one with a longer header.
MAX_OCTETS = 32 << 20
HEADER_MAX = 1 << 20
#: Above this the work is done in a thread.
THREAD_OCTETS = 128 << 10
#: A body that must be encoded anew, at most.
MAX_BODY = 2 << 20
_SEALED = ("multipart/signed", "multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime")
_INLINE_PGP = (b"-----BEGIN PGP SIGNED MESSAGE-----", b"-----BEGIN PGP MESSAGE-----")
_BODY_END = re.compile(rb"</body\s*>", re.I)
_TAG = re.compile(r"<[^>]*>")
_CLEAR = (b"", b"7bit", b"8bit", b"binary")


class AutoText(Struct, frozen=True):
    """The texts of one input channel. text: plain, html: a fragment; "" is none."""

    text: str = ""
    html: str = ""


class AutoTextInsertion:
    """texts: input channel -> its texts. signed: whether mail with a DKIM signature gets them too."""

    name = "autotext"
    on_tags = False

    def __init__(self, texts: Callable[[], Mapping[int, AutoText]], signed: bool) -> None:
        self._texts = texts
        self._signed = signed

    def wants(self, envelope: Envelope) -> bool:
        """Mail from a channel that has a text; never reports, which are machines' letters."""
        return bool(envelope.reverse_path) and envelope.input_channel in self._texts()

    async def examine(self, work: Work) -> Verdict:
        """The message with its text."""
        octets = rope_length(work.rope)
        if octets > MAX_OCTETS:
            return Verdict(note="too long for a text")
        content = work.read(work.rope, 0, octets)
        texts = self._texts()[work.envelope.input_channel]
        if octets > THREAD_OCTETS:
            found = await asyncio.to_thread(insert, content, texts, self._signed)
        else:
            found = insert(content, texts, self._signed)
        if isinstance(found, str):
            return Verdict(note=found)
        return Verdict(rope=await edited(work, found), note="text added")


def insert(content: bytes, texts: AutoText, signed: bool) -> list[Change] | str:
    """What to change in a message, or why nothing is."""
    end = header.header_end(content)
    if end > HEADER_MAX:
        return "the header is too long"
    if not signed and header.values(content, b"dkim-signature", 0, end):
        return "signed by DKIM"
    structure = Structure.parse(content)
    changes: list[Change] = []
    for row in range(len(structure)):
        part = structure.at(row)
        kind = "/".join(content_type(content[slice(*part.content_type)])[:2])
        if kind in _SEALED:
            return "signed or encrypted"
        if part.kind == _mime.LEAF and kind.startswith("text/") and any(mark in content[part.body_start : part.body_end] for mark in _INLINE_PGP):
            return "signed or encrypted"
    marks = [fold(_TAG.sub(" ", html.unescape(text))) for text in (texts.text, texts.html) if text]
    for part, subtype in _bodies(content, structure):
        text = texts.html if subtype == "html" else texts.text
        if part.body_end - part.body_start > MAX_BODY:
            continue
        shown = part_text(content, part)
        if any(mark and mark in fold(_TAG.sub(" ", html.unescape(shown)).replace(">", " ")) for mark in marks):
            return "quotes the text already"
        if text:
            changes.append(_added(content, part, subtype, text, shown))
    return changes or "no body for a text"


def _bodies(content: bytes, structure: Structure) -> list[tuple[Part, str]]:
    """The parts a reader sees as the message: the first plain and the first HTML text outside of attachments and messages inside."""
    found: dict[str, Part] = {}
    children = structure.children

    def walk(row: int) -> None:
        part = structure.at(row)
        main, sub, parameters = content_type(content[slice(*part.content_type)])
        if part.kind == _mime.MULTIPART:
            inner = children[row]
            for child in inner if sub == "alternative" else inner[:1]:
                walk(child)
        elif part.kind == _mime.LEAF and main == "text" and sub in ("plain", "html") and sub not in found:
            shown = header.values(content, b"content-disposition", part.header_start, part.body_start)
            if not (shown and disposition(shown[0])[0] == "attachment") and "name" not in parameters:
                found[sub] = part

    walk(0)
    return [(part, sub) for sub, part in found.items()]


def _added(content: bytes, part: Part, subtype: str, text: str, shown: str) -> Change:
    _, _, parameters = content_type(content[slice(*part.content_type)])
    encoding = content[slice(*part.encoding)].strip().lower()
    # As it is labelled, not as it is read: readers take windows-1252 for ISO 8859-1, but not all of them.
    charset = parameters.get("charset", "us-ascii")
    body = content[part.body_start : part.body_end]
    try:
        added = (_ascii_html(text) if subtype == "html" else text).encode(charset)
        appendable = "a\r\n".encode(charset) == b"a\r\n"
    except (UnicodeEncodeError, LookupError):
        added, appendable = None, False
    lines = re.sub(rb"\r\n|\r|\n", b"\r\n", added) if added is not None else b""
    fits = added is not None and ((encoding != b"7bit" and encoding != b"") or lines.isascii()) and max(map(len, lines.split(b"\r\n"))) < 998
    # Charsets that are no superset of ASCII can't have lines of octets put between theirs.
    if fits and encoding in (*_CLEAR, b"quoted-printable") and appendable:
        if encoding == b"quoted-printable":
            lines = build.encode_quoted_printable(lines)
        at = _place(body) if subtype == "html" else len(body)
        before = b"" if at == 0 or body.endswith(b"\n", 0, at) else (b"\r\n" if encoding != b"quoted-printable" or subtype != "html" else b"=\r\n")
        after = b"\r\n" if at < len(body) or body.endswith(b"\n") or part.row == 0 else b""
        return Change(part.body_start + at, part.body_start + at, before + lines.removesuffix(b"\r\n") + after)
    # Encoded in a way nothing can be appended to: the part is made anew.
    if subtype == "html":
        ends = [match.start() for match in re.finditer(r"</body\s*>", shown, re.I)]
        at = ends[-1] if ends else len(shown)
        whole = shown[:at] + _ascii_html(text) + shown[at:]
    else:
        whole = shown + ("" if shown.endswith("\n") or not shown else "\r\n") + text
    fresh = build.text_part(whole, subtype)
    kept = b"".join(
        content[field.start : field.end]
        for field in header.fields(content, part.header_start, part.body_start)
        if field.name not in (b"content-type", b"content-transfer-encoding")
    )
    mime = b"" if part.row or header.values(content, b"mime-version", 0, part.body_start) else b"MIME-Version: 1.0\r\n"
    needs_end = part.row == 0 or content[part.body_end : part.body_end + 1] not in (b"\r", b"\n", b"")
    return Change(part.header_start, part.body_end, kept + mime + fresh.removesuffix(b"\r\n") + (b"\r\n" if needs_end else b""))


def _place(body: bytes) -> int:
    """Where a fragment goes in an HTML document: before its last </body>, or at the end."""
    at = len(body)
    for match in _BODY_END.finditer(body):
        at = match.start()
    return at


def _ascii_html(text: str) -> str:
    return "".join(char if ord(char) < 128 else f"&#{ord(char)};" for char in text)
