"""Every attachment a mail program could show, in MIME that may be broken on purpose.

Found are: the leaves of the MIME tree, with all types and names any of their fields gives; files in uuencode, yEnc or BinHex within text; messages
and multiparts that stand in a transfer encoding; the files in archives and TNEF. Where programs disagree about what a message says, the message is
`uncertain`, with the reason.
"""

from __future__ import annotations

import itertools
import re

from msgspec import Struct, field

from iems._native import kernel
from iems.attachment import inside, sniff
from iems.attachment.packed import Room
from iems.message.header import fields
from iems.message.structure import Part, Structure
from iems.message.text import decode_transfer
from iems.message.words import content_type, decode, decode_parameters, decode_words, disposition

_mime = kernel("mime")

MAX_FOUND = 10_000
#: Fields of one part that are looked at.
MAX_FIELDS = 20_000
MAX_DEPTH = 5
#: Files in one text, of each of the encodings.
MAX_WITHIN = 500
#: Of one leaf, so much is decoded to be looked into.
MAX_DECODED = 64 << 20
_SNIFFED = 40_000

_NAME = re.compile(rb"(?:file)?name(?:\*[0-9]*\*?)?[ \t]*=[ \t\r\n]*", re.I)
_QUOTED = re.compile(rb"\"((?:[^\"\\]|\\.){0,1000})\"?|'([^']{0,1000})'", re.S)
_TOKEN = re.compile(rb"[^\x00-\x20;\"=,<>()@:\\/\[\]?]{1,1000}")
_LINE = re.compile(rb"[^;\r\n]{1,1000}")
_UNQUOTED = re.compile(rb"[^;]{1,1000}")
#: How far before a field a delimiter is looked for.
_BEFORE = 4_096
#: Names in one field.
MAX_NAMES = 1_000
_PLAIN_TYPE = re.compile(rb"\s*([A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+)")
_UU = re.compile(rb"^begin(?:-base64)? [0-7]{3,4} ([^\r\n]{1,255})\r?$", re.M)
_YENC = re.compile(rb"^=ybegin [^\r\n]{0,200}?name=([^\r\n]{1,255})\r?$", re.M)
_YENC_OCTETS = bytes((octet - 42 & 0xFF) for octet in range(256))
_BINHEX = re.compile(rb"^\(This file must be converted with BinHex", re.M)
_STRAY = re.compile(rb"^[ \t]?content-(?:type|disposition)[ \t]*:[^\r\n]*(?:\r?\n[ \t][^\r\n]*){0,20}", re.I | re.M)
#: A CR alone ends a line for some programs.
_CR = re.compile(rb"\r(?!\n)[ \t]?(?:--|content-)", re.I)
_ENCODINGS = frozenset(("", "7bit", "8bit", "binary", "base64", "quoted-printable", "x-uuencode", "uuencode", "x-uue", "uue"))
_CLEAR = frozenset(("", "7bit", "8bit", "binary"))


class Found(Struct):
    """One attachment. start, end: its part in the content, header included, or a range within a body (`within`).

    types, names: all it goes by, lower-case types. body: it is the text of the message, no file. inner: (name, type) of files inside.
    within: it is a range in a text, no part of its own. row: of its part. closed: why not all that is inside could be listed, "" if it could.
    """

    start: int
    end: int
    types: list[str]
    names: list[str]
    body: bool = False
    inner: list[tuple[str, str]] = field(default_factory=list)
    within: bool = False
    row: int = 0
    closed: str = ""


class Findings(Struct):
    """attachments, in order. uncertain: why the message can't be read with certainty, "" if it can. stray, stray_types: names and types in
    fields where no field should be."""

    attachments: list[Found]
    uncertain: str = ""
    stray: list[str] = field(default_factory=list)
    stray_types: list[str] = field(default_factory=list)


def find(content: bytes, depth: int = 0, room: Room | None = None) -> Findings:
    """All attachments of a message. Never raises. room: of the message it is in."""
    room = room or Room()
    structure = Structure.parse(content)
    out = Findings([])
    if structure.flags & (_mime.CUT_DEPTH | _mime.CUT_PARTS | _mime.CUT_HEADER):
        out.uncertain = "it goes beyond what is read of a message"
    known: list[tuple[int, int]] = []
    children = structure.children
    for row in range(len(structure)):
        part = structure.at(row)
        known.append((part.header_start, part.body_start))
        types, names, encodings = _fields_of(content, part, out)
        multipart = any(kind.startswith("multipart/") for kind in types)
        if part.kind == _mime.MULTIPART:
            if not children[row]:
                out.uncertain = out.uncertain or "a multipart without parts"
            if any(encoding not in _CLEAR for encoding in encodings):
                out.uncertain = out.uncertain or "a multipart in a transfer encoding"
            if names:
                out.attachments.append(Found(part.header_start, part.body_end, types, names, row=row))
            continue
        if part.kind == _mime.LEAF and multipart:
            out.uncertain = out.uncertain or "a multipart that can't be taken apart"
        _leaf(content, part, types, names, encodings, out, depth, room)
        if len(out.attachments) > MAX_FOUND:
            out.uncertain = out.uncertain or "too many attachments"
            break
    if not out.uncertain and _CR.search(content):
        out.uncertain = "a CR without LF before a delimiter or field"
    _stray(content, known, out)
    return out


