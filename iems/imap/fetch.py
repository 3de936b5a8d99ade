"""The data items of FETCH (RFC 3501 6.4.5) as values: what is asked for, and how it is labelled in the answer."""

from __future__ import annotations

import re
from functools import lru_cache

from msgspec import Struct

from iems.imap.grammar import MAX_NUMBER, Arguments, Bad
from iems.imap.results import partial_range

#: Items of one FETCH and fields of one HEADER.FIELDS.
MAX_ITEMS = 200
MAX_FIELDS = 200

_SECTION_PART = re.compile(rb"\d{1,9}(?:\.\d{1,9})*")


class Section(Struct, frozen=True):
    """One BODY[...] or RFC822 item.

    part: the numbers of a nested part, () for the message. kind: b"" (all of it), b"HEADER", b"HEADER.FIELDS",
    b"HEADER.FIELDS.NOT", b"TEXT" or b"MIME". fields: names for the two FIELDS kinds. origin: first octet wanted or -1 for
    all; count: octets wanted. peek: leaves \\Seen alone. label: name of the item in the response.
    """

    part: tuple[int, ...] = ()
    kind: bytes = b""
    fields: tuple[bytes, ...] = ()
    origin: int = -1
    count: int = 0
    peek: bool = True
    label: bytes = b"BODY[]"
    binary: bool = False  # with the transfer encoding undone (RFC 3516)
    size: bool = False  # only how many octets that are


class Request(Struct, frozen=True):
    """All items of a FETCH.

    simple: names among UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE BODYSTRUCTURE BODY MODSEQ EMAILID THREADID SAVEDATE
    PREVIEW, in the order asked. changed_since: the CHANGEDSINCE modifier (RFC 7162) or None; vanished: with VANISHED.
    partial: the PARTIAL modifier (RFC 9394).
    """

    simple: tuple[bytes, ...] = ()
    sections: tuple[Section, ...] = ()
    changed_since: int | None = None
    vanished: bool = False
    partial: tuple[int, int] | None = None

    @property
    def sets_seen(self) -> bool:
        """Whether an item sets \\Seen."""
        return any(not section.peek for section in self.sections)


_SIMPLE = frozenset(
    (b"UID", b"FLAGS", b"INTERNALDATE", b"RFC822.SIZE", b"ENVELOPE", b"BODYSTRUCTURE", b"MODSEQ",
     b"EMAILID", b"THREADID", b"SAVEDATE", b"PREVIEW")
)  # fmt: skip
_MACROS = {
    b"FAST": (b"FLAGS", b"INTERNALDATE", b"RFC822.SIZE"),
    b"ALL": (b"FLAGS", b"INTERNALDATE", b"RFC822.SIZE", b"ENVELOPE"),
    b"FULL": (b"FLAGS", b"INTERNALDATE", b"RFC822.SIZE", b"ENVELOPE", b"BODY"),
}
_RFC822 = {
    b"RFC822": Section(peek=False, label=b"RFC822"),
    b"RFC822.HEADER": Section(kind=b"HEADER", label=b"RFC822.HEADER"),
    b"RFC822.TEXT": Section(kind=b"TEXT", peek=False, label=b"RFC822.TEXT"),
}
_ITEM = re.compile(rb"[A-Za-z0-9.]+")


def parse(arguments: Arguments) -> Request:
    """The items of a FETCH and its modifiers, up to the end of the command. Raises `Bad`."""
    text = arguments.data[arguments.pos :]
    # A client asks for the same items again and again.
    request = _known(text) if len(text) <= 256 else _parse(Arguments(text))
    arguments.pos = len(arguments.data)
    return request


@lru_cache(maxsize=512)
def _known(text: bytes) -> Request:
    return _parse(Arguments(text))


def _parse(arguments: Arguments) -> Request:
    simple: dict[bytes, None] = {}
    sections: list[Section] = []
    if arguments.accept(b"("):
        while True:
            _item(arguments, simple, sections)
            if len(simple) + len(sections) > MAX_ITEMS:
                raise Bad("Too many items")
            if arguments.accept(b")"):
                break
            arguments.space()
    else:
        match = _ITEM.match(arguments.data, arguments.pos)
        macro = _MACROS.get(match.group().upper()) if match else None
        if match is not None and macro is not None:
            arguments.pos = match.end()
            simple = dict.fromkeys(macro)
        else:
            _item(arguments, simple, sections)
    changed_since = partial = None
    vanished = False
    if arguments.accept(b" ("):
        while True:
            word = arguments.word()
            if word == b"CHANGEDSINCE":
                arguments.space()
                changed_since = arguments.number64()
            elif word == b"VANISHED":
                vanished = True
            elif word == b"PARTIAL":
                arguments.space()
                partial = partial_range(arguments)
            else:
                raise Bad("Unknown FETCH modifier")
            if arguments.accept(b")"):
                break
            arguments.space()
        if vanished and changed_since is None:
            raise Bad("VANISHED needs CHANGEDSINCE")
        if changed_since is not None:
            simple[b"MODSEQ"] = None
    arguments.end()
    return Request(tuple(simple), tuple(sections), changed_since, vanished, partial)


