"""TNEF (`winmail.dat`, application/ms-tnef) read: the body and the attachments Outlook wrapped up (MS-OXTNEF 2.1, MS-OXCDATA 2.11).

Every length is checked against the octets there are; what can't be read ends the reading and is noted in `defects`, and what was found before
it counts. Bounded in octets, attachments, properties and depth; nothing here trusts a count.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from msgspec import Struct, field

SIGNATURE = b"\x78\x9f\x3e\x22"
MAX_ATTACHMENTS = 1_000
MAX_PROPERTIES = 20_000
MAX_DEPTH = 5
#: Compressed RTF longer than this stays compressed: taking it apart costs about a second a megabyte.
MAX_RTF_OCTETS = 512 << 10
UNNAMED = "Untitled Attachment"

# Attributes (MS-OXTNEF 2.1.3.1): the low half of the identifier.
_SUBJECT, _CLASS, _BODY = 0x8004, 0x8008, 0x800C
_DATA, _TITLE, _META = 0x800F, 0x8010, 0x8011
_TRANSPORT_NAME, _RENDER = 0x9001, 0x9002
_MESSAGE_PROPERTIES, _ATTACHMENT_PROPERTIES, _CODEPAGE = 0x9003, 0x9005, 0x9007

# Properties (MS-OXPROPS).
_P_SUBJECT, _P_BODY, _P_HTML, _P_RTF, _P_CPID = 0x0037, 0x1000, 0x1013, 0x1009, 0x3FDE
_P_DATA, _P_LONG_NAME, _P_NAME, _P_SHOWN_NAME = 0x3701, 0x3707, 0x3704, 0x3001
_P_MIME, _P_CONTENT_ID = 0x370E, 0x3712

_FIXED = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 10: 4, 11: 2, 20: 8, 64: 8, 72: 16}
_STRING8, _UNICODE, _OBJECT, _BINARY, _MULTIPLE = 0x1E, 0x1F, 0x0D, 0x102, 0x1000
_MESSAGE_INTERFACE = bytes.fromhex("0703020000000000c000000000000046")
_U32 = struct.Struct("<I")
_ATTRIBUTE = struct.Struct("<BIi")


class Attachment(Struct):
    """One attachment. name: as the sender named it, untrusted. message: the TNEF message it is, if it is one."""

    name: str = ""
    data: bytes = b""
    content_type: str = ""
    content_id: str = ""
    message: Tnef | None = None


class Tnef(Struct):
    """What a TNEF stream holds. text, html: bodies, b"" if there is none; rtf: taken out of its compression.

    codec: of octets without their own charset. defects: what was wrong, for the log.
    """

    subject: str = ""
    message_class: str = ""
    text: str = ""
    html: bytes = b""
    rtf: bytes = b""
    codec: str = "cp1252"
    attachments: list[Attachment] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        """Names of all attachments, those in attached messages too."""
        found = []
        for attachment in self.attachments:
            found.append(attachment.name)
            if attachment.message is not None:
                found += attachment.message.names()
        return found


class _Broken(Exception):
    """The octets end, or say what can't be."""


def parse(data: bytes, depth: int = 0) -> Tnef | None:
    """The content of a TNEF stream; None if it is none. Never raises."""
    if len(data) < 6 or data[:4] != SIGNATURE:
        return None
    found = Tnef()
    try:
        for level, attribute, value, sound in _attributes(data):
            if not sound:
                found.defects.append(f"attribute {attribute:#x} has a wrong checksum")
            _take(found, level, attribute, value, depth)
    except _Broken as error:
        found.defects.append(str(error))
    for attachment in found.attachments:
        attachment.name = attachment.name or UNNAMED
    return found


def _attributes(data: bytes) -> Iterator[tuple[int, int, bytes, bool]]:
    """(level, attribute, value, whether its checksum fits)."""
    at = 6
    while at + _ATTRIBUTE.size + 2 <= len(data):
        level, identifier, length = _ATTRIBUTE.unpack_from(data, at)
        at += _ATTRIBUTE.size
        if level not in (1, 2):
            raise _Broken(f"no attribute at octet {at}")
        if not 0 <= length <= len(data) - at - 2:
            raise _Broken(f"attribute {identifier & 0xFFFF:#x} is longer than what is there")
        value = data[at : at + length]
        at += length + 2
        yield level, identifier & 0xFFFF, value, sum(value) & 0xFFFF == int.from_bytes(data[at - 2 : at], "little")


def _take(found: Tnef, level: int, attribute: int, value: bytes, depth: int) -> None:
    if level == 1:
        if attribute == _CODEPAGE and len(value) >= 4:
            found.codec = _codec(_U32.unpack_from(value)[0])
        elif attribute == _SUBJECT:
            found.subject = _text(value, found.codec)
        elif attribute == _CLASS:
            found.message_class = _text(value, "cp1252")
        elif attribute == _BODY:
            found.text = _text(value, found.codec)
        elif attribute == _MESSAGE_PROPERTIES:
            _message_properties(found, value)
        return
    if attribute == _RENDER or not found.attachments:
        if len(found.attachments) >= MAX_ATTACHMENTS:
            raise _Broken("too many attachments")
        found.attachments.append(Attachment())
    attachment = found.attachments[-1]
    if attribute == _DATA:
        attachment.data = value
    elif attribute in (_TITLE, _TRANSPORT_NAME):
        attachment.name = attachment.name or _text(value, found.codec)
    elif attribute == _ATTACHMENT_PROPERTIES:
        _attachment_properties(found, attachment, value, depth)


