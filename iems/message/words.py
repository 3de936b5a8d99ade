"""Text in headers: charsets, encoded words (RFC 2047), parameters with charset and continuations (RFC 2231).

Nothing here fails on bad input: what can't be decoded is shown as it was sent, or with U+FFFD.
"""

from __future__ import annotations

import binascii
import codecs
import re
from functools import lru_cache

from iems._native.mime_py import media, parameters

#: Octets of one value looked at for encoded words; the rest is shown as sent.
MAX_VALUE = 65_536
#: Pieces of one parameter put together (RFC 2231 3).
MAX_PIECES = 256

# What senders write, and what they mean. The first ones are supersets that senders use under the smaller set's name
# (as the WHATWG Encoding Standard has it).
_MEANT = {
    "us-ascii": "cp1252",
    "ascii": "cp1252",
    "ansi_x3.4-1968": "cp1252",
    "iso-8859-1": "cp1252",
    "iso8859-1": "cp1252",
    "iso_8859-1": "cp1252",
    "latin1": "cp1252",
    "l1": "cp1252",
    "iso-8859-9": "cp1254",
    "iso-8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "gb_2312-80": "gb18030",
    "x-gbk": "gb18030",
    "shift_jis": "cp932",
    "shift-jis": "cp932",
    "sjis": "cp932",
    "x-sjis": "cp932",
    "windows-31j": "cp932",
    "ks_c_5601-1987": "cp949",
    "ks_c_5601-1989": "cp949",
    "euc-kr": "cp949",
    "korean": "cp949",
    "big5": "big5hkscs",
    "x-euc-jp": "euc_jp",
    "iso-8859-8-i": "iso-8859-8",
    "iso-8859-6-i": "iso-8859-6",
    "unicode-1-1-utf-7": "utf-7",
    "unicode-1-1-utf-8": "utf-8",
    "x-mac-roman": "mac-roman",
    "macintosh": "mac-roman",
    "x-mac-cyrillic": "mac-cyrillic",
    "utf8": "utf-8",
    "utf-8mb4": "utf-8",
}
# Python calls these text encodings, but none is a charset of mail; some take quadratic time.
_NO_CHARSET = frozenset(
    ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem")
)
_CHARSET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,39}\Z")


@lru_cache(maxsize=256)
def codec(charset: str) -> str | None:
    """The name of Python's decoder for a charset of mail (any case), None if there is none."""
    name = charset.strip().strip("'\"").lower()
    if not _CHARSET.match(name):
        return None
    name = _MEANT.get(name, name)
    if name.startswith("x-") and name not in ("x-mac-japanese",):
        name = _MEANT.get(name[2:], name[2:])
    try:
        found = codecs.lookup(name.replace("cp-", "cp").replace("windows-", "cp"))
    except (LookupError, ValueError):
        return None
    if not getattr(found, "_is_text_encoding", True) or found.name.replace("-", "_") in _NO_CHARSET:
        return None
    return found.name


def decode(octets: bytes, charset: str = "") -> str:
    """`octets` as text. Of an unknown charset, or octets above 127 in us-ascii: UTF-8 if they are that, else windows-1252."""
    if (
        octets.isascii()
        and b"\x1b" not in octets
        and not charset.lower().startswith(("utf-7", "utf-16", "utf-32", "unicode", "hz"))
    ):
        return octets.decode("ascii")
    found = codec(charset) if charset else None
    if found is None or charset.strip("'\" ").lower() in ("us-ascii", "ascii", "ansi_x3.4-1968"):
        try:
            return octets.decode("utf-8")
        except UnicodeDecodeError:
            found = "cp1252"
    try:
        return octets.decode(found, "replace")
    except (UnicodeError, LookupError):
        return octets.decode("latin-1")


_WORD = re.compile(rb"=\?([^\s?=]{1,75})\?([bBqQ])\?([^?\r\n]*)\?=")


def decode_words(value: bytes) -> str:
    """The value of an unstructured field as text: unfolded, encoded words decoded.

    White space between two encoded words is dropped (RFC 2047 6.2). Words that follow one another in one charset are put
    together before they are decoded, because senders cut characters in two. Lenient: spaces and raw octets in a word, a
    word of any length or within other text. An invalid one stays as it is.
    """
    value = value.replace(b"\r", b"").replace(b"\n", b"").strip(b" \t")
    if b"=?" not in value:
        return decode(value)
    out: list[str] = []
    pending, pending_charset = bytearray(), ""
    at, limit = 0, min(len(value), MAX_VALUE)

    def flush() -> None:
        if pending:
            out.append(decode(bytes(pending), pending_charset))
            pending.clear()

    after_word = False
    for word in _WORD.finditer(value, 0, limit):
        octets = _word_octets(word[2], word[3])
        if octets is None:
            continue
        between = value[at : word.start()]
        if not (after_word and not between.strip(b" \t")):
            flush()
            out.append(decode(between))
        charset = word[1].decode("latin-1").partition("*")[0].lower()  # RFC 2231 5: a language behind "*"
        if charset != pending_charset:
            flush()
            pending_charset = charset
        pending += octets
        at, after_word = word.end(), True
    flush()
    out.append(decode(value[at:]))
    return "".join(out)


def _word_octets(encoding: bytes, text: bytes) -> bytes | None:
    """The octets of an encoded word, None if it is invalid."""
    if encoding in b"qQ":
        return re.sub(rb"=([0-9A-Fa-f]{2})", lambda m: bytes((int(m[1], 16),)), text.replace(b"_", b" "))
    return unbase64(text)


