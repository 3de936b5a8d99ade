"""Tag lists, `name=value; name=value` (RFC 6376 3.2): the form of DKIM, ARC and DMARC records and fields. Pure."""

from __future__ import annotations

import re
from typing import Final

#: Octets of one list, and tags in it.
MAX_OCTETS: Final = 65_536
MAX_TAGS: Final = 100

_WHITE: Final = " \t\r\n"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


class BadTags(ValueError):
    """No tag list, or a tag twice."""


def parse(octets: bytes) -> dict[str, str]:
    """The tags in order, values without white space at their ends. Raises BadTags: what is not a list as a whole is none."""
    if len(octets) > MAX_OCTETS:
        raise BadTags("too long")
    found: dict[str, str] = {}
    pieces = octets.decode("utf-8", "surrogateescape").split(";", MAX_TAGS)
    if len(pieces) > MAX_TAGS:
        raise BadTags("too many tags")
    for at, piece in enumerate(pieces):
        name, equals, value = piece.partition("=")
        name = name.strip(_WHITE)
        if not equals or not _NAME.match(name):
            if at and at == len(pieces) - 1 and not piece.strip(_WHITE):
                break
            raise BadTags(f"no tag: {piece[:40]!r}")
        if name in found:
            raise BadTags(f"{name}= twice")
        found[name] = value.strip(_WHITE)
    return found


def solid(value: str) -> str:
    """A value without any white space, as base64 and lists may be folded."""
    for space in _WHITE:
        if space in value:
            value = value.replace(space, "")
    return value
