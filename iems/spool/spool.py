"""The spool as workers see it: submit, take, move, settle.

Writing goes through `segments.Writer` (records, group commit), the queue through `index.Index`; this module ties them in the order of
docs/spool.md: record, flush, index, answer. One object per process, opened after the fork, used on the loop only.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb

from iems.blobs import Blobs
from iems.errors import SpoolError, SpoolFull
from iems.model import INPUT, Channel, Extent, Outcome, Result, Rope
from iems.spool.ballast import Ballast
from iems.spool.content import LARGE_OCTETS, STAGING_OCTETS, Content, LargeFile, Staging
from iems.spool.index import MAP_OCTETS, MAX_ENTRIES, Change, Index, Row
from iems.spool.items import Item, Message, Settlement
from iems.spool.keys import FRESH, HELD, Destination, destination_hash
from iems.spool.records import CHAINED, FOLLOWS, Done, Kind, MessageHead, VoidRange, encode
from iems.spool.segments import AHEAD_OCTETS, SEGMENT_OCTETS, SEGMENT_S, Post, Writer, spool_error

#: The role that works on a channel's queue.
ROLES = {
    INPUT: "preprocessor",
    Channel.LOCAL: "lmda",
    Channel.SMTPC: "smtpc",
    Channel.BSMTPOUT: "bsmtp",
    Channel.DL: "lists",
    Channel.CCMAIL: "api",
    Channel.NOTES: "api",
}


def roles_of(config: Any) -> dict[int, str]:
    """The roles that work on the channels under these settings: what the API offers, no role of ours takes."""
    offered = config.api.take if config.api.enabled else ()
    return ROLES | {int(Channel[name]): "api" for name in offered}


#: Messages that follow one another within this time are announced together, this much later.
_STREAM_S, _GATHER_S = 0.002, 0.001
#: Seconds between looks at whether the index was replaced.
_TICK_S = 1.0


def _nothing(*_: Any, **__: Any) -> None:
    pass


@dataclass
class SpoolParams:
    """What a spool is opened with. path: HOME/spool. slot, generation: of this worker, for its leases.

    roles: who works on which channel. wake: called with the name of a role that has work. event: called with a name and details for the log. count: adds to a counter.
    """

    path: Path
    role: str = "test"
    slot: int = 0
    generation: int = 0
    loop: Any = None
    roles: dict[int, str] = field(default_factory=lambda: dict(ROLES))
    wake: Callable[[str], Any] = _nothing
    event: Callable[..., Any] = _nothing
    count: Callable[[str, int], Any] = _nothing
    segment_octets: int = SEGMENT_OCTETS
    segment_s: float = SEGMENT_S
    large_octets: int = LARGE_OCTETS
    staging_octets: int = STAGING_OCTETS
    map_octets: int = MAP_OCTETS
    ballast_octets: int = 0
    flush_ms: int = 1000
    ahead_octets: int = AHEAD_OCTETS

    @classmethod
    def of(cls, ctx: Any) -> SpoolParams:
        """The parameters a worker's context gives (`iems/master/child.py`)."""
        config = ctx.config.spool
        return cls(
            path=spool_path(ctx.home, config.path),
            role=ctx.role,
            slot=ctx.slot,
            generation=ctx.generation,
            loop=ctx.loop,
            roles=roles_of(ctx.config),
            wake=ctx.wake,
            event=lambda name, **detail: ctx.log.event(name, None, **detail),
            count=getattr(ctx, "count", _nothing),
            segment_octets=config.segment_octets,
            segment_s=config.segment_s,
            large_octets=config.large_octets,
            staging_octets=config.staging_octets,
            map_octets=config.map_octets,
            ballast_octets=config.ballast_octets,
            ahead_octets=config.ahead_octets,
        )


def spool_path(home: Path, setting: str = "spool") -> Path:
    """The folder of the spool of a home."""
    return Path(home) / setting


