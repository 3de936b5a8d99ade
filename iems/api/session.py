"""One client of the socket: a task that reads its requests, and one that answers them in their order.

Both are bounded: a client that sends more than is answered is not read, one that does not take its answers is cut off. When it goes,
what it had in hand is offered again at once; requests that came whole before are still met.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iems._native import kernel
from iems.api import wire
from iems.api.leases import Lease, Leases
from iems.api.wire import Refused, Request
from iems.blobs import large_name, segment_name
from iems.errors import SpoolError, SpoolFull
from iems.model import Channel, Extent, Outcome, Reply, Result, id_text
from iems.smtp import received
from iems.spool.admin import rfc3339
from iems.spool.items import Item, Message
from iems.spool.verify import ContentDamaged

if TYPE_CHECKING:
    from iems.api.worker import Worker
    from iems.spool.content import Content

DataDecoder = kernel("smtp").DataDecoder

UNREADABLE = Reply(451, 3, 0, "Content can't be read, try again later")
#: Requests read ahead of the one in work, and octets read or sent at once.
AHEAD = 16
CHUNK = 65_536
#: Items given at once, and longest wait for one.
MOST_ITEMS = 100
MOST_WAIT_S = 3600.0


class _Arrived:
    """A request, with the content that came behind it or what is wrong with it."""

    __slots__ = ("content", "decoder", "fault", "request")

    def __init__(self, request: Request | None, fault: Refused | None = None) -> None:
        self.request = request
        self.fault = fault
        self.content: Content | None = None
        self.decoder: Any = None


class Session:
    """See the module."""

    def __init__(self, worker: Worker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.worker = worker
        self.leases = Leases(worker.loop, self._expired)
        self.gone = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._name = "api"
        self._requests: asyncio.Queue[_Arrived | None] = asyncio.Queue(AHEAD)
        self._prefixes: dict[int, bytes] = {}

    async def run(self) -> None:
        """Serve the client until it goes."""
        reading = asyncio.ensure_future(self._read())
        try:
            await self._serve()
        except (ConnectionError, TimeoutError):
            pass  # it went, or takes nothing: the same to us
        finally:
            self.gone.set()
            reading.cancel()
            await asyncio.wait((reading,))
            while not self._requests.empty():
                self._discard(self._requests.get_nowait())
            self.worker.offers.give_back(self.leases.clear())
            self._writer.close()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._writer.wait_closed(), 1.0)
            self._writer.transport.abort()

    def close(self) -> None:
        """The worker ends: what is in hand goes back."""
        self.gone.set()
        self._writer.transport.abort()

    # --- reading

    async def _read(self) -> None:
        try:
            while (arrived := await self._next()) is not None:
                try:
                    await self._requests.put(arrived)
                except BaseException:
                    self._discard(arrived)
                    raise
                if arrived.request is None:
                    break
        except (ConnectionError, TimeoutError):
            pass
        except Exception as error:
            self.worker.ctx.log.error("a request can't be read", error)
        # A waiting `take` must end now; whatever came whole before is still answered.
        self.gone.set()
        await self._requests.put(None)

    async def _next(self) -> _Arrived | None:
        """The next request; one without request says why no more can be read. None at the end."""
        try:
            line = await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError:
            return _Arrived(None, Refused("bad", f"a line is longer than {wire.LINE_OCTETS} octets"))
        try:
            request = wire.read(line)
        except Refused as error:
            return _Arrived(None, error)
        arrived = _Arrived(request)
        if request.op == "insert":
            try:
                await self._take_in(arrived)
            except BaseException:
                self._discard(arrived)
                raise
        return arrived

    async def _take_in(self, arrived: _Arrived) -> None:
        """The content behind a request; past a fault it is read and thrown away."""
        worker = self.worker
        request = arrived.request
        assert request is not None
        left = request.octets
        limit = worker.config.max_octets
        smtpd = worker.ctx.config.smtpd
        arrived.decoder = DataDecoder(limit, smtpd.bare_lf == "normalise", True, False)
        if left > limit:
            arrived.fault = Refused("limit", f"octets: {limit} at most")
        elif not left:
            arrived.fault = Refused("bad", "octets: the message is empty")
        else:
            try:
                arrived.content = worker.spool.new_content()
            except SpoolError as error:
                arrived.fault = _spool_fault(error)
        while left:
            data = await asyncio.wait_for(self._reader.read(min(left, CHUNK)), worker.config.timeout_s)
            if not data:
                raise ConnectionResetError
            left -= len(data)
            content = arrived.content
            if content is None:
                continue
            arrived.decoder.feed(data, 0, len(data), content.buffer)
            try:
                content.check_spill()
            except SpoolError as error:
                self._discard(arrived)
                arrived.fault = _spool_fault(error)
        if arrived.content is not None:
            decoder = arrived.decoder
            decoder.finish(arrived.content.buffer)
            longest = smtpd.content_line_octets
            if decoder.too_big:
                arrived.fault = Refused("limit", f"octets: {limit} at most")
            elif decoder.refused:
                arrived.fault = Refused("bad", "the content has a bare CR, a bare LF or a NUL; lines end with CRLF")
            elif 0 < longest < decoder.longest:
                arrived.fault = Refused("bad", f"the content has a line longer than {longest} octets")

    @staticmethod
    def _discard(arrived: _Arrived | None) -> None:
        if arrived is not None and arrived.content is not None:
            content, arrived.content = arrived.content, None
            content.discard()

    # --- answering

    async def _serve(self) -> None:
        while (arrived := await self._requests.get()) is not None:
            request = arrived.request
            try:
                if arrived.fault is not None:
                    raise arrived.fault
                assert request is not None
                found = await getattr(self, f"_{request.op}")(arrived if request.op == "insert" else request)
            except Refused as error:
                found = wire.refusal(error)
            except (OSError, EOFError, SpoolError) as error:
                if isinstance(error, ConnectionError | TimeoutError):
                    raise
                self.worker.ctx.log.error("a request failed", error)
                self.worker.ctx.count("errors_total")
                found = wire.refusal(_spool_fault(error))
            finally:
                self._discard(arrived)
            if found is not None:
                await self._send(wire.answer(request, found))
            if request is None or (self.worker.closing and not len(self.leases)):
                return

    async def _send(self, data: bytes) -> None:
        if self._writer.transport.is_closing():
            return  # nobody listens; what it asked for before is still done
        self._writer.write(data)
        await asyncio.wait_for(self._writer.drain(), self.worker.config.timeout_s)

    async def _hello(self, request: Request) -> dict[str, Any]:
        if request.name:
            self._name = wire.client_name(request.name)
            self._prefixes.clear()
        config = self.worker.config
        return {
            "version": wire.VERSION,
            "hostname": self.worker.ctx.hostname,
            "insert": list(config.insert),
            "take": list(config.take),
            "max_octets": config.max_octets,
            "max_leases": config.max_leases,
            "lease_s": config.lease_s,
        }

    # --- in

    async def _insert(self, arrived: _Arrived) -> dict[str, Any]:
        worker, request = self.worker, arrived.request
        assert request is not None
        channel = wire.channel(request.channel, worker.config.insert)
        now_ns = time.time_ns()
        envelope = wire.envelope(request, channel, now_ns)
        id = worker.spool.new_id()
        recipients = envelope.recipients
        line = received.line(
            self._prefix(channel),
            id_text(id),
            recipients[0].original if len(recipients) == 1 and recipients[0].original.isascii() else b"",
            now_ns // 1_000_000_000,
        )
        content, decoder = arrived.content, arrived.decoder
        assert content is not None
        arrived.content = None  # the spool's from here on
        envelope.body = int(decoder.eight_bit)
        envelope.dot_free = decoder.dot_free
        envelope.size = decoder.octets + len(line)
        [error] = await worker.spool.append([Message(id, envelope, [line, content])])
        if error is not None:
            worker.ctx.count("messages_refused_total")
            worker.ctx.log.error("message not accepted", error, id)
            raise _spool_fault(error)
        worker.ctx.count("messages_accepted_total")
        worker.ctx.count("octets_in_total", envelope.size)
        worker.ctx.log.event(
            "accepted",
            id,
            recipients[0].address if len(recipients) == 1 else None,
            reverse_path=wire.text(envelope.reverse_path),
            recipients=len(recipients),
            size=envelope.size,
            channel=channel.name,
            client=self._name,
        )
        return {"id": id_text(id)}

    def _prefix(self, channel: Channel) -> bytes:
        """The Received line up to the id: our own lines are what ends a loop through a channel of others."""
        found = self._prefixes.get(channel)
        if found is None:
            found = self._prefixes[channel] = received.prefix(
                helo=self._name.encode(),
                client_ip="",
                by=self.worker.ctx.hostname.encode(),
                protocol=channel.name.encode(),
            )
        return found

    # --- out

    async def _take(self, request: Request) -> dict[str, Any]:
        worker = self.worker
        channel = wire.channel(request.channel, worker.config.take)
        seconds = self._lease_s(request)
        if not 1 <= request.limit <= MOST_ITEMS:
            raise Refused("bad", f"limit: between 1 and {MOST_ITEMS}")
        if not 0 <= request.wait_s <= MOST_WAIT_S:
            raise Refused("bad", f"wait_s: between 0 and {MOST_WAIT_S:g}")
        room = worker.config.max_leases - len(self.leases)
        if room <= 0:
            raise Refused("limit", f"{len(self.leases)} items in hand: settle some first")
        if self.gone.is_set() or worker.closing:
            return {"items": []}
        items = await worker.offers.want(channel, min(request.limit, room), request.wait_s, self.gone)
        if self.gone.is_set():
            worker.offers.give_back(items)
            return {"items": []}
        leases = [self.leases.add(worker.token(), item, seconds) for item in items]
        offered = []
        for lease in leases:
            item = lease.item
            worker.ctx.log.event("leased", item.id, channel=channel.name, attempts=item.attempts, client=self._name)
            offer = wire.offer(item, lease.token, seconds, rfc3339(item.envelope.received_ns))
            if request.pieces:
                if not await self._checked(lease):
                    continue
                offer["pieces"] = self._pieces(item)
            offered.append(offer)
        return {"items": offered}

    def _lease_s(self, request: Request) -> float:
        most = self.worker.config.lease_s
        if not 0 <= request.lease_s <= most:
            raise Refused("bad", f"lease_s: between 0 and {most:g}")
        return request.lease_s or min(300.0, most)

    async def _checked(self, lease: Lease) -> bool:
        """Whether an item's octets are those that were accepted; if not, it is put aside."""
        try:
            await self.worker.in_thread(self.worker.verifier.check, lease.item)
        except ContentDamaged as error:
            self.leases.drop(lease)
            self.worker.put_aside(lease.item, error)
            return False
        except (OSError, EOFError) as error:
            # Not for a client to mend, and perhaps not for long: another try later.
            self.worker.ctx.log.error("a content can't be read", error, lease.item.id)
            recipients = lease.item.envelope.recipients
            await self._settle(lease, [Result(r, Outcome.DEFERRED, UNREADABLE, wire.RETRY_S) for r in recipients], 0.0)
            return False
        return True

    def _pieces(self, item: Item) -> list[Any]:
        """Where an item's octets stand: (path, offset, length) or octets. Files stay while the lease is held, and ten minutes longer."""
        folders = [folder.absolute() for folder in self.worker.spool.blobs.folders]
        found: list[Any] = []
        for piece in item.rope:
            if isinstance(piece, Extent):
                path = next(p for f in folders for p in _names(f, piece.blob) if p.exists())
                found.append([str(path), piece.offset, piece.length])
            else:
                found.append(wire.inline(piece))
        return found

    async def _content(self, request: Request) -> dict[str, Any] | None:
        worker = self.worker
        lease = self.leases.find(request.lease)
        if not await self._checked(lease):
            raise Refused("damaged", "the content can't be read, or is not what was accepted: the item is not yours any more")
        item = lease.item
        octets = sum(p.length if isinstance(p, Extent) else len(p) for p in item.rope)
        at = 0
        data = await worker.in_thread(worker.blobs.read_range, item.rope, 0, CHUNK)
        await self._send(wire.answer(request, {"octets": octets}))
        try:
            while data:
                await self._send(data)
                at += len(data)
                data = await worker.in_thread(worker.blobs.read_range, item.rope, at, CHUNK) if at < octets else b""
        except (OSError, EOFError) as error:
            # The client waits for octets that can't be had: the end of the connection is the only thing it understands.
            if not isinstance(error, ConnectionError | TimeoutError):
                worker.ctx.log.error("a content can't be read", error, item.id)
            raise ConnectionResetError from error
        if at != octets:
            raise ConnectionResetError
        return None

    async def _ack(self, request: Request) -> dict[str, Any]:
        lease = self.leases.find(request.lease)
        await self._settle(lease, wire.results(lease.item, request.results), self._lease_s(request))
        return {}

    async def _nack(self, request: Request) -> dict[str, Any]:
        lease = self.leases.find(request.lease)
        if not request.seconds and not request.reason:
            self.leases.drop(lease)
            self.worker.offers.give_back([lease.item])
            return {}
        reply = wire.reply_of(f"451 4.5.0 {request.reason}", wire.LATER, "4")
        wait_s = wire.retry_s(request.seconds)
        recipients = lease.item.envelope.recipients
        await self._settle(lease, [Result(r, Outcome.DEFERRED, reply, wait_s) for r in recipients], self._lease_s(request))
        return {}

    async def _settle(self, lease: Lease, results: list[Result], again_s: float) -> None:
        """again_s: how long it may be held if its outcome can't be written."""
        self.leases.settle(lease)
        try:
            await self.worker.outcomes.settle(lease.item, results)
        except BaseException:
            self.leases.resume(lease, again_s)
            raise
        self.leases.drop(lease)
        self.worker.offers.look(lease.item.channel)

    async def _renew(self, request: Request) -> dict[str, Any]:
        lease = self.leases.find(request.lease)
        seconds = self._lease_s(request)
        self.leases.renew(lease, seconds)
        return {"lease_s": seconds}

    def _expired(self, lease: Lease) -> None:
        self.worker.ctx.log.event(
            "lease-expired", lease.item.id, channel=Channel(lease.item.channel).name, client=self._name
        )
        self.worker.offers.give_back([lease.item])
        if self.worker.closing and not len(self.leases):
            self.close()


def _names(folder: Path, blob: int) -> tuple[Path, Path]:
    return folder / segment_name(blob), folder / large_name(blob)


def _spool_fault(error: BaseException) -> Refused:
    """What a client is told of a fault of ours: it may try again, and learns nothing of the cause."""
    if isinstance(error, SpoolFull):
        return Refused("full", "mail system full, try again later")
    return Refused("failed", "local error, try again later")