def items_until_close(arguments: Arguments) -> Request:
    """Items of a list whose opening parenthesis was read, with the closing one (NOTIFY, RFC 5465 5.2). Raises `Bad`."""
    simple: dict[bytes, None] = {}
    sections: list[Section] = []
    while True:
        _item(arguments, simple, sections)
        if len(simple) + len(sections) > MAX_ITEMS:
            raise Bad("Too many items")
        if arguments.accept(b")"):
            return Request(tuple(simple), tuple(sections))
        arguments.space()


def _item(arguments: Arguments, simple: dict[bytes, None], sections: list[Section]) -> None:
    match = _ITEM.match(arguments.data, arguments.pos)
    if match is None:
        raise Bad("Item expected")
    name = match.group().upper()
    arguments.pos = match.end()
    if name in (b"BODY", b"BODY.PEEK"):
        if arguments.accept(b"["):
            sections.append(_section(arguments, peek=name == b"BODY.PEEK"))
        elif name == b"BODY":
            simple[b"BODY"] = None
        else:
            raise Bad("Section expected after BODY.PEEK")
    elif name in (b"BINARY", b"BINARY.PEEK", b"BINARY.SIZE"):
        arguments.expect(b"[")
        sections.append(_binary(arguments, name))
    elif name in _SIMPLE:
        simple[name] = None
        if name == b"PREVIEW" and arguments.accept(b" ("):
            if arguments.word() != b"LAZY":
                raise Bad("Unknown modifier of PREVIEW")
            arguments.expect(b")")
    elif name in _RFC822:
        sections.append(_RFC822[name])
    else:
        raise Bad(f"Unknown item {name.decode('ascii', 'replace')}")


def _section(arguments: Arguments, peek: bool) -> Section:
    """What stands between the brackets, and the partial range after them."""
    start = arguments.pos
    part: tuple[int, ...] = ()
    kind = b""
    fields: tuple[bytes, ...] = ()
    match = _SECTION_PART.match(arguments.data, arguments.pos)
    if match is not None:
        part = tuple(int(number) for number in match.group().split(b"."))
        if 0 in part:
            raise Bad("Part numbers start at 1")
        arguments.pos = match.end()
    if arguments.accept(b".") if match is not None else not arguments.looking_at(b"]"):
        word = _ITEM.match(arguments.data, arguments.pos)
        if word is None:
            raise Bad("Malformed section")
        kind = word.group().upper()
        arguments.pos = word.end()
        if kind in (b"HEADER.FIELDS", b"HEADER.FIELDS.NOT"):
            arguments.space()
            fields = _fields(arguments)
        elif kind == b"MIME":
            if not part:
                raise Bad("MIME needs a part number")
        elif kind not in (b"HEADER", b"TEXT"):
            raise Bad("Malformed section")
    written = arguments.data[start : arguments.pos]
    arguments.expect(b"]")
    if b"{" in written or b'"' in written:
        # Field names that came as literals are written back as strings that fit one line.
        written = b".".join([*(b"%d" % number for number in part), kind]) + b" (" + b" ".join(fields) + b")"
    label = b"BODY[" + written.upper() + b"]"
    origin, count = -1, 0
    if arguments.accept(b"<"):
        origin = arguments.number()
        arguments.expect(b".")
        count = arguments.number()
        arguments.expect(b">")
        if count == 0:
            raise Bad("A partial range can't be empty")
        label += b"<%d>" % origin
    return Section(part, kind, fields, origin, min(count, MAX_NUMBER), peek, label)


def _binary(arguments: Arguments, name: bytes) -> Section:
    """What stands between the brackets of BINARY, BINARY.PEEK and BINARY.SIZE (RFC 3516 4.2)."""
    match = _SECTION_PART.match(arguments.data, arguments.pos)
    written = b""
    if match is not None:
        written = match.group()
        arguments.pos = match.end()
    part = tuple(int(number) for number in written.split(b".")) if written else ()
    if 0 in part:
        raise Bad("Part numbers start at 1")
    arguments.expect(b"]")
    if name == b"BINARY.SIZE":
        return Section(part, label=b"BINARY.SIZE[" + written + b"]", binary=True, size=True)
    label = b"BINARY[" + written + b"]"
    origin, count = -1, 0
    if arguments.accept(b"<"):
        origin = arguments.number()
        arguments.expect(b".")
        count = arguments.number()
        arguments.expect(b">")
        if count == 0:
            raise Bad("A partial range can't be empty")
        label += b"<%d>" % origin
    return Section(part, b"", (), origin, count, name == b"BINARY.PEEK", label, True)


def section(text: bytes) -> Section:
    """What stands between the brackets of BODY[...]. Raises `Bad`."""
    arguments = Arguments(text + b"]")
    found = _section(arguments, True)
    arguments.end()
    return found


def _fields(arguments: Arguments) -> tuple[bytes, ...]:
    arguments.expect(b"(")
    names = []
    while True:
        name = arguments.astring()
        if not name or b":" in name or not all(32 < octet < 127 for octet in name):
            raise Bad("Malformed field name")
        names.append(name.upper())
        if len(names) > MAX_FIELDS:
            raise Bad("Too many field names")
        if arguments.accept(b")"):
            return tuple(names)
        arguments.space()
