"""The Python twin of `committer`: the same records, groups and failures from a `threading.Thread`."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections import deque
from typing import Any

from iems._native import kernel

crc32c = kernel("crc32c").crc32c

_HEAD = struct.Struct("<4sBBH8sQ16sQIII")
_TAIL = struct.Struct("<8s8sQI")
HEAD_OCTETS = 64
FOOTER = 7
MAX_IOVECS = 1024
MAX_GROUP = 8 << 20
MAX_AHEAD = 4 << 20
BLOCK = 4096
#: A group is small up to this part of what is prepared at once.
SMALL = 8


def _head(
    kind: int,
    flags: int,
    generation: int,
    nonce: bytes,
    offset: int,
    id: bytes,
    queue_ms: int,
    payload: int,
    content: int,
) -> bytes:
    head = _HEAD.pack(b"IRec", kind, flags, generation, nonce, offset, id, queue_ms, payload, content, 0)
    return head + crc32c(head).to_bytes(4, "little")


class Committer:
    """Appends records to one open segment from a thread of its own; see the native class."""

    def __init__(
        self, fd: int, nonce: bytes, offset: int, notify: int, delay_ms: int = 1000, ahead: int = 0
    ) -> None:
        if len(nonce) != 8:
            raise ValueError("a nonce has 8 octets")
        if ahead > MAX_AHEAD:
            raise ValueError("at most 4 MiB are prepared ahead")
        self._ahead, self._prepared = ahead, 0
        self._fd, self._nonce, self._notify, self._delay_s = fd, nonce, notify, delay_ms / 1000
        self.offset = self.written = self.flushed = offset
        self.records = 0
        self.flushes = 0
        self.failed = 0
        self.sealed = False
        self._sealing = self._stopping = False
        self._flush_at = 0.0  # monotonic; 0: nothing is unflushed
        self._waiting: deque[tuple[int, bytes, list[memoryview], bool, Any]] = deque()
        self._done: list[tuple[Any, int, list[memoryview]]] = []
        self._heads = bytearray()
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def submit(
        self,
        kind: int,
        flags: int,
        generation: int,
        id: bytes,
        queue_ms: int,
        payload: Any,
        pieces: Any,
        flush: bool,
        token: Any,
    ) -> int:
        """Queue one record; its offset."""
        if self._sealing or not self._thread.is_alive():
            raise ValueError("this committer is closed")
        if len(id) != 16:
            raise ValueError("an id has 16 octets")
        views = [memoryview(piece).cast("B") for piece in (payload, *pieces)]
        content = sum(view.nbytes for view in views[1:])
        if max(content, views[0].nbytes) > 0x7FFFFFFF:
            raise ValueError("too long for a record")
        offset = self.offset
        head = _head(kind, flags, generation, self._nonce, offset, id, queue_ms, views[0].nbytes, content)
        length = HEAD_OCTETS + views[0].nbytes + content + 4
        self.offset += length + -length % 8
        self.records += 1
        with self._wake:
            self._waiting.append((offset, head, views, flush, token))
        return offset

    def kick(self) -> None:
        """Wake the thread if it waits."""
        with self._wake:
            self._wake.notify()

    def reap(self) -> tuple[list[Any], list[Any], int]:
        """(tokens done, tokens failed, errno of the first failure or 0) since the last call."""
        with self._wake:
            done, self._done = self._done, []
            error = self.failed
        for _, _, views in done:
            for view in views:
                view.release()
        return [t for t, e, _ in done if not e], [t for t, e, _ in done if e], error

    def fail(self, error: int) -> None:
        """Let everything not yet written fail with this errno."""
        with self._wake:
            self.failed = self.failed or error or errno.ECANCELED

    def seal(self) -> None:
        """Write the footer after all that waits, and flush."""
        with self._wake:
            self._sealing = True
            self._wake.notify()

    def close(self) -> None:
        """Write and flush what waits and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._wake:
            while True:
                if self._waiting:
                    self._one_group()
                elif self._sealing and not self.sealed:
                    self._idle(seal=True)
                elif self._stopping:
                    if not self._flush_at:
                        return
                    self._idle()
                elif self._flush_at:
                    left = self._flush_at - time.monotonic()
                    if left > 0:
                        self._wake.wait(left)
                    else:
                        self._idle()
                else:
                    self._wake.wait()

    def _idle(self, seal: bool = False) -> None:
        end = self.written
        if not self.failed:
            self._wake.release()
            try:
                if seal:
                    end = self._footer()
                os.fdatasync(self._fd)
                failed = 0
            except OSError as error:
                failed = error.errno or errno.EIO
            finally:
                self._wake.acquire()
            self.flushes += 1
            if failed:
                self.failed = self.failed or failed
            else:
                self.written = self.flushed = end
        self._flush_at = 0.0
        if seal:
            self.sealed = True
        os.eventfd_write(self._notify, 1)

    def _one_group(self) -> None:
        group = [self._waiting.popleft()]
        octets = HEAD_OCTETS + sum(v.nbytes for v in group[0][2])
        iovecs = len(group[0][2]) + 2
        while self._waiting:
            octets += HEAD_OCTETS + sum(v.nbytes for v in self._waiting[0][2])
            iovecs += len(self._waiting[0][2]) + 2
            if octets > MAX_GROUP or iovecs > MAX_IOVECS:
                break
            group.append(self._waiting.popleft())
        flush = any(entry[3] for entry in group)
        if not self.failed:
            self._wake.release()
            try:
                written = self._write_group(group)
                if flush:
                    if written > self._prepared and (written - group[0][0]) * SMALL <= self._ahead:
                        self._prepare(written)
                    os.fdatasync(self._fd)
                failed = 0
            except OSError as error:
                failed = error.errno or errno.EIO
            finally:
                self._wake.acquire()
            self.flushes += flush
            self.failed = self.failed or failed
            if not self.failed:
                self.written = written
                if flush:
                    self.flushed, self._flush_at = written, 0.0
                elif not self._flush_at:
                    self._flush_at = time.monotonic() + self._delay_s
        self._done += [(token, self.failed, views) for _, _, views, _, token in group]
        os.eventfd_write(self._notify, 1)

    def _write_group(self, group: list[tuple[int, bytes, list[memoryview], bool, Any]]) -> int:
        pieces: list[Any] = []
        for _, head, views, _, _ in group:
            crc = 0
            for view in views:
                crc = crc32c(view, crc)
            length = HEAD_OCTETS + sum(view.nbytes for view in views) + 4
            pieces += [head, *views, crc.to_bytes(4, "little") + bytes(-length % 8)]
            self._heads += head
        self._write(b"".join(pieces), group[0][0])
        return group[0][0] + sum(len(piece) for piece in pieces)

    def _prepare(self, offset: int) -> None:
        self._prepared = -(-(offset + self._ahead) // BLOCK) * BLOCK
        try:
            self._write(bytes(self._prepared - offset), offset)
        except OSError:
            self._ahead = 0

    def _footer(self) -> int:
        zero = bytes(16)
        head = _head(FOOTER, 0, 0, self._nonce, self.written, zero, 0, len(self._heads), 0)
        record = head + self._heads + crc32c(self._heads).to_bytes(4, "little")
        record += bytes(-len(record) % 8)
        tail = _TAIL.pack(b"IEMSend1", self._nonce, self.written, 0)
        record += tail + crc32c(tail).to_bytes(4, "little")
        if self._prepared > self.written:
            os.ftruncate(self._fd, self.written)
        self._write(record, self.written)
        return self.written + len(record)

    def _write(self, octets: bytes, offset: int) -> None:
        view = memoryview(octets)
        while view:
            done = os.pwrite(self._fd, view, offset)
            view, offset = view[done:], offset + done
