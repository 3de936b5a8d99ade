"""Segment files of one writing process: created durably, filled by the committer, sealed, and given up after a failure.

A `Post` is a record on its way. The writer hands it to the committer, and when its group is written (and flushed if any of it
asked for that), applies the group to the index in one transaction and tells each post how it ended. When a write, a flush or
the transaction fails, the segment is sealed at its last good record, the rest is voided by a synced record elsewhere, and what
was not applied ends with an error. Outcomes (`Post.lasting`) are written again instead: they are facts.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import lmdb

from iems._native import kernel
from iems.blobs import large_name, segment_name
from iems.durable import sync_folder
from iems.errors import SpoolError, SpoolFull
from iems.spool import records
from iems.spool.index import MAX_ENTRIES, Change, Index, is_damage
from iems.spool.records import CHAINED, FILE_OCTETS, FOR_EVER, NO_ID, FileHead, Kind

Committer = kernel("committer").Committer

SEGMENT_OCTETS = 128 << 20
SEGMENT_S = 3600.0
#: So that the list of headers kept for the footer stays small.
SEGMENT_RECORDS = 65536
#: Zeros written ahead of small groups at once.
AHEAD_OCTETS = 256 << 10
#: The next file is made ready when this much room is left.
_AHEAD_OCTETS = 8 << 20
#: Waits between attempts to write outcomes again.
_REPEAT_S = (0.1, 0.3, 1.0, 2.0, 5.0, 5.0, 5.0)

_FULL = (errno.ENOSPC, errno.EDQUOT)


def spool_error(error: BaseException | int, what: str = "the spool can't write") -> SpoolError:
    """The error to report for an exception or errno: SpoolFull if room is missing."""
    if isinstance(error, SpoolError):
        return error
    number = error if isinstance(error, int) else getattr(error, "errno", None)
    if number in _FULL or isinstance(error, lmdb.MapFullError):
        return SpoolFull(f"{what}: no room")
    if isinstance(error, lmdb.Error) and "No space left" in str(error):
        return SpoolFull(f"{what}: no room")
    text = os.strerror(number) if isinstance(number, int) else str(error)
    return SpoolError(f"{what}: {text}")


_last_blob = 0


def new_blob(floor: int = 0) -> int:
    """A number for a blob: ms since 1970 and 16 random bits, above all this process gave and above `floor`."""
    global _last_blob
    ms = max(time.time_ns() // 1_000_000, (floor >> 16) + 1 if floor else 0)
    _last_blob = max(ms << 16 | secrets.randbits(16), _last_blob + 1)
    return _last_blob


def create_file(folder: Path, name: Callable[[int], str], floor: int = 0) -> tuple[int, int]:
    """(blob, descriptor) of a new, locked file in `folder`; the name is not durable yet. Raises OSError."""
    while True:
        blob = new_blob(floor)
        try:
            fd = os.open(folder / name(blob), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        except FileExistsError:
            continue
        # Held as long as the writer lives: whoever gets the lock may recover the file.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return blob, fd


def create_large(folder: Path, floor: int = 0) -> tuple[int, int]:
    """(blob, descriptor) of a new file for one large content."""
    return create_file(folder, large_name, floor)


def create_segment(
    folder: Path, role: str, slot: int, queue_ms: int, floor: int = 0
) -> tuple[int, int, bytes]:
    """(blob, descriptor, nonce) of a new segment, header and name on the disk. Blocks for two flushes. Raises OSError."""
    blob, fd = create_file(folder, segment_name, floor)
    try:
        nonce = secrets.token_bytes(8)
        head = FileHead(nonce, blob, time.time_ns(), queue_ms, role, slot, os.getpid())
        if os.pwrite(fd, records.pack_file_head(head), 0) != FILE_OCTETS:
            raise OSError(errno.ENOSPC, "short write of a segment's head")
        os.fsync(fd)
        sync_folder(folder)
    except BaseException:
        os.unlink(folder / segment_name(blob))
        os.close(fd)
        raise
    return blob, fd, nonce


class Post:
    """A record on its way to the disk; subclasses say what it does to the index and who waits for it.

    flush: must be on the disk before it counts. lasting: written again in another segment if this one fails.
    units: entries it adds to a transaction.
    """

    __slots__ = (
        "attempts",
        "blob",
        "content",
        "end",
        "flags",
        "flush",
        "generation",
        "id",
        "kind",
        "lasting",
        "offset",
        "payload",
        "pieces",
        "units",
    )

    def __init__(
        self,
        kind: int,
        id: bytes = NO_ID,
        payload: bytes = b"",
        pieces: Sequence[Any] = (),
        *,
        flags: int = 0,
        generation: int = 0,
        flush: bool = True,
        lasting: bool = False,
        units: int = 1,
    ) -> None:
        self.kind = kind
        self.id = id
        self.payload = payload
        self.pieces = pieces
        self.flags = flags
        self.generation = generation
        self.flush = flush
        self.lasting = lasting
        self.units = units
        self.blob = self.offset = self.end = self.content = 0
        self.attempts = 0

    def prepare(self, now_ms: int) -> None:
        """Do ahead what `apply` would have to do: called while the record is being flushed, `blob`, `offset`, `content` and `end` are set."""

    def apply(self, change: Change) -> None:
        """Put into the index what this record says. The record is written; `blob`, `offset`, `content` and `end` are set."""

    def finish(self, error: SpoolError | None) -> None:
        """Tell who waits: it counts (None), or nothing of it does."""


class _Voiding(Post):
    """Voids the rest of a failed segment; then the posts that stood there may be told."""

    __slots__ = ("losers", "reason", "segment", "writer")

    def __init__(self, writer: Writer, segment: Segment, losers: list[Post], reason: SpoolError) -> None:
        super().__init__(Kind.VOID, payload=records.encode([(segment.blob, segment.good, FOR_EVER)]))
        self.writer = writer
        self.segment = segment
        self.losers = losers
        self.reason = reason

    def apply(self, change: Change) -> None:
        change.name(self.blob, self.segment.blob)
        if self.segment.epoch == change.index.epoch:
            change.edit_blob(self.segment.blob, sealed=True, length=self.segment.good)

    def finish(self, error: SpoolError | None) -> None:
        segment = self.segment
        if error is not None:
            # No new segment either. Cutting the file needs no room; should that fail too, recovery voids what no index row names.
            segment.cut()
        segment.voiding = None
        for post in self.losers:
            post.finish(self.reason)
        self.writer.leave(segment)


class Segment:
    """One open segment of this process."""

    __slots__ = (
        "blob",
        "committer",
        "epoch",
        "failed",
        "fd",
        "flushes",
        "good",
        "nonce",
        "unflushed",
        "voiding",
    )

    def __init__(self, blob: int, fd: int, nonce: bytes, notify: int, flush_ms: int, ahead_octets: int) -> None:
        self.blob = blob
        self.fd = fd
        self.nonce = nonce
        self.failed = False
        self.epoch = b""
        self.flushes = 0
        self.good = FILE_OCTETS
        self.committer = Committer(fd, nonce, FILE_OCTETS, notify, flush_ms, ahead_octets)
        self.unflushed: deque[Post] = deque()
        self.voiding: _Voiding | None = None

    def cut(self) -> None:
        """Shorten the file to what is good; failures don't matter here."""
        try:
            os.ftruncate(self.fd, self.good)
            os.fsync(self.fd)
        except OSError:
            pass

    def done_with(self) -> None:
        """Close the file; the lock goes with it."""
        if self.fd >= 0:
            self.committer.close()
            os.close(self.fd)
            self.fd = -1


