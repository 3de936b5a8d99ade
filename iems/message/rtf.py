"""Text or HTML out of RTF: what Outlook encapsulated in it (MS-OXRTFEX), or the plain text of any other RTF. Lenient and bounded."""

from __future__ import annotations

import re

MAX_OUTPUT = 4 << 20
MAX_GROUPS = 10_000

_TOKEN = re.compile(
    rb"\\([a-z]{1,32})(-?[0-9]{1,9})? ?|\\'([0-9A-Fa-f]{2})|\\(\*)|\\([^a-z'*])|([{}])|([^\\{}\r\n]+)|[\r\n]+|(.)", re.S
)
#: Destinations whose text is not the message's.
_HIDDEN = frozenset(
    b"fonttbl colortbl stylesheet info pntext pict object header footer headerl headerr footerl footerr ftnsep"
    b" listtable listoverridetable rsidtbl generator themedata latentstyles datastore mhtmltag xmlnstbl".split()
)
_WORDS = {
    b"par": "\r\n", b"line": "\r\n", b"sect": "\r\n", b"row": "\r\n", b"tab": "\t", b"cell": "\t", b"lquote": "\u2018", b"rquote": "\u2019",
    b"ldblquote": "\u201c", b"rdblquote": "\u201d", b"bullet": "\u2022", b"endash": "\u2013", b"emdash": "\u2014", b"enspace": " ",
    b"emspace": " ",
}  # fmt: skip
_CHARSETS = {
    0: "cp1252", 77: "mac_roman", 128: "cp932", 129: "cp949", 134: "cp936", 136: "cp950", 161: "cp1253", 162: "cp1254", 163: "cp1258",
    177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251", 222: "cp874", 238: "cp1250",
}  # fmt: skip


class _Group:
    """What holds until the group's end."""

    __slots__ = ("codec", "hidden", "rtf_only", "skip", "starred", "tag")

    def __init__(self, codec: str) -> None:
        self.codec = codec
        self.hidden = False
        self.rtf_only = False  # between \htmlrtf and \htmlrtf0
        self.skip = 1  # octets that stand for a \u character
        self.starred = False
        self.tag = False  # in {\*\htmltag ...}

    def copy(self) -> _Group:
        made = _Group(self.codec)
        made.hidden, made.rtf_only, made.skip, made.tag = self.hidden, self.rtf_only, self.skip, self.tag
        return made


def extract(rtf: bytes) -> tuple[str, bool]:
    """(text, whether it is HTML) of an RTF document, at most MAX_OUTPUT characters. Never raises."""
    html = b"\\fromhtml1" in rtf[:4096]
    fonts = _fonts(rtf)
    group = _Group("cp1252")
    stack: list[_Group] = []
    out: list[str] = []
    octets = bytearray()
    size = skip = 0

    def flush() -> None:
        nonlocal size
        if octets:
            out.append(octets.decode(group.codec, "replace"))
            size += len(octets)
            octets.clear()

    for found in _TOKEN.finditer(rtf):
        word, number, code, star, symbol, brace, run, _ = found.groups()
        if size > MAX_OUTPUT:
            break
        if brace == b"{":
            flush()
            if len(stack) >= MAX_GROUPS:
                break
            stack.append(group)
            group, skip = group.copy(), 0
            continue
        if brace == b"}":
            flush()
            group, skip = (stack.pop() if stack else group), 0
            continue
        if star:
            group.starred = True
            continue
        shown = not group.hidden and not group.rtf_only
        if word:
            if group.starred:
                group.starred = False
                group.tag = word == b"htmltag"
                if not group.tag:
                    group.hidden = True
                    continue
            elif word in _HIDDEN:
                group.hidden = True
                continue
            if word == b"htmlrtf":
                flush()
                group.rtf_only = number != b"0"
            elif word == b"uc":
                group.skip = min(max(int(number or 1), 0), 8)
            elif word == b"ansicpg" and number:
                flush()
                group.codec = _known(f"cp{int(number)}")
                for outer in stack:
                    outer.codec = group.codec
            elif word == b"f" and number and int(number) in fonts:
                flush()
                group.codec = fonts[int(number)]
            elif word == b"u" and number:
                if shown:
                    flush()
                    point = int(number) % 65536
                    out.append("\ufffd" if 0xD800 <= point <= 0xDFFF else chr(point))
                    size += 1
                skip = group.skip
            elif shown and word in _WORDS and (not html or not group.tag or word in (b"par", b"tab", b"line")):
                flush()
                out.append(_WORDS[word])
                size += 2
            continue
        if code:
            if skip:
                skip -= 1
            elif shown:
                octets.append(int(code, 16))
            continue
        if symbol:
            if shown and symbol in b"\\{}":
                octets += symbol
            elif shown and symbol == b"~":
                flush()
                out.append("&nbsp;" if html and not group.tag else "\u00a0")
            continue
        if run:
            dropped = min(skip, len(run))
            skip -= dropped
            if shown:
                octets += run[dropped:]
    flush()
    return "".join(out)[:MAX_OUTPUT].replace("\0", ""), html


def _fonts(rtf: bytes) -> dict[int, str]:
    """Font number -> codec, from the font table."""
    table = re.search(rb"\{\\fonttbl(.{0,65536}?)\}\s*\}", rtf, re.S)
    if table is None:
        return {}
    return {
        int(number): _CHARSETS[int(charset)]
        for number, charset in re.findall(rb"\\f([0-9]{1,5})[^{};]{0,200}?\\fcharset([0-9]{1,3})", table[1])
        if int(charset) in _CHARSETS
    }


def _known(codec: str) -> str:
    import codecs

    try:
        codecs.lookup(codec)
    except LookupError:
        return "utf-8" if codec == "cp65001" else "cp1252"
    return codec
