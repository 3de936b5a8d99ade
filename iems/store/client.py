"""Client of the store's writers: one Unix socket a partition, requests sent again after the writer's death.

Runs in the caller's event loop and never blocks it. Every call returns after the durable commit. A request without an answer is sent
again on the next connection under its old number, so it takes effect once (docs/decisions/0003); after `patience_s` it
raises StoreUnavailable, and what became of it is then unknown.
"""

from __future__ import annotations

import asyncio
import os
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from iems.errors import StoreError, StoreUnavailable
from iems.net.local import socket_path
from iems.store import wire
from iems.store.rows import Mailbox
from iems.store.wire import Delivered, Delivery, NewMessage

__all__ = ["Delivered", "Delivery", "NewMessage", "StoreClient", "StoreError", "StoreUnavailable"]

_CHANGED = struct.Struct("<IQQ")
_decode_delivered = msgspec.msgpack.Decoder(list[Delivered]).decode
_decode_mailbox = msgspec.msgpack.Decoder(Mailbox).decode
_decode_append = msgspec.msgpack.Decoder(tuple[int, int, bytes]).decode
_decode_undelete = msgspec.msgpack.Decoder(tuple[int, bytes]).decode
_decode_copy = msgspec.msgpack.Decoder(tuple[int, bytes, bytes]).decode
_decode_int = msgspec.msgpack.Decoder(int).decode
_decode_bytes = msgspec.msgpack.Decoder(bytes).decode
_decode_refusal = msgspec.msgpack.Decoder(tuple[str, str]).decode
_decode_push = msgspec.msgpack.Decoder(tuple[int, int, int]).decode
#: Pause before an account that is being moved is asked for again.
MOVED_S = 0.05
_RETRY_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def pack_uids(uids: Iterable[int]) -> bytes:
    """uids as the wire has them (u32 little-endian); numpy arrays of any integer type too."""
    astype = getattr(uids, "astype", None)
    if astype is not None:
        return bytes(astype("<u4").tobytes())
    return array("I", uids).tobytes()


def unpack_uids(packed: bytes) -> list[int]:
    """The uids in `packed`."""
    found = array("I")
    found.frombytes(packed)
    return found.tolist()


class _Pending:
    __slots__ = ("deadline", "frame", "future")

    def __init__(self, frame: bytes, future: asyncio.Future[bytes], deadline: float) -> None:
        self.frame = frame
        self.future = future
        self.deadline = deadline