_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/=]+")


def unbase64(text: bytes) -> bytes:
    """The octets of base64 (RFC 2045 6.8): anything outside the alphabet is passed over, a cut end gives what it holds."""
    try:
        return binascii.a2b_base64(text)
    except binascii.Error:
        # Not a multiple of four letters: a cut message. Two or three letters still hold one or two octets.
        letters = _NO_BASE64.sub(b"", text).partition(b"=")[0]
        letters = letters[: len(letters) - (len(letters) % 4 == 1)]
        return binascii.a2b_base64(letters + b"=" * (-len(letters) % 4))


def decode_parameters(value: bytes, at: int = 0) -> dict[str, str]:
    """The parameters behind `at` of a structured value, decoded: names in lower case; of a repeated one the first counts.

    Understands RFC 2231 (name*, name*0, name*1*, ...) and the encoded words in quotes that many senders use instead
    (RFC 2047 5 forbids them). An extended value counts more than a plain one of the same name.
    """
    plain: dict[str, str] = {}
    pieces: dict[str, dict[int, tuple[bool, bytes]]] = {}
    for raw_name, raw in parameters(value, at):
        name, _, rest = raw_name.decode("latin-1").lower().partition("*")
        extended = rest.endswith("*") or raw_name.endswith(b"*")
        number = rest.rstrip("*")
        if not rest and not extended:
            plain.setdefault(name, decode_words(raw) if b"=?" in raw else decode(raw))
        elif (not number and extended) or (number.isascii() and number.isdigit() and len(number) <= 3):
            group = pieces.setdefault(name, {})
            if len(group) < MAX_PIECES:
                group.setdefault(int(number or "0"), (extended, raw))
    for name, group in pieces.items():
        charset, octets = "", bytearray()
        for order in range(len(group)):
            if order not in group:
                break
            extended, raw = group[order]
            if extended:
                if order == 0 and raw.count(b"'") >= 2:
                    label, _, raw = raw.split(b"'", 2)
                    charset = label.decode("latin-1")
                raw = re.sub(rb"%([0-9A-Fa-f]{2})", lambda m: bytes((int(m[1], 16),)), raw)
            octets += raw
        if octets or 0 in group:
            plain[name] = decode(bytes(octets), charset)
    return plain


def content_type(value: bytes) -> tuple[str, str, dict[str, str]]:
    """(type, subtype, parameters) of a Content-Type, the first two in lower case; text/plain if it can't be read."""
    main, sub, at = media(value)
    if not main:
        return "text", "plain", {}
    return main.decode("latin-1").lower(), sub.decode("latin-1").lower(), decode_parameters(value, at)


def disposition(value: bytes) -> tuple[str, dict[str, str]]:
    """(disposition, parameters) of a Content-Disposition (RFC 2183), the first in lower case; "" if there is none."""
    word = re.match(rb"[ \t\r\n]*([^ \t\r\n;=(\"]+)", value)
    if not word:
        return "", {}
    return word[1].decode("latin-1").lower(), decode_parameters(value, word.end())


# Encoding, for mail made here.

_ATTRIBUTE = re.compile(r"[A-Za-z0-9!#$&+.^_`{|}~-]+\Z")


def encode_words(text: str, first: int = 0) -> str:
    """`text` for an unstructured field: as it is if it is printable ASCII, else in encoded words of UTF-8 (RFC 2047).

    first: columns already used on the line. The words are joined by CRLF SP, none is longer than 75 and no line longer
    than 76 columns; no character is cut in two. Line ends and other controls in `text` are encoded with the rest, so the
    result can't end the field.
    """
    if text.isascii() and text.isprintable() and "=?" not in text:
        return text
    words: list[str] = []
    room = max(75 - first, 40)
    chunk = bytearray()
    for char in text:
        octets = char.encode("utf-8", "replace")
        if len(chunk) + len(octets) > (room - 12) // 4 * 3:
            words.append(_b_word(bytes(chunk)))
            chunk.clear()
            room = 75
        chunk += octets
    words.append(_b_word(bytes(chunk)))
    return "\r\n ".join(words)


def _b_word(octets: bytes) -> str:
    return "=?utf-8?b?" + binascii.b2a_base64(octets, newline=False).decode() + "?="


def encode_parameter(name: str, value: str) -> list[str]:
    """A parameter as one or more `name=value` (RFC 2231 if it is long or not ASCII), each without CR or LF and at most
    75 columns. Raises ValueError if `name` is no attribute."""
    if not _ATTRIBUTE.match(name):
        raise ValueError(f"no name of a parameter: {name!r}")
    if value.isascii() and value.isprintable() and len(value) + len(name) < 70:
        if value and _ATTRIBUTE.match(value):
            return [f"{name}={value}"]
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        if len(quoted) + len(name) < 72:
            return [f'{name}="{quoted}"']
    safe = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$&+.^_`{|}~-"
    units = [chr(o) if o in safe else f"%{o:02X}" for o in value.encode("utf-8", "replace")]
    rows, row, room = [], "utf-8''", 75 - len(name) - 6
    for unit in units:
        if len(row) + len(unit) > room:
            rows.append(row)
            row = ""
        row += unit
    rows.append(row)
    if len(rows) == 1:
        return [f"{name}*={rows[0]}"]
    return [f"{name}*{number}*={row}" for number, row in enumerate(rows)]