@dataclass(eq=False, slots=True)
class _Batch:
    """Posts of one `settle`, told about together."""

    future: asyncio.Future[None]
    left: int
    error: SpoolError | None = None

    def finish(self, error: SpoolError | None) -> None:
        self.left -= 1
        self.error = self.error or error
        if not self.left and not self.future.done():
            if self.error is not None:
                self.future.set_exception(self.error)
            else:
                self.future.set_result(None)


class _MessagePost(Post):
    """A message for the INPUT queue, with what it settles."""

    __slots__ = ("chained", "contents", "done", "files", "message", "place", "rope", "row", "settlements", "size", "spool")

    def __init__(
        self,
        spool: Spool,
        message: Message,
        pieces: list[Any],
        files: list[LargeFile],
        contents: list[Content],
        done: Callable[[SpoolError | None], Any],
    ) -> None:
        super().__init__(Kind.MESSAGE, message.id, b"", pieces)
        self.spool = spool
        self.message = message
        self.files = files
        self.contents = contents
        self.done = done
        self.size = sum(map(len, pieces))
        self.rope: Rope = [Extent(file.blob, 0, file.length) for file in files]
        self.settlements: list[tuple[Settlement, list[Result]]] = []
        self.chained: list[_MessagePost] = []
        self.place = (0, 0)
        self.row: Row | None = None

    def seal(self, settles: list[Done]) -> None:
        """Make the payload; the content's place is known by now."""
        envelope = self.message.envelope
        envelope.size = self.size + sum(file.length for file in self.files)
        self.payload = encode(MessageHead(envelope, self.rope, settles, [file.crc for file in self.files]))

    def prepare(self, now_ms: int) -> None:
        message = self.message
        rope: Rope = [Extent(self.blob, self.content, self.size), *self.rope] if self.size else self.rope
        envelope = message.envelope
        item = Item(
            message.id,
            INPUT,
            "",
            envelope,
            rope,
            reason=envelope.held,
            queued_ms=now_ms,
            home=self.blob,
            fanout=len(envelope.recipients),
            sums=[(file.blob, file.crc) for file in self.files],
        )
        self.row = Row.of(item, HELD if envelope.held else FRESH, now_ms)
        self.place = (self.blob, self.offset)

    def enqueue(self, change: Change) -> None:
        """Put the message into the INPUT queue."""
        if self.row is None or self.place != (self.blob, self.offset):
            self.prepare(change.now_ms)
        assert self.row is not None
        change.put_row(self.row)
        for file in self.files:
            change.edit_blob(file.blob, large=True, sealed=True, length=file.length)

    def apply(self, change: Change) -> None:
        if self.flags & CHAINED:
            return  # the last of the chain does it for all
        for post in self.chained:
            post.enqueue(change)
        self.enqueue(change)
        if self.settlements:
            _apply_settlements(change, self.blob, self.settlements)

    def finish(self, error: SpoolError | None) -> None:
        for content in self.contents:
            if error is None:
                content.release()
            else:
                content.discard()
        self.pieces = ()
        try:
            self.done(error)
        finally:
            if error is None:
                # After the answers: who wakes now takes a core from them. A death in between is seen by the master, which wakes all.
                self.spool.announce_soon()


class _SettlePost(Post):
    """Outcomes of some items."""

    __slots__ = ("applied", "batch", "homes", "settlements")

    def __init__(
        self, done: list[Done], settlements: list[tuple[Settlement, list[Result]]], batch: _Batch, flush: bool
    ) -> None:
        super().__init__(
            Kind.SETTLE, done[0].id, encode(done), flush=flush, lasting=True, units=len(settlements)
        )
        self.homes = {entry.home for entry in done}
        self.settlements = settlements
        self.batch: _Batch | None = batch
        self.applied = False

    def apply(self, change: Change) -> None:
        for home in self.homes:
            if home != self.blob:
                change.name(self.blob, home)
        if not self.applied:
            _apply_settlements(change, self.blob, self.settlements, names=False)

    def finish(self, error: SpoolError | None) -> None:
        self.applied = self.applied or error is None
        self.settlements = []
        if self.batch is not None:
            self.batch.finish(error)
            self.batch = None