class _Link(asyncio.Protocol):
    """The connection to one partition's writer: numbers requests, matches answers, reconnects while something waits."""

    def __init__(self, client: StoreClient, partition: int) -> None:
        self._client = client
        self._loop = client.loop
        self.partition = partition
        self._path = str(client.run_path / f"store-p{partition}.sock")
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._frames = wire.Frames(1 << 30)
        self._seq = 0
        self._pending: dict[int, _Pending] = {}
        self.watches: set[tuple[int, int]] = set()
        self._out: list[bytes] = []
        self._flushing = False
        self._seen_once = False
        self.closed = False

    def request(self, body: Any) -> asyncio.Future[bytes]:
        """Send `body`; the future gives the raw value of its answer."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        if self.closed:
            future.set_exception(StoreUnavailable("the client is closed"))
            return future
        self._seq += 1
        seq = self._seq
        acked = next(iter(self._pending), seq)
        frame = wire.frame((seq, acked, body))
        if len(frame) > wire.FRAME_MAX:
            future.set_exception(StoreError("the request is too large", "LIMIT"))
            return future
        self._pending[seq] = _Pending(frame, future, self._loop.time() + self._client.patience_s)
        if self._transport is not None:
            self._write(frame)
        else:
            self._connect_soon()
        return future

    def _write(self, frame: bytes) -> None:
        self._out.append(frame)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out, self._out = self._out, []
        if self._transport is not None and out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _connect_soon(self) -> None:
        if self._connecting is None and not self.closed:
            self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        tries = 0
        try:
            while not self.closed and (self._pending or self.watches):
                try:
                    with socket_path(Path(self._path)) as name:
                        await self._loop.create_unix_connection(lambda: self, name)
                    return
                except OSError:
                    self._expire()
                await asyncio.sleep(_RETRY_S[min(tries, len(_RETRY_S) - 1)])
                tries += 1
        finally:
            self._connecting = None

    def _expire(self) -> None:
        now = self._loop.time()
        for seq in [seq for seq, pending in self._pending.items() if pending.deadline <= now or pending.future.done()]:
            pending = self._pending.pop(seq)
            if not pending.future.done():
                pending.future.set_exception(StoreUnavailable("the store does not answer"))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._frames = wire.Frames(1 << 30)
        self._out.clear()
        self._write(wire.frame((0, 0, wire.Hello(self._client.client_id))))
        for account, mailbox in self.watches:
            self._write(wire.frame((0, 0, wire.Watch(account, mailbox))))
        for pending in self._pending.values():
            self._write(pending.frame)
        if self._seen_once:
            # What was pushed while we were away is lost: every watcher looks for itself.
            for key in list(self.watches):
                self._client.call_watchers(key, 0)
        self._seen_once = True

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._frames.feed(data)
        except wire.FrameError:
            if self._transport is not None:
                self._transport.abort()
            return
        for frame in frames:
            answer = wire.decode_answer(frame)
            if answer.status == wire.PUSH:
                self._client.notify(self, *_decode_push(answer.value))
                continue
            pending = self._pending.pop(answer.seq, None)
            if pending is None or pending.future.done():
                continue
            if answer.status == wire.DONE:
                pending.future.set_result(bytes(answer.value))
            elif answer.status == wire.BUSY:
                pending.future.set_exception(StoreUnavailable("the store is busy"))
            else:
                code, text = _decode_refusal(answer.value)
                pending.future.set_exception(StoreError(text, code))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._pending or self.watches:
            self._connect_soon()

    def sweep(self) -> None:
        """Give up what has waited too long (a store that is there but hangs)."""
        self._expire()

    def close(self) -> None:
        self.closed = True
        self._flush()
        if self._transport is not None:
            self._transport.close()
        if self._connecting is not None:
            self._connecting.cancel()
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(StoreUnavailable("the client was closed"))
        self._pending.clear()


class StoreClient:
    """Asks the writers of all partitions. Methods raise StoreError (refused; `.code` is the IMAP response code) or StoreUnavailable.

    run_path: the folder of the sockets. client_id: u64, unique for ever (default: random). partition_of: account ->
    partition (the directory knows; default: all in 0). patience_s: how long a request waits for a store that is away.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        run_path: Path,
        client_id: int | None = None,
        *,
        partition_of: Callable[[int], int] = lambda account: 0,
        patience_s: float = 30.0,
    ) -> None:
        self.loop = loop
        self.run_path = Path(run_path)
        self.client_id = client_id if client_id is not None else int.from_bytes(os.urandom(8), "little")
        self.patience_s = patience_s
        self._partition_of = partition_of
        self._links: dict[int, _Link] = {}
        self._watchers: dict[tuple[int, int], list[Callable[[int], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def _link(self, partition: int) -> _Link:
        link = self._links.get(partition)
        if link is None:
            link = self._links[partition] = _Link(self, partition)
            if self._timer is None:
                self._timer = self.loop.call_later(1.0, self._sweep)
        return link

    def _sweep(self) -> None:
        for link in self._links.values():
            link.sweep()
        self._timer = self.loop.call_later(1.0, self._sweep)

    async def ask(self, account: int, body: Any) -> bytes:
        """The packed answer to a request of `wire.py`."""
        return await self._ask(account, body)

    async def _ask(self, account: int, body: Any) -> bytes:
        deadline = 0.0
        while True:
            try:
                return await self._link(self._partition_of(account)).request(body)
            except StoreError as error:
                if error.code != "MOVED":
                    raise
            # It is refused for the last moments of a move; then the directory names another partition.
            deadline = deadline or self.loop.time() + self.patience_s
            if self.loop.time() >= deadline:
                raise StoreUnavailable("the account is being moved")
            await asyncio.sleep(MOVED_S)

    async def deliver(self, batch: list[Delivery]) -> list[Delivered]:
        """Deliver `batch` (any partitions); answers in its order. Safe to repeat: one per (origin, account)."""
        first = batch[0].partition if batch else 0
        if all(delivery.partition == first for delivery in batch):
            return _decode_delivered(await self._link(first).request(wire.Deliver(batch))) if batch else []
        groups: dict[int, list[int]] = {}
        for index, delivery in enumerate(batch):
            groups.setdefault(delivery.partition, []).append(index)
        futures = [
            self._link(partition).request(wire.Deliver([batch[i] for i in indexes]))
            for partition, indexes in groups.items()
        ]
        results: list[Delivered] = [Delivered("error", text="not answered")] * len(batch)
        for indexes, raw in zip(
            groups.values(), await asyncio.gather(*futures, return_exceptions=True), strict=True
        ):
            if isinstance(raw, StoreError):
                for index in indexes:
                    results[index] = Delivered("error", text=str(raw))
            elif isinstance(raw, BaseException):
                raise raw
            else:
                for index, delivered in zip(indexes, _decode_delivered(raw), strict=True):
                    results[index] = delivered
        return results

    async def forget(self, pairs: Sequence[tuple[bytes, int]]) -> None:
        """The spool's record of these (origin, account) is durable: they are never delivered again."""
        groups: dict[int, list[tuple[bytes, int]]] = {}
        for origin, account in pairs:
            groups.setdefault(self._partition_of(account), []).append((origin, account))
        for partition, group in groups.items():
            await self._link(partition).request(wire.Forget(group))

    async def ensure(self, account: int) -> None:
        """Make the account's row and default mailboxes if they are not there."""
        await self._ask(account, wire.Ensure(account))

    async def create(self, account: int, name: str, special_use: str = "") -> Mailbox:
        """Make a mailbox and its missing parents. Refused: ALREADYEXISTS, CANNOT (not a name), LIMIT."""
        return _decode_mailbox(await self._ask(account, wire.Create(account, name, special_use)))

    async def delete(self, account: int, name: str) -> None:
        """Remove a mailbox with its messages; one that has children stays as a \\Noselect name (RFC 9051 6.3.5)."""
        await self._ask(account, wire.Delete(account, name))

    async def rename(self, account: int, old: str, new: str) -> None:
        """Rename a mailbox and its children; INBOX gives its messages to `new` and stays (RFC 9051 6.3.6)."""
        await self._ask(account, wire.Rename(account, old, new))

    async def subscribe(self, account: int, name: str) -> None:
        """Put `name` on the subscription list, whether or not it exists."""
        await self._ask(account, wire.Subscribe(account, name, True))

    async def unsubscribe(self, account: int, name: str) -> None:
        """Take `name` off the subscription list."""
        await self._ask(account, wire.Subscribe(account, name, False))

    async def append(
        self,
        account: int,
        mailbox: str,
        messages: list[NewMessage],
        quota_octets: int | None = None,
        *,
        replaces: tuple[int, int] | None = None,
        domain: str = "",
        domain_octets: int | None = None,
        member: int = 0,
    ) -> tuple[int, list[int]]:
        """Append all or none; (uidvalidity, uids). Refused: TRYCREATE, OVERQUOTA, LIMIT.

        replaces: (mailbox id, uid) of a message that is expunged with the same step (RFC 8508); NONEXISTENT without it.
        domain, domain_octets: as of `wire.Delivery`. member: as of `store_flags`.
        """
        body = wire.Append(account, mailbox, messages, quota_octets, *(replaces or (0, 0)), domain, domain_octets, member)
        uidvalidity, _, uids = _decode_append(await self._ask(account, body))
        return uidvalidity, unpack_uids(uids)

    async def store_flags(
        self,
        account: int,
        mailbox_id: int,
        uids: Iterable[int],
        mode: str,
        flags: list[str],
        unchangedsince: int | None = None,
        member: int = 0,
    ) -> list[tuple[int, int, int]]:
        """Change flags ("+", "-", "="); (uid, flags, modseq) as they are now of every message that exists.

        With unchangedsince (RFC 7162) messages changed later are left alone and out of the answer. member: the account whose \\Seen is meant, in
        a shared mailbox.
        """
        body = wire.StoreFlags(account, mailbox_id, pack_uids(uids), mode, flags, unchangedsince, member)
        raw = _decode_bytes(await self._ask(account, body))
        return list(_CHANGED.iter_unpack(raw))

    async def expunge(self, account: int, mailbox_id: int, uids: Iterable[int] | None = None) -> list[int]:
        """Remove the \\Deleted messages (of `uids`, or all); the uids that went."""
        body = wire.Expunge(account, mailbox_id, None if uids is None else pack_uids(uids))
        return unpack_uids(_decode_bytes(await self._ask(account, body)))

    async def copy(
        self,
        account: int,
        src_id: int,
        uids: Iterable[int],
        dst_name: str,
        move: bool = False,
        quota_octets: int | None = None,
        domain: str = "",
        domain_octets: int | None = None,
    ) -> tuple[int, list[int], list[int]]:
        """Copy or move; (uidvalidity of the target, source uids, their new uids). Refused: TRYCREATE, OVERQUOTA."""
        body = wire.Copy(account, src_id, pack_uids(uids), dst_name, move, quota_octets, domain, domain_octets)
        uidvalidity, sources, targets = _decode_copy(await self._ask(account, body))
        return uidvalidity, unpack_uids(sources), unpack_uids(targets)

    async def take_recent(self, account: int, mailbox_id: int) -> int:
        """The first uid not yet shown as \\Recent; from now on all present ones count as shown (SELECT, not EXAMINE)."""
        return _decode_int(await self._ask(account, wire.Recent(account, mailbox_id)))

    async def undelete(
        self, account: int, rows: list[tuple[int, int, int]], mailbox: str = "INBOX"
    ) -> tuple[int, list[int]]:
        """Bring trashed messages back as new ones of `mailbox`; (uidvalidity, uids). What is gone for good is left out.

        rows: (due_s, mailbox_id, uid) of `Reader.trash`. Refused: TRYCREATE, LIMIT.
        """
        uidvalidity, uids = _decode_undelete(await self._ask(account, wire.Undelete(account, rows, mailbox)))
        return uidvalidity, unpack_uids(uids)

    async def set_metadata(self, account: int, mailbox_id: int, changes: dict[str, bytes | None]) -> None:
        """Set and (None) remove annotations of a mailbox, or with 0 of the account. Refused: NONEXISTENT, METADATA TOOMANY."""
        await self._ask(account, wire.SetMetadata(account, mailbox_id, changes))

    async def set_acl(self, account: int, mailbox_id: int, address: str, number: int, rights: str) -> None:
        """Give an account (by address and number) rights in a mailbox; "" takes all. Refused: NONEXISTENT, LIMIT."""
        await self._ask(account, wire.SetAcl(account, mailbox_id, address, number, rights))

    async def set_shared(self, account: int, owner: int, on: bool) -> None:
        """Note that `owner` shares mailboxes with `account`, or no longer does. Refused: LIMIT."""
        await self._ask(account, wire.SetShared(account, owner, on))

    async def part(self, account: int, member: int) -> None:
        """Forget a member of a shared mailbox: its entries in the lists of rights, and what it has seen."""
        await self._ask(account, wire.Part(account, member))

    async def drop(self, account: int) -> None:
        """Remove all of an account (its directory entry is gone); bytes go after the undelete time."""
        await self._ask(account, wire.Drop(account))

    def watch(self, account: int, mailbox_id: int, callback: Callable[[int], None]) -> None:
        """Call `callback(modseq)` after each commit that touched the mailbox; 0 means "look yourself". mailbox_id 0: any of the account."""
        key = (account, mailbox_id)
        callbacks = self._watchers.setdefault(key, [])
        callbacks.append(callback)
        if len(callbacks) == 1:
            link = self._link(self._partition_of(account))
            link.watches.add(key)
            self._quietly(link.request(wire.Watch(account, mailbox_id)))

    def unwatch(self, account: int, mailbox_id: int, callback: Callable[[int], None] | None = None) -> None:
        """End a watch (all of this mailbox if no callback is given); nothing if there is none."""
        key = (account, mailbox_id)
        callbacks = self._watchers.get(key)
        if callbacks is None:
            return
        if callback is None:
            callbacks.clear()
        elif callback in callbacks:
            callbacks.remove(callback)
        if not callbacks:
            del self._watchers[key]
            for link in self._links.values():
                if key in link.watches:
                    link.watches.discard(key)
                    self._quietly(link.request(wire.Unwatch(account, mailbox_id)))

    @staticmethod
    def _quietly(future: asyncio.Future[bytes]) -> None:
        # A watch that could not be placed is placed again with the next connection.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def notify(self, link: _Link, account: int, mailbox_id: int, modseq: int) -> None:
        """A push arrived (called by the links)."""
        if self._partition_of(account) != link.partition:
            self._follow(account, link)
        self.call_watchers((account, mailbox_id), modseq)
        self.call_watchers((account, 0), modseq)

    def _follow(self, account: int, old: _Link) -> None:
        """Take the watches of an account that was moved to its new partition."""
        new = self._link(self._partition_of(account))
        for key in [key for key in old.watches if key[0] == account]:
            old.watches.discard(key)
            self._quietly(old.request(wire.Unwatch(*key)))
            new.watches.add(key)
            # What happened before the watch is placed is seen by looking.
            placed = new.request(wire.Watch(*key))
            placed.add_done_callback(partial(self._placed, key))

    def _placed(self, key: tuple[int, int], done: asyncio.Future[bytes]) -> None:
        if not done.cancelled() and done.exception() is None:
            self.call_watchers(key, 0)

    def call_watchers(self, key: tuple[int, int], modseq: int) -> None:
        """Call the callbacks of one watch."""
        for callback in list(self._watchers.get(key, ())):
            callback(modseq)

    def close(self) -> None:
        """Close all connections; what waits fails with StoreUnavailable."""
        if self._timer is not None:
            self._timer.cancel()
        for link in self._links.values():
            link.close()
        self._links.clear()
