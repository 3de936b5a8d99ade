"""Names of the files in a 7z archive, out of its header, which is most often packed itself (LZMA). No file is unpacked."""

from __future__ import annotations

import lzma
import struct
from typing import Any
from zlib import crc32

from msgspec import Struct

from iems.attachment.octets import BadArchive, NoArchive, Octets

MARK = b"7z\xbc\xaf\x27\x1c"
HIDDEN = "an archive whose names are encrypted"
#: Octets of a header, packed or not.
HEADER_MAX = 8 << 20
#: A header may be packed more than once.
_PACKED_MAX = 4
_CODERS_MAX = 32

_END, _HEADER, _PROPERTIES, _MORE_STREAMS, _STREAMS, _FILES, _PACK, _UNPACK, _SUBSTREAMS, _SIZE, _CRC, _FOLDER, _UNPACKED, _COUNTS = range(14)
_NAMES, _PACKED_HEADER = 0x11, 0x17
_COPY, _LZMA, _LZMA2, _AES = b"\0", b"\3\1\1", b"\x21", b"\6\xf1\7\1"


class _Folder(Struct):
    """coders: (method, properties) of what a packed run went through. outputs: how many it has. sizes: of each unpacked. checked: its CRC is given."""

    coders: list[tuple[bytes, bytes]]
    outputs: int
    sizes: list[int] = []
    checked: bool = False


class _Streams(Struct):
    """place: of the first packed run, from the end of the signature header. packed: octets of each."""

    place: int = 0
    packed: list[int] = []
    folders: list[_Folder] = []


def listed(octets: bytes, at: int, most: int, names: list[str]) -> str:
    """What could not be read of the archive that begins at an offset, or "". names: gets those of its files, `most` at most. Raises BadArchive, NoArchive."""
    start = Octets(octets, at)
    head = start.take(32)
    checksum, place, size, its_checksum = struct.unpack("<IQQI", head[8:])
    if crc32(head[12:]) != checksum:
        raise NoArchive("no start header")
    if not size:
        return ""
    if size > HEADER_MAX:
        return "too long a header"
    base = start.at
    raw = _range(octets, base + place, size)
    if crc32(raw) != its_checksum:
        raise BadArchive("a header with a wrong checksum")
    for _ in range(_PACKED_MAX):
        header = Octets(raw)
        kind = header.number(1)
        if kind == _HEADER:
            found = _files(header)
            names += found[:most]
            return "too many files" if len(found) > most else ""
        if kind != _PACKED_HEADER:
            break
        streams = _streams(header)
        if any(method == _AES for folder in streams.folders for method, _ in folder.coders):
            return HIDDEN
        raw = _unpacked(octets, base, streams)
    raise BadArchive("no header")


def _range(octets: bytes, start: int, length: int) -> bytes:
    found = octets[start : start + length]
    if len(found) != length:
        raise BadArchive("cut short")
    return found


def _number(stream: Octets) -> int:
    """The ones at the top of the first octet say how many more there are; its rest is the highest part."""
    first = stream.number(1)
    value = 0
    for more in range(8):
        mask = 0x80 >> more
        if not first & mask:
            return value + ((first & (mask - 1)) << 8 * more)
        value |= stream.number(1) << 8 * more
    return value


def _count(stream: Octets) -> int:
    """A number of things of which each takes at least a bit. Raises BadArchive if so many can't follow."""
    value = _number(stream)
    if value > stream.left * 8:
        raise BadArchive("more than there is room for")
    return value


def _expect(stream: Octets, *kinds: int) -> None:
    for kind in kinds:
        if _number(stream) != kind:
            raise BadArchive("a header in disorder")