def _fields_of(content: bytes, part: Part, out: Findings) -> tuple[list[str], list[str], list[str]]:
    """(types, names, encodings) that the fields of a part give, repeated and unreadable ones too."""
    types: list[str] = []
    names: list[str] = []
    encodings: list[str] = []
    for number, each in enumerate(fields(content, part.header_start, part.body_start)):
        if number == MAX_FIELDS:
            out.uncertain = out.uncertain or "more fields than are looked at"
            break
        raw = content[each.value : each.end]
        if each.name.startswith(b"content-") and b"\r" in raw.replace(b"\r\n", b""):
            out.uncertain = out.uncertain or "a CR without LF in a field"
        if each.name == b"content-type":
            main, sub, parameters = content_type(raw)
            kind = f"{main}/{sub}"
            if types and kind not in types:
                out.uncertain = out.uncertain or "a part with two types"
            types.append(kind)
            # Some read it as far as its characters are those of a type.
            plain = _PLAIN_TYPE.match(raw)
            if plain is not None and (short := plain[1].decode().lower()) not in types:
                types.append(short)
            names += [parameters[name] for name in ("name", "filename") if parameters.get(name)]
            names += _raw_names(raw)
            if sum(1 for _ in re.finditer(rb"\bboundary[*0-9]*[ \t]*=", raw, re.I)) > 1 and b"*" not in raw:
                out.uncertain = out.uncertain or "a part with two boundaries"
        elif each.name == b"content-disposition":
            _, parameters = disposition(raw)
            names += [parameters[name] for name in ("filename", "name") if parameters.get(name)]
            names += _raw_names(raw)
        elif each.name == b"content-transfer-encoding":
            encoding = re.sub(rb"\([^)]*\)", b"", raw).strip().lower().decode("latin-1").partition(";")[0].strip().strip('"')
            if encodings and encoding not in encodings:
                out.uncertain = out.uncertain or "a part with two transfer encodings"
            if encoding not in _ENCODINGS:
                out.uncertain = out.uncertain or "a part with an unknown transfer encoding"
            encodings.append(encoding)
        elif each.name in (b"content-description", b"content-location"):
            text = decode_words(raw).strip()
            if "." in text[-8:]:
                names.append(text)
    return types or ["text/plain"], list(dict.fromkeys(name for name in names if name)), encodings or [""]


def _raw_names(raw: bytes) -> list[str]:
    """Names as a program without much sense of grammar would read them."""
    found = []
    # Each place where one may begin, within another's quotes, too; with and without regard to quotes.
    for start in itertools.islice(_NAME.finditer(raw), MAX_NAMES):
        quoted = _QUOTED.match(raw, start.end())
        texts = [] if quoted is None else [quoted[1] if quoted[1] is not None else quoted[2]]
        # As far as a token goes (RFC 2045 5.1), to the end of the line, and of the field.
        texts += [plain[0].strip(b"\"' \t\r\n") for how in (_TOKEN, _LINE, _UNQUOTED) if (plain := how.match(raw, start.end()))]
        for text in texts:
            text = re.sub(rb"[\r\n]+[ \t]*", b"", text).replace(b"\\", b"")
            found.append(decode_words(text) if b"=?" in text else decode(text))
            if b"%" in text:
                bare = re.sub(rb"%([0-9A-Fa-f]{2})", lambda m: bytes((int(m[1], 16),)), text.rpartition(b"''")[2])
                found.append(decode(bare))
    pieces = re.findall(rb"(?:file)?name\*[0-9]+\*?[ \t]*=[ \t]*\"?([^\";\r\n]*)", raw, re.I)
    if len(pieces) > 1:
        found.append(decode(b"".join(pieces)))
    return found