class AwaitedPost(Post):
    """A record of the spool's own bookkeeping, for `Spool.record`."""

    __slots__ = ("done",)

    done: Callable[[SpoolError | None], None]

    def finish(self, error: SpoolError | None) -> None:
        """Tell who waits in `Spool.record`."""
        self.done(error)


class _VoidPost(AwaitedPost):
    """Says that parts of other segments don't count."""

    __slots__ = ("ranges",)

    def __init__(self, ranges: list[VoidRange]) -> None:
        super().__init__(Kind.VOID, payload=encode(ranges))
        self.ranges = ranges

    def apply(self, change: Change) -> None:
        for blob, _, _ in self.ranges:
            change.name(self.blob, blob)


def _apply_settlements(
    change: Change, blob: int, settlements: list[tuple[Settlement, list[Result]]], names: bool = True
) -> None:
    for settlement, deferred in settlements:
        item = settlement.item
        if names and item.home != blob:
            change.name(blob, item.home)
        change.settle(item, settlement.results, deferred)


class Spool:
    """One process's door to the spool. `blobs` reads content; `writer` and `index` are for the spool's own modules."""

    def __init__(self, params: SpoolParams) -> None:
        self.params = params
        self.loop = params.loop
        self.index = Index(params.path / "index", map_octets=params.map_octets, on_damage=self._damaged)
        self.executor = ThreadPoolExecutor(4, thread_name_prefix="spool")
        self.blobs = Blobs([params.path / "segments", params.path / "large"])
        self.staging = Staging(
            params.path / "large",
            params.loop,
            self.executor,
            budget=params.staging_octets,
            large_octets=params.large_octets,
            floor=lambda: self.index.last_blob,
        )
        self.ballast = Ballast(params.path / "ballast", params.ballast_octets)
        self._writer: Writer | None = None
        self._id_ms = self._id = 0
        self._pool, self._pool_at = b"", 0
        self._closed = False
        #: Items to be given back, with their leases, that the index did not take yet.
        self._returning: list[tuple[Item, bytes]] = []
        self._announcing = False
        self._announced_s = 0.0
        self._tick = self.loop.call_later(_TICK_S, self._look)

    def _look(self) -> None:
        """Once a second: has a damaged index been replaced? A process that has nothing to write must let go, too."""
        self._tick = self.loop.call_later(_TICK_S, self._look)
        try:
            self.index.refresh()  # or another method was first to see the new one
            if self._writer is not None:
                self._writer.release()
            if self._returning:
                channels = {item.channel for item, _ in self._returning}
                if self._return():
                    for channel in channels:
                        self.announce(channel)
        except lmdb.Error as error:
            self._alarm("spool_index_fails", reason=f"{type(error).__name__}: {error}")

    def _damaged(self, error: BaseException) -> None:
        """The index can't be trusted any more: say so, and have the janitor build another."""
        from iems.spool import recovery

        if recovery.distrust(self.params.path):
            self._alarm("spool_index_damaged", reason=f"{type(error).__name__}: {error}")
        self.params.wake("janitor")

    @classmethod
    def open(cls, ctx_or_params: Any) -> Spool:
        """Open the spool in this process, after the fork. Takes a worker's context or `SpoolParams`.

        The master has called `recovery.prepare` before; a spool never prepared (a test's) is prepared here.
        """
        params = ctx_or_params if isinstance(ctx_or_params, SpoolParams) else SpoolParams.of(ctx_or_params)
        if params.loop is None:
            params.loop = asyncio.get_running_loop()
        if not (params.path / "index" / "data.mdb").exists():
            from iems.spool import recovery

            recovery.prepare(params.path, map_octets=params.map_octets)
        return cls(params)

    @property
    def writer(self) -> Writer:
        """This process's segments; made when first used, so that readers have none."""
        if self._writer is None:
            p = self.params
            self._writer = Writer(
                p.path / "segments",
                self.index,
                self.loop,
                self.executor,
                owner=(p.generation, p.slot, p.role),
                segment_octets=p.segment_octets,
                segment_s=p.segment_s,
                flush_ms=p.flush_ms,
                ahead_octets=p.ahead_octets,
                alarm=self._alarm,
                count=p.count,
            )
        return self._writer

    def _alarm(self, name: str, **detail: Any) -> None:
        if detail.get("full") and self.ballast.give_up():
            detail["ballast"] = "given up"
        self.params.event(name, **detail)

    # --- accepting

    def new_id(self) -> bytes:
        """An id for a message: 48 bits of milliseconds since 1970, 80 random ones; of one process in the order given."""
        ms = time.time_ns() // 1_000_000
        if ms == self._id_ms:
            self._id += 1 + int.from_bytes(self._random(4), "big")
        else:
            self._id_ms = ms
            self._id = ms << 80 | int.from_bytes(self._random(10), "big") >> 1
        return self._id.to_bytes(16, "big")

    def _random(self, octets: int) -> bytes:
        """Octets nobody can guess, each given once; the kernel is asked for 1,024 at a time."""
        at = self._pool_at
        if at + octets > len(self._pool):
            self._pool, at = os.urandom(1024), 0
        self._pool_at = at + octets
        return self._pool[at : at + octets]

    def new_content(self) -> Content:
        """An empty content for a message about to arrive."""
        return Content(self.staging)

    def submit(self, message: Message, done: Callable[[SpoolError | None], Any]) -> None:
        """Make a message durable and queue it; then `done(None)` on the loop, or `done(error)` and nothing of it counts."""
        if self.ballast.short():
            self._discard(message)
            done(SpoolFull("the disk is full"))
            return
        self._prepare(message, done, self._append_one)

    @staticmethod
    def _discard(message: Message) -> None:
        content = message.content
        for piece in [content] if isinstance(content, Content) else content:
            if isinstance(piece, Content):
                piece.discard()

    def _append_one(self, post: _MessagePost) -> None:
        settles = []
        if post.message.settled:
            settles = _split(post.message.settled, post.settlements)
            post.units += len(settles)
        post.seal(settles)
        self.writer.append((post,))

    def _prepare(
        self,
        message: Message,
        done: Callable[[SpoolError | None], Any],
        then: Callable[[_MessagePost], None],
    ) -> None:
        """Make the post of a message; large content goes to its own file first. `then` may come later."""
        content = message.content
        pieces: list[Any] = []
        contents: list[Content] = []
        files: list[LargeFile] = []
        inline = 0
        for piece in [content] if isinstance(content, Content) else content:
            if isinstance(piece, Content):
                contents.append(piece)
                if piece.file is not None:
                    if len(piece.buffer):
                        piece.spill()
                    files.append(piece.file)
                    continue
                piece = piece.buffer
            if files:
                # octets after a file: they go to the file too, a record's content comes first in its rope
                files[-1].write(piece)
                self.staging.used += len(piece)
            else:
                pieces.append(piece)
                inline += len(piece)
        if inline > self.params.large_octets + 65536:
            rest = LargeFile(self.staging)
            for piece in pieces:
                self.staging.used += len(piece)
                rest.write(piece)
            files.insert(0, rest)
            pieces = []
        if not files:
            then(_MessagePost(self, message, pieces, files, contents, done))
            return
        left = len(files)
        failed: SpoolError | None = None

        def file_done(error: SpoolError | None) -> None:
            nonlocal left, failed
            left -= 1
            failed = failed or error
            if left:
                return
            post = _MessagePost(self, message, pieces, files, contents, done)
            if failed is None:
                then(post)
            else:
                post.finish(failed)

        for file in files:
            file.finish(file_done)

    async def append(self, messages: list[Message]) -> list[SpoolError | None]:
        """Submit several messages; what became of each, in order."""
        results: list[SpoolError | None] = [None] * len(messages)
        if not messages:
            return results
        future: asyncio.Future[None] = self.loop.create_future()
        left = len(messages)

        def done(position: int, error: SpoolError | None) -> None:
            nonlocal left
            results[position] = error
            left -= 1
            if not left and not future.done():
                future.set_result(None)

        for position, message in enumerate(messages):
            self.submit(message, lambda error, position=position: done(position, error))  # type: ignore[misc]
        await future
        return results

    def adopt(self, blob: int, length: int) -> None:
        """Enter a large file no message names (IMAP APPEND): it may go ten minutes from now."""
        with self.index.change() as change:
            change.edit_blob(blob, large=True, sealed=True, length=length)

    async def record(self, posts: Sequence[AwaitedPost]) -> None:
        """Append records of the spool's own bookkeeping, in one segment, and wait until they count. Raises SpoolError."""
        batch = _Batch(self.loop.create_future(), len(posts))
        for post in posts:
            post.done = batch.finish
        self.writer.append(posts)
        await batch.future

    async def void(self, ranges: list[VoidRange]) -> None:
        """Say durably that these parts of other segments don't count. Raises SpoolError."""
        await self.record([_VoidPost(ranges)])

    # --- the queue

    def announce(self, channel: int) -> None:
        """Wake a worker for a channel."""
        role = self.params.roles.get(channel)
        if role is not None:
            self.params.wake(role)

    def announce_soon(self) -> None:
        """Wake a worker for the INPUT queue, once for all that is told in this turn of the loop; in a stream of messages once a millisecond.

        A message by itself is announced at once. Of a stream the next message is on its way already, and wants the cores that the routing of the
        last one would take.
        """
        if not self._announcing:
            self._announcing = True
            if self.loop.time() - self._announced_s < _STREAM_S:
                self.loop.call_later(_GATHER_S, self._announce)
            else:
                self.loop.call_soon(self._announce)

    def _announce(self) -> None:
        if self._announcing:
            self._announcing = False
            self._announced_s = self.loop.time()
            self.announce(INPUT)

    def take(self, channel: int, limit: int, leave: Collection[int] = ()) -> tuple[list[Item], float | None]:
        """Lease up to `limit` items that are due; and in how many seconds the next one is, None if nothing waits.

        Destinations take turns, and items tried before get a quarter of the places. Nobody else gets a leased item until it is
        settled, moved or given back, or this worker is dead. leave: destinations to pass over, by `destination_hash`; when their items
        are due is not told.
        """
        index = self.index
        limit = min(limit, MAX_ENTRIES)
        with index.change() as change:
            items, due_ms = change.take(channel, limit, self.params.generation, self.params.slot, leave)
        if due_ms is None:
            return items, None
        return items, max(0.0, (due_ms - change.now_ms) / 1000)

    def take_waiting(
        self, channel: int, destinations: Collection[str], limit: int, leave: Collection[bytes] = ()
    ) -> list[Item]:
        """Lease up to `limit` items that wait for these destinations, due or not; what is on hold stays.

        leave: ends of items' keys (`item_end`) to pass over.
        """
        with self.index.change() as change:
            return change.take_waiting(
                channel, destinations, min(limit, MAX_ENTRIES), self.params.generation, self.params.slot, leave
            )

    def give_back(self, items: Iterable[Item]) -> None:
        """Return leased items to the queue, unchanged and due now; as soon as the index takes it, if its disk is full or broken.

        Nobody else may end these leases while this worker lives, so it is tried again each second.
        """
        self._returning += [(item, item.lease) for item in items]
        self._return()

    def _return(self) -> bool:
        """Whether all that was given back is in the queue."""
        returning, self._returning = self._returning, []
        try:
            with self.index.change() as change:
                for item, lease in returning:
                    item.lease = lease  # a transaction that was dropped has taken it off
                    change.give_back(item)
        except lmdb.Error as error:
            self._returning = returning
            self._alarm("spool_index_fails", reason=f"{type(error).__name__}: {error}")
            return False
        return True

    def move(self, moves: list[tuple[Item, list[Item]]]) -> None:
        """Replace leased INPUT items by what routing made of them, one transaction for up to 256 entries.

        The new items' recipients together stand for the old one's; a recipient that already has an outcome (after a rebuild) is left
        out. Raises ValueError for a move to nothing: that is a settlement.
        """
        channels: set[int] = set()
        start = 0
        while start < len(moves):
            units = 0
            with self.index.change() as change:
                while start < len(moves) and (not units or units + len(moves[start][1]) <= MAX_ENTRIES):
                    item, new = moves[start]
                    if not new:
                        raise ValueError("a message can't be moved to nowhere; settle it")
                    units += len(new)
                    _move(change, item, new)
                    channels.update(entry.channel for entry in new)
                    start += 1
                # Who ends the hold wakes all.
                channels = {channel for channel in channels if not change.is_on_hold(channel)}
        for channel in channels:
            self.announce(channel)

    async def settle(
        self, settlements: list[Settlement], messages: list[Message] | None = None, flush: bool = False
    ) -> None:
        """Record what became of leased items, with the messages that follow from it, and update the queue.

        settlements: outcomes no message stands for; those in `Message.settled` need not be here again. Deferred recipients stay
        queued. Returns when the index is updated. With messages, all records are on the disk by then; without, they are flushed within
        about a second (`flush`: at once). Raises SpoolError: nothing was settled (without messages: only after
        trying again for some 20 s, as outcomes are facts).
        """
        posts: list[_MessagePost] = []
        if messages:
            posts = await self._prepare_all(messages)
        future: asyncio.Future[None] = self.loop.create_future()
        batch = _Batch(future, 0)
        told: set[bytes] = set()
        chain: list[Post] = []
        if posts:
            last = posts[-1]
            done: list[Done] = []
            for post in posts:
                fresh = [s for s in post.message.settled if s.item.lease not in told]
                told.update(s.item.lease for s in fresh)
                done += _split(fresh, last.settlements)
            for post in posts:
                post.done = batch.finish
                post.flags = (CHAINED if post is not last else 0) | (FOLLOWS if post is not posts[0] else 0)
                post.seal(done if post is last else [])
            last.chained = posts[:-1]
            last.units += len(last.settlements) + len(posts)
            chain += posts
        rest = [s for s in settlements if s.item.lease not in told] if told else settlements
        singles: list[Post] = []
        quiet: list[tuple[Settlement, list[Result]]] = []
        for start in range(0, len(rest), MAX_ENTRIES):
            recorded: list[tuple[Settlement, list[Result]]] = []
            entries = _split(rest[start : start + MAX_ENTRIES], recorded)
            if entries:
                singles.append(_SettlePost(entries, recorded, batch, flush))
            else:
                quiet += recorded  # all deferred: the queue alone knows, nothing to write
        batch.left = len(chain) + len(singles)
        if chain:
            self.writer.append(chain)
        for single in singles:
            self.writer.append((single,))
        for start in range(0, len(quiet), MAX_ENTRIES):
            with self.index.change() as change:
                _apply_settlements(change, 0, quiet[start : start + MAX_ENTRIES], names=False)
        if batch.left:
            await future

    async def _prepare_all(self, messages: list[Message]) -> list[_MessagePost]:
        found: dict[int, _MessagePost] = {}
        ready: asyncio.Future[None] = self.loop.create_future()

        def arrived(position: int, post: _MessagePost) -> None:
            found[position] = post
            if len(found) == len(messages) and not ready.done():
                ready.set_result(None)

        def failed(error: SpoolError | None) -> None:
            if not ready.done():
                ready.set_exception(error or SpoolError("the spool can't write"))

        for position, message in enumerate(messages):
            self._prepare(message, failed, lambda post, position=position: arrived(position, post))  # type: ignore[misc]
        try:
            await ready
        except SpoolError:
            for post in found.values():
                for file in post.files:
                    file.drop()
            raise
        return [found[position] for position in range(len(messages))]

    async def flushed(self) -> None:
        """Wait until the outcomes settled so far are on the disk (at most about a second)."""
        if self._writer is not None:
            await self._writer.flushed()

    # --- time and destinations

    def queue_ms(self) -> int:
        """Queue time now: it only goes forward, whatever the wall clock does."""
        return self.index.clock.now_ms()

    def age_s(self, item: Item) -> float:
        """How long the item's message has been here, in queue time."""
        return max(0, self.index.clock.now_ms() - item.queued_ms) / 1000

    def destination(self, channel: int, name: str) -> Destination:
        """How a next hop fares (a copy)."""
        return self.index.destination(channel, name) or Destination(name)

    def back_off(self, channel: int, failed: dict[str, tuple[float, str]]) -> None:
        """Next hops failed: name -> (seconds, why). During that time nothing is taken for them but what is late (`keys.LATE_MS`).

        One update a next hop, however many items wait.
        """
        with self.index.change() as change:
            for name, (seconds, reason) in failed.items():
                hashed = destination_hash(name)
                destination = change.destination(channel, hashed, name)
                destination.failures += 1
                destination.backoff_ms = change.now_ms + int(seconds * 1000)
                destination.reason = reason
                change.arm(channel, hashed, destination)

    def succeeded(self, channel: int, names: Iterable[str]) -> None:
        """Next hops work: forget their failures, if any."""
        failed = [name for name in names if self.destination(channel, name).failures]
        if not failed:
            return
        with self.index.change() as change:
            for name in failed:
                hashed = destination_hash(name)
                destination = change.destination(channel, hashed, name)
                destination.failures = destination.backoff_ms = 0
                destination.reason = ""
                change.arm(channel, hashed, destination)

    def limit_destination(self, channel: int, name: str, limit: int) -> None:
        """Lease at most `limit` items of a next hop at once (0: any number)."""
        with self.index.change() as change:
            destination = change.destination(channel, destination_hash(name), name)
            destination.limit = limit
            change.arm(channel, destination_hash(name), destination)

    def close(self) -> None:
        """Write and index what waits, seal the segment, close. Blocks for a flush or two; leases not settled stay leased."""
        if self._closed:
            return
        self._closed = True
        self._tick.cancel()
        if self._returning:
            self._return()
        if self._writer is not None:
            self._writer.close()
        self._announce()
        self.executor.shutdown(wait=True)
        self.blobs.close()
        self.index.close()


