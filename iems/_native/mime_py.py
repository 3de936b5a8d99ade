"""The Python twin of `mime`: MIME structure of a message, and ENVELOPE, BODYSTRUCTURE and BODY in IMAP syntax.

This side is written to be read and defines the answer. One pass over the content finds the parts (RFC 2046); their
header fields of interest are kept as offsets; rendering (RFC 3501 7.4.2, RFC 9051 7.5.2) reads them again.

How doubtful input is read, where the RFCs leave it open or senders ignore them:

- A line ends at LF, with or without CR. A header ends at an empty line, at the end of its part, or at a delimiter.
- A delimiter is a line that begins with "--" and an open boundary (RFC 2046 5.1.1 asks for the beginning only). If
  several open boundaries fit, a line that is exactly one of them (with or without the closing "--") means that one,
  else the longest counts, of equal ones the innermost.
- The line end before a delimiter belongs to it, unless it already ends a header or a closing delimiter.
- A multipart without a boundary, and whatever lies beyond a limit, is one leaf, shown as text/plain; `FLAGS` of the
  first row then tells which limit was met.
- message/rfc822 is taken apart whatever its transfer encoding says: RFC 2046 5.2.1 forbids one that needs decoding.
- No or no readable Content-Type is text/plain, in a multipart/digest message/rfc822.
- Of a repeated field the last counts, of a repeated Content-* field the first; repeated address fields add up.
"""

from __future__ import annotations

import re
from array import array
from typing import Final

#: Columns of a row of the parts table. Rows are in the order of their headers, so a parent comes before its children.
PARENT: Final = 0  # row of the parent, -1 for the message itself
DEPTH: Final = 1  # 0 for the message itself
NUMBER: Final = 2  # place within the parent, from 1; 0 for the message itself
KIND: Final = 3  # LEAF, MULTIPART or MESSAGE
FLAGS: Final = 4  # bits below
HEADER_START: Final = 5
BODY_START: Final = 6  # where the header, with its empty line, ends
BODY_END: Final = 7  # without the line end that belongs to the delimiter
LINES: Final = 8  # LFs in the body
TYPE_START: Final = 9  # value of Content-Type; start == end: none
TYPE_END: Final = 10
ENCODING_START: Final = 11  # value of Content-Transfer-Encoding
ENCODING_END: Final = 12
COLUMNS: Final = 13

LEAF: Final = 0
MULTIPART: Final = 1
MESSAGE: Final = 2  # message/rfc822: its only child is the message in it

# Flags of a part.
NO_HEADER_END: Final = 1  # the header ran into the end or a delimiter
NO_CLOSE: Final = 2  # a multipart without its closing delimiter
# Flags of the whole message, in its first row.
CUT_DEPTH: Final = 16  # nested deeper than MAX_DEPTH: the inner rest is one leaf
CUT_PARTS: Final = 32  # more than MAX_PARTS: what follows belongs to the last part
CUT_HEADER: Final = 64  # fields after MAX_FIELDS or MAX_HEADER octets of a header were not read

MAX_DEPTH: Final = 100
MAX_PARTS: Final = 10_000
MAX_FIELDS: Final = 10_000  # of one header
MAX_HEADER: Final = 1 << 20  # octets of one header that are read for fields
MAX_ADDRESSES: Final = 10_000  # of one list of ENVELOPE
MAX_PARAMETERS: Final = 1_000  # of one field
MAX_BOUNDARY: Final = 1_000  # octets; RFC 2046 allows 70
MAX_SEGMENTS: Final = 16  # pieces of a boundary sent as boundary*0, boundary*1, ... (RFC 2231 3)
MAX_COMMENTS: Final = 100  # levels of nested comments
MAX_QUOTED: Final = 1_000  # a longer string is sent as a literal
MAX_STRING: Final = 65_536  # and cut here

_UNSTRUCTURED = (b"date", b"subject", b"in-reply-to", b"message-id")
_ADDRESSES = (b"from", b"sender", b"reply-to", b"to", b"cc", b"bcc")
_CONTENT = (
    b"content-type",
    b"content-transfer-encoding",
    b"content-id",
    b"content-description",
    b"content-md5",
    b"content-disposition",
    b"content-language",
    b"content-location",
)
_INTERESTING = frozenset(_UNSTRUCTURED + _ADDRESSES + _CONTENT)
_WS = b" \t\r\n"
_DEFAULT_TEXT = b'"text" "plain" ("charset" "us-ascii")'


