"""Mail of deleted accounts: removed from the store a while after the directory forgot them.

The directory keeps the number until the store has done so, so neither a crash nor a store that is away leaves anything.
"""

from __future__ import annotations

import time
from typing import Any

from iems.directory import Directory
from iems.errors import DirectoryUnavailable, StoreError
from iems.fulltext.finder import forget
from iems.store.client import StoreClient

#: Deliveries and sessions of the account that were under way have ended by then.
GRACE_S = 60.0
LOOK_S = 10.0


class DeletedAccounts:
    """Looks every few seconds. ctx: the worker's. Nothing is opened before there is a directory."""

    def __init__(self, ctx: Any, grace_s: float = GRACE_S) -> None:
        self.ctx = ctx
        self._grace_s = grace_s
        self._directory: Directory | None = None
        self._version = -1
        self._look_at = 0.0

    @property
    def directory(self) -> Directory | None:
        """The directory, once there is one; a process opens it once."""
        return self._directory

    async def round(self) -> None:
        """Remove what is due."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        try:
            if self._directory is None:
                self._directory = Directory(self.ctx.home / "directory", who="janitor")
            version = self._directory.version
            if version == self._version:
                return
            waiting = self._directory.retired()
        except DirectoryUnavailable:
            return
        due = [gone for gone in waiting if time.time_ns() - gone.deleted_ns >= self._grace_s * 1e9]
        if due:
            partitions = {gone.number: gone.partition for gone in due}
            store = StoreClient(
                self.ctx.loop, self.ctx.home / "run", partition_of=partitions.__getitem__, patience_s=5.0
            )
            try:
                for gone in due:
                    await store.drop(gone.number)
                    forget(self.ctx.config.store_path(self.ctx.home) / "search", gone.number)
                    self._directory.forget_retired(gone.number)
                    self.ctx.log.event("account-removed", number=gone.number)
                    waiting.remove(gone)
            except (StoreError, DirectoryUnavailable) as fault:
                self.ctx.log.error("mail of a deleted account stays for now", fault)
            finally:
                store.close()
        if not waiting:
            # Until somebody writes to the directory again there is nothing to look for.
            self._version = version if not due else self._directory.version

    def close(self) -> None:
        """Give up the directory."""
        if self._directory is not None:
            self._directory.close()
            self._directory = None