def _checksums(stream: Octets, count: int) -> list[bool]:
    """Whether each of so many has one; they are skipped."""
    if stream.number(1):
        stream.take(4 * count)
        return [True] * count
    bits = stream.take((count + 7) // 8)
    found = [bool(bits[at // 8] & 0x80 >> at % 8) for at in range(count)]
    stream.take(4 * sum(found))
    return found


def _streams(stream: Octets) -> _Streams:
    out = _Streams()
    while (kind := _number(stream)) != _END:
        if kind == _PACK:
            out.place = _number(stream)
            count = _count(stream)
            while (what := _number(stream)) != _END:
                if what == _SIZE:
                    out.packed = [_number(stream) for _ in range(count)]
                elif what == _CRC:
                    _checksums(stream, count)
                else:
                    raise BadArchive("a header in disorder")
        elif kind == _UNPACK:
            _expect(stream, _FOLDER)
            count = _count(stream)
            _expect(stream, 0)
            out.folders = [_folder(stream) for _ in range(count)]
            _expect(stream, _UNPACKED)
            for folder in out.folders:
                folder.sizes = [_number(stream) for _ in range(folder.outputs)]
            while (what := _number(stream)) != _END:
                if what != _CRC:
                    raise BadArchive("a header in disorder")
                for folder, checked in zip(out.folders, _checksums(stream, count), strict=True):
                    folder.checked = checked
        elif kind == _SUBSTREAMS:
            _substreams(stream, out.folders)
        else:
            raise BadArchive("a header in disorder")
    return out


def _folder(stream: Octets) -> _Folder:
    inputs = outputs = 0
    coders = []
    number = _count(stream)
    if not 0 < number <= _CODERS_MAX:
        raise BadArchive("a header in disorder")
    for _ in range(number):
        flags = stream.number(1)
        method = stream.take(flags & 15)
        takes, gives = (_number(stream), _number(stream)) if flags & 0x10 else (1, 1)
        coders.append((method, stream.take(_number(stream)) if flags & 0x20 else b""))
        inputs, outputs = inputs + takes, outputs + gives
    if not 0 < outputs <= _CODERS_MAX or inputs > _CODERS_MAX or inputs < outputs - 1:
        raise BadArchive("a header in disorder")
    for _ in range(outputs - 1):
        _number(stream), _number(stream)
    packed = inputs - (outputs - 1)
    if packed > 1:
        for _ in range(packed):
            _number(stream)
    return _Folder(coders, outputs)


def _substreams(stream: Octets, folders: list[_Folder]) -> None:
    """Nothing of it is wanted, but only who reads it knows where it ends."""
    counts = [1] * len(folders)
    kind = _number(stream)
    if kind == _COUNTS:
        counts = [_number(stream) for _ in folders]
        kind = _number(stream)
    if kind == _SIZE:
        for count in counts:
            for _ in range(count - 1):
                _number(stream)
        kind = _number(stream)
    while kind != _END:
        if kind != _CRC:
            raise BadArchive("a header in disorder")
        unknown = sum(0 if count == 1 and folder.checked else count for count, folder in zip(counts, folders, strict=True))
        if unknown > stream.left * 8:
            raise BadArchive("more than there is room for")
        _checksums(stream, unknown)
        kind = _number(stream)


def _unpacked(octets: bytes, base: int, streams: _Streams) -> bytes:
    """A packed header."""
    if len(streams.folders) != 1 or not streams.packed or len(streams.folders[0].coders) != 1:
        raise BadArchive("a header packed in an unknown way")
    [folder] = streams.folders
    [(method, properties)] = folder.coders
    size = folder.sizes[0]
    if size > HEADER_MAX or streams.packed[0] > HEADER_MAX:
        raise BadArchive("too long a header")
    raw = _range(octets, base + streams.place, streams.packed[0])
    if method == _COPY:
        return raw
    # No distance can be longer than what there is: a dictionary of gigabytes is not asked for.
    how: dict[str, Any] = {"dict_size": max(size, 4096)}
    if method == _LZMA and len(properties) == 5 and properties[0] < 9 * 5 * 5:
        how |= {"id": lzma.FILTER_LZMA1, "lc": properties[0] % 9, "lp": properties[0] // 9 % 5, "pb": properties[0] // 45}
    elif method == _LZMA2:
        how["id"] = lzma.FILTER_LZMA2
    else:
        raise BadArchive("a header packed in an unknown way")
    try:
        found = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[how]).decompress(raw, size)
    except (lzma.LZMAError, EOFError) as error:
        raise BadArchive(f"a header that can't be unpacked: {error}") from error
    if len(found) != size:
        raise BadArchive("cut short")
    return found


def _files(stream: Octets) -> list[str]:
    names: list[str] = []
    while (kind := _number(stream)) != _END:
        if kind == _PROPERTIES:
            while _number(stream) != _END:
                stream.take(_number(stream))
        elif kind in (_MORE_STREAMS, _STREAMS):
            _streams(stream)
        elif kind == _FILES:
            _number(stream)
            while (what := _number(stream)) != _END:
                data = stream.take(_number(stream))
                if what == _NAMES:
                    if data[:1] != b"\0":
                        raise BadArchive("names that are somewhere else")
                    names += data[1:].decode("utf-16-le", "replace").split("\0")[:-1]
        else:
            raise BadArchive("a header in disorder")
    return names