class _Row:
    """A part while the message is being parsed: the columns, and its fields [(name, start, end of the value)]."""

    def __init__(self, parent: int, depth: int, number: int, start: int) -> None:
        self.cells = [0] * COLUMNS
        self.cells[PARENT], self.cells[DEPTH], self.cells[NUMBER] = parent, depth, number
        self.cells[HEADER_START] = start
        self.fields: list[tuple[bytes, int, int]] = []
        self.children = 0
        self.digest = False


class _Open:
    """A multipart whose closing delimiter has not come yet."""

    def __init__(self, row: int, boundary: bytes) -> None:
        self.row, self.boundary = row, boundary


class _Parser:
    """One pass over `content`; `rows` is the outcome."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.rows: list[_Row] = []
        self.open: list[_Open] = []
        self.flags = 0
        self.current = 0
        self.floor = 0  # no body ends before this: the line above is a header's end or a delimiter
        position: int | None = self._entity(0, -1)
        while position is not None:
            position = self._next_part(position)
        self._close_up_to(-1, len(content))
        self.rows[0].cells[FLAGS] |= self.flags

    def _next_part(self, position: int) -> int | None:
        """Look for the next delimiter at or after `position` and open the part behind it; None at the end."""
        content = self.content
        hit = position - 1  # a delimiter stands behind a LF
        while self.open:
            hit = content.find(b"\n--", hit)
            if hit < 0:
                return None
            line_end = _line_end(content, hit + 1)
            index, closing = self._match(hit + 1, line_end)
            if index < 0:
                hit += 1
                continue
            opened = self.open[index]
            # The line end before a delimiter belongs to it (RFC 2046 5.1.1).
            end = max(self.floor, hit - 1 if hit and content[hit - 1] == 13 else hit)
            for lost in self.open[index + 1 :]:
                self.rows[lost.row].cells[FLAGS] |= NO_CLOSE
            if closing:
                self._close_up_to(opened.row, end)
                del self.open[index:]
                self.current = opened.row
                hit = line_end
                self.floor = min(line_end + 1, len(content))
                continue
            if len(self.rows) >= MAX_PARTS:
                self.flags |= CUT_PARTS
                return None
            self._close_up_to(opened.row, end)
            del self.open[index + 1 :]
            return self._entity(min(line_end + 1, len(content)), opened.row)
        return None

    def _match(self, start: int, line_end: int) -> tuple[int, bool]:
        """Which open multipart the line at `start` delimits, and whether it closes it; (-1, False) if none."""
        line = self.content[start + 2 : line_end].rstrip(_WS)
        best, closing = -1, False
        for index in range(len(self.open) - 1, -1, -1):
            boundary = self.open[index].boundary
            if not line.startswith(boundary):
                continue
            if line == boundary:
                return index, False
            if line == boundary + b"--":
                return index, True
            if best < 0 or len(boundary) > len(self.open[best].boundary):
                best, closing = index, line.startswith(boundary + b"--")
        return best, closing

    def _close_up_to(self, row: int, end: int) -> None:
        """End the body of the current part and of those around it, but not of `row`."""
        at = self.current
        while at != row:
            cells = self.rows[at].cells
            cells[BODY_END] = end
            cells[LINES] = self.content.count(b"\n", cells[BODY_START], cells[BODY_END])
            at = cells[PARENT]
        if row < 0:
            for lost in self.open:
                self.rows[lost.row].cells[FLAGS] |= NO_CLOSE

    def _entity(self, start: int, parent: int) -> int:
        """Open a part whose header begins at `start`, and the messages in it; return where to look for delimiters."""
        while True:
            if parent < 0:
                row = _Row(-1, 0, 0, start)
            else:
                above = self.rows[parent]
                above.children += 1
                row = _Row(parent, above.cells[DEPTH] + 1, above.children, start)
            number = self.current = len(self.rows)
            self.rows.append(row)
            position, cut = _header(self.content, start, row, self._match if self.open else None)
            if cut:
                self.flags |= CUT_HEADER
            start, cells = row.cells[BODY_START], row.cells
            self.floor = start
            digest = parent >= 0 and self.rows[parent].digest
            kind, boundary = _kind(self.content[cells[TYPE_START] : cells[TYPE_END]], digest)
            if kind != LEAF and cells[DEPTH] >= MAX_DEPTH:
                self.flags |= CUT_DEPTH
                return position
            if kind == MULTIPART:
                cells[KIND] = MULTIPART
                row.digest = _is_digest(self.content[cells[TYPE_START] : cells[TYPE_END]])
                self.open.append(_Open(number, boundary))
                return position
            if kind == LEAF:
                return position
            if len(self.rows) >= MAX_PARTS:
                self.flags |= CUT_PARTS
                return position
            cells[KIND] = MESSAGE
            parent = number


def _line_end(content: bytes, start: int) -> int:
    """Offset of the LF that ends the line at `start`, or the end of the content."""
    end = content.find(b"\n", start)
    return len(content) if end < 0 else end


def _header(content: bytes, start: int, row: _Row, match) -> tuple[int, bool]:  # type: ignore[no-untyped-def]
    """Read the fields of interest of the header at `start` into `row`.

    match: finds delimiters, None if no multipart is open. Returns where the search for delimiters goes on, and whether
    a limit kept fields from being read.
    """
    cells, position, count, cut = row.cells, start, 0, False
    taken = False  # the field above is one of interest, and goes on if the next line begins with white space
    while True:
        if position >= len(content):
            cells[BODY_START], cells[FLAGS] = len(content), NO_HEADER_END
            return len(content), cut
        line_end = _line_end(content, position)
        text_end = line_end - 1 if line_end > position and content[line_end - 1] == 13 else line_end
        if text_end == position:
            cells[BODY_START] = min(line_end + 1, len(content))
            return cells[BODY_START], cut
        if match and content.startswith(b"--", position) and match(position, line_end)[0] >= 0:
            cells[BODY_START], cells[FLAGS] = position, NO_HEADER_END
            return position, cut
        if position - start >= MAX_HEADER:
            cut, taken = True, False
        elif content[position] in b" \t":
            if taken:
                name, value, _ = row.fields[-1]
                row.fields[-1] = name, value, text_end
                _mark(cells, name, value, text_end)
        elif count >= MAX_FIELDS:
            cut, taken = True, False
        else:
            count += 1
            colon = content.find(b":", position, text_end)
            name = content[position:colon].rstrip(b" \t").lower() if colon >= 0 else b""
            taken = name in _INTERESTING and not (name in _CONTENT and any(name == f[0] for f in row.fields))
            if taken:
                row.fields.append((name, colon + 1, text_end))
                _mark(cells, name, colon + 1, text_end)
        position = line_end + 1


def _mark(cells: list[int], name: bytes, start: int, end: int) -> None:
    """Keep the place of the two fields that the table shows."""
    if name == b"content-type":
        cells[TYPE_START], cells[TYPE_END] = start, end
    elif name == b"content-transfer-encoding":
        cells[ENCODING_START], cells[ENCODING_END] = start, end


# Values of structured fields (RFC 2045 5.1). All readers take `value` and an offset, and never fail. Those without an
# underscore serve iems.message too, where one value at a time is read.

_TOKEN_END = re.compile(rb"[ \t\r\n()<>@,;:\\\"/\[\]?=]")
_NAME_END = re.compile(rb"[ \t\r\n;=(\"]")
_BARE_END = re.compile(rb"[ \t\r\n;(]")


def _skip(value: bytes, at: int) -> int:
    """Past white space and comments."""
    while at < len(value):
        if value[at] in _WS:
            at += 1
        elif value[at] == 40:
            at = comment_end(value, at)
        else:
            break
    return at


def comment_end(value: bytes, at: int) -> int:
    """Past the comment that opens at `at`; an unclosed one goes to the end."""
    level = 0
    while at < len(value):
        char = value[at]
        if char == 92:
            at += 1
        elif char == 40:
            level = min(level + 1, MAX_COMMENTS)
        elif char == 41:
            level -= 1
            if level == 0:
                return at + 1
        at += 1
    return len(value)


def quoted_end(value: bytes, at: int) -> int:
    """Past the quoted string that opens at `at`; an unclosed one goes to the end."""
    at += 1
    while at < len(value):
        if value[at] == 92:
            at += 1
        elif value[at] == 34:
            return at + 1
        at += 1
    return len(value)


def _unquote(quoted: bytes) -> bytes:
    """The content of a quoted string that begins with a quote: no quotes, backslashes or line ends.

    A backslash stands for the octet after it; at the end it is dropped.
    """
    out, at = bytearray(), 1
    while at < len(quoted):
        char = quoted[at]
        if char == 34:
            break
        if char == 92:
            at += 1
            if at == len(quoted):
                break
            char = quoted[at]
        if char not in b"\r\n":
            out.append(char)
        at += 1
    return bytes(out)


def _until(pattern: re.Pattern[bytes], value: bytes, at: int) -> int:
    found = pattern.search(value, at)
    return found.start() if found else len(value)


def media(value: bytes) -> tuple[bytes, bytes, int]:
    """Type, subtype and the offset behind them; type b"" if there are none to read."""
    at = _skip(value, 0)
    type_end = _until(_TOKEN_END, value, at)
    slash = _skip(value, type_end)
    if type_end == at or value[slash : slash + 1] != b"/":
        return b"", b"", at
    start = _skip(value, slash + 1)
    end = _until(_TOKEN_END, value, start)
    if end == start:
        return b"", b"", at
    return value[at:type_end], value[start:end], end


def parameters(value: bytes, at: int) -> list[tuple[bytes, bytes]]:
    """The (name, value) pairs behind `at`, as sent but unquoted; a missing ";" between two is forgiven.

    Text that is no parameter is passed over up to the next ";".
    """
    found: list[tuple[bytes, bytes]] = []
    at = _until_semicolon(value, at)
    while len(found) < MAX_PARAMETERS:
        at = _skip(value, at)
        start = _skip(value, at + 1) if value[at : at + 1] == b";" else at
        if start >= len(value):
            break
        end = _until(_NAME_END, value, start)
        at = _skip(value, end)
        if end == start or value[at : at + 1] != b"=":
            at = _until_semicolon(value, at)
            continue
        name = value[start:end]
        at = _skip(value, at + 1)
        if value[at : at + 1] == b'"':
            end = quoted_end(value, at)
            found.append((name, _unquote(value[at:end])))
        else:
            end = _until(_BARE_END, value, at)
            found.append((name, value[at:end]))
        at = end
    return found


def _until_semicolon(value: bytes, at: int) -> int:
    """The next ";" outside quotes and comments, or the end."""
    while at < len(value) and value[at] != 59:
        if value[at] == 34:
            at = quoted_end(value, at)
        elif value[at] == 40:
            at = comment_end(value, at)
        else:
            at += 1
    return at


def _kind(value: bytes, digest: bool) -> tuple[int, bytes]:
    """What a part with this Content-Type is, and its boundary. digest: its parent is a multipart/digest."""
    main, sub, at = media(value)
    if not main:
        return (MESSAGE if digest else LEAF), b""
    if main.lower() == b"multipart":
        boundary = _boundary(parameters(value, at))
        return (MULTIPART, boundary) if boundary else (LEAF, b"")
    if main.lower() == b"message" and sub.lower() == b"rfc822":
        return MESSAGE, b""
    return LEAF, b""


def _boundary(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """The boundary, white space at its end taken off; b"" if there is none to use."""
    for name, value in pairs:
        if name.lower() == b"boundary":
            boundary = value
            break
    else:
        pieces = []
        for number in range(MAX_SEGMENTS):
            wanted = b"boundary*%d" % number
            piece = next((v for n, v in pairs if n.lower() == wanted), None)
            if piece is None:
                break
            pieces.append(piece)
        boundary = b"".join(pieces)
    boundary = boundary.rstrip(_WS)
    return boundary if len(boundary) <= MAX_BOUNDARY else b""


def _is_digest(value: bytes) -> bool:
    return media(value)[1].lower() == b"digest"


# The answers.


def scan(content: bytes) -> memoryview:
    """The parts of a message: int64[n, COLUMNS], the message itself first, then every part in order."""
    rows = _Parser(bytes(memoryview(content))).rows
    cells = array("q", [cell for row in rows for cell in row.cells])
    return memoryview(cells).cast("B").cast("q", (len(rows), COLUMNS))


def summarize(content: bytes) -> tuple[bytes, bytes]:
    """(ENVELOPE, BODYSTRUCTURE) in IMAP syntax, without the names of the items."""
    content = bytes(memoryview(content))
    rows = _Parser(content).rows
    writer = _Writer(content, rows)
    writer.extended = True
    return writer.envelope(0), writer.structure(0)


def body(content: bytes) -> bytes:
    """BODY: the structure without extension data (RFC 3501 7.4.2)."""
    content = bytes(memoryview(content))
    return _Writer(content, _Parser(content).rows).structure(0)


def select(content: bytes, names: list[bytes], invert: bool = False, start: int = 0, stop: int = -1) -> bytes:
    """The lines of the fields with these names (invert: of all others) in the header at `start`, and its empty line.

    This is the text of HEADER.FIELDS and HEADER.FIELDS.NOT (RFC 3501 6.4.5). The header ends at its empty line or at
    `stop` (-1: the end of the content); if it has no empty line, CRLF stands for it. A line without a colon is a field
    without a name; one that begins with white space belongs to the field above. Raises ValueError if `start` or `stop`
    is outside the content, TypeError if a name is no bytes.
    """
    content = bytes(memoryview(content))
    stop = len(content) if stop == -1 else stop
    if not 0 <= start <= stop <= len(content):
        raise ValueError("no such range")
    for name in names:
        if not isinstance(name, bytes):
            raise TypeError("names are bytes")
    wanted = frozenset(name.lower() for name in names)
    out, at, taken, first = bytearray(), start, False, True
    while at < stop:
        line_end = min(_line_end(content, at), stop)
        after = min(line_end + 1, stop)
        text_end = line_end - 1 if line_end > at and content[line_end - 1] == 13 else line_end
        if text_end == at:
            return bytes(out + content[at:after])
        if first or content[at] not in b" \t":
            first = False
            colon = content.find(b":", at, text_end)
            taken = (colon >= 0 and content[at:colon].rstrip(b" \t").lower() in wanted) is not bool(invert)
        if taken:
            out += content[at:after]
        at = after
    return bytes(out + b"\r\n")


class _Writer:
    """Renders rows in IMAP syntax."""

    def __init__(self, content: bytes, rows: list[_Row]) -> None:
        self.content, self.rows = content, rows
        self.extended = False
        self.children: list[list[int]] = [[] for _ in rows]
        for number, row in enumerate(rows):
            if number:
                self.children[row.cells[PARENT]].append(number)

    def _value(self, row: int, name: bytes) -> bytes | None:
        """The raw value of a field: the last, of Content-* the only one kept."""
        for known, start, end in reversed(self.rows[row].fields):
            if known == name:
                return self.content[start:end]
        return None

    def envelope(self, row: int) -> bytes:
        """ENVELOPE of the message whose header is that of `row`."""
        from_, sender, reply_to, to, cc, bcc = (self._addresses(row, name) for name in _ADDRESSES)
        date, subject, in_reply_to, message_id = (_text(self._value(row, name)) for name in _UNSTRUCTURED)
        sender = from_ if sender == b"NIL" else sender
        reply_to = from_ if reply_to == b"NIL" else reply_to
        return (
            b"("
            + b" ".join([date, subject, from_, sender, reply_to, to, cc, bcc, in_reply_to, message_id])
            + b")"
        )

    def _addresses(self, row: int, name: bytes) -> bytes:
        out: list[bytes] = []
        for known, start, end in self.rows[row].fields:
            if known == name:
                _address_list(self.content[start:end], out)
        return b"(" + b"".join(out) + b")" if out else b"NIL"

    def structure(self, row: int) -> bytes:
        """BODYSTRUCTURE (or BODY) of the part `row`."""
        cells = self.rows[row].cells
        type_value = self._value(row, b"content-type") or b""
        main, sub, at = media(type_value)
        if cells[KIND] == MULTIPART:
            inner = b"".join(self.structure(child) for child in self.children[row])
            # The grammar wants one part at least.
            inner = (
                inner
                or b"("
                + _DEFAULT_TEXT
                + b' NIL NIL "7bit" 0 0'
                + (b" NIL" * 4 if self.extended else b"")
                + b")"
            )
            out = b"(" + inner + b" " + _string(sub)
            if self.extended:
                out += b" " + _pairs(parameters(type_value, at)) + self._rest(row)
            return out + b")"
        parent = cells[PARENT]
        lowered = main.lower()
        if not main:
            in_digest = parent >= 0 and self.rows[parent].digest
            out = b'("message" "rfc822" NIL' if in_digest and cells[KIND] == MESSAGE else b"(" + _DEFAULT_TEXT
            lowered = b"message" if cells[KIND] == MESSAGE else b"text"
        elif cells[KIND] == LEAF and (
            lowered == b"multipart" or (lowered, sub.lower()) == (b"message", b"rfc822")
        ):
            # Not taken apart: the grammar keeps these types for what is, and a reader should see the text.
            out, lowered = b"(" + _DEFAULT_TEXT, b"text"
        else:
            pairs = parameters(type_value, at)
            if lowered == b"text" and not any(name.lower() == b"charset" for name, _ in pairs):
                pairs.append((b"charset", b"us-ascii"))
            out = b"(" + _string(main) + b" " + _string(sub) + b" " + _pairs(pairs)
        out += (
            b" "
            + _text(self._value(row, b"content-id"))
            + b" "
            + _text(self._value(row, b"content-description"))
        )
        encoding = single_token(self._value(row, b"content-transfer-encoding") or b"")
        out += b" " + (_string(encoding) if encoding else b'"7bit"')
        out += b" %d" % (cells[BODY_END] - cells[BODY_START])
        if cells[KIND] == MESSAGE:
            child = self.children[row][0]
            out += b" " + self.envelope(child) + b" " + self.structure(child)
        if lowered == b"text" or cells[KIND] == MESSAGE:
            out += b" %d" % cells[LINES]
        if self.extended:
            out += b" " + _text(self._value(row, b"content-md5")) + self._rest(row)
        return out + b")"

    def _rest(self, row: int) -> bytes:
        """Disposition, language and location, each with a space before it."""
        value = self._value(row, b"content-disposition") or b""
        start = _skip(value, 0)
        end = _until(_TOKEN_END, value, start)
        disposition = b"NIL"
        if end > start:
            disposition = b"(" + _string(value[start:end]) + b" " + _pairs(parameters(value, end)) + b")"
        languages = _languages(self._value(row, b"content-language") or b"")
        language = b"NIL"
        if len(languages) == 1:
            language = _string(languages[0])
        elif languages:
            language = b"(" + b" ".join(map(_string, languages)) + b")"
        return b" " + disposition + b" " + language + b" " + _text(self._value(row, b"content-location"))


def single_token(value: bytes) -> bytes:
    """The value of Content-Transfer-Encoding, a ";" at its end forgiven; b"" unless it is a single token."""
    start = _skip(value, 0)
    end = _until(_TOKEN_END, value, start)
    at = _skip(value, end)
    if value[at : at + 1] == b";":
        at = _skip(value, at + 1)
    return value[start:end] if at == len(value) else b""


def _languages(value: bytes) -> list[bytes]:
    """The tags of a Content-Language field (RFC 3282)."""
    tags: list[bytes] = []
    at = 0
    while len(tags) < MAX_PARAMETERS:
        at = _skip(value, at)
        if at >= len(value):
            break
        end = _until(_TOKEN_END, value, at)
        if end > at:
            tags.append(value[at:end])
        at = max(end, at + 1)
    return tags


def _pairs(pairs: list[tuple[bytes, bytes]]) -> bytes:
    if not pairs:
        return b"NIL"
    return b"(" + b" ".join(_string(name) + b" " + _string(value) for name, value in pairs) + b")"


def _text(value: bytes | None) -> bytes:
    """A field's value as an nstring: unfolded (RFC 5322 2.2.3), without the white space behind the colon."""
    if value is None:
        return b"NIL"
    return _string(value.lstrip(b" \t").replace(b"\r", b"").replace(b"\n", b""))