def _message_properties(found: Tnef, value: bytes) -> None:
    for number, kind, octets in _properties(value):
        if number == _P_CPID and kind == 3:
            found.codec = _codec(_U32.unpack(octets)[0])
        elif number == _P_SUBJECT:
            found.subject = _string(kind, octets, found.codec) or found.subject
        elif number == _P_BODY:
            found.text = _string(kind, octets, found.codec) or found.text
        elif number == _P_HTML:
            found.html = octets if kind == _BINARY else _string(kind, octets, found.codec).encode()
        elif number == _P_RTF and kind == _BINARY:
            found.rtf = _expanded(found, octets)


def _expanded(found: Tnef, octets: bytes) -> bytes:
    from compressed_rtf import decompress

    if len(octets) > MAX_RTF_OCTETS:
        found.defects.append("the RTF body is too long to be taken apart")
        return b""
    try:
        return bytes(decompress(octets))
    except Exception as error:  # the library raises plain Exception for whatever it dislikes
        found.defects.append(f"the RTF body can't be taken apart: {error}")
        return b""


def _attachment_properties(found: Tnef, attachment: Attachment, value: bytes, depth: int) -> None:
    names: dict[int, str] = {}
    for number, kind, octets in _properties(value):
        if number == _P_DATA and kind == _BINARY:
            attachment.data = attachment.data or octets
        elif number == _P_DATA and kind == _OBJECT and len(octets) > 16:
            inner = octets[16:]
            if octets[:16] == _MESSAGE_INTERFACE and inner[:4] == SIGNATURE:
                if depth >= MAX_DEPTH:
                    raise _Broken("messages within messages are nested too deep")
                attachment.message = parse(inner, depth + 1)
            attachment.data = attachment.data or inner
        elif number in (_P_LONG_NAME, _P_NAME, _P_SHOWN_NAME):
            names[number] = _string(kind, octets, found.codec)
        elif number == _P_MIME:
            attachment.content_type = _string(kind, octets, found.codec)
        elif number == _P_CONTENT_ID:
            attachment.content_id = _string(kind, octets, found.codec)
    given = names.get(_P_LONG_NAME) or attachment.name or names.get(_P_NAME) or names.get(_P_SHOWN_NAME) or ""
    attachment.name = given


def _properties(value: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(identifier, type, octets) of a list of properties; of several values each."""
    if len(value) < 4:
        raise _Broken("a list of properties without its number")
    count = min(_U32.unpack_from(value)[0], MAX_PROPERTIES)
    at = 4

    def need(octets: int) -> None:
        if octets < 0 or octets > len(value) - at:
            raise _Broken("a property is longer than what is there")

    for _ in range(count):
        need(4)
        kind, number = struct.unpack_from("<HH", value, at)
        at += 4
        if number >= 0x8000:
            need(20)
            named = _U32.unpack_from(value, at + 16)[0]
            at += 20
            need(4)
            length = _U32.unpack_from(value, at)[0] if named else 0
            at += 4
            need(length)
            at += length + -length % 4
            number = -1  # a named property is none of those looked for
        several = bool(kind & _MULTIPLE)
        kind &= ~_MULTIPLE
        variable = kind in (_STRING8, _UNICODE, _OBJECT, _BINARY)
        values = 1
        if several or variable:
            need(4)
            values = _U32.unpack_from(value, at)[0]
            at += 4
            if values > MAX_PROPERTIES:
                raise _Broken("a property with too many values")
        for _ in range(values):
            if variable:
                need(4)
                length = _U32.unpack_from(value, at)[0]
                at += 4
            elif kind in _FIXED:
                length = _FIXED[kind]
            else:
                raise _Broken(f"a property of the unknown type {kind:#x}")
            need(length)
            yield number, kind, value[at : at + length]
            at += length + -length % 4


def _codec(codepage: int) -> str:
    import codecs

    name = {65001: "utf-8", 20127: "ascii", 28591: "latin-1", 1200: "utf-16-le"}.get(codepage, f"cp{codepage}")
    try:
        codecs.lookup(name)
    except LookupError:
        return "cp1252"
    return name


def _text(octets: bytes, codec: str) -> str:
    return octets.decode(codec, "replace").partition("\0")[0]


def _string(kind: int, octets: bytes, codec: str) -> str:
    if kind == _UNICODE:
        return octets.decode("utf-16-le", "replace").partition("\0")[0]
    return _text(octets, codec) if kind in (_STRING8, _BINARY) else ""
