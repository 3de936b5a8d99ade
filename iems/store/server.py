"""Serves one partition on a Unix socket: two bounded lanes, a writer thread that commits batches, pushes to who watches.

The loop decodes and queues; only the writer thread touches the partition, and only it waits for the disk. See
docs/decisions/0003.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from iems.net.local import socket_path
from iems.store import wire
from iems.store.partition import Job, Outcome, Partition, PartitionBroken

#: Entries (deliveries, uids, messages) of one transaction; a single larger request has one of its own.
BATCH_WEIGHT = 256
SESSION_REQUESTS = 4_096
SESSION_OCTETS = 64 << 20
DELIVERY_REQUESTS = 1_024
DELIVERY_OCTETS = 64 << 20
#: Octets a connection may leave unread before it is closed.
UNREAD_OCTETS = 64 << 20
WATCHES_MAX = 65_536
HOUSEKEEPING_S = 30.0


def weight(body: Any) -> int:
    """How many entries a request is for."""
    if isinstance(body, wire.Deliver):
        return len(body.batch)
    if isinstance(body, wire.StoreFlags | wire.Copy | wire.Expire):
        return len(body.uids) // 4
    if isinstance(body, wire.Undelete):
        return len(body.rows)
    if isinstance(body, wire.Expunge):
        return 64 if body.uids is None else len(body.uids) // 4
    if isinstance(body, wire.Append):
        return len(body.messages)
    if isinstance(body, wire.Bring):
        return len(body.puts) + len(body.deletes)
    if isinstance(body, wire.Forget):
        return len(body.pairs) // 2
    return 1


class _Lane:
    """Requests that wait for the writer, bounded by number and octets. Filled by the loop, emptied by the thread."""

    def __init__(self, requests: int, octets: int) -> None:
        self.jobs: deque[tuple[Connection, Job, int, int]] = deque()
        self.requests = requests
        self.octets_max = octets
        self.octets_in = 0  # only the loop counts up
        self.octets_out = 0  # only the thread counts up

    def full(self) -> bool:
        return len(self.jobs) >= self.requests or self.octets_in - self.octets_out > self.octets_max

    def put(self, connection: Connection, job: Job, entries: int, octets: int) -> None:
        self.octets_in += octets
        self.jobs.append((connection, job, entries, octets))

    def take(self, room: int, into: list[tuple[Connection, Job]]) -> int:
        """Move what fits into `into`; the room that is left. A request larger than an empty batch goes alone."""
        jobs = self.jobs
        while jobs:
            connection, job, entries, octets = jobs[0]
            if entries > room and into:
                return 0
            jobs.popleft()
            self.octets_out += octets
            into.append((connection, job))
            room -= entries
        return max(room, 0)


class Connection(asyncio.Protocol):
    """One client. Requests become jobs in the server's lanes; answers come back in the order of commits."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.client = 0
        self.watched: set[tuple[int, int]] = set()
        self._frames = wire.Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self.transport = transport  # type: ignore[assignment]
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, with what it watched."""
        self.transport = None
        self.server.connections.discard(self)
        for key in self.watched:
            self.server.unwatch(self, key)
        self.watched.clear()

    def data_received(self, data: bytes) -> None:
        """Octets of requests."""
        try:
            for frame in self._frames.feed(data):
                self._request(wire.decode_request(frame), len(frame))
        except (wire.FrameError, msgspec.DecodeError) as error:
            self.server.log_error(f"a client sent what is no request: {error}")
            if self.transport is not None:
                self.transport.abort()

    def _request(self, request: wire.Request, octets: int) -> None:
        body = request.body
        server = self.server
        server.last_request = server.loop.time()
        if isinstance(body, wire.Hello):
            self.client = body.client
        elif isinstance(body, wire.Watch):
            if len(self.watched) < WATCHES_MAX:
                key = (body.account, body.mailbox_id)
                self.watched.add(key)
                server.watchers.setdefault(key, set()).add(self)
                self.send(wire.frame((request.seq, wire.DONE, None)))
            else:
                self.send(wire.frame((request.seq, wire.BUSY, None)))
        elif isinstance(body, wire.Unwatch):
            key = (body.account, body.mailbox_id)
            if key in self.watched:
                self.watched.discard(key)
                server.unwatch(self, key)
            self.send(wire.frame((request.seq, wire.DONE, None)))
        else:
            lane = server.deliveries if isinstance(body, wire.Deliver | wire.Forget) else server.sessions
            if lane.full() or server.closing:
                self.send(wire.frame((request.seq, wire.BUSY, None)))
                return
            lane.put(self, Job(self.client, request.seq, request.acked, body), weight(body), octets)
            server.work.set()

    def send(self, data: bytes) -> None:
        """Send octets; a client that does not read is cut off, it asks again."""
        transport = self.transport
        if transport is None:
            return
        transport.write(data)
        if transport.get_write_buffer_size() > UNREAD_OCTETS:
            transport.abort()


class Server:
    """One partition, its socket, its lanes, its writer thread.

    broken: called on the loop if the disk failed under the partition; the process must end then.
    committed: called on the loop after each commit with the number of its requests.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        partition: Partition,
        path: Path,
        *,
        broken: Callable[[Exception], None],
        committed: Callable[[int], None] = lambda requests: None,
        log_error: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.loop = loop
        self.partition = partition
        self.path = path
        self.sessions = _Lane(SESSION_REQUESTS, SESSION_OCTETS)
        self.deliveries = _Lane(DELIVERY_REQUESTS, DELIVERY_OCTETS)
        self.watchers: dict[tuple[int, int], set[Connection]] = {}
        self.connections: set[Connection] = set()
        self.work = threading.Event()
        self.closing = False
        self.last_request = loop.time()
        self.log_error = log_error
        self._broken = broken
        self._committed = committed
        self._stop = False
        self._housekeep = False
        self._listener: asyncio.AbstractServer | None = None
        self._thread = threading.Thread(target=self._write, name=f"store-p{partition.number}", daemon=True)
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Bind the socket (0600) and begin."""
        self._thread.start()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        mask = os.umask(0o177)
        try:
            with socket_path(self.path) as name:
                self._listener = await self.loop.create_unix_server(lambda: Connection(self), name, backlog=512)
        finally:
            os.umask(mask)
        self._timer = self.loop.call_later(1.0, self._remind)

    def _remind(self) -> None:
        self._housekeep = True
        self.work.set()
        self._timer = self.loop.call_later(HOUSEKEEPING_S, self._remind)

    def unwatch(self, connection: Connection, key: tuple[int, int]) -> None:
        """Take a connection off the watchers of a mailbox."""
        found = self.watchers.get(key)
        if found is not None:
            found.discard(connection)
            if not found:
                del self.watchers[key]

    # The writer thread

    def _write(self) -> None:
        try:
            while not (self._stop and not self.sessions.jobs and not self.deliveries.jobs):
                self.work.wait()
                self.work.clear()
                self._work()
        except Exception as error:
            # PartitionBroken, or a fault of ours: nobody may believe that this thread still writes.
            self._tell(self._broken, error)

    def _work(self) -> None:
        """Batch after batch until nothing waits; between them, or after every 16th, a slice of housekeeping."""
        partition = self.partition
        batches = 0
        while True:
            batch: list[tuple[Connection, Job]] = []
            room = self.sessions.take(BATCH_WEIGHT, batch)
            if room or not batch:
                self.deliveries.take(room or BATCH_WEIGHT, batch)
            if batch:
                outcomes = partition.apply([job for _, job in batch])
                self._post(batch, outcomes, partition.touched)
                batches += 1
            if not self._housekeep or self._stop:
                if not batch:
                    return
            elif not batch or batches % 16 == 0:
                self._slice()

    def _slice(self) -> None:
        try:
            self._housekeep = self.partition.housekeep()
        except PartitionBroken:
            raise
        except Exception as error:
            # A full disk, a damaged row: the next round tries again.
            self._housekeep = False
            self._tell(self.log_error, f"housekeeping: {type(error).__name__}: {error}")

    def _tell(self, callback: Callable[[Any], None], argument: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:
            pass  # the loop is gone, and so are we

    def _post(
        self, batch: list[tuple[Connection, Job]], outcomes: list[Outcome], touched: dict[tuple[int, int], int]
    ) -> None:
        out: dict[Connection, list[bytes]] = {}
        for (connection, job), outcome in zip(batch, outcomes, strict=True):
            out.setdefault(connection, []).append(
                wire.frame((job.seq, outcome.status, msgspec.Raw(outcome.value)))
            )
        self.loop.call_soon_threadsafe(
            self._answer, [(connection, b"".join(frames)) for connection, frames in out.items()], touched, len(batch)
        )

    # The loop again

    def _answer(
        self, out: list[tuple[Connection, bytes]], touched: dict[tuple[int, int], int], requests: int
    ) -> None:
        # Pushes first: who waits in IDLE is a person, who waits for an answer mostly a queue.
        if self.watchers:
            pushes: dict[Connection, list[bytes]] = {}
            for (account, mailbox), modseq in touched.items():
                watching = self.watchers.get((account, mailbox), set()) | self.watchers.get((account, 0), set())
                if watching:
                    frame = wire.frame((0, wire.PUSH, (account, mailbox, modseq)))
                    for connection in watching:
                        pushes.setdefault(connection, []).append(frame)
            for connection, frames in pushes.items():
                connection.send(b"".join(frames))
        for connection, data in out:
            connection.send(data)
        if requests:
            self._committed(requests)

    async def drain(self, deadline_s: float, quiet_s: float = 0.1) -> None:
        """Serve until nobody has asked for `quiet_s` or half the deadline is over, then finish what waits and close."""
        loop = self.loop
        now = loop.time()
        last = now + min(deadline_s / 2, 2.0)
        while loop.time() < last and (
            loop.time() - self.last_request < quiet_s or self.sessions.jobs or self.deliveries.jobs
        ):
            await asyncio.sleep(quiet_s / 4)
        if self._listener is not None:
            self._listener.close()
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._stop = True
        self.work.set()
        while self._thread.is_alive() and loop.time() < now + deadline_s:
            await asyncio.sleep(0.005)
            self.work.set()
        await asyncio.sleep(0)  # the last answers
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.close()
        if not self._thread.is_alive():
            self.partition.close()