_NEEDS_LITERAL = re.compile(rb"[\x00\r\n\x80-\xff]")


def _string(value: bytes) -> bytes:
    """An IMAP string: quoted if it can be, else a literal. NUL, which neither can hold, becomes "?"."""
    value = value[:MAX_STRING]
    if len(value) > MAX_QUOTED or _NEEDS_LITERAL.search(value):
        return b"{%d}\r\n" % len(value) + value.replace(b"\0", b"?")
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


# Address lists (RFC 5322 3.4, 4.4), as ENVELOPE shows them: (name route mailbox host).


class Span:
    """One address as offsets into the value: what ended it and where its marks are, -1 where there is none."""

    def __init__(self) -> None:
        self.start = self.end = 0
        self.less = self.greater = -1
        self.at = -1  # the last "@" within <>, or of all if there are no <>
        self.colon = -1  # the end of a source route (RFC 5322 4.4)
        self.comment = self.comment_end = -1  # the last comment, its parentheses included
        self.stop = 0  # the octet that ended it: "," ";" ":" or 0 at the end


def measure(value: bytes, at: int) -> Span:
    """Measure the address that begins at `at`, up to a ",", ";" or ":" that stands outside quotes, comments and <>.

    An unclosed "<" ends at a "," or ";" as well, but for the commas of a source route.
    """
    span = Span()
    span.start = at
    while at < len(value):
        char = value[at]
        if char == 34:
            at = quoted_end(value, at)
            continue
        if char == 40:
            span.comment = at
            at = span.comment_end = comment_end(value, at)
            continue
        if char == 91:
            at = _literal_end(value, at)
            continue
        inside = span.less >= 0 and span.greater < 0
        in_route = inside and span.colon < 0 and value[span.less + 1] == 64
        if char == 60 and span.less < 0:
            span.less, span.at = at, -1
        elif char == 62 and inside:
            span.greater = at
        elif char == 64 and span.greater < 0:
            span.at = at
        elif char == 58 and in_route:
            span.colon, span.at = at, -1
        elif (char == 58 and span.less < 0) or char == 59 or (char == 44 and not in_route):
            span.stop = char
            break
        at += 1
    span.end = at
    return span


