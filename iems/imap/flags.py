"""Flags (RFC 3501 2.3.2): bits in the store, names on the wire.

Bits 0 to 4 are the system flags; bit 5, \\Recent, lives in sessions only; keywords have bits from 16 on, named per
mailbox.
"""

from __future__ import annotations

import re

from iems.imap.grammar import Bad

SEEN = 1
ANSWERED = 2
FLAGGED = 4
DELETED = 8
DRAFT = 16
RECENT = 32
FIRST_KEYWORD = 16
MAX_KEYWORDS = 40

SYSTEM = {
    rb"\ANSWERED": ANSWERED,
    rb"\FLAGGED": FLAGGED,
    rb"\DELETED": DELETED,
    rb"\SEEN": SEEN,
    rb"\DRAFT": DRAFT,
}
_NAMES = (
    (ANSWERED, rb"\Answered"),
    (FLAGGED, rb"\Flagged"),
    (DELETED, rb"\Deleted"),
    (SEEN, rb"\Seen"),
    (DRAFT, rb"\Draft"),
    (RECENT, rb"\Recent"),
)
_CANONICAL = {name.upper(): name.decode() for _bit, name in _NAMES}
_KEYWORD = re.compile(rb'[^(){ \x00-\x1f\x7f-\xff%*"\\\]]{1,255}')

SYSTEM_NAMES = b" ".join(name for bit, name in _NAMES if bit != RECENT)


def settable(names: list[bytes]) -> list[str]:
    """Flags of a STORE or APPEND as the store takes them: system flags in canonical case, keywords as written.

    \\Recent is dropped (RFC 3501 2.3.2: it can't be set by clients). Raises `Bad` for an unknown system flag.
    """
    result: dict[str, None] = {}
    for name in names:
        upper = name.upper()
        if name.startswith(b"\\"):
            if upper not in SYSTEM:
                if upper == rb"\RECENT":
                    continue
                raise Bad(f"Unknown system flag {name.decode('ascii', 'replace')}")
            result[_CANONICAL[upper]] = None
        else:
            if not _KEYWORD.fullmatch(name):
                raise Bad("Malformed keyword")
            result[name.decode("ascii")] = None
    return list(result)


def render(bits: int, keywords: list[str]) -> bytes:
    """The flag list of a message with its parentheses.

    keywords: names of bits 16, 17, ... A bit without a name is left out.
    """
    names = [name for bit, name in _NAMES if bits & bit]
    high = bits >> FIRST_KEYWORD
    index = 0
    while high:
        if high & 1 and index < len(keywords) and keywords[index]:
            names.append(keywords[index].encode("ascii", "replace"))
        high >>= 1
        index += 1
    return b"(" + b" ".join(names) + b")"


def keyword_bit(name: bytes, keywords: list[str]) -> int:
    """The bit of a keyword in a mailbox, any case; 0 if no message there ever had it."""
    wanted = name.decode("ascii", "replace").lower()
    for index, keyword in enumerate(keywords):
        if keyword.lower() == wanted:
            return 1 << (FIRST_KEYWORD + index)
    return 0