def _leaf(
    content: bytes, part: Part, types: list[str], names: list[str], encodings: list[str], out: Findings, depth: int, room: Room
) -> None:
    raw = content[part.body_start : part.body_end]
    octets = raw
    if encodings[0] not in _CLEAR:
        octets = decode_transfer(raw[:MAX_DECODED], encodings[0].encode("latin-1", "replace"))
    real = sniff.media_type(octets[:_SNIFFED])
    is_message = types[0].startswith("message/") and types[0] not in ("message/delivery-status", "message/disposition-notification")
    body = not names and types[0] in ("text/plain", "text/html") and (not real or real.startswith("text/"))
    found = Found(part.header_start, part.body_end, [*types, *([real] if real and real not in types else [])], names, body, row=part.row)
    if part.kind == _mime.LEAF:
        found.inner, found.closed = inside.listed(octets, names, room)
    if (is_message and (octets is not raw or part.kind == _mime.LEAF)) or (types[0].startswith("multipart/") and octets is not raw):
        # In a transfer encoding the standard forbids it (RFC 2046 5.2.1); programs open it all the same, and what other message/* types hold.
        if depth < MAX_DEPTH:
            deeper = find(octets, depth + 1, room)
            found.inner += [(name, kind) for one in deeper.attachments for name, kind in _pairs(one)]
            found.closed = found.closed or next((one.closed for one in deeper.attachments if one.closed), "")
            out.uncertain = out.uncertain or deeper.uncertain
        else:
            out.uncertain = out.uncertain or "messages in messages, too deep"
    if part.kind != _mime.MESSAGE or names or found.inner or found.closed:
        out.attachments.append(found)
    if types[0].startswith("text/") and part.kind == _mime.LEAF:
        _within(content, part, raw, octets, found, out, room)


def _pairs(one: Found) -> list[tuple[str, str]]:
    if one.body:
        return []
    own = [(name, kind) for name in one.names or [""] for kind in one.types]
    return own + one.inner


def _within(content: bytes, part: Part, raw: bytes, octets: bytes, found: Found, out: Findings, room: Room) -> None:
    """Files that stand in a text."""
    for pattern, decoded in ((_UU, _uu), (_YENC, _yenc)):
        matches = list(itertools.islice(pattern.finditer(octets), MAX_WITHIN + 1))
        if len(matches) > MAX_WITHIN:
            out.uncertain = out.uncertain or "too many files in a text"
        for match, after in itertools.zip_longest(matches, matches[1:]):
            name = decode(match[1]).strip()
            end = _encoded_end(octets, match.end())
            file = decoded(octets[match.start() : min(end, after.start()) if after else end])
            real = sniff.media_type(file)
            inner, closed = inside.listed(file, [name], room)
            if octets is not raw:
                found.inner += [(name, real), *inner]
                found.closed = found.closed or closed
                continue
            types = ["application/octet-stream", *([real] if real else [])]
            start = part.body_start
            out.attachments.append(
                Found(start + match.start(), start + end, types, [name], inner=inner, within=True, row=part.row, closed=closed)
            )
    if _BINHEX.search(octets):
        found.types.append("application/mac-binhex40")
        found.body = False


def _uu(octets: bytes) -> bytes:
    if octets.startswith(b"begin-base64"):
        return decode_transfer(octets.partition(b"\n")[2], b"base64")
    return decode_transfer(octets, b"x-uuencode")


def _yenc(octets: bytes) -> bytes:
    lines = (line for line in octets.splitlines() if not line.startswith((b"=ybegin", b"=ypart", b"=yend")))
    text = re.sub(rb"=(.)", lambda match: bytes((match[1][0] - 64 & 0xFF,)), b"".join(lines), flags=re.S)
    return text.translate(_YENC_OCTETS)


def _encoded_end(raw: bytes, at: int) -> int:
    """Where a file in uuencode or yEnc ends."""
    match = re.compile(rb"^(?:end|====|=yend[^\r\n]*)\r?\n?", re.M).search(raw, at)
    return match.end() if match else len(raw)


def _stray(content: bytes, known: list[tuple[int, int]], out: Findings) -> None:
    """Names in lines that look like fields of a part but stand in no header we know; types, where a delimiter comes before them."""
    place = 0
    for match in _STRAY.finditer(content):
        start = match.start()
        while place < len(known) and known[place][1] <= start:
            place += 1
        if place < len(known) and known[place][0] <= start:
            continue
        out.stray += decode_parameters(match[0]).values()
        out.stray += _raw_names(match[0])
        before = content[max(start - _BEFORE, 0) : start]
        before = before[max(before.rfind(b"\n\n"), before.rfind(b"\n\r\n")) + 1 :]
        if before.startswith(b"--") or b"\n--" in before:
            main, sub, _ = content_type(match[0].partition(b":")[2])
            out.stray_types.append(f"{main}/{sub}")
        if len(out.stray) > MAX_FOUND or len(out.stray_types) > MAX_FOUND:
            break
