"""A connection in an event loop, plain or TLS, for servers and clients alike.

Raw non-blocking sockets watched by `loop.add_reader`: measured as fast as uvloop's BufferedProtocol
(docs/decisions/0004-streams.md), with `sendfile` for content and one code path for STARTTLS. One receive
buffer serves all connections of a process, so an idle one costs a few hundred octets. Protocol state,
timeouts and meaning belong to the handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

#: Receive buffer shared by every connection of the process: the data is consumed within `data_received`.
RECEIVE_OCTETS = 256 * 1024
#: One TLS write or one turn of sendfile; bounds how long one connection holds the loop.
TLS_CHUNK = 64 * 1024
FILE_CHUNK = 1024 * 1024
#: Descriptors a worker keeps free for its files (segments, databases, content, log) when sessions take all others.
SPARE_DESCRIPTORS = 64
#: At most this many pieces in one sendmsg (the kernel's limit is 1024).
GATHER = 64

_buffer = bytearray(RECEIVE_OCTETS)
_view = memoryview(_buffer)


class Handler(Protocol):
    """What a connection tells its owner. All calls come from the loop, never from within `send`."""

    def data_received(self, view: memoryview) -> None:
        """Octets came in; `view` is valid only during the call."""

    def eof_received(self) -> None:
        """The peer will send no more; output still goes out. Usually answered by `close()`."""

    def connection_lost(self, cause: Exception | None) -> None:
        """The connection is gone; None after an orderly close. Called once."""


class _File:
    """A run of a file waiting to be sent, with a descriptor of its own so that a cache may close the caller's."""

    __slots__ = ("fd", "length", "offset", "owned")

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self.fd = fd
        self.offset = offset
        self.length = length
        self.owned = False

    def keep(self) -> None:
        if not self.owned:
            self.fd = os.dup(self.fd)
            self.owned = True

    def drop(self) -> None:
        if self.owned:
            os.close(self.fd)
            self.owned = False


