"""Content of stored messages as it goes out: small pieces in memory, large ones from file to socket.

Nothing here blocks the loop: content that is not in the page cache is read in a thread.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from typing import Any

from iems._native.mime_py import single_token
from iems.imap.fetch import Section
from iems.imap.grammar import Refused
from iems.message import Structure, header_fields
from iems.message.text import decode_transfer
from iems.model import Rope

#: Content up to this size is read and sent with its response; above it goes by `Stream.send_file`.
INLINE_MAX = 64 * 1024
#: A first look for the end of the header.
HEADER_OCTETS = 8 * 1024
#: Work on more octets than this (structure, search) runs in a thread.
THREAD_OCTETS = 512 * 1024

#: Octets, or a run of a file as (descriptor, offset, length).
Piece = bytes | tuple[int, int, int]


def send_pieces(stream: Any, pieces: list[Piece], corked: bool = False) -> None:
    """Send pieces in order, in as few packets as may be. corked: the stream is corked already and stays so."""
    if len(pieces) == 1 and type(pieces[0]) is not tuple:
        stream.send(pieces[0])
        return
    if all(type(piece) is not tuple for piece in pieces):
        stream.send(b"".join(pieces))  # type: ignore[arg-type]
        return
    if not corked:
        stream.cork()
    try:
        for piece in pieces:
            if type(piece) is tuple:
                stream.send_file(*piece)
            else:
                stream.send(piece)
    except BaseException:
        # A response cut in the middle of its literal can't be mended.
        stream.abort()
        raise
    if not corked:
        stream.uncork()


class Contents:
    """Reads ropes through `blobs` (iems.blobs)."""

    def __init__(self, blobs: Callable[[], Any]) -> None:
        self._blobs = blobs

    def read_now(self, rope: Rope, size: int) -> bytes | None:
        """The whole content if it is at hand, None if it has to come from the disk."""
        blobs = self._blobs()
        parts: list[bytes] = []
        for piece in rope:
            if isinstance(piece, bytes):
                parts.append(piece)
            else:
                if piece.codec:
                    return None
                buffer = bytearray(piece.length)
                try:
                    count = os.preadv(blobs.fd(piece.blob), [buffer], piece.offset, os.RWF_NOWAIT)
                except BlockingIOError:
                    return None
                except OSError:  # a file system without RWF_NOWAIT
                    return bytes(blobs.read(rope))
                if count != piece.length:
                    return None
                parts.append(buffer)  # type: ignore[arg-type]
        content = b"".join(parts)
        return content if len(content) == size else None

    def pieces(self, rope: Rope, start: int, length: int) -> list[Piece]:
        """A range of the content, to be sent."""
        found: list[Piece] = self._blobs().slices(rope, start, length)
        return found

    async def read_range(self, loop: Any, rope: Rope, start: int, length: int) -> bytes:
        """A range of the content, read in a thread. The descriptors stay open meanwhile."""
        blobs = self._blobs()
        pieces: list[Piece] = blobs.slices(rope, start, length)
        fds = [piece[0] for piece in pieces if not isinstance(piece, bytes)]
        for fd in fds:
            blobs.pin(fd)
        try:
            found: bytes = await loop.run_in_executor(None, _read_pieces, pieces)
        finally:
            for fd in fds:
                blobs.unpin(fd)
        if len(found) != length:
            raise EOFError("content ends before its length")
        return found


class Source:
    """The content of one message while its response is made; what is read serves all sections asked for."""

    def __init__(self, services: Any, key: tuple[int, int, int], row: Any) -> None:
        self._services = services
        self._contents: Contents = services.contents
        self._key = self.key = key
        self._row = self.row = row
        self._content: bytes | None = None
        self._header: bytes | None = None
        self.searchable: Any = None  # kept by SEARCH for its further keys

    async def examine(self, function: Callable[[bytes], Any]) -> Any:
        """`function(content)`; a large content goes through a thread, few at once, and is not kept."""
        if self._row.size <= THREAD_OCTETS:
            return function(await self.whole())
        async with self._services.large:
            content = await self.range(0, self._row.size)
            return await self._services.loop.run_in_executor(None, function, content)

    async def whole(self) -> bytes:
        """All octets."""
        if self._content is None:
            row = self._row
            found = self._contents.read_now(row.rope, row.size) if row.size <= THREAD_OCTETS else None
            if found is None:
                found = await self.range(0, row.size)
            self._content = found
        return self._content

    async def range(self, start: int, length: int) -> bytes:
        """Some octets."""
        if self._content is not None:
            return self._content[start : start + length]
        return await self._contents.read_range(self._services.loop, self._row.rope, start, length)

    async def header(self) -> bytes:
        """The header with its empty line."""
        if self._header is None:
            size = self._row.size
            if size <= INLINE_MAX:
                content = await self.whole()
                self._header = content[: header_end(content)]
            else:
                count = HEADER_OCTETS
                while True:
                    start = await self.range(0, min(count, size))
                    end = header_end(start)
                    if end < len(start) or count >= size:
                        self._header = start[:end]
                        break
                    count *= 8
        return self._header

    async def section(self, section: Section) -> tuple[int, list[Piece]] | None:
        """(octets, pieces) of a section with its partial range; None if there is no such part."""
        found = await self._pieces(section)
        if found is None:
            return None
        length = sum(len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in found)
        if section.origin >= 0:
            found = _cut(found, section.origin, section.count)
            length = sum(len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in found)
        pieces: list[Piece] = []
        for piece in found:
            if isinstance(piece, bytes):
                pieces.append(piece)
            elif self._content is not None:
                pieces.append(self._content[piece[0] : piece[1]])
            elif piece[1] - piece[0] <= INLINE_MAX:
                pieces.append(await self.range(piece[0], piece[1] - piece[0]))
            else:
                pieces.extend(self._contents.pieces(self._row.rope, piece[0], piece[1] - piece[0]))
        return length, pieces

    async def _pieces(self, section: Section) -> list[bytes | tuple[int, int]] | None:
        """A section as octets and ranges of the content."""
        size = self._row.size
        if size <= INLINE_MAX:
            await self.whole()
        if not section.part:
            if not section.kind:
                return [(0, size)]
            header = await self.header()
            if section.kind == b"HEADER":
                return [header]
            if section.kind == b"TEXT":
                return [(len(header), size)]
            return [_fields(header, section)]
        structure = self._services.structures.get(self._key)
        if structure is None:
            structure = await self.examine(_structure)
            self._services.structures.keep(self._key, structure)
        number = ".".join(map(str, section.part))
        if section.kind in (b"HEADER.FIELDS", b"HEADER.FIELDS.NOT"):
            found = structure.pieces(number, "HEADER")
            if not found:
                return None
            header = b"".join(
                [
                    piece if isinstance(piece, bytes) else await self.range(piece[0], piece[1] - piece[0])
                    for piece in found
                ]
            )
            return [_fields(header, section)]
        result: list[bytes | tuple[int, int]] | None = structure.pieces(number, section.kind.decode())
        return result


async def read_pieces(services: Any, pieces: list[Piece], octets: int) -> AsyncIterator[bytes]:
    """The octets of pieces, at most so many at once; files are read in a thread."""
    blobs = services.reader.blobs
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        fd, offset, length = piece
        blobs.pin(fd)
        try:
            while length:
                count = min(length, octets)
                data = await services.loop.run_in_executor(None, _read_pieces, [(fd, offset, count)])
                if len(data) != count:
                    raise EOFError("content ends before its length")
                yield data
                offset += count
                length -= count
        finally:
            blobs.unpin(fd)


def decoded(content: bytes, part: tuple[int, ...]) -> bytes | None:
    """A part with its transfer encoding undone (RFC 3516); the whole message for (). None if there is no such part.

    Raises `Refused` (UNKNOWN-CTE) for an encoding nobody knows.
    """
    if not part:
        return content
    structure = Structure.parse(content)
    number = ".".join(map(str, part))
    pieces = structure.pieces(number)
    if pieces is None:
        return None
    raw = structure.octets(pieces)
    found = structure.part(number)
    encoding = b"" if found is None else single_token(content[slice(*found.encoding)]).strip().lower()
    if encoding in (b"", b"7bit", b"8bit", b"binary"):
        return raw
    if encoding in (b"base64", b"quoted-printable", b"x-uuencode", b"uuencode", b"x-uue", b"uue"):
        return decode_transfer(raw, encoding)
    raise Refused("[UNKNOWN-CTE] Unknown transfer encoding")


def _read_pieces(pieces: list[Piece]) -> bytes:
    """The octets of pieces; called in a thread."""
    found = []
    for piece in pieces:
        if isinstance(piece, bytes):
            found.append(piece)
            continue
        fd, offset, length = piece
        while length:
            data = os.pread(fd, length, offset)
            if not data:
                return b"".join(found)
            found.append(data)
            offset += len(data)
            length -= len(data)
    return b"".join(found)


def _structure(content: bytes) -> Structure:
    structure = Structure.parse(content)
    structure.content = b""
    return structure


def _fields(header: bytes, section: Section) -> bytes:
    """HEADER.FIELDS or HEADER.FIELDS.NOT of a header."""
    return header_fields(header, section.fields, section.kind.endswith(b"NOT"))


def header_end(content: bytes) -> int:
    """The offset behind the empty line that ends the header, or the length without one."""
    if content.startswith((b"\r\n", b"\n")):
        return content.index(b"\n") + 1
    end = content.find(b"\n\r\n")
    bare = content.find(b"\n\n", 0, end + 1 if end >= 0 else len(content))
    if bare >= 0:
        return bare + 2
    return end + 3 if end >= 0 else len(content)


def _cut(pieces: list[bytes | tuple[int, int]], origin: int, count: int) -> list[bytes | tuple[int, int]]:
    """A partial range of pieces; nothing if it starts behind the end (RFC 3501 6.4.5)."""
    found: list[bytes | tuple[int, int]] = []
    for piece in pieces:
        length = len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
        if origin >= length:
            origin -= length
            continue
        take = min(length - origin, count)
        if take <= 0:
            break
        if isinstance(piece, bytes):
            found.append(piece[origin : origin + take])
        else:
            found.append((piece[0] + origin, piece[0] + origin + take))
        origin = 0
        count -= take
    return found
