"""Which messages hold a text, told for most of them by the kernel `texts`; `text.Searchable` is asked about the others.

The kernel is taught here what folding makes of characters (this Python's Unicode) and of what characters the octets of common charsets are.
"""

from __future__ import annotations

import unicodedata

from iems._native import kernel
from iems.message.words import decode

_texts = kernel("texts")

NO: int = _texts.NO
YES: int = _texts.YES
UNSURE: int = _texts.UNSURE
MAX_KEYS: int = _texts.MAX_KEYS
judge = _texts.judge
sift = _texts.sift

#: Characters from U+0080 to below these are taught; of those above it, what the kernel knows to be their own folds.
_LAST, _GAP = 0x0600, (0x1E00, 0x2200)
#: Charsets of one octet a character, the one that stands in for all others first.
_CHARSETS = (
    "windows-1252", "iso-8859-1", "iso-8859-15", "iso-8859-2", "windows-1250", "windows-1251", "koi8-r", "latin1", "iso8859-1", "cp1252",
    "iso-8859-9", "windows-1254",
)  # fmt: skip


def folded_alone(char: str) -> str:
    """The fold of a character wherever it stands, white space as a space; "" if it depends on its neighbours."""
    inner = unicodedata.normalize("NFKC", char)
    outer = unicodedata.normalize("NFKC", inner.casefold())
    if any(unicodedata.combining(text[0]) for text in (char, inner, outer)):
        return ""
    return "".join(" " if one.isspace() else one for one in outer)


def key_of(text: str) -> bytes | None:
    """A folded text as the kernel takes it, None if it can't."""
    try:
        return text.encode() or None
    except UnicodeEncodeError:
        return None


def _learn() -> None:
    folds = [b""] * (_GAP[1] - 0x80)
    for number in (*range(0x80, _LAST), *range(*_GAP)):
        folds[number - 0x80] = folded_alone(chr(number)).encode()
    charsets = []
    for name in _CHARSETS:
        characters = [ord(decode(bytes((octet,)), name)) for octet in range(256)]
        charsets.append((name.encode(), b"".join(number.to_bytes(2, "little") for number in characters)))
    _texts.learn(folds, charsets)


_learn()