def _literal_end(value: bytes, at: int) -> int:
    """Past the domain literal that opens at `at`; if it does not close, past its bracket only."""
    start = at + 1
    at = start
    while at < len(value) and value[at] not in b"[,;<>\r\n":
        if value[at] == 93:
            return at + 1
        at += 2 if value[at] == 92 else 1
    return start


def _address_list(value: bytes, out: list[bytes]) -> None:
    """Append the addresses of `value` to `out`, at most MAX_ADDRESSES in all; groups by their two marks."""
    at, group = 0, False
    while at < len(value) and len(out) < MAX_ADDRESSES:
        span = measure(value, at)
        if span.stop == 58 and not group:
            out.append(b"(NIL NIL " + _string(joined_words(value[span.start : span.end])) + b" NIL)")
            group = True
        else:
            address = _address(value, span)
            if address:
                out.append(address)
            if span.stop == 59 and group:
                out.append(b"(NIL NIL NIL NIL)")
                group = False
        at = span.end + 1
    if group:
        out.append(b"(NIL NIL NIL NIL)")


def _address(value: bytes, span: Span) -> bytes:
    """One address in parentheses; b"" if there is none."""
    route = b"NIL"
    if span.less >= 0:
        end = span.greater if span.greater >= 0 else span.end
        name = joined_words(value[span.start : span.less])
        start = span.less + 1
        if span.colon >= 0:
            source = squeezed(value[start : span.colon])
            route = _string(source) if source else b"NIL"
            start = span.colon + 1
    else:
        start, end, name = span.start, span.end, b""
    if span.at >= 0:
        mailbox, host = squeezed(value[start : span.at]), squeezed(value[span.at + 1 : end])
    else:
        mailbox, host = joined_words(value[start:end]), b""
    if not (name or mailbox or host):
        return b""
    if not name and span.comment >= 0:
        name = comment_text(value[span.comment : span.comment_end])
    return (
        b"("
        + (_string(name) if name else b"NIL")
        + b" "
        + route
        + b" "
        + _string(mailbox)
        + b" "
        + _string(host)
        + b")"
    )


