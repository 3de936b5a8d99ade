"""Refusals as they are given: noted in memory, written by a thread about once a second, the oldest forgotten.

A folder of chunk files `NNNNNNNN.ref`, shared by all workers, each appending to chunks of its own:

    "IEMSref1", number u32, nonce u32, then what was written at once: length u32, MessagePack array of (place, fields of `Refusal`)

An id is the chunk's number (2 characters or more), 2 of its nonce, and 4 for the place in it with 8 check bits, so that an id mistyped or of
another server is told from one whose chunk has gone. Nothing is synced, nothing waits: what a crash takes away were refusals, no mail.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from iems.model import Reply

HEAD = struct.Struct("<8sII")
MAGIC = b"IEMSref1"
LENGTH = struct.Struct("<I")
#: Places of a chunk: an id has 12 bits for one.
PLACES = 4096
FLUSH_S = 1.0
#: Wait after a fault before a file is made again, or told of another.
FAULT_S = 30.0
#: Files kept at most, whatever their size.
MOST_FILES = 4096

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def _digits(number: int, least: int) -> str:
    text = ""
    while number or len(text) < least:
        text = _ALPHABET[number & 31] + text
        number >>= 5
    return text


def _low(place: int) -> int:
    """A place with 8 check bits that change with each of its characters."""
    return place << 8 | (place * 0x9E3779B1 >> 12) & 255


#: The ends of the replies for the places of any chunk, behind ` [` and the front of the id.
_ENDS = [f"{_digits(_low(place), 4)}]\r\n".encode() for place in range(PLACES)]
_encode = msgspec.msgpack.Encoder().encode
_NAME = re.compile(r"(\d{8,10})\.ref")


class Refusal(Struct, array_like=True):
    """One refusal. more: recipients besides the one named. check: the one that refused, if one did; subject: what it looked at."""

    place: int
    time_ns: int
    listener: str
    client: str
    helo: bytes
    reverse_path: bytes | None
    recipient: bytes
    more: int
    user: str
    reply: Reply
    check: str = ""
    subject: str = ""


def chunk_name(number: int) -> str:
    """The file name of a chunk."""
    return f"{number:08d}.ref"


def chunks(folder: Path) -> list[int]:
    """Numbers of the chunks in a folder, the oldest first."""
    try:
        found = (_NAME.fullmatch(name) for name in os.listdir(folder))
    except FileNotFoundError:
        return []
    return sorted(int(name[1]) for name in found if name)


def front_of(chunk: int, nonce: int) -> str:
    """What the ids of a chunk begin with."""
    return _digits(chunk, 2) + _digits(nonce & 1023, 2)


def id_of(chunk: int, place: int, nonce: int) -> str:
    """The id of a place in a chunk."""
    return front_of(chunk, nonce) + _digits(_low(place), 4)


def place_of(text: str) -> tuple[int, int, int]:
    """(chunk, place, 10 bits of the nonce) of an id, in any case. Raises ValueError."""
    value = 0
    text = text.strip().strip("[]").upper()
    if not 8 <= len(text) <= 12:
        raise ValueError(f"an id of a refusal has 8 characters, not {text!r}")
    for char in text:
        digit = _ALPHABET.find(char)
        if digit < 0:
            raise ValueError(f"{text!r} is no id of a refusal")
        value = value << 5 | digit
    place = value >> 8 & (PLACES - 1)
    if _low(place) != value & 0xFFFFF:
        raise ValueError(f"{text!r} is no id of a refusal: a character is wrong")
    return value >> 30, place, value >> 20 & 1023


class _Chunk:
    """A file that is written. front: what the end of a reply has before the place."""

    __slots__ = ("fd", "front", "number", "path", "used")

    def __init__(self, folder: Path, number: int) -> None:
        """Raises FileExistsError, OSError."""
        self.number = number
        self.path = folder / chunk_name(number)
        nonce = int.from_bytes(os.urandom(4), "little")
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody trims what is written
        os.write(self.fd, HEAD.pack(MAGIC, number, nonce))
        self.front = f" [{front_of(number, nonce)}".encode()
        self.used = 0

    def write(self, data: bytes) -> None:
        """Append records; a part that did not fit is taken away again. Raises OSError."""
        before = os.fstat(self.fd).st_size
        if os.write(self.fd, data) != len(data):
            os.ftruncate(self.fd, before)
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        """Let go of the file; one that holds nothing goes."""
        if not self.used:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        os.close(self.fd)


class Ring:
    """The refusals of one process. octets: of all files in the folder, about; 0: nothing is kept, replies have no id."""

    def __init__(
        self,
        folder: Path,
        octets: int,
        loop: asyncio.AbstractEventLoop,
        failed: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.on = octets > 0
        self.lost = 0
        self._folder = folder
        self._octets = octets
        self._loop = loop
        self._failed = failed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="refusals")
        self._chunk: _Chunk | None = None
        self._spare: _Chunk | None = None
        self._preparing = False
        self._again_s = self._told_s = float("-inf")
        self._place = PLACES
        self._noted: list[tuple[Any, ...]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Have a chunk ready. Never raises: without one replies have no id."""
        if self.on:
            await self._loop.run_in_executor(self._thread, self._prepare)
            self._next()

    def note(
        self,
        listener: str,
        client: str,
        helo: bytes,
        reverse_path: bytes | None,
        recipient: bytes,
        more: int,
        user: str,
        reply: Reply,
        check: str = "",
        subject: str = "",
    ) -> bytes:
        """Keep a refusal; the end of its reply, ` [ID]` and CRLF, or b"" if it can't be kept. Nothing here waits."""
        place = self._place
        if place >= PLACES:
            if not self.on or not self._next():
                self.lost += 1
                return b""
            place = self._place
        chunk = self._chunk
        assert chunk is not None
        self._place = place + 1
        # What it takes to make a record of it is for the thread.
        self._noted.append(
            (place, time.time_ns(), listener, client, helo, reverse_path, recipient, more, user, reply, check, subject)
        )
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_S, self.flush)
        return chunk.front + _ENDS[place]

    def _next(self) -> bool:
        """Go on in the spare chunk and have another made; False if there is none yet."""
        spare, self._spare = self._spare, None
        if spare is not None:
            old = self._chunk
            self.flush()
            if old is not None:
                self._thread.submit(old.close)
            self._chunk, self._place = spare, 0
        if not self._preparing and time.monotonic() >= self._again_s:
            self._preparing = True
            self._thread.submit(self._prepare)
        return spare is not None

    def flush(self) -> None:
        """Hand what was noted to the thread."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        chunk = self._chunk
        if self._noted and chunk is not None:
            noted, self._noted = self._noted, []
            chunk.used += len(noted)
            self._thread.submit(self._write, chunk, noted)

    # --- in the thread

    def _write(self, chunk: _Chunk, noted: list[tuple[Any, ...]]) -> None:
        data = _encode(noted)
        try:
            chunk.write(LENGTH.pack(len(data)) + data)
        except OSError as error:
            self.lost += len(noted)
            self._tell(error)

    def _prepare(self) -> None:
        if self._spare is not None:
            self._preparing = False
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            number = (chunks(self._folder) or [0])[-1] + 1
            while True:
                try:
                    chunk = _Chunk(self._folder, number)
                    break
                except FileExistsError:
                    number += 1
            # In this order: who takes the spare away must find that another may be asked for.
            self._preparing = False
            self._spare = chunk
            self._trim()
        except OSError as error:
            self._again_s = time.monotonic() + FAULT_S  # a flood of refusals must not become one of faults
            self._preparing = False
            self._tell(error)

    def _trim(self) -> None:
        """Forget the oldest chunks as long as there is too much; not those that are being written."""
        found = []
        for number in chunks(self._folder):
            with contextlib.suppress(FileNotFoundError):
                path = self._folder / chunk_name(number)
                found.append((path, path.stat().st_size))
        octets, left = sum(size for _, size in found), len(found)
        for path, size in found:
            if octets <= self._octets and left <= MOST_FILES:
                break
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                finally:
                    os.close(fd)
                octets -= size
                left -= 1

    def _tell(self, error: BaseException) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s < FAULT_S:
            return
        self._told_s = now_s
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._failed, error)

    def close(self) -> None:
        """Write what waits and close. Blocks for a write."""
        self.flush()
        self._thread.shutdown(wait=True)
        for chunk in (self._chunk, self._spare):
            if chunk is not None:
                chunk.close()
        self._chunk = self._spare = None
        self.on, self._place = False, PLACES