class Writer:
    """Appends posts to this process's segments. All methods are called on the loop.

    folder: spool/segments. owner: (generation, slot, role) for the index. executor: threads for making files.
    alarm: called with an event name and details when something went wrong. count: adds to a counter of the board.
    """

    def __init__(
        self,
        folder: Path,
        index: Index,
        loop: Any,
        executor: Executor,
        *,
        owner: tuple[int, int, str],
        segment_octets: int = SEGMENT_OCTETS,
        segment_s: float = SEGMENT_S,
        flush_ms: int = 1000,
        ahead_octets: int = AHEAD_OCTETS,
        alarm: Callable[..., None] = lambda *a, **k: None,
        count: Callable[[str, int], None] = lambda name, n: None,
    ) -> None:
        self.folder = folder
        self.index = index
        self.loop = loop
        self.executor = executor
        self.generation, self.slot, self.role = owner
        self.segment_octets = segment_octets
        self.segment_s = segment_s
        self.flush_ms = flush_ms
        self.ahead_octets = ahead_octets
        self.alarm = alarm
        self.count = count
        self.current: Segment | None = None
        self._spare: Segment | None = None
        self._opening: Future[tuple[int, int, bytes]] | None = None
        self._waiting: list[Sequence[Post]] = []
        self._retired: list[Segment] = []  # being sealed, or failed and not yet voided
        self._unflushed: dict[Post, None] = {}
        self._flush_waiters: list[tuple[list[Post], asyncio.Future[None]]] = []
        self._failed: set[Segment] = set()
        self._reason = SpoolError("the spool can't write")
        self._submitted: list[Post] = []
        self._closed = False
        self._notify = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add_reader(self._notify, self._reap)

    # --- appending

    def append(self, posts: Sequence[Post]) -> None:
        """Write these records one after the other, in the same segment; each post is told how it ended."""
        if self._closed:
            for post in posts:
                post.finish(SpoolError("the spool is closed"))
            return
        if self.current is not None and self.current.epoch != self.index.epoch:
            # An outcome of what was leased from the new index must not stand where that index applies nothing.
            self.release()
        segment = self.current
        if segment is not None and not self._waiting:
            committer = segment.committer
            if committer.offset < self.segment_octets and committer.records < SEGMENT_RECORDS:
                if (
                    committer.offset > self.segment_octets - _AHEAD_OCTETS
                    and self.segment_octets > 2 * _AHEAD_OCTETS
                ):
                    self._open()
                self._submit(segment, posts)
                return
            self.retire()
            if self.current is not None:
                self._submit(self.current, posts)
                return
        self._waiting.append(posts)
        self._open()

    def _submit(self, segment: Segment, posts: Sequence[Post]) -> None:
        committer = segment.committer
        submit = committer.submit
        now_ms = self.index.clock.now_ms()
        for post in posts:
            offset = submit(
                post.kind,
                post.flags,
                post.generation,
                post.id,
                now_ms,
                post.payload,
                post.pieces,
                post.flush,
                post,
            )
            post.blob = segment.blob
            post.offset = offset
            post.content = offset + 64 + len(post.payload)
            post.end = committer.offset
        if not self._submitted:
            # once an iteration: what comes in together is flushed together
            self.loop.call_soon(self._kick)
        self._submitted += posts

    def _kick(self) -> None:
        posts, self._submitted = self._submitted, []
        if self.current is not None:
            self.current.committer.kick()
        # While the disk is at work.
        now_ms = self.index.clock.now_ms()
        for post in posts:
            post.prepare(now_ms)

    # --- opening and sealing

    def _open(self) -> None:
        """Have a new segment made, unless one is ready or on its way."""
        if self._spare is not None:
            if self.current is None:
                self._activate()
            return
        if self._opening is None:
            self._opening = self.executor.submit(
                create_segment,
                self.folder,
                self.role,
                self.slot,
                self.index.clock.now_ms(),
                self.index.last_blob,
            )
            self._opening.add_done_callback(lambda _: self._on_loop(self._opened))

    def _on_loop(self, callback: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed: nobody waits any more
            pass

    def _opened(self) -> None:
        opening, self._opening = self._opening, None
        if opening is None:
            return
        try:
            blob, fd, nonce = opening.result()
        except Exception as error:
            self._refuse(spool_error(error, "the spool can't make a segment"))
            return
        self._spare = Segment(blob, fd, nonce, self._notify, self.flush_ms, self.ahead_octets)
        if self.current is None:
            self._activate()

    def _activate(self) -> None:
        """Begin to write to the spare segment."""
        segment, self._spare = self._spare, None
        assert segment is not None
        try:
            with self.index.change() as change:
                change.edit_blob(
                    segment.blob,
                    run=self.index.run,
                    generation=self.generation,
                    slot=self.slot,
                    pid=os.getpid(),
                    role=self.role,
                    created_ms=change.now_ms,
                )
        except Exception as error:
            self._discard(segment)
            self._refuse(spool_error(error, "the spool's index fails"))
            return
        segment.epoch = self.index.epoch
        self.current = segment
        self.loop.call_later(self.segment_s, self._expire, segment)
        waiting, self._waiting = self._waiting, []
        for posts in waiting:
            self._submit(segment, posts)

    def _discard(self, segment: Segment) -> None:
        """Remove a segment in which nothing was written."""
        segment.done_with()
        try:
            os.unlink(self.folder / segment_name(segment.blob))
        except OSError:
            pass

    def _refuse(self, error: SpoolError) -> None:
        """No segment can be had: what waits ends here, except outcomes, which wait for better times."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self.alarm("spool_refuses", reason=str(error), full=isinstance(error, SpoolFull))
        for posts in waiting:
            if all(post.lasting for post in posts):
                self._repeat_later(posts, error)
            else:
                for post in posts:
                    post.finish(error)

    def _repeat_later(self, posts: Sequence[Post], error: SpoolError) -> None:
        attempts = posts[0].attempts
        if attempts >= len(_REPEAT_S) or self._closed:
            for post in posts:
                post.finish(error)
            return
        for post in posts:
            post.attempts += 1
        self.loop.call_later(_REPEAT_S[attempts], self.append, posts)

    def _expire(self, segment: Segment) -> None:
        if segment is self.current:
            self.retire()

    def retire(self) -> None:
        """Seal the current segment; the next record goes to a new one."""
        segment, self.current = self.current, None
        if segment is not None:
            self._retired.append(segment)
            segment.committer.seal()
            if self._spare is not None:
                self._activate()

    # --- groups that are through

    def _reap(self) -> None:
        try:
            os.eventfd_read(self._notify)
        except BlockingIOError:
            pass
        for segment in [*self._retired, *([self.current] if self.current else [])]:
            self._reap_segment(segment)

    def _reap_segment(self, segment: Segment) -> None:
        # Asked first: all that was written before the seal is then in what is reaped.
        sealed = segment.committer.sealed
        good, bad, error = segment.committer.reap()
        if good:
            self.count("spool_records_total", len(good))
            self.count("spool_octets_total", good[-1].end - good[0].offset)
        flushes = segment.committer.flushes
        if flushes != segment.flushes:
            self.count("spool_flushes_total", flushes - segment.flushes)
            segment.flushes = flushes
        if good and not segment.failed:
            bad = self._apply(segment, good) + bad
        elif good:
            bad = good + bad  # written behind a failed transaction, so voided with it
        if bad or (error and not segment.failed):
            self._fail(segment, bad, error)
        if segment.failed:
            return
        flushed = segment.committer.flushed
        unflushed = segment.unflushed
        while unflushed and unflushed[0].end <= flushed:
            self._unflushed.pop(unflushed.popleft(), None)
        if self._flush_waiters:
            self._tell_flushed()
        if sealed and segment in self._retired:
            self._sealed(segment)

    def _apply(self, segment: Segment, posts: list[Post]) -> list[Post]:
        """Bring a written group into the index and tell its posts; what could not be applied is given back."""
        start = 0
        while start < len(posts):
            units = 0
            upto = start
            # a chain is not cut: its last record applies all of it
            while upto < len(posts) and (
                units + posts[upto].units <= MAX_ENTRIES or upto == start or posts[upto - 1].flags & CHAINED
            ):
                units += posts[upto].units
                upto += 1
            group = posts[start:upto]
            try:
                self.index.refresh()
                if segment.epoch != self.index.epoch:
                    # A new index is being built from the segments, this one among them: what is written counts.
                    self.release(segment)
                    for post in posts[start:]:
                        post.finish(None)
                    return []
                with self.index.change() as change:
                    for post in group:
                        post.apply(change)
                    change.edit_blob(segment.blob, indexed=group[-1].end)
            except Exception as error:
                reason = spool_error(error, "the spool's index fails")
                self.alarm(
                    "spool_index_fails",
                    reason=f"{type(error).__name__}: {error}",
                    damaged=is_damage(error),
                    full=isinstance(reason, SpoolFull),
                )
                segment.failed = True
                segment.good = min(group[0].offset, segment.committer.flushed)
                segment.committer.fail(errno.EIO)
                self._reason = reason
                return posts[start:]
            flushed = segment.committer.flushed
            for post in group:
                if post.flush or post.end <= flushed:
                    self._unflushed.pop(post, None)  # one that was written again
                else:
                    segment.unflushed.append(post)
                    self._unflushed[post] = None
            for post in group:
                post.finish(None)
            start = upto
        return []

    def release(self, segment: Segment | None = None) -> None:
        """Let go of segments an earlier index knew, so that the janitor can read them into the new one."""
        if segment is None:
            segment = self.current
        if segment is not None and segment is self.current and segment.epoch != self.index.epoch:
            self.retire()

    def _fail(self, segment: Segment, bad: list[Post], error: int) -> None:
        """Give a segment up. Outcomes are written again elsewhere; the others are told once their records are void."""
        repeat = [post for post in bad if post.lasting]
        losers = [post for post in bad if not post.lasting]
        if segment in self._failed:
            if segment.voiding is not None:
                segment.voiding.losers += losers
            else:
                for post in losers:
                    post.finish(SpoolError("the segment failed"))
        else:
            self._failed.add(segment)
            if not segment.failed:
                segment.failed = True
                segment.good = segment.committer.flushed
                self._reason = spool_error(error or errno.EIO)
            self.alarm(
                "spool_segment_failed",
                segment=segment_name(segment.blob),
                good=segment.good,
                reason=str(self._reason),
                full=isinstance(self._reason, SpoolFull),
            )
            if segment is self.current:
                self.current = None
                self._retired.append(segment)
            repeat = [post for post in segment.unflushed if post.end > segment.good] + repeat
            segment.unflushed.clear()
            segment.voiding = _Voiding(self, segment, losers, self._reason)
            self.append((segment.voiding,))
        for post in repeat:
            self._repeat_later((post,), self._reason)

    def leave(self, segment: Segment) -> None:
        """A failed segment is voided: close it once the committer has handed back all it had."""
        segment.committer.close()
        if segment in self._retired:
            self._reap_segment(segment)
            self._retired.remove(segment)
        self._failed.discard(segment)
        segment.done_with()

    def _sealed(self, segment: Segment) -> None:
        self._retired.remove(segment)
        try:
            self.index.refresh()
            if segment.epoch == self.index.epoch:
                with self.index.change() as change:
                    change.edit_blob(segment.blob, sealed=True, length=segment.committer.written)
        except Exception as error:  # recovery seals it: nothing follows the indexed length
            self.alarm(
                "spool_index_fails", reason=f"{type(error).__name__}: {error}", damaged=is_damage(error)
            )
        segment.done_with()

    def _tell_flushed(self) -> None:
        waiters, self._flush_waiters = self._flush_waiters, []
        for posts, future in waiters:
            left = [post for post in posts if post in self._unflushed]
            if left:
                self._flush_waiters.append((left, future))
            elif not future.done():
                future.set_result(None)

    async def flushed(self) -> None:
        """Wait until all outcomes written so far are on the disk: at most about `flush_ms`, unless the disk fails."""
        if self._unflushed:
            future = asyncio.get_running_loop().create_future()
            self._flush_waiters.append((list(self._unflushed), future))
            await future

    def close(self) -> None:
        """Write, flush and index what waits and seal; blocks that long. Called on the loop."""
        if self._closed:
            return
        for _ in range(8):  # a failure on the way opens another segment
            if self._opening is not None:
                self._opening.exception()
                self._opened()
            self.retire()
            if not self._retired and not self._waiting:
                break
            for segment in list(self._retired):
                segment.committer.close()
                self._reap_segment(segment)
        self._closed = True
        self._refuse(SpoolError("the spool is closed"))
        if self._spare is not None:
            self._discard(self._spare)
            self._spare = None
        self.loop.remove_reader(self._notify)
        os.close(self._notify)
        for _, future in self._flush_waiters:
            if not future.done():
                future.set_exception(SpoolError("the spool is closed"))