def _split(settlements: Iterable[Settlement], into: list[tuple[Settlement, list[Result]]]) -> list[Done]:
    """The outcomes to record of some settlements; `into` gets each with its deferred results."""
    done = []
    for settlement in settlements:
        item = settlement.item
        final: list[tuple[bytes, int]] = []
        deferred: list[Result] = []
        for result in settlement.results:
            if result.outcome == Outcome.DEFERRED:
                deferred.append(result)
            else:
                final.append((result.recipient.address, result.outcome))
        into.append((settlement, deferred))
        if final:
            done.append(
                Done(
                    item.id,
                    item.channel,
                    item.part,
                    item.home,
                    item.fanout,
                    item.generation,
                    final,
                    item.envelope.input_channel,
                )
            )
    return done


def _move(change: Change, item: Item, new: list[Item]) -> None:
    """Replace a leased item by what it was routed to; nothing if the lease was lost."""
    if not change.unlease(item):
        return
    change.live(item, -1)
    if len(new) == 1 and len(new[0].envelope.recipients) == 1:
        routed = 1
    else:
        routed = len({(entry.channel, r.address) for entry in new for r in entry.envelope.recipients})
    fanout = item.fanout - len(item.envelope.recipients) + routed
    # What goes round the input queue once more is still to be routed: what is remembered of it must last until then.
    again = new[0].channel != INPUT and change.has_settled(item.id)
    parts: dict[tuple[int, str], int] = {}
    for entry in new:
        if again:
            # outcomes from before a rebuild: routing was repeated, delivery must not be
            entry.envelope.recipients = [
                r
                for r in entry.envelope.recipients
                if not change.is_settled(item.id, entry.channel, r.address)
            ]
            if not entry.envelope.recipients:
                continue
        place = (entry.channel, entry.destination)
        entry.id = item.id
        entry.part = parts.get(place, 0)
        parts[place] = entry.part + 1
        entry.queued_ms = item.queued_ms
        entry.home = item.home
        entry.generation = item.generation
        entry.sums = item.sums
        entry.fanout = fanout
        change.put(entry)
    if again:
        change.forget_settled(item.id)


__all__ = ["ROLES", "Spool", "SpoolFull", "SpoolParams", "spool_error", "spool_path"]
