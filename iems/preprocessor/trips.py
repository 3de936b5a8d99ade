"""How often a message has been here: own Received lines in its header (loop detection, RFC 5321 6.3).

Only lines whose `by` clause names this host count: long chains of other hosts are no loop of ours. Received lines are
prepended, so they stand at the start of the header.
"""

from __future__ import annotations

import re

#: One read covers the header of nearly all mail.
HEAD_OCTETS = 16 * 1024
#: Where the header is longer and this host appears in it, this much is looked at.
LONG_HEAD_OCTETS = 512 * 1024


class Trips:
    """Counts own Received lines. hostname: as this host writes it after `by`."""

    def __init__(self, hostname: str) -> None:
        name = hostname.encode("ascii", "replace")
        self._by = b"by " + name
        self._field = re.compile(rb"^received:[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*", re.IGNORECASE | re.MULTILINE)
        # `by` as a word of its own after `from ... (...)`, not part of the name given in EHLO.
        self._clause = re.compile(
            rb"(?:^received:|[\s)])\s*by\s+" + re.escape(name) + rb"(?=[\s;(]|\Z)", re.IGNORECASE
        )

    def at_least(self, head: bytes, limit: int) -> bool | None:
        """Whether the header holds `limit` own lines or more; None: the header goes on beyond `head`, read more.

        Costs one search of the octets for mail that has not been here often.
        """
        end = head.find(b"\r\n\r\n")
        hits = head.count(self._by) if end < 0 else head.count(self._by, 0, end)
        if hits < limit:
            # Our own lines are found by their octets; a header that goes on is followed if it holds any.
            return None if hits and end < 0 and len(head) >= HEAD_OCTETS else False
        return self.count(head) >= limit

    def count(self, head: bytes) -> int:
        """How many own Received lines the header holds."""
        end = head.find(b"\r\n\r\n")
        header = head if end < 0 else head[: end + 2]
        return sum(1 for field in self._field.finditer(header) if self._clause.search(field[0]))
