"""Structures of messages lately asked for in parts: clients fetch attachments piece by piece."""

from __future__ import annotations

from typing import Any

from iems.message import Structure

#: Structures kept by one worker, and parts in all of them (a part costs about 100 octets).
MAX_KEPT = 64
MAX_PARTS = 20_000

Key = tuple[int, int, int]


class Structures:
    """The last few structures by (account, mailbox id, uid), without their content."""

    def __init__(self) -> None:
        self._kept: dict[Key, Any] = {}
        self._parts = 0

    def get(self, key: Key) -> Any:
        """A kept structure or None; its `content` is b"": use ranges only."""
        found = self._kept.pop(key, None)  # and to the end: the first is the oldest
        if found is not None:
            self._kept[key] = found
        return found

    def keep(self, key: Key, structure: Structure) -> None:
        """Keep a structure for the next request; its content is let go."""
        structure.content = b""
        parts = len(structure)
        while self._kept and (len(self._kept) >= MAX_KEPT or self._parts + parts > MAX_PARTS):
            oldest = next(iter(self._kept))
            self._parts -= len(self._kept.pop(oldest))
        self._kept[key] = structure
        self._parts += parts
