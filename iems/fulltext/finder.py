"""Asks and builds indexes for the sessions of one worker. All work on them is done in one thread; the loop never waits for a file.

A search that finds no index, or one that is behind, reads the messages itself and asks for a build (`want`). Builds go slice by slice,
so that questions of other sessions come between. A damaged file is removed; after other faults an account is left alone for a while.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from iems.fulltext.building import Build, Lock, still_right
from iems.fulltext.index import MAILBOX_MAX, Index, is_damage, remove

#: One slice of a build; a question waits for the slice under way, and at most WAIT_S.
SLICE_S = 0.03
WAIT_S = 1.0
#: Indexes kept open, mailboxes waiting to be built, seconds until an account is tried again after a fault.
MAX_OPEN = 16
MAX_WANTED = 64
PAUSE_S = 60.0
#: Rows of messages long gone that an index may have, beside as many as there are messages.
SPARE = 1_000

#: A folded text of GRAM characters and more, and whether it must be in the body.
Text = tuple[str, bool]


class Found(Struct):
    """What an index knows of a mailbox: all up to uid `upto` but `long`; uids: per text the messages that may hold it (uint32)."""

    upto: int
    long: np.ndarray
    uids: dict[Text, np.ndarray]


class Finder:
    """See the module. folder: of the index files. reader: the worker's `store.Reader`. log, error: of the worker.

    quiet_s: a build that is asked for while none is under way begins so much later, when the searches that come in a row are answered.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        folder: Path,
        reader: Any,
        log: Callable[..., None] = lambda *args, **detail: None,
        error: Callable[[str, BaseException], None] = lambda text, fault: None,
        quiet_s: float = 0.0,
    ) -> None:
        self._quiet_s = quiet_s
        self._hurry = asyncio.Event()
        self._loop = loop
        self._folder = folder
        self._reader = reader
        self._log = log
        self._error = error
        self._thread = ThreadPoolExecutor(1, "fulltext")
        self._open: OrderedDict[int, Index] = OrderedDict()  # touched by the thread alone
        self._wanted: dict[tuple[int, int], None] = {}
        self._paused: dict[int, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def path(self, account: int) -> Path:
        """The index of an account."""
        return index_path(self._folder, account)

    # ------------------------------------------------------------------ questions

    async def find(self, account: int, mailbox_id: int, texts: Collection[Text]) -> Found | None:
        """What the index says; None if there is none, if it was found bad, or if it takes too long to ask."""
        if self._closing or mailbox_id > MAILBOX_MAX:
            return None
        reader = self._reader.twin(account)
        asked = self._loop.run_in_executor(self._thread, self._look, reader, account, mailbox_id, tuple(texts))
        try:
            return await asyncio.wait_for(asyncio.shield(asked), WAIT_S)
        except TimeoutError:
            return None

    def _look(self, reader: Any, account: int, mailbox_id: int, texts: tuple[Text, ...]) -> Found | None:
        try:
            index = self._opened(account)
            mailbox = reader.mailbox_by_id(account, mailbox_id)
            if index is None or mailbox is None:
                return None
            upto = index.upto(mailbox_id, mailbox.uidvalidity)
            if not upto:
                return None
            if mailbox_id not in index.compared or mailbox.uidnext <= upto:
                # Read again: the index may be ahead of what was read before it.
                mailbox = reader.mailbox_by_id(account, mailbox_id)
                if mailbox is None or not still_right(index, reader, account, mailbox):
                    self._drop(account)
                    return None
                index.compared.add(mailbox_id)
            uids = {text: index.find(mailbox_id, *text) for text in texts}
            return Found(upto, index.long(mailbox_id), uids)
        except sqlite3.Error as fault:
            if is_damage(fault):
                self._drop(account)
            return None
        except OSError:
            return None

    def _opened(self, account: int) -> Index | None:
        index = self._open.pop(account, None)
        if index is not None and not index.in_place:
            index.close()
            index = None
        if index is None:
            try:
                index = Index(self.path(account), create=False)
            except FileNotFoundError:
                return None
        self._open[account] = index
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        return index

    def _drop(self, account: int) -> None:
        """Remove a bad index, unless a process is writing it: that one will find out itself."""
        index = self._open.pop(account, None)
        if index is not None:
            index.close()
        lock = Lock(lock_path(self._folder, account))
        try:
            if lock.taken:
                remove(self.path(account))
        finally:
            lock.close()

    # ------------------------------------------------------------------ builds

    def want(self, account: int, mailbox_id: int) -> None:
        """Bring a mailbox up to date some time soon; nothing if that is under way or there is too much to do."""
        key = (account, mailbox_id)
        paused = self._paused.get(account, 0.0) > self._loop.time()
        if key in self._wanted or self._closing or paused or mailbox_id > MAILBOX_MAX:
            return
        if len(self._wanted) >= MAX_WANTED:
            return
        self._wanted[key] = None
        if self._task is None:
            self._task = self._loop.create_task(self._build_all())

    async def settled(self) -> None:
        """Return when nothing is left to build."""
        while self._task is not None:
            await asyncio.shield(self._task)

    async def _build_all(self) -> None:
        try:
            if self._quiet_s:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), self._quiet_s)
            while self._wanted and not self._closing:
                account, mailbox_id = key = next(iter(self._wanted))
                try:
                    await self._build(account, mailbox_id)
                except Exception as fault:
                    # Whatever it is, mail is served without the index.
                    self._error("a search index was not built", fault)
                    if len(self._paused) >= MAX_WANTED:
                        self._paused.clear()
                    self._paused[account] = self._loop.time() + PAUSE_S
                finally:
                    del self._wanted[key]
        finally:
            self._task = None

    async def _build(self, account: int, mailbox_id: int) -> None:
        started = self._loop.time()
        reader = self._reader.twin(account)
        lock = await self._loop.run_in_executor(self._thread, Lock, lock_path(self._folder, account))
        index: Index | None = None
        try:
            if not lock.taken:
                return
            index = await self._loop.run_in_executor(self._thread, self._begin, reader, account, mailbox_id)
            mailbox = reader.mailbox_by_id(account, mailbox_id)
            if mailbox is None:
                return
            build = await self._loop.run_in_executor(self._thread, Build, index, reader, account, mailbox)
            while await self._loop.run_in_executor(self._thread, _slice, build):
                if self._closing:
                    return
            self._log(
                "search-index", account=account, mailbox=mailbox_id, messages=build.taken,
                ms=round((self._loop.time() - started) * 1e3),
            )  # fmt: skip
        except sqlite3.Error as fault:
            if is_damage(fault):
                remove(self.path(account))
            raise
        finally:
            if index is not None:
                index.close()
            lock.close()
            reader.close()

    def _begin(self, reader: Any, account: int, mailbox_id: int) -> Index:
        """The index to write to: a new one in place of one that is damaged, wrong, or mostly about messages long gone."""
        path = self.path(account)
        index: Index | None = None
        try:
            index = Index(path, create=True)
            mailbox = reader.mailbox_by_id(account, mailbox_id)
            upto = index.upto(mailbox_id, mailbox.uidvalidity) if mailbox is not None else 0
            right = not upto or still_right(index, reader, account, mailbox)
            if right and index.messages() <= 2 * reader.usage(account)[1] + SPARE:
                return index
        except sqlite3.Error as fault:
            if not is_damage(fault):
                raise
        if index is not None:
            index.close()
        remove(path)
        return Index(path, create=True)

    async def close(self) -> None:
        """End what is under way and close the files. The reader must stay open until then."""
        self._closing = True
        self._hurry.set()
        await self.settled()
        await self._loop.run_in_executor(None, self._thread.shutdown)
        for index in self._open.values():
            index.close()
        self._open.clear()


def index_path(folder: Path, account: int) -> Path:
    """The index of an account in `folder`."""
    return folder / f"{account}.sqlite"


def lock_path(folder: Path, account: int) -> Path:
    """The file whose lock gives the right to write it."""
    return folder / f"{account}.lock"


def forget(folder: Path, account: int) -> None:
    """Remove all there is of an account that is gone."""
    remove(index_path(folder, account))
    lock_path(folder, account).unlink(missing_ok=True)


def _slice(build: Build) -> bool:
    return build.step(time.monotonic() + SLICE_S)
