"""Takes the messages of a mailbox into the index of its account, in slices, in a thread of the process that wants it.

One process builds an index at a time: it holds a lock on a file beside it. A power cut may undo the store's last commit, so that a
uid is given twice: `still_right` finds out by the origin of the last message.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from iems.fulltext.index import Entry, Index
from iems.message.text import Searchable, text_octets

#: Octets of text in one message, transfer encoding included; a message with more is always read.
MAX_TEXT_OCTETS = 512 << 10
#: Octets of one message; a larger one is always read.
MAX_CONTENT_OCTETS = 32 << 20
#: Messages read from the store at a time, and taken in by one commit.
ROWS = 50
COMMIT = 200
#: Rows that were compared in one step when the last message of an index is looked for.
_LAST = 200


class Lock:
    """The right to write an account's index; `taken` is false if another process has it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.taken = True
        except BlockingIOError:
            self.taken = False

    def close(self) -> None:
        """Give it back."""
        os.close(self._fd)


def entry_of(content: bytes | None, uid: int, origin: bytes) -> Entry:
    """The texts of a message as SEARCH compares them. content: None for one that is not looked at."""
    if content is None or text_octets(content) > MAX_TEXT_OCTETS:
        return Entry(uid, origin, None, None)
    texts = Searchable(content)
    if len(texts.header) > MAX_TEXT_OCTETS:
        return Entry(uid, origin, None, None)
    return Entry(uid, origin, texts.header, texts.body)


def still_right(index: Index, reader: Any, account: int, mailbox: Any) -> bool:
    """Whether what is indexed of a mailbox (`store.rows.Mailbox`) is what has these uids now.

    Uids are given in order, so the last message that is there in both speaks for all before it.
    """
    if mailbox.uidnext <= index.upto(mailbox.id, mailbox.uidvalidity):
        return False
    below = 1 << 32
    while known := index.last(mailbox.id, below, _LAST):
        rows = reader.messages(account, mailbox.id, [uid for uid, _ in known])
        for (_, origin), row in zip(known, rows, strict=True):
            if row is not None:
                return bool(row.origin == origin)
        below = known[-1][0]
    return True


class Build:
    """Brings one mailbox up to date. step() works for a while and says whether there is more to do."""

    def __init__(self, index: Index, reader: Any, account: int, mailbox: Any) -> None:
        self._index = index
        self._reader = reader
        self._account = account
        self._mailbox = mailbox
        upto = index.upto(mailbox.id, mailbox.uidvalidity)
        self._uids = [uid for uid, _, _ in reader.arrivals(account, mailbox.id, upto + 1)]
        self._at = 0
        self._entries: list[Entry] = []
        self._read = self._readings()
        #: Messages taken in.
        self.taken = 0

    def _readings(self) -> Iterator[Entry | None]:
        """An entry a message; None for one expunged meanwhile."""
        for start in range(0, len(self._uids), ROWS):
            for row in self._reader.messages(self._account, self._mailbox.id, self._uids[start : start + ROWS]):
                if row is None:
                    yield None
                    continue
                content = None
                if row.size <= MAX_CONTENT_OCTETS:
                    # What can't be read is told about by the search that reads it.
                    with suppress(OSError, EOFError):
                        content = bytes(self._reader.blobs.read(row.rope))
                yield entry_of(content, row.uid, row.origin)

    def step(self, until_s: float) -> bool:
        """Read until `until_s` (monotonic); what was read is taken in by commits of COMMIT messages and at the end."""
        for entry in self._read:
            self._at += 1
            if entry is not None:
                self._entries.append(entry)
            if len(self._entries) >= COMMIT:
                self._commit()
            if time.monotonic() >= until_s:
                return True
        if self._at and (self._entries or self._uids):
            self._commit()
        return False

    def _commit(self) -> None:
        upto = self._uids[self._at - 1]
        with self._index:
            self._index.add(self._mailbox.id, self._mailbox.uidvalidity, self._entries, upto)
        self.taken += len(self._entries)
        self._entries = []
