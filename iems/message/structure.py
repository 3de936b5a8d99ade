"""Parts of a message and the sections of FETCH (RFC 3501 6.4.5, RFC 9051 6.4.5), as ranges of its content.

The parts come from the kernel `mime`; nothing is decoded here (that is `text`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from iems._native import kernel

_mime = kernel("mime")

#: A piece of a section: a range of the content, or octets that are not in it.
Piece = tuple[int, int] | bytes

_SPEC = re.compile(
    rb"(?P<part>[1-9][0-9]{0,9}(?:\.[1-9][0-9]{0,9})*)?\.?(?P<what>HEADER\.FIELDS\.NOT|HEADER\.FIELDS|HEADER|TEXT|MIME)?"
    rb"(?:[ ]\((?P<names>[^)]*)\))?",
    re.IGNORECASE,
)


class Part(Struct, frozen=True):
    """One part as offsets into the content. `row` is its row in the table of the kernel."""

    row: int
    kind: int  # the kernel's LEAF, MULTIPART or MESSAGE
    header_start: int
    body_start: int  # the header, with its empty line, ends here
    body_end: int
    lines: int
    content_type: tuple[int, int]
    encoding: tuple[int, int]


class Structure:
    """The parts of one message. `parts[0]` is the message itself; the rest follow in the order of their headers."""

    def __init__(self, content: bytes | bytearray | memoryview) -> None:
        self.content = content
        self.table = _mime.scan(content)
        self._children: list[list[int]] | None = None

    @classmethod
    def parse(cls, content: bytes | bytearray | memoryview) -> Structure:
        """The structure of `content`; never fails (limits: see `flags`)."""
        return cls(content)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def flags(self) -> int:
        """Flags of the message: the kernel's CUT_DEPTH, CUT_PARTS, CUT_HEADER if a limit was met."""
        return int(self.table[0, _mime.FLAGS])

    def at(self, row: int) -> Part:
        """The part in `row`."""
        table, m = self.table, _mime
        return Part(
            row,
            table[row, m.KIND],
            table[row, m.HEADER_START],
            table[row, m.BODY_START],
            table[row, m.BODY_END],
            table[row, m.LINES],
            (table[row, m.TYPE_START], table[row, m.TYPE_END]),
            (table[row, m.ENCODING_START], table[row, m.ENCODING_END]),
        )

    @property
    def children(self) -> list[list[int]]:
        """The rows within each row, in order."""
        if self._children is None:
            self._children = [[] for _ in range(len(self))]
            for row in range(1, len(self)):
                self._children[self.table[row, _mime.PARENT]].append(row)
        return self._children

    def _row(self, numbers: list[int]) -> int | None:
        """The row of a part number, [] being the message; None if there is none.

        A message that is no multipart has one part, 1, which is its body. The parts of a message/rfc822 part are
        numbered as those of the message in it.
        """
        row, whole = 0, True  # whole: `row` is a message whose parts are asked for, not yet a part
        for number in numbers:
            if not whole and self.table[row, _mime.KIND] == _mime.MESSAGE:
                row, whole = self.children[row][0], True
            if self.table[row, _mime.KIND] == _mime.MULTIPART:
                if number > len(self.children[row]):
                    return None
                row = self.children[row][number - 1]
            elif not whole or number != 1:
                return None
            whole = False
        return row

    def part(self, number: str) -> Part | None:
        """The part with a number such as "1.2" ("" for the message itself), or None."""
        row = self._row([int(n) for n in number.split(".")] if number else [])
        return None if row is None else self.at(row)

    def pieces(self, number: str, what: str = "", names: Iterable[bytes] = ()) -> list[Piece] | None:
        """The text of a section in pieces, or None if the message has no such part.

        number: "" or a part number. what: "", "HEADER", "HEADER.FIELDS", "HEADER.FIELDS.NOT", "TEXT" or "MIME", in
        capitals. names: of the fields, for the two that take them. Raises ValueError for another `what`, and for
        MIME without a number.
        """
        part = self.part(number)
        if what == "MIME":
            if not number:
                raise ValueError("MIME needs a part number")
            return None if part is None else [(part.header_start, part.body_start)]
        if part is None:
            if not what and self._is_made_up(number):
                return []
            return None
        if not what:
            return [(part.body_start, part.body_end)] if number else [(0, len(self.content))]
        if number:
            if part.kind != _mime.MESSAGE:
                return None
            part = self.at(self.children[part.row][0])
        if what == "TEXT":
            return [(part.body_start, part.body_end)]
        if what == "HEADER":
            return [(part.header_start, part.body_start)]
        if what in ("HEADER.FIELDS", "HEADER.FIELDS.NOT"):
            invert = what.endswith("NOT")
            return [_mime.select(self.content, list(names), invert, part.header_start, part.body_start)]
        raise ValueError(f"no section {what!r}")

    def _is_made_up(self, number: str) -> bool:
        """Whether `number` is the empty text part that BODYSTRUCTURE shows in a multipart without parts."""
        above, _, last = number.rpartition(".")
        if last != "1":
            return False
        parent = self.part(above)
        if parent is not None and parent.kind == _mime.MESSAGE and above:
            parent = self.at(self.children[parent.row][0])
        return parent is not None and parent.kind == _mime.MULTIPART and not self.children[parent.row]

    def section(self, spec: bytes | str) -> list[Piece] | None:
        """As `pieces`, from the text between the brackets of BODY[...], such as "2.HEADER.FIELDS (From To)".

        Raises ValueError if it is no section (RFC 3501 section 9, section-spec); names that need literals go to `pieces`.
        """
        number, what, names = parse_section(spec)
        return self.pieces(number, what, names)

    def octets(self, pieces: list[Piece]) -> bytes:
        """The octets of `pieces`, in one."""
        return b"".join(p if isinstance(p, bytes) else bytes(self.content[p[0] : p[1]]) for p in pieces)

    def text(self, spec: bytes | str) -> bytes | None:
        """The octets of a section, or None if there is no such part."""
        pieces = self.section(spec)
        return None if pieces is None else self.octets(pieces)


def parse_section(spec: bytes | str) -> tuple[str, str, list[bytes]]:
    """(part number, what, names) of a section's text. Raises ValueError."""
    raw = spec.encode() if isinstance(spec, str) else bytes(spec)
    match = _SPEC.fullmatch(raw)
    if not match:
        raise ValueError(f"no section: {raw!r}")
    number = (match["part"] or b"").decode()
    what = (match["what"] or b"").decode().upper()
    joined = number + ("." if number and what else "") + what
    head = raw[: len(joined)]
    rest = raw[len(joined) :]
    if (
        head.upper() != joined.encode()
        or (rest and not rest.startswith(b" ("))
        or (match["names"] is not None) != (what.startswith("HEADER.FIELDS"))
    ):
        raise ValueError(f"no section: {raw!r}")
    names = [name.strip(b'"') for name in (match["names"] or b"").split()]
    if what.startswith("HEADER.FIELDS") and not names:
        raise ValueError(f"no field is named: {raw!r}")
    if what == "MIME" and not number:
        raise ValueError("MIME needs a part number")
    return number, what, names
