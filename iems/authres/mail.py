"""One message as the evaluators see it: its fields, and hashes of its body read in pieces.

Small bodies are hashed at once; above `THREAD_OCTETS` a thread does it, so that a loop goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from iems.authres.canonical import MAX_HEADER, BodyHash, Field, split

#: The first read; it holds the whole of most messages.
FIRST_OCTETS: Final = 65_536
PIECE_OCTETS: Final = 1 << 20
THREAD_OCTETS: Final = 256 * 1024

#: (relaxed, octets covered or None for all).
Wanted = tuple[bool, int | None]


class Mail:
    """A message of `size` octets. read: (start, length) -> octets, fewer only at its end.

    header: octets before the empty line, cut at MAX_HEADER (then `cut` is set, and nothing can be verified). fields: as
    `canonical.split` has them.
    """

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self.size = size
        self._read = read
        head = read(0, min(size, FIRST_OCTETS))
        end = _header_end(head)
        if end is None and size > len(head):
            head = read(0, min(size, MAX_HEADER))
            end = _header_end(head)
        self._head = head
        self.cut = end is None and size > len(head)
        self.header, self._body = (head, len(head)) if end is None else (head[: end[0]], end[1])
        self.fields: list[Field] = split(self.header)
        #: What `body_hashes` found so far. Another view of a message with the same body may be given it.
        self.hashed: dict[Wanted, tuple[bytes, int]] = {}

    @property
    def body_at(self) -> int:
        """Where the body begins."""
        return self._body

    @classmethod
    def of(cls, octets: bytes) -> Mail:
        """A message in memory."""
        return cls(len(octets), lambda start, length: octets[start : start + length])

    async def body_hashes(self, wanted: set[Wanted]) -> dict[Wanted, tuple[bytes, int]]:
        """(SHA-256, length of the whole canonical body) for each of `wanted`; the body is read once for all of them."""
        missing = {(relaxed, limit) for relaxed, limit in wanted if (relaxed, limit) not in self.hashed}
        if missing:
            hashes = {
                relaxed: BodyHash(relaxed, [limit for form, limit in missing if form == relaxed and limit is not None])
                for relaxed in {form for form, _ in missing}
            }
            size = self.size - self._body
            if size <= THREAD_OCTETS:
                _update(hashes, self._head[self._body : self.size])
                if self.size > len(self._head):
                    rest = max(self._body, len(self._head))
                    _update(hashes, self._read(rest, self.size - rest))
            else:
                at = self._body
                while at < self.size:
                    piece = self._read(at, min(PIECE_OCTETS, self.size - at))
                    if not piece:
                        raise EOFError("the content ends before its length")
                    at += len(piece)
                    await asyncio.to_thread(_update, hashes, piece)
            for one in hashes.values():
                one.finish()
            for relaxed, limit in missing:
                one = hashes[relaxed]
                self.hashed[relaxed, limit] = one.digest(limit), one.length
        return self.hashed


def _header_end(head: bytes) -> tuple[int, int] | None:
    """(end of the last field, start of the body)."""
    if head.startswith(b"\r\n"):
        return 0, 2
    at = head.find(b"\r\n\r\n")
    return None if at < 0 else (at, at + 4)


def _update(hashes: dict[bool, BodyHash], piece: bytes) -> None:
    for one in hashes.values():
        one.update(piece)
