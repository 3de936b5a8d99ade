"""Names of mailboxes: text, "/" between levels (RFC 9051 5.1); INBOX is one name in any case."""

from __future__ import annotations

from iems.errors import StoreError

SEPARATOR = "/"
NAME_OCTETS_MAX = 1_000
DEPTH_MAX = 32


def normal(name: str) -> str:
    """`name` with INBOX in upper case where it is the first level; no check."""
    first, slash, rest = name.partition(SEPARATOR)
    if first.upper() == "INBOX":
        return "INBOX" + slash + rest
    return name


def checked(name: str) -> str:
    """The normal form of a name to create; a "/" at the end (RFC 9051 6.3.4) is dropped. Raises StoreError with CANNOT."""
    name = normal(name.removesuffix(SEPARATOR))
    try:
        octets = len(name.encode())
    except UnicodeEncodeError:
        raise StoreError("a mailbox name must be Unicode text", "CANNOT") from None
    levels = name.split(SEPARATOR)
    if octets > NAME_OCTETS_MAX or len(levels) > DEPTH_MAX:
        raise StoreError("the mailbox name is too long", "LIMIT")
    if not all(levels):
        raise StoreError("a level of the mailbox name is empty", "CANNOT")
    if any(ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u2028\u2029" for char in name):
        raise StoreError("control characters in the mailbox name", "CANNOT")
    if any(char in "*%" for char in name):
        raise StoreError("wildcards in the mailbox name", "CANNOT")
    return name


def parents(name: str) -> list[str]:
    """All levels above `name`, the highest first."""
    levels = name.split(SEPARATOR)
    return [SEPARATOR.join(levels[:count]) for count in range(1, len(levels))]