def joined_words(value: bytes) -> bytes:
    """A phrase: its words unquoted, one space between them, comments left out."""
    return _joined(value, b" ")


def squeezed(value: bytes) -> bytes:
    """A local part, domain or route: unquoted, white space and comments left out."""
    return _joined(value, b"")


def _joined(value: bytes, between: bytes) -> bytes:
    out, at = bytearray(), 0
    gap = False
    while at < len(value):
        char = value[at]
        if char in _WS:
            gap, at = True, at + 1
        elif char == 40:
            gap, at = True, comment_end(value, at)
        else:
            if gap and out:
                out += between
            gap = False
            if char == 34:
                end = quoted_end(value, at)
                out += _unquote(value[at:end])
                at = end
            else:
                out.append(char)
                at += 1
    return bytes(out)


def comment_text(comment: bytes) -> bytes:
    """The text of a comment without its outer parentheses and backslashes; white space at both ends taken off."""
    inner = comment[1:-1] if len(comment) > 1 and comment.endswith(b")") else comment[1:]
    out, at = bytearray(), 0
    while at < len(inner):
        if inner[at] == 92 and at + 1 < len(inner):
            at += 1
        if inner[at] not in b"\r\n":
            out.append(inner[at])
        at += 1
    return bytes(out).strip(b" \t")
