"""What each member of a shared mailbox has seen: bits beside the flags rows, one row for each member and `MARK_UIDS` uids (keys.py, MARK).

A bit says that \\Seen is for this member the other way round than in the flags row, which says how the message came. So a message costs nothing
until a member reads it, and then a bit; no row grows with the mailbox.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from iems.store import keys
from iems.store.rows import MARK_OCTETS, MARK_UIDS, SEEN

#: Offset of the flags in a flags row, octet of \Seen.
_FLAGS_AT = 8
#: Rows looked up one by one; beyond, those that are there are walked.
_LOOK_UPS = 1_024


class Marks:
    """The marks of one mailbox in a transaction that writes; `flush` puts what changed. Rows that were never there cost one look."""

    def __init__(self, txn: Any, account: int, mailbox_id: int) -> None:
        self._txn = txn
        self._account = account
        self._mailbox = mailbox_id
        self._chunks: dict[int, dict[int, bytearray]] = {}
        self._changed: set[tuple[int, int]] = set()
        prefix = keys.prefix(account, keys.MARK, mailbox_id)
        cursor = txn.cursor()
        self.any: bool = bool(cursor.set_range(prefix)) and cursor.key().startswith(prefix)

    def _chunk(self, chunk: int) -> dict[int, bytearray]:
        """Member -> bits of one chunk."""
        found = self._chunks.get(chunk)
        if found is None:
            found = self._chunks[chunk] = {}
            if self.any:
                prefix = keys.prefix(self._account, keys.MARK, self._mailbox) + chunk.to_bytes(4, "big")
                cursor = self._txn.cursor()
                if cursor.set_range(prefix):
                    for key, value in cursor:
                        if not key.startswith(prefix):
                            break
                        found[int.from_bytes(key[-4:], "big")] = bytearray(value.ljust(MARK_OCTETS, b"\0"))
        return found

    def marked(self, uid: int, member: int) -> bool:
        """Whether a member has a message marked."""
        bits = self._chunk(uid // MARK_UIDS).get(member)
        return bits is not None and bool(bits[uid % MARK_UIDS >> 3] >> (uid & 7) & 1)

    def members(self, uid: int) -> list[int]:
        """Who has a message marked."""
        if not self.any:
            return []
        return [member for member in self._chunk(uid // MARK_UIDS) if self.marked(uid, member)]

    def mark(self, uid: int, member: int, on: bool = True) -> None:
        """Set or take away a mark."""
        chunk = uid // MARK_UIDS
        rows = self._chunk(chunk)
        bits = rows.get(member)
        if bits is None:
            if not on:
                return
            bits = rows[member] = bytearray(MARK_OCTETS)
        at, bit = uid % MARK_UIDS >> 3, 1 << (uid & 7)
        bits[at] = bits[at] | bit if on else bits[at] & ~bit
        self._changed.add((chunk, member))

    def clear(self, uids: Iterable[int]) -> None:
        """Take away all marks of messages that go."""
        if self.any:
            for uid in uids:
                for member in self.members(uid):
                    self.mark(uid, member, False)

    def flush(self) -> None:
        """Write what changed."""
        for chunk, member in self._changed:
            bits = self._chunks[chunk][member]
            key = keys.mark(self._account, self._mailbox, chunk, member)
            if any(bits):
                self._txn.put(key, bytes(bits))
            else:
                self._txn.delete(key)
        self._changed.clear()


class Glasses:
    """One mailbox as a member sees it, in a transaction that reads: the flags of rows with the member's marks."""

    def __init__(self, txn: Any, account: int, mailbox_id: int, member: int) -> None:
        self._txn = txn
        self._account = account
        self._mailbox = mailbox_id
        self._member = member
        self._chunks: dict[int, bytes] = {}

    def _bits(self, chunk: int) -> bytes:
        bits = self._chunks.get(chunk)
        if bits is None:
            found = self._txn.get(keys.mark(self._account, self._mailbox, chunk, self._member))
            bits = self._chunks[chunk] = bytes(found) if found is not None else b""
        return bits

    def turned(self, uid: int) -> int:
        """SEEN if the member has the message marked, else 0."""
        bits = self._bits(uid // MARK_UIDS)
        at = uid % MARK_UIDS >> 3
        return SEEN if at < len(bits) and bits[at] >> (uid & 7) & 1 else 0

    def row(self, value: bytes) -> bytes:
        """A flags row."""
        turned = self.turned(int.from_bytes(value[:4], "little"))
        if not turned:
            return value
        return value[:_FLAGS_AT] + bytes((value[_FLAGS_AT] ^ turned,)) + value[_FLAGS_AT + 1 :]

    def rows(self, found: Iterator[tuple[bytes, bytes]], prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Flags rows, as long as keys begin with `prefix`; what comes after is left as it is."""
        for key, value in found:
            yield key, self.row(bytes(value)) if key.startswith(prefix) else value

    def all(self, uids: np.ndarray, flags: np.ndarray) -> np.ndarray:
        """Flags of these uids (uint32, ascending)."""
        seen = np.array(flags)
        for chunk in np.unique(uids // MARK_UIDS).tolist():
            if bits := self._bits(chunk):
                first, last = np.searchsorted(uids, [chunk * MARK_UIDS, (chunk + 1) * MARK_UIDS])
                places = uids[first:last] % MARK_UIDS
                on = np.unpackbits(np.frombuffer(bits.ljust(MARK_OCTETS, b"\0"), np.uint8), bitorder="little")[places]
                seen[first:last] ^= on.astype(np.uint64) * np.uint64(SEEN)
        return seen

    def count(self, uidnext: int) -> int:
        """Messages the member has marked."""
        chunks = (uidnext - 1) // MARK_UIDS + 1
        if chunks <= _LOOK_UPS:
            return sum(int.from_bytes(self._bits(chunk), "little").bit_count() for chunk in range(chunks))
        # A mailbox through which millions went: most chunks have no row any more.
        prefix, member = keys.prefix(self._account, keys.MARK, self._mailbox), self._member.to_bytes(4, "big")
        total = 0
        cursor = self._txn.cursor()
        if cursor.set_range(prefix):
            for key, value in cursor:
                if not key.startswith(prefix):
                    break
                if key[-4:] == member:
                    total += int.from_bytes(value, "little").bit_count()
        return total
