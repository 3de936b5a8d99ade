"""A stream whose octets are compressed (RFC 4978), put between a `Stream` and its handler.

What comes out of the inflater is bounded: at most `TURN_OCTETS` in one turn of the loop, whatever the peer packed into
a few octets. Files are read in threads, as compressing needs their octets.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections import deque
from functools import partial
from typing import Any

from iems.net.stream import Stream

#: Octets the inflater gives at once, and in one turn of the loop.
PIECE_OCTETS = 64 * 1024
TURN_OCTETS = 1024 * 1024
#: Octets of a file compressed at once.
FILE_OCTETS = 128 * 1024
#: Output not yet taken by the peer above which files wait.
OUTPUT_HIGH = 512 * 1024
#: A window of 8 KiB and little memory for the compressor: 48 KiB a connection instead of 256.
WINDOW_BITS = 13
MEMORY_LEVEL = 5
LEVEL = 6


class Deflated:
    """Has the methods of `Stream`; `handler` gets what a stream tells its handler."""

    __slots__ = (
        "_closing",
        "_corked",
        "_deflater",
        "_dirty",
        "_ended",
        "_inflater",
        "_left",
        "_loop",
        "_paused",
        "_queue",
        "_queued",
        "_reading",
        "_turn",
        "handler",
        "stream",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: Stream) -> None:
        self._loop = loop
        self.stream = stream
        self.handler = stream.handler
        stream.handler = self
        self._inflater = zlib.decompressobj(-15)
        self._deflater = zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS, MEMORY_LEVEL)
        self._left = b""  # received, not yet inflated
        self._ended = False  # the peer sends no more
        self._turn = False  # the rest of it is inflated in a later turn
        self._paused = False
        self._corked = False
        self._dirty = False  # the compressor holds octets back
        self._queue: deque[bytes | tuple[int, int, int]] = deque()  # behind a file that is being read
        self._queued = 0
        self._reading = False
        self._closing = False

    # ---------------------------------------------------------------- as Stream

    @property
    def peer(self) -> tuple[Any, ...]:
        """The peer's socket address."""
        return self.stream.peer

    @property
    def local(self) -> tuple[Any, ...]:
        """Our socket address."""
        return self.stream.local

    @property
    def secure(self) -> bool:
        """Whether TLS is below."""
        return self.stream.secure

    @property
    def sslobj(self) -> Any:
        """The TLS side, see `Stream.sslobj`."""
        return self.stream.sslobj

    @property
    def closed(self) -> bool:
        """Whether nothing sent now will arrive."""
        return self._closing or self.stream.closed

    @property
    def pending_out(self) -> int:
        """Octets not yet taken by the kernel, those still to be compressed counted as they are."""
        return self.stream.pending_out + self._queued

    def cork(self) -> None:
        """See `Stream.cork`."""
        self._corked = True
        self.stream.cork()

    def uncork(self) -> None:
        """See `Stream.uncork`."""
        self._corked = False
        self._flush()
        self.stream.uncork()

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """See `Stream.send`."""
        if self.closed or not data:
            return
        if self._queue or self._reading:
            self._queue.append(bytes(data))
            self._queued += len(data)
            return
        self._compress(data)

    def send_file(self, fd: int, offset: int, length: int) -> None:
        """See `Stream.send_file`."""
        if self.closed or length <= 0:
            return
        self._queue.append((os.dup(fd), offset, length))
        self._queued += length
        self._next()

    def close(self) -> None:
        """Close once all output is with the kernel."""
        if self._closing:
            return
        self._corked = False
        if not (self._queue or self._reading):
            self._end()
        self._closing = True

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        self._drop()
        self.stream.abort()

    def pause_reading(self) -> None:
        """See `Stream.pause_reading`."""
        self._paused = True
        self.stream.pause_reading()

    def resume_reading(self) -> None:
        """See `Stream.resume_reading`."""
        self._paused = False
        if self._left:
            self._later()
        else:
            self.stream.resume_reading()

    # ---------------------------------------------------------------- output

    def _compress(self, data: bytes | bytearray | memoryview) -> None:
        self._dirty = True
        out = self._deflater.compress(data)
        if out:
            self.stream.send(out)
        if not self._corked:
            self._flush()

    def _flush(self) -> None:
        if self._dirty and not (self._queue or self._reading):
            self._dirty = False
            self.stream.send(self._deflater.flush(zlib.Z_SYNC_FLUSH))

    def _next(self) -> None:
        """Go on with the queue, until a file has to be read or the peer is slow."""
        while self._queue and not self._reading and not self.stream.closed:
            if self.stream.pending_out > OUTPUT_HIGH:
                return  # `writable` comes back here
            head = self._queue.popleft()
            if isinstance(head, bytes):
                self._queued -= len(head)
                self._dirty = True
                self.stream.send(self._deflater.compress(head))
                continue
            self._reading = True
            fd, offset, length = head
            count = min(length, FILE_OCTETS)
            reading = self._loop.run_in_executor(None, os.pread, fd, count, offset)
            reading.add_done_callback(partial(self._read, fd, offset, length, count))
            return
        if not self._queue and not self._reading:
            if not self._corked:
                self._flush()
            if self._closing and not self.stream.closed:
                self._end()
            elif not self.stream.pending_out and not self.stream.closed:
                self._loop.call_soon(self.handler.writable)

    def _read(self, fd: int, offset: int, length: int, count: int, done: asyncio.Future[bytes]) -> None:
        self._reading = False
        self._queued -= count
        if self.stream.closed:
            os.close(fd)
            self._drop()
            return
        fault = done.exception()
        data = b"" if fault is not None else done.result()
        if len(data) != count:
            # Content that ends early is a fault of ours; sent short it would be taken for whole.
            os.close(fd)
            self.abort()
            return
        self._dirty = True
        self.stream.send(self._deflater.compress(data))
        if length > count:
            self._queue.appendleft((fd, offset + count, length - count))
        else:
            os.close(fd)
        self._next()

    def _end(self) -> None:
        self._flush()
        self.stream.send(self._deflater.flush(zlib.Z_FINISH))
        self.stream.close()

    def _drop(self) -> None:
        for item in self._queue:
            if not isinstance(item, bytes):
                os.close(item[0])
        self._queue.clear()
        self._queued = 0

    # ---------------------------------------------------------------- as a handler

    def data_received(self, view: memoryview) -> None:
        """Octets of the peer."""
        self._left += bytes(view)
        if not self._turn:
            self._inflate()

    def _later(self) -> None:
        if not self._turn:
            self._turn = True
            self._loop.call_soon(self._inflate)

    def _inflate(self) -> None:
        self._turn = False
        given = 0
        while self._left and not self._paused and not self.closed:
            if given >= TURN_OCTETS:
                self.stream.pause_reading()
                self._later()
                return
            try:
                out = self._inflater.decompress(self._left, PIECE_OCTETS)
            except zlib.error:
                self._left = b""
                self.abort()
                return
            self._left = self._inflater.unconsumed_tail
            if self._inflater.eof:
                self._left = b""
            given += len(out)
            if out:
                self.handler.data_received(memoryview(out))
        if self._paused or self.closed:
            return
        if self._ended:
            self.handler.eof_received()
        else:
            self.stream.resume_reading()

    def eof_received(self) -> None:
        """The peer sends no more; what it sent before is given first."""
        self._ended = True
        if not self._left:
            self.handler.eof_received()

    def writable(self) -> None:
        """The output is with the kernel."""
        if self._queue and not self._reading:
            self._next()
        if not self.pending_out:
            self.handler.writable()

    def connection_lost(self, cause: Exception | None) -> None:
        """The connection is gone."""
        if not self._reading:
            self._drop()
        self.handler.connection_lost(cause)
