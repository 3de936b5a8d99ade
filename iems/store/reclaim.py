"""What the writer does when nobody asks: let go of trash, purged mailboxes, blobs no row names, old answers.

Every step is one bounded transaction (`ROWS`), so a request waits for one slice at most. Order of death of bytes: the row
that names them is deleted and committed, the blob row counts 0, then the file's name goes; a crash in between leaves a file or
a blob row, never a row without bytes.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from iems.blobs import blob_number
from iems.store import keys
from iems.store.rows import BLOB_ROW, DEDUP_ROW

if TYPE_CHECKING:
    from iems.store.partition import Partition

ROWS = 256
SWEEP_FIRST_S = 600.0
SWEEP_S = 86_400.0
__all__ = ["Reclaim"]


class Reclaim:
    """The housekeeping of one partition; `step` does one slice."""

    def __init__(self, partition: Partition, orphan_s: int, dedup_s: int, answer_s: int, gone_s: int) -> None:
        self._partition = partition
        self._orphan_s = orphan_s
        self._dedup_s = dedup_s
        self._answer_s = answer_s
        self._gone_s = gone_s
        self._steps = (self._trash, self._purge, self._blobs, self._answers, self._dedup, self._gone, self._orphans, self._sweep)
        self._at = 0
        self._blob_from = 0
        self._orphans_next = 0.0
        self._sweep_next = time.monotonic() + SWEEP_FIRST_S
        self._sweeping = False

    def step(self) -> bool:
        """One slice. True if there is more to do now, False if this round is over."""
        if self._at == 0:
            # The slots of readers that died would pin every page freed since.
            self._partition.env.reader_check()
        if self._steps[self._at]():
            return True
        self._at += 1
        if self._at == len(self._steps):
            self._at = 0
            return False
        return True

    def _trash(self) -> bool:
        """Delete message rows whose trash row is due."""
        partition = self._partition
        prefix = keys.head(0, keys.TRASH)
        with partition.transaction() as txn:
            due: list[tuple[bytes, bytes]] = []
            cursor = txn.cursor()
            if cursor.set_range(prefix):
                for key in cursor.iternext(values=False):
                    if not key.startswith(prefix) or len(due) == ROWS:
                        break
                    when, account, mailbox, uid = keys.split_trash(key)
                    if when > partition.now:
                        break
                    due.append((key, keys.message(account, mailbox, uid)))
            for key, message in due:
                partition.let_go(message)
                txn.delete(key)
        return len(due) == ROWS

    def _purge(self) -> bool:
        """Delete the rows of deleted mailboxes, a slice at a time; the purge row last."""
        partition = self._partition
        prefix = keys.head(0, keys.PURGE)
        with partition.transaction() as txn:
            cursor = txn.cursor()
            if not cursor.set_range(prefix) or not cursor.key().startswith(prefix):
                return False
            key = cursor.key()
            when, account, mailbox = keys.split_purge(key)
            if when > partition.now:
                return False
            messages = keys.prefix(account, keys.MESSAGE, mailbox)
            found: list[bytes] = []
            if cursor.set_range(messages):
                for row in cursor.iternext(values=False):
                    if not row.startswith(messages) or len(found) == ROWS:
                        break
                    found.append(row)
            for row in found:
                partition.let_go(row)
                txn.delete(keys.flags(account, mailbox, int.from_bytes(row[-4:], "big")))
            if len(found) < ROWS:
                left = partition.delete_prefix(keys.prefix(account, keys.VANISHED, mailbox), ROWS)
                if left < ROWS:
                    left += partition.delete_prefix(keys.prefix(account, keys.JOURNAL, mailbox), ROWS - left)
                if left < ROWS:
                    left += partition.delete_prefix(keys.prefix(account, keys.MARK, mailbox), ROWS - left)
                left += partition.delete_prefix(keys.prefix(account, keys.FLAGS, mailbox), ROWS)
                if left < ROWS:
                    txn.delete(key)
        return True

    def _blobs(self) -> bool:
        """Unlink blobs no row names; the names go after the commit that deleted their rows."""
        partition = self._partition
        prefix = keys.head(0, keys.BLOB)
        dead: list[int] = []
        with partition.transaction() as txn:
            cursor = txn.cursor()
            seen = 0
            more = False
            if cursor.set_range(keys.blob(self._blob_from)):
                for key, value in cursor:
                    if not key.startswith(prefix):
                        break
                    if seen == 16 * ROWS or len(dead) == ROWS:
                        more = True
                        break
                    seen += 1
                    blob = int.from_bytes(key[-8:], "big")
                    self._blob_from = blob + 1
                    if BLOB_ROW.unpack(value)[0] == 0 and blob != partition.content.current:
                        dead.append(blob)
            if not more:
                self._blob_from = 0
            for blob in dead:
                partition.drop_blob(blob)
        for blob in dead:
            partition.content.unlink(blob)
        return more

    def _answers(self) -> bool:
        """Delete stored answers of clients that are gone."""
        partition = self._partition
        old: list[bytes] = []
        with partition.transaction() as txn:
            prefix = keys.head(0, keys.ANSWER)
            cursor = txn.cursor()
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not key.startswith(prefix) or len(old) == ROWS:
                        break
                    if int.from_bytes(value[:4], "little") + self._answer_s < partition.now:
                        old.append(key)
            for key in old:
                txn.delete(key)
                partition.forget_answer(*keys.split_answer(key))
        return len(old) == ROWS

    def _dedup(self) -> bool:
        """Delete dedup rows nobody forgot; origins begin with their time, so the oldest come first."""
        partition = self._partition
        old: list[bytes] = []
        with partition.transaction() as txn:
            prefix = keys.head(0, keys.DEDUP)
            cursor = txn.cursor()
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not key.startswith(prefix) or len(old) == ROWS:
                        break
                    if DEDUP_ROW.unpack(value)[2] + self._dedup_s >= partition.now:
                        break
                    old.append(key)
            for key in old:
                txn.delete(key)
        return len(old) == ROWS

    def _gone(self) -> bool:
        """Delete notes of messages that came long ago; the oldest come first."""
        partition = self._partition
        prefix = keys.head(0, keys.GONE)
        old: list[bytes] = []
        with partition.transaction() as txn:
            cursor = txn.cursor()
            if cursor.set_range(prefix):
                for key in cursor.iternext(values=False):
                    if not key.startswith(prefix) or len(old) == ROWS:
                        break
                    if int.from_bytes(key[5:11], "big") // 1_000 + self._gone_s >= partition.now:
                        break
                    old.append(key)
            for key in old:
                txn.delete(key)
        return len(old) == ROWS

    def _orphans(self) -> bool:
        """Unlink files no row ever named: linked for a delivery that was refused, or before a crash. Once an hour."""
        partition = self._partition
        if time.monotonic() < self._orphans_next:
            return False
        self._orphans_next = time.monotonic() + self._orphan_s
        limit = time.time() - self._orphan_s
        with partition.env.begin() as txn:
            for entry in os.scandir(partition.content.folder):
                blob = blob_number(entry.name)
                if blob is None or blob == partition.content.current or txn.get(keys.blob(blob)) is not None:
                    continue
                # A link changes the file's ctime: young ones may be named by the next transaction.
                if entry.stat(follow_symlinks=False).st_ctime < limit:
                    os.unlink(entry.path)
        return False

    def _sweep(self) -> bool:
        """A slice of the daily pass that gives dead space back (sweep.py)."""
        sweep = self._partition.sweep
        if not self._sweeping:
            if time.monotonic() < self._sweep_next:
                return False
            self._sweep_next = time.monotonic() + SWEEP_S
            self._sweeping = sweep.begin()
        if self._sweeping:
            # One pass looks at so many files only; the next goes on where it ended, until all were seen.
            self._sweeping = sweep.step() or (sweep.more and sweep.begin())
        return self._sweeping
