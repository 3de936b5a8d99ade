"""Mailbox names as names of files and back: each level one name, what a file system or Maildir++ can't bear as %XX of UTF-8."""

from __future__ import annotations

import re

_UNSAFE = re.compile(r"[^\w !#$&'()+,;=@\[\]{}~^-]|^ | $")
_MAX = 120


def to_file(level: str) -> str:
    """One level of a mailbox's name as a file name. A long one is cut and ends with a hash."""
    name = _UNSAFE.sub(lambda found: "".join(f"%{octet:02X}" for octet in found[0].encode("utf-8", "replace")), level)
    if len(name.encode()) > _MAX:
        import hashlib

        kept = name.encode()[: _MAX - 20].decode("utf-8", "ignore").rpartition("%")[0] or name[:40]
        name = f"{kept}~{hashlib.blake2b(level.encode(), digest_size=8).hexdigest()}"
    return name


def from_file(name: str) -> str:
    """A level of a mailbox's name from a file name, made by us or by others."""
    if "%" in name:
        octets = re.sub(rb"%([0-9A-Fa-f]{2})", lambda found: bytes((int(found[1], 16),)), name.encode("utf-8", "surrogateescape"))
        name = octets.decode("utf-8", "replace")
    elif "&" in name:
        name = _utf7(name)
    return "".join(char for char in name if char.isprintable() and char not in "*%/").strip() or "unnamed"


def _utf7(name: str) -> str:
    """Modified UTF-7 (RFC 3501 5.1.3), as Maildir++ servers write it; unchanged if it is none."""
    from iems.imap.names import decode

    try:
        return str(decode(name.encode("ascii")))
    except (UnicodeError, ValueError):
        return name