class Stream:
    """One connection.

    loop: the running loop. sock: connected (or connecting) stream socket, made non-blocking here.
    tls: a context to start TLS with at once (implicit TLS); `start_tls` does it later (STARTTLS).
    `peer` and `local` are socket addresses, () when the peer has already gone. `pending_out` counts octets that the
    kernel has not taken yet; the optional `handler.writable()` is called when it falls to 0 after it was not,
    the optional `handler.tls_ready()` when a handshake ends well.
    """

    __slots__ = (
        "_after_flush",
        "_answered",
        "_closing",
        "_corked",
        "_fd",
        "_handshaking",
        "_hostname",
        "_loop",
        "_lost",
        "_paused",
        "_queue",
        "_server_side",
        "_sock",
        "_warming",
        "_writing",
        "handler",
        "local",
        "peer",
        "pending_out",
        "secure",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        handler: Any,
        *,
        tls: ssl.SSLContext | None = None,
        server_side: bool = True,
        server_hostname: str | None = None,
    ) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = loop
        self._sock: socket.socket | ssl.SSLSocket = sock
        self._fd = sock.fileno()
        self.handler = handler
        self._queue: deque[bytes | memoryview | _File] | None = None
        self._corked = False
        self._writing = False
        self._paused = False
        self._closing = False
        self._lost = False
        self._handshaking = False
        self._warming = False
        self._answered = False
        self._after_flush: Callable[[], None] | None = None
        self._server_side = server_side
        self._hostname = server_hostname
        self.pending_out = 0
        self.secure = False
        self.peer: tuple[Any, ...] = ()
        self.local: tuple[Any, ...] = ()
        with contextlib.suppress(OSError):
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                self.peer = sock.getpeername()
                self.local = sock.getsockname()
        if tls is not None:
            self._wrap(tls)
        else:
            loop.add_reader(self._fd, self._readable)

    @property
    def sslobj(self) -> ssl.SSLSocket | None:
        """The TLS side of a secure connection (cipher, version, channel binding), else None."""
        return self._sock if isinstance(self._sock, ssl.SSLSocket) else None

    @property
    def closed(self) -> bool:
        """Whether the connection is gone or on its way out: nothing sent now will arrive."""
        return self._lost or self._closing

    # ---------------------------------------------------------------- receiving

    def _readable(self) -> None:
        try:
            count = self._sock.recv_into(_buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as cause:
            self._lose(cause)
            return
        if not count:
            self._end_of_input()
            return
        self._answered = False
        self._deliver(_view[:count])
        # libuv stops watching a descriptor that reports an error: after a reset this may be the last call ever. An answer the kernel took
        # shows that there was none.
        if not (self._answered or self._lost):
            error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._after_reset(error)

    def _after_reset(self, error: int) -> None:
        """Take what came before a reset, then end: no event will tell of it again."""
        with contextlib.suppress(OSError):
            while not (self._paused or self._lost or self._closing):
                count = self._sock.recv_into(_buffer)
                if not count:
                    break
                self._deliver(_view[:count])
        self._lose(OSError(error, os.strerror(error)))

    def _tls_readable(self) -> None:
        # OpenSSL may hold decrypted octets that the poller does not see: read until it asks for more.
        while not (self._paused or self._lost or self._handshaking):
            try:
                count = self._sock.recv_into(_buffer)
            except (ssl.SSLWantReadError, BlockingIOError, InterruptedError):
                return
            except ssl.SSLWantWriteError:
                self._want_write()
                return
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                self._end_of_input()
                return
            except OSError as cause:
                self._lose(cause)
                return
            if not count:
                self._end_of_input()
                return
            self._deliver(_view[:count])

    def _deliver(self, view: memoryview) -> None:
        if self._closing:
            return
        try:
            self.handler.data_received(view)
        except Exception as cause:  # a fault of ours: this connection ends, the worker goes on
            self._loop.call_exception_handler({"message": "data_received failed", "exception": cause})
            self._lose(cause)

    def _end_of_input(self) -> None:
        if not self._lost:
            # A half-closed socket stays readable for ever; stop looking at it.
            self._loop.remove_reader(self._fd)
            self._paused = True
            if self._closing:
                return
            try:
                self.handler.eof_received()
            except Exception as cause:
                self._loop.call_exception_handler({"message": "eof_received failed", "exception": cause})
                self._lose(cause)

    def pause_reading(self) -> None:
        """Take nothing more from the peer until `resume_reading`; TCP then slows it down."""
        if not self._paused and not self._lost:
            self._paused = True
            if not self._handshaking:
                self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        if self._paused and not self._lost:
            self._paused = False
            if self._handshaking:
                return
            if self.secure:
                self._loop.add_reader(self._fd, self._tls_readable)
                self._loop.call_soon(self._tls_readable)
            else:
                self._loop.add_reader(self._fd, self._readable)

    # ---------------------------------------------------------------- sending

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send octets after all that was sent before. What the kernel does not take at once is copied and kept."""
        if self._lost or self._closing or not data:
            return
        if not self._queue and not self._corked and not self.secure and not self._handshaking:
            try:
                count = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                count = 0
            except OSError as cause:
                self._lose_soon(cause)
                return
            if count == len(data):
                self._answered = True
                return
            data = memoryview(data)[count:]
        self._push(data if isinstance(data, bytes) else bytes(data), len(data))

    def send_file(self, fd: int, offset: int, length: int) -> None:
        """Send `length` octets of a file from `offset` on, in order with `send`.

        Plain connections use sendfile; TLS reads 64 KiB at a time. Cold pages are read in a thread. A file that ends
        early is a fault of ours: the connection is dropped rather than sent short.
        """
        if self._lost or self._closing or length <= 0:
            return
        self._push(_File(fd, offset, length), length)

    def _push(self, piece: bytes | _File, length: int) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append(piece)
        self.pending_out += length
        if not (self._corked or self._writing or self._handshaking or self._warming):
            self._flush()
        elif isinstance(piece, _File):
            piece.keep()

    def cork(self) -> None:
        """Gather what is sent until `uncork` into as few packets as possible."""
        self._corked = True

    def uncork(self) -> None:
        """Send what was gathered since `cork`."""
        self._corked = False
        if self._queue and not (self._writing or self._handshaking or self._warming or self._lost):
            self._flush()

    def _flush(self) -> None:
        """Send from the queue until it is empty or the kernel takes no more."""
        queue = self._queue
        if queue is None:
            return
        try:
            while queue and not self._lost:
                head = queue[0]
                if isinstance(head, _File):
                    if not self._flush_file(head, queue):
                        break
                elif self.secure:
                    piece = memoryview(head)[:TLS_CHUNK]
                    count = self._sock.send(piece)
                    self._taken(queue, head, count)
                else:
                    self._flush_pieces(queue)
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
            self._want_write()
        except ssl.SSLWantReadError:
            return  # the next readable event flushes again
        except OSError as cause:
            self._lose_soon(cause)
            return
        if not queue:
            self._flushed()

    def _flush_pieces(self, queue: deque[bytes | memoryview | _File]) -> None:
        pieces = []
        more = 0
        for piece in queue:
            if isinstance(piece, _File):
                more = socket.MSG_MORE  # the file follows in the same packet
                break
            pieces.append(piece)
            if len(pieces) == GATHER:
                break
        sock = self._sock
        assert not isinstance(sock, ssl.SSLSocket)
        count = sock.sendmsg(pieces, (), more) if len(pieces) > 1 else sock.send(pieces[0], more)
        self.pending_out -= count
        while count:
            head = queue[0]
            assert not isinstance(head, _File)
            if count < len(head):
                queue[0] = memoryview(head)[count:]
                return
            count -= len(head)
            queue.popleft()

    def _taken(self, queue: deque[bytes | memoryview | _File], head: bytes | memoryview, count: int) -> None:
        self.pending_out -= count
        if count == len(head):
            queue.popleft()
        else:
            queue[0] = memoryview(head)[count:]

    def _flush_file(self, file: _File, queue: deque[bytes | memoryview | _File]) -> bool:
        """Send some of a file. False when it has to wait (for the peer or the disk)."""
        length = min(file.length, TLS_CHUNK if self.secure else FILE_CHUNK)
        if not _resident(file.fd, file.offset, length):
            self._warm(file, length)
            return False
        if self.secure:
            data = os.pread(file.fd, length, file.offset)
            count = self._sock.send(data) if data else 0
        else:
            count = os.sendfile(self._fd, file.fd, file.offset, length)
        if count == 0:
            raise OSError(errno.EIO, "content ends before its length")
        file.offset += count
        file.length -= count
        self.pending_out -= count
        if file.length == 0:
            file.drop()
            queue.popleft()
        return True

    def _warm(self, file: _File, length: int) -> None:
        """Read cold pages in a thread, then go on sending."""
        file.keep()
        self._warming = True

        def warmed(done: asyncio.Future[None]) -> None:
            self._warming = False
            if self._lost:
                self._drop_queue()
            elif (fault := done.exception()) is not None:
                self._lose(fault if isinstance(fault, Exception) else OSError(str(fault)))
            else:
                self._flush()

        self._loop.run_in_executor(None, _read_ahead, file.fd, file.offset, length).add_done_callback(warmed)

    def _want_write(self) -> None:
        if not self._writing and not self._lost:
            self._writing = True
            for piece in self._queue or ():
                if isinstance(piece, _File):
                    piece.keep()
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._writing = False
        self._loop.remove_writer(self._fd)
        if self._handshaking:
            self._handshake()
            return
        if self.secure:
            self._tls_readable()
        if not self._lost and not self._warming:
            self._flush()

    def _flushed(self) -> None:
        then, self._after_flush = self._after_flush, None
        if then is not None:
            then()
        elif (writable := getattr(self.handler, "writable", None)) is not None and not self._lost:
            self._loop.call_soon(writable)

    # ---------------------------------------------------------------- TLS

    def start_tls(
        self, context: ssl.SSLContext, *, server_side: bool | None = None, server_hostname: str | None = None
    ) -> None:
        """Begin a TLS handshake once the output is flushed.

        Nothing received before it reaches the handler any more: the caller drops what it has read, and octets still
        in the kernel are taken as handshake, so a pipelined plain-text command fails it (RFC 3207 6).
        """
        if server_side is not None:
            self._server_side = server_side
        if server_hostname is not None:
            self._hostname = server_hostname
        if not self._paused:
            self._loop.remove_reader(self._fd)
            self._paused = True
        if self._queue:
            self._after_flush = lambda: self._wrap(context)
        else:
            self._wrap(context)

    def _wrap(self, context: ssl.SSLContext) -> None:
        if self._lost:
            return
        self._paused = False
        self._handshaking = True
        try:
            self._sock = context.wrap_socket(
                self._sock,
                server_side=self._server_side,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
                server_hostname=self._hostname if not self._server_side else None,
            )
        except (OSError, ValueError) as cause:
            self._lose_soon(cause if isinstance(cause, OSError) else OSError(str(cause)))
            return
        self._loop.add_reader(self._fd, self._handshake)
        self._loop.call_soon(self._handshake)

    def _handshake(self) -> None:
        if self._lost or not self._handshaking:
            return
        assert isinstance(self._sock, ssl.SSLSocket)
        try:
            self._sock.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLWantWriteError:
            self._want_write()
            return
        except (OSError, ValueError) as cause:
            self._lose(cause if isinstance(cause, OSError) else OSError(str(cause)))
            return
        self._handshaking = False
        self.secure = True
        if self._paused:
            self._loop.remove_reader(self._fd)
        else:
            self._loop.add_reader(self._fd, self._tls_readable)
        ready = getattr(self.handler, "tls_ready", None)
        if ready is not None:
            try:
                ready()
            except Exception as cause:
                self._loop.call_exception_handler({"message": "tls_ready failed", "exception": cause})
                self._lose(cause)
                return
        if not self._lost and self._queue and not self._corked:
            self._flush()
        if not self._lost and not self._paused:
            self._tls_readable()

    # ---------------------------------------------------------------- ending

    def close(self) -> None:
        """Close once all output is with the kernel."""
        if self._lost or self._closing:
            return
        self._corked = False
        if self._queue and not (self._writing or self._warming or self._handshaking):
            self._flush()
        if self._queue and not self._lost:
            self._closing = True
            self._after_flush = self._shut
        elif not self._lost:
            self._closing = True
            self._shut()

    def _shut(self) -> None:
        """Close without a reset that could overtake our last reply: unread input is taken off first."""
        with contextlib.suppress(OSError, ValueError):
            if isinstance(self._sock, ssl.SSLSocket):
                if self.secure:
                    with contextlib.suppress(ssl.SSLError):
                        self._sock.unwrap()
            else:
                self._sock.shutdown(socket.SHUT_WR)
                self._sock.recv_into(_buffer)
        self._lose(None)

    def abort(self) -> None:
        """Close at once; what is still queued is dropped."""
        self._lose(None)

    def _lose_soon(self, cause: Exception) -> None:
        # Sending must not call back into a handler that is in the middle of something.
        self._closing = True
        self._loop.call_soon(self._lose, cause)

    def _lose(self, cause: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._closing = True
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        if not self._warming:
            self._drop_queue()
        with contextlib.suppress(OSError):
            self._sock.close()
        self._loop.call_soon(self.handler.connection_lost, cause)

    def _drop_queue(self) -> None:
        for piece in self._queue or ():
            if isinstance(piece, _File):
                piece.drop()
        self._queue = None
        self.pending_out = 0


def _resident(fd: int, offset: int, length: int) -> bool:
    """Whether both ends of a run of a file are in the page cache (a probe by RWF_NOWAIT; True where unsupported)."""
    probe = bytearray(1)
    try:
        os.preadv(fd, [probe], offset, os.RWF_NOWAIT)
        if length > 4096:
            os.preadv(fd, [probe], offset + length - 1, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _read_ahead(fd: int, offset: int, length: int) -> None:
    """Bring a run of a file into the page cache; called in a thread."""
    scratch = bytearray(min(length, 256 * 1024))
    end = offset + length
    while offset < end:
        count = os.preadv(fd, [memoryview(scratch)[: end - offset]], offset)
        if count == 0:
            return
        offset += count


class Server:
    """A listening socket in a loop: every accepted socket goes to `factory`.

    Out of descriptors, it answers `refusal` (a last line for the peer, may be b"", or what makes one for its address) on a descriptor kept in reserve
    and stops accepting for a moment, so that the loop does not spin on a connection it can't take.
    """

    #: Connections taken in one turn of the loop, so that a burst does not starve open sessions.
    BATCH = 32
    PAUSE_S = 0.1

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        factory: Callable[[socket.socket], None],
        refusal: bytes | Callable[[str], bytes] = b"",
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._factory = factory
        self._refusal = refusal
        self._reserve = os.open("/dev/null", os.O_RDONLY)
        self._closed = False
        loop.add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(self.BATCH):
            try:
                sock, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as cause:
                if cause.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._refuse()
                return
            try:
                self._factory(sock)
            except Exception as cause:
                sock.close()
                self._loop.call_exception_handler({"message": "accept failed", "exception": cause})

    def _refuse(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            with contextlib.suppress(OSError):
                sock, address = self._sock.accept()
                with sock:
                    sock.setblocking(False)
                    last = self._refusal if isinstance(self._refusal, bytes) else self._refusal(address[0])
                    if last:
                        sock.send(last)
            try:
                self._reserve = os.open("/dev/null", os.O_RDONLY)
            except OSError:
                self._reserve = -1
        self._loop.remove_reader(self._sock.fileno())
        self._loop.call_later(self.PAUSE_S, self._resume)

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Stop accepting. The socket itself belongs to the master and stays open: its queue goes to the next generation."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock.fileno())
            if self._reserve >= 0:
                os.close(self._reserve)


def last_descriptor() -> int:
    """The number of a descriptor from which on no more sessions should be taken: the kernel gives the lowest free one."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return 1 << 30
    return soft - min(SPARE_DESCRIPTORS, soft // 4)


def serve(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    factory: Callable[[socket.socket], None],
    refusal: bytes | Callable[[str], bytes] = b"",
) -> Server:
    """Accept connections of a listening socket until `Server.close()`; see `Server`."""
    return Server(loop, sock, factory, refusal)
