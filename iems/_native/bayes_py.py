"""The Python twin of `bayes`: features of a message, counts in flat tables, and the score made of them.

This side is written to be read and defines the answer. Nothing is read from a message but what the caller hands over:
its header, the headers of its parts, and its text parts with transfer encoding and charset undone (`iems.bayes.parts`).

A feature is 32 bits. The lowest three tell its kind: 0 a token, 1 a pair of neighbours among the words of body or subject, or
of names of fields. The others are the key, the upper end of a 64-bit hash of the token with its type: FNV-1a over the type's
name and the token, mixed at the end.

Types of tokens: `NAME:` what stands in that header field (hosts and addresses also by their domain's ends, IPv4 addresses
also by /24 and /16), `hdr:` names of fields and pairs of neighbours, `part:` header of a part (type, encoding, extension),
`body:` and `subject:` words, `url:` host of a link by its ends, `tag:`, `attr:` of HTML, `hidden:` text no reader sees,
`kin:` whether the domains in two fields are the same, `shape:` coarse measures of the whole message.

A table is a flat array of uint32 in buckets of 16, 2^bits buckets. The upper `bits` of a key name its home bucket, the rest
stands in the slot, so that nothing of the key is lost and a table can be doubled. A slot, from the low end: rest of the key
(29 - bits), whether it is in its other bucket (1), count (bits + 2; 0: the slot is free). The other bucket follows from home
and rest, so a table takes six of seven slots before it must grow. What is counted is the weight of the lessons a feature was
in (`iems.bayes.trainer`).
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final

#: Kinds of sections that `features` takes.
HEADER: Final = 0  # the header of the message
PART: Final = 1  # the header of a part
TEXT: Final = 2
HTML: Final = 3

MIN_WORD: Final = 2
MAX_WORD: Final = 40  # octets; longer ones count as skip: first octet and length in tens
MAX_FEATURES: Final = 1 << 15  # of one message
MAX_LABELS: Final = 6  # ends of one host name
MAX_QUOTED: Final = 4096  # octets in which a quoted attribute must end
SLOTS: Final = 16  # of a bucket
MIN_BITS: Final = 7
MAX_BITS: Final = 24
KEY_BITS: Final = 29

STRENGTH: Final = 0.45  # of the belief before evidence, in units of weight (Robinson's s); it says 0.5 (x)
PRIOR_STRENGTH: Final = 6.0  # the same where a site-wide table knows the feature; it says what that table says
WEIGHTS: Final = (1.0, 0.6)  # of a token, of a pair
UNIT: Final = 0.2  # what one count moves the linear sum

_MASK: Final = (1 << 64) - 1
_BASIS: Final = 0xCBF29CE484222325  # FNV-1a, 64 bits
_PRIME: Final = 0x100000001B3
_MIX: Final = 0xD6E8FEB86659FD93
_LEFT: Final = 0x9E3779B97F4A7C15


def _fnv(state: int, octets: bytes) -> int:
    for octet in octets:
        state = ((state ^ octet) * _PRIME) & _MASK
    return state


def _mixed(state: int) -> int:
    state ^= state >> 32
    state = (state * _MIX) & _MASK
    state ^= state >> 32
    state = (state * _MIX) & _MASK
    state ^= state >> 32
    return state & ~7


def token(kind: bytes, octets: bytes) -> int:
    """The hash of a token of a type such as b"body:"."""
    return _mixed(_fnv(_fnv(_BASIS, kind), octets))


def pair(first: int, second: int) -> int:
    """The hash of two tokens side by side."""
    return _mixed((first * _LEFT + second) & _MASK) | 1


def reduced(wide: int) -> int:
    """The feature of a hash; never 0."""
    return (wide >> 32 & ~7 | wide & 7) or 8


_LOWER: Final = bytes(range(65)) + bytes(range(97, 123)) + bytes(range(91, 256))
_WORD: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789$%'-._!") | frozenset(range(128, 256))
_TRIM: Final = b"'-._"
_IDEOGRAPH: Final = 0xE3  # first octet of U+3000 and above: written without spaces, so each character is a word
_HOST: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-._%")
_SPLIT: Final = frozenset(b" \t\r\n\0<>()[]{},;:\"=*")
_DIGITS: Final = frozenset(b"0123456789")
_LETTERS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz")
_NAME: Final = _LETTERS | _DIGITS | frozenset(b"-_:")
_SPACE: Final = frozenset(b" \t\r\n\f\0")
# Fields that say nothing of who wrote the message, or what a filter said before.
_PASSED: Final = (b"x-spam", b"x-iems", b"x-bogosity", b"status", b"x-status", b"x-uid", b"x-keywords", b"x-mozilla")
_IDENTIFIERS: Final = frozenset(
    (b"message-id", b"references", b"in-reply-to", b"thread-index", b"resent-message-id", b"content-id",
     b"dkim-signature", b"domainkey-signature", b"arc-seal", b"arc-message-signature")
)  # fmt: skip
_DATES: Final = frozenset((b"date", b"x-originalarrivaltime"))  # and all whose names end with -date
#: Fields whose first domains are compared, and which with which.
_PARTIES: Final = (b"from", b"to", b"reply-to", b"return-path", b"message-id")
_KIN: Final = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 3), (1, 4))
_VALUED: Final = frozenset((b"color", b"bgcolor", b"face", b"size", b"border", b"align", b"type", b"target", b"method"))
_LINKS: Final = frozenset((b"href", b"src", b"action", b"background"))
# Elements that don't end a word: "v<b></b>iagra" reads as one.
_INLINE: Final = frozenset((b"a", b"b", b"i", b"u", b"em", b"strong", b"font", b"span", b"big", b"small", b"tt", b"s"))
_VOID: Final = frozenset((b"br", b"hr", b"img", b"input", b"meta", b"link", b"base", b"area", b"col"))
_ENTITIES: Final = {b"nbsp": b" ", b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}


class Tokens:
    """The features of one message in the order of their first sight, each once; `names` has them as text if asked for."""

    def __init__(self, named: bool = False, limit: int = MAX_FEATURES) -> None:
        self.found: dict[int, None] = {}
        self.names: dict[int, str] | None = {} if named else None
        self.limit = limit
        self.sites: list[bytes | None] = [None] * len(_PARTIES)
        self.parts = self.fields = self.received = 0
        self.octets = [0, 0]  # of plain text, of HTML
        self.small = self.capital = self.beyond = self.marks = self.money = self.links = self.quoted = 0

    def add(self, wide: int, kind: bytes, octets: bytes) -> int:
        """Adds the feature of a hash, and gives the hash back."""
        feature = reduced(wide)
        if len(self.found) < self.limit and feature not in self.found:
            self.found[feature] = None
            if self.names is not None:
                self.names[wide] = (kind + octets).decode("utf-8", "replace")
        return wide

    def token(self, kind: bytes, octets: bytes) -> int:
        """Adds a token; a long one as its first octet and its length in tens."""
        if len(octets) > MAX_WORD:
            octets = b"skip:" + octets[:1] + b":%d" % min(len(octets) // 10, 99)
        return self.add(token(kind, octets), kind, octets)

    def pair(self, first: int, second: int) -> None:
        """Adds a pair of tokens that have been added."""
        if self.names is None:
            self.add(pair(first, second), b"", b"")
        else:
            left, right = self.names.get(first, "?"), self.names.get(second, "?").partition(":")[2]
            self.add(pair(first, second), b"", f"{left} {right}".encode("utf-8", "replace"))

    # Text

    def text(self, kind: bytes, text: bytes, pairs: bool) -> None:
        """Words of a text in lower case, with `pairs` also pairs of words; links by their host."""
        before = 0  # the word in front
        at, end = 0, len(text)
        while at < end:
            octet = text[at]
            if octet not in _WORD:
                at += 1
                continue
            if octet >= _IDEOGRAPH:
                after = min(at + (4 if octet >= 0xF0 else 3), end)
                before = self._beside(before, self.token(kind, text[at:after]), pairs)
                at = after
                continue
            after = at + 1
            while after < end and text[after] in _WORD and text[after] < _IDEOGRAPH:
                after += 1
            start, at = at, after
            if text.startswith(b"://", after) and text[start:after] in (b"http", b"https", b"ftp"):
                at, host = self.host(text, after + 3)
                before = self._beside(before, host, pairs)
                continue
            while start < after and text[start] in _TRIM:
                start += 1
            loud = False
            while start < after and text[after - 1] in b"'-._!":
                after -= 1
                loud = loud or text[after] == 33
            if after - start < MIN_WORD:
                continue
            word = self.token(kind, text[start:after])
            if loud:
                self.token(b"loud:", text[start:after])
            before = self._beside(before, word, pairs)

    def _beside(self, before: int, word: int, pairs: bool) -> int:
        if pairs and before:
            self.pair(before, word)
        return word

    def host(self, text: bytes, at: int) -> tuple[int, int]:
        """The host of a link whose authority begins at `at` (in lower case); returns where it ends, and its token."""
        name = bytearray()
        while at < len(text) and len(name) < 256:
            octet = text[at]
            if octet == 64:  # "http://www.bank.test@192.0.2.1/": what stands before is no host
                self.token(b"url:", b"@")
                name.clear()
            elif octet not in _HOST:
                break
            elif octet == 37 and at + 2 < len(text) and _hex(text[at + 1]) >= 0 and _hex(text[at + 2]) >= 0:
                name += bytes((_hex(text[at + 1]) * 16 + _hex(text[at + 2]),)).translate(_LOWER)
                self.token(b"url:", b"%")
                at += 2
            else:
                name.append(octet)
            at += 1
        whole = bytes(name).strip(b".")
        self.ends(b"url:", whole)
        return at, token(b"url:", whole[:MAX_WORD])

    def ends(self, kind: bytes, host: bytes) -> None:
        """A host name and its ends, an IPv4 address and its nets; cut to MAX_WORD octets each."""
        if not host:
            return
        self.add(token(kind, host[:MAX_WORD]), kind, host[:MAX_WORD])
        numeric = all(octet in _DIGITS or octet == 46 for octet in host)
        at, count = 0, 0
        while count < MAX_LABELS:
            at = host.rfind(b".", 0, len(host) if not count else at) if numeric else host.find(b".", at) + 1
            if at <= 0:
                break
            count += 1
            piece = host[:at] if numeric else host[at : at + MAX_WORD]
            if numeric and count > 2:
                break
            self.add(token(kind, piece[:MAX_WORD]), kind, piece[:MAX_WORD])

    # Header

    def header(self, header: bytes, prefix: bytes) -> None:
        """The fields of a header; prefix: b"" or b"part:"."""
        at, end, above = 0, len(header), 0
        while at < end:
            line_end = header.find(b"\n", at)
            line_end = end if line_end < 0 else line_end
            stop = line_end + 1
            while stop < end and header[stop] in b" \t":  # what is folded belongs to the line above
                line_end = header.find(b"\n", stop)
                line_end = end if line_end < 0 else line_end
                stop = line_end + 1
            colon = header.find(b":", at, line_end)
            if colon > at and colon - at <= MAX_WORD:
                sent = header[at:colon].rstrip(b" \t")
                name = sent.translate(_LOWER)
                if not name.startswith(_PASSED):
                    here = self.token(prefix + b"hdr:", sent)
                    if above:
                        self.pair(above, here)
                    above = here
                    if not prefix:
                        self.fields += 1
                        self.received += name == b"received"
                        if name in _PARTIES and self.sites[_PARTIES.index(name)] is None:
                            self.sites[_PARTIES.index(name)] = _site(header[colon + 1 : line_end].translate(_LOWER))
                    value = header[colon + 1 : line_end].translate(_LOWER)
                    if name == b"subject" and not prefix:
                        self.text(b"subject:", value, True)
                    else:
                        self.field(prefix, name, value)
            at = stop

    def field(self, prefix: bytes, name: bytes, value: bytes) -> None:
        """The tokens of a field's value, in lower case."""
        kind = prefix + name + b":"
        received, identifiers = name == b"received", name in _IDENTIFIERS
        date = name in _DATES or name.endswith(b"-date")
        typed = name in (b"content-type", b"content-disposition")
        at, end = 0, len(value)
        if received and b";" in value:  # when it came tells who was writing in those months, not what it is
            end = value.rindex(b";")
        while at < end:
            if value[at] in _SPLIT:
                at += 1
                continue
            after = at + 1
            while after < end and value[after] not in _SPLIT:
                after += 1
            word, at = value[at:after], after
            if date:
                if word[0] in b"+-":
                    self.token(kind, word)
                continue
            if typed and word == b"boundary":
                # Its shape tells the program that wrote it, the rest only this message.
                while at < end and value[at] in b" \t\r\n\"=":
                    at += 1
                after = at
                while after < end and after - at < 20 and value[after] not in _DIGITS and value[after] not in b"\";\r\n":
                    after += 1
                self.token(kind, b"boundary=" + value[at:after])
                at = value.find(b";", after)
                at = end if at < 0 else at
                continue
            sign = word.find(b"@")
            dotted = word.find(b".", sign + 1) >= 0
            if sign >= 0 and sign + 1 < len(word):
                self.ends(kind, word[sign + 1 :].strip(b"."))
            elif dotted:
                self.ends(kind, word.strip(b"."))
            if identifiers:
                continue
            if received and (sign >= 0 or dotted or not all(octet in _LETTERS for octet in word)):
                continue
            if len(word) >= MIN_WORD and not (dotted and sign < 0):
                self.token(kind, word)

    # The whole

    def measure(self, text: bytes, html: bool) -> None:
        """Take the measures of a text as it was sent."""
        self.octets[html] += len(text)
        for octet in text:
            self.small += 97 <= octet <= 122
            self.capital += 65 <= octet <= 90
            self.beyond += octet >= 128
            self.marks += octet == 33
            self.money += octet == 36
        self.links += text.count(b"://")
        if not html:
            for line in text.split(b"\n"):
                self.quoted += line.lstrip(b" \t")[:1] in (b">", b"|", b":")

    def shape(self) -> None:
        """Add what the whole looks like: measures, coarse, and which domains are the same."""
        for first, second in _KIN:
            a, b = self.sites[first], self.sites[second]
            said = b"none" if not a or not b else b"same" if a == b else b"other"
            self.token(b"kin:" + _PARTIES[first] + b"," + _PARTIES[second] + b"=", said)
        text, html = self.octets
        whole = max(text + html, 1)
        for name, value in (
            (b"parts=", min(self.parts, 3) + 4 * (text > 0) + 8 * (html > 0)),
            (b"text=", text.bit_length()),
            (b"html=", html.bit_length()),
            (b"links=", self.links.bit_length()),
            (b"quoted=", self.quoted.bit_length()),
            (b"fields=", self.fields.bit_length()),
            (b"received=", min(self.received, 9)),
            (b"capitals=", 20 * self.capital // max(self.small + self.capital, 1)),
            (b"beyond=", min(50 * self.beyond // whole, 9)),
            (b"marks=", min(500 * self.marks // whole, 9)),
            (b"money=", min(self.money, 4)),
        ):
            self.token(b"shape:" + name, b"%d" % value)

    # HTML

    def html(self, text: bytes) -> None:
        """The text of an HTML part in lower case: words a reader sees, words he doesn't, elements, links."""
        seen, unseen = bytearray(), bytearray()
        backdrop = b"#ffffff"
        hiding, depth = b"", 0
        at, end = 0, len(text)
        while at < end:
            out = unseen if depth else seen
            octet = text[at]
            if octet == 38:
                at = _entity(text, at, out)
                continue
            if octet != 60:
                out.append(octet)
                at += 1
                continue
            if text.startswith(b"<!--", at):
                self.token(b"tag:", b"!--")
                after = text.find(b"-->", at + 4)
                at = end if after < 0 else after + 3
                continue
            following = text[at + 1] if at + 1 < end else 0
            if following not in _LETTERS and following not in b"/!?":
                out.append(octet)
                at += 1
                continue
            closing = following == 47
            at += 2 if closing else 1
            start = at
            while at < end and text[at] in _NAME:
                at += 1
            name = text[start : min(at, start + MAX_WORD)]
            if name not in _INLINE:
                out.append(32)
            if not closing:
                self.token(b"tag:", name)
            hidden = False
            while at < end and text[at] != 62:
                if text[at] not in _NAME:
                    at += 1
                    continue
                start = at
                while at < end and text[at] in _NAME:
                    at += 1
                key = text[start : min(at, start + MAX_WORD)]
                while at < end and text[at] in _SPACE:
                    at += 1
                if at >= end or text[at] != 61:
                    continue
                at += 1
                while at < end and text[at] in _SPACE:
                    at += 1
                start, after = at, at
                if at < end and text[at] in b"\"'":
                    after = text.find(text[at : at + 1], at + 1, at + 1 + MAX_QUOTED)
                    start += 1
                if after > at:
                    at = after + 1
                else:
                    after = start
                    while after < end and text[after] not in _SPACE and text[after] != 62:
                        after += 1
                    at = after
                value = text[start:after]
                if key in _LINKS:
                    mark = value.find(b"://")
                    if 0 <= mark <= 6:
                        self.host(value, mark + 3)
                    else:
                        self.token(b"attr:" + key + b"=", value.partition(b":")[0] if b":" in value[:12] else b"relative")
                elif key in _VALUED:
                    self.token(b"attr:" + key + b"=", value)
                if key == b"bgcolor":
                    backdrop = _colour(value)
                elif key == b"color":
                    hidden = hidden or _colour(value) == backdrop
                elif key == b"style":
                    hidden = hidden or _hides(value)
            at += 1
            if closing:
                if depth and name == hiding:
                    depth -= 1
            elif depth:
                depth += name == hiding
            elif hidden and name not in _VOID:
                self.token(b"tag:", b"hidden")
                hiding, depth = name, 1
            if not closing and name in (b"script", b"style"):
                after = text.find(b"</" + name, at)
                at = end if after < 0 else after
        self.text(b"body:", bytes(seen), True)
        self.text(b"hidden:", bytes(unseen), False)


def _site(value: bytes) -> bytes:
    """The last two labels of the first domain behind an "@", b"" if there is none."""
    at = value.find(b"@") + 1
    if not at:
        return b""
    after = at
    while after < len(value) and value[after] in _HOST and value[after] != 37:
        after += 1
    host = value[at:after].strip(b".")
    dot = host.rfind(b".", 0, max(host.rfind(b"."), 0))
    return host[dot + 1 :]


def _hex(octet: int) -> int:
    if 48 <= octet <= 57:
        return octet - 48
    return octet - 87 if 97 <= octet <= 102 else -1


def _colour(value: bytes) -> bytes:
    value = value[:MAX_WORD]
    return {b"white": b"#ffffff", b"#fff": b"#ffffff", b"black": b"#000000", b"#000": b"#000000"}.get(value, value)


def _hides(style: bytes) -> bool:
    style = style.replace(b" ", b"")
    return b"display:none" in style or b"visibility:hidden" in style or b"font-size:0" in style or b"font-size:1px" in style


def _entity(text: bytes, at: int, out: bytearray) -> int:
    """Append what the "&" at `at` stands for; returns where it ends."""
    after = at + 1
    while after < len(text) and after - at < 9 and (text[after] in _LETTERS or text[after] in _DIGITS or text[after] == 35):
        after += 1
    name = text[at + 1 : after]
    end = after + 1 if after < len(text) and text[after] == 59 else after
    if name in _ENTITIES:
        out += _ENTITIES[name]
        return end
    if len(name) > 1 and name[0] == 35:
        digits, base = (name[2:], 16) if name[1] == 120 else (name[1:], 10)
        code = 0
        for octet in digits:
            digit = _hex(octet)
            if not 0 <= digit < base:
                code = -1
                break
            code = code * base + digit
        if digits and 0 < code < 0x110000 and not 0xD800 <= code < 0xE000:
            out += (32 if code == 160 else code).to_bytes(1, "big").translate(_LOWER) if code < 128 or code == 160 else chr(code).encode()
            return end
    out.append(38)
    return at + 1


def collect(sections: list[tuple[int, bytes]], tokens: Tokens) -> None:
    """Put the features of `sections` into `tokens`; see `features`."""
    for kind, octets in sections:
        if kind == HEADER:
            tokens.header(octets, b"")
        elif kind == PART:
            tokens.parts += 1
            tokens.header(octets, b"part:")
        elif kind == HTML:
            tokens.measure(octets, True)
            tokens.html(octets.translate(_LOWER))
        else:
            tokens.measure(octets, False)
            tokens.text(b"body:", octets.translate(_LOWER), True)
    if sections:
        tokens.shape()


def features(sections: list[tuple[int, bytes]], limit: int = MAX_FEATURES) -> bytes:
    """The features of a message as uint32 in the machine's order, each once, at most `limit`.

    sections: (HEADER | PART | TEXT | HTML, octets); text in UTF-8, beyond ASCII already in lower case and NFKC.
    """
    tokens = Tokens(limit=limit)
    collect(sections, tokens)
    return struct.pack(f"={len(tokens.found)}I", *tokens.found)


def names(sections: list[tuple[int, bytes]]) -> dict[int, str]:
    """Each feature of a message and how it is shown to a person. Only this side has it: for one message at a time."""
    tokens = Tokens(named=True)
    collect(sections, tokens)
    assert tokens.names is not None
    return {reduced(wide): text for wide, text in tokens.names.items()}


# Tables


def _other(home: int, rest: int, bits: int) -> int:
    return home ^ ((rest * 0x9E3779B1 & 0xFFFFFFFF) >> (32 - bits) | 1)


def _find(table: memoryview, bits: int, key: int) -> int:
    """The slot of a key, or -1."""
    rest = key & ((1 << (KEY_BITS - bits)) - 1)
    home = key >> (KEY_BITS - bits)
    for mark, bucket in ((rest, home), (rest | 1 << (KEY_BITS - bits), _other(home, rest, bits))):
        for slot in range(bucket * SLOTS, bucket * SLOTS + SLOTS):
            value = table[slot]
            if value & ((2 << (KEY_BITS - bits)) - 1) == mark and value >> (1 + KEY_BITS - bits):
                return slot
    return -1


def _table(octets: Any, bits: int) -> memoryview:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError("bits out of range")
    table = memoryview(octets).cast("B")
    if len(table) != SLOTS * 4 << bits:
        raise ValueError("a table of another size")
    return table.cast("I")


def _count(table: memoryview, bits: int, key: int) -> int:
    slot = _find(table, bits, key)
    return 0 if slot < 0 else table[slot] >> (1 + KEY_BITS - bits)


def _insert(table: memoryview, bits: int, key: int, count: int) -> bool:
    """Put a key that is not in the table there; False if both of its buckets are full."""
    rest = key & ((1 << (KEY_BITS - bits)) - 1)
    home = key >> (KEY_BITS - bits)
    other = _other(home, rest, bits)
    free = [[slot for slot in range(b * SLOTS, b * SLOTS + SLOTS) if not table[slot] >> (1 + KEY_BITS - bits)] for b in (home, other)]
    elsewhere = len(free[1]) > len(free[0])
    if not free[elsewhere]:
        return False
    table[free[elsewhere][0]] = rest | elsewhere << (KEY_BITS - bits) | count << (1 + KEY_BITS - bits)
    return True


def add(octets: Any, bits: int, keys: Any, start: int, change: int) -> int:
    """Add `change` to the counts of keys[start:]; return how far it came: before len(keys) if the table must grow.

    octets: a writable table of 2^bits buckets. keys: uint32, of which KEY_BITS count. Counts stay within 0 (the slot is
    freed) and what the table can hold; a key that is not there and is taken away from is passed over. Raises ValueError
    if the sizes don't fit.
    """
    table, most = _table(octets, bits), (1 << (bits + 2)) - 1
    wanted = memoryview(keys).cast("B").cast("I")
    if start < 0:
        raise ValueError("start is negative")
    for at in range(start, len(wanted)):
        key = wanted[at] & (1 << KEY_BITS) - 1
        slot = _find(table, bits, key)
        if slot >= 0:
            count = max(0, min(most, (table[slot] >> (1 + KEY_BITS - bits)) + change))
            table[slot] = table[slot] & ((2 << (KEY_BITS - bits)) - 1) | count << (1 + KEY_BITS - bits) if count else 0
        elif change > 0 and not _insert(table, bits, key, min(change, most)):
            return at
    return max(start, len(wanted))


def grow(old: Any, old_bits: int, new: Any, bits: int) -> bool:
    """Put all of a table into an empty, larger one; False if it does not fit there (then take a larger one still)."""
    table = _table(new, bits)
    if bits < old_bits:
        raise ValueError("smaller than it was")
    most = (1 << (bits + 2)) - 1
    listed = memoryview(items(old, old_bits)).cast("I")
    return all(_insert(table, bits, listed[at], min(listed[at + 1], most)) for at in range(0, len(listed), 2))


def items(octets: Any, bits: int) -> bytes:
    """All (key, count) of a table as uint32 pairs, in the order of its slots."""
    table, found = _table(octets, bits), []
    mask = (1 << (KEY_BITS - bits)) - 1
    for slot, value in enumerate(table):
        if value >> (1 + KEY_BITS - bits):
            rest, bucket = value & mask, slot // SLOTS
            home = _other(bucket, rest, bits) if value >> (KEY_BITS - bits) & 1 else bucket
            found += [home << (KEY_BITS - bits) | rest, value >> (1 + KEY_BITS - bits)]
    return struct.pack(f"={len(found)}I", *found)


def halve(octets: Any, bits: int) -> int:
    """Halve all counts, so that what was seen once is forgotten; return how many keys are left."""
    table, left = _table(octets, bits), 0
    for slot, value in enumerate(table):
        count = value >> (1 + KEY_BITS - bits) >> 1
        table[slot] = value & ((2 << (KEY_BITS - bits)) - 1) | count << (1 + KEY_BITS - bits) if count else 0
        left += count > 0
    return left


# Scores


def _belief(good: float, spam: float, goods: float, spams: float, strength: float, before: float) -> float:
    """Robinson's f(w) as odds: how much more likely spam is than good, after lessons of `good` and `spam` with a feature."""
    count = good + spam
    if count:
        good, spam = good / max(goods, 1.0), spam / max(spams, 1.0)
        share = count * (spam / (good + spam))
    else:
        share = 0.0
    return (strength * before + share) / (strength * (1.0 - before) + (count - share))


def weigh(found: bytes, good: Any, good_bits: int, goods: int, spam: Any, spam_bits: int, spams: int,
          prior_good: Any = None, prior_good_bits: int = 0, prior_goods: int = 0,
          prior_spam: Any = None, prior_spam_bits: int = 0, prior_spams: int = 0) -> bytes:  # fmt: skip
    """Two float64 for each feature: its weighted log odds (0 if no table knows it), and its share in the linear sum.

    found: what `features` gave. good, spam: tables; goods, spams: the weight of all lessons in each. prior_*: the same of
    the site, or None. Raises ValueError if sizes don't fit.
    """
    mine = _table(good, good_bits), _table(spam, spam_bits)
    site = None
    if prior_good is not None:
        site = _table(prior_good, prior_good_bits), _table(prior_spam, prior_spam_bits)
    values: list[float] = []
    for feature in memoryview(found).cast("B").cast("I"):
        key, weight = feature >> 3, _weight(feature)
        strength, before = STRENGTH, 0.5
        known = False
        balance = 0
        if site is not None:
            g, s = _count(site[0], prior_good_bits, key), _count(site[1], prior_spam_bits, key)
            if g or s:
                known = True
                balance = s - g
                odds = _belief(g, s, prior_goods, prior_spams, STRENGTH, 0.5)
                strength, before = PRIOR_STRENGTH, odds / (1.0 + odds)
        g, s = _count(mine[0], good_bits, key), _count(mine[1], spam_bits, key)
        if not (known or g or s):
            values += (0.0, 0.0)
            continue
        balance += s - g
        values += (math.log(_belief(g, s, goods, spams, strength, before)) * weight, UNIT * weight * weight * balance)
    return struct.pack(f"={len(values)}d", *values)


def _weight(feature: int) -> float:
    kind = feature & 7
    return WEIGHTS[kind] if kind < len(WEIGHTS) else 0.0


def score(found: bytes, *tables: Any) -> tuple[float, float, float]:
    """What two ways of reading the tables say of a message, and its length (arguments as of `weigh`).

    The first: the sum of the weighted log odds over the root of the sum of the squared weights of the features that are
    known. The second: the linear sum over the length. The length: the root of the sum of all squared weights. Positive for
    spam; all 0.0 if there is nothing.
    """
    values = memoryview(weigh(found, *tables)).cast("d")
    total = linear = squares = length = 0.0
    for at, feature in enumerate(memoryview(found).cast("B").cast("I")):
        square = _weight(feature) * _weight(feature)
        length += square
        if values[2 * at] != 0.0:
            total += values[2 * at]
            squares += square
        linear += values[2 * at + 1]
    length = math.sqrt(length)
    return total / math.sqrt(squares) if squares > 0.0 else 0.0, linear / length if length > 0.0 else 0.0, length
