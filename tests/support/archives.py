"""Archives of a few files, written as their formats say, for readers of names."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from zlib import crc32


def _old_block(kind: int, flags: int, rest: bytes, data: bytes = b"") -> bytes:
    head = struct.pack("<BHH", kind, flags, 7 + len(rest)) + rest
    return struct.pack("<H", crc32(head) & 0xFFFF) + head + data


def rar4(files: Sequence[tuple[bytes, bytes]], hidden: bool = False, flags: int = 0) -> bytes:
    """RAR 4, stored. files: (name, data). hidden: it says that what follows is encrypted. flags: more of each file."""
    out = b"Rar!\x1a\x07\0" + _old_block(0x73, 0x80 if hidden else 0, bytes(6))
    for name, data in files:
        rest = struct.pack("<IIBIIBBHI", len(data), len(data), 3, crc32(data), 0x5A000000, 20, 0x30, len(name), 0o100644)
        if flags & 0x100:
            rest += bytes(8)
        out += _old_block(0x74, 0x8000 | flags, rest + name, data)
    return out + _old_block(0x7B, 0x4000, b"")


def _vint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def _new_block(body: bytes, data: bytes = b"") -> bytes:
    head = _vint(len(body)) + body
    return struct.pack("<I", crc32(head)) + head + data


def rar5(files: Sequence[tuple[bytes, bytes]], hidden: bool = False) -> bytes:
    """RAR 5, stored. files: (name, data). hidden: it says that what follows is encrypted."""
    out = b"Rar!\x1a\x07\1\0"
    if hidden:
        return out + _new_block(_vint(4) + _vint(0) + _vint(0) + _vint(0) + b"\x0f" + bytes(16)) + bytes(64)
    out += _new_block(_vint(1) + _vint(0) + _vint(0))
    for name, data in files:
        body = _vint(2) + _vint(2) + _vint(len(data)) + _vint(4) + _vint(len(data)) + _vint(0o100644) + struct.pack("<I", crc32(data))
        out += _new_block(body + _vint(0) + _vint(1) + _vint(len(name)) + name, data)
    return out + _new_block(_vint(5) + _vint(0) + _vint(0))


def cabinet(files: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A cabinet of one folder, stored. files: (name, data)."""
    table, place = b"", 0
    for name, data in files:
        table += struct.pack("<IIHHHH", len(data), place, 0, 0x5A21, 0, 0x20) + name + b"\0"
        place += len(data)
    whole = b"".join(data for _, data in files)
    first = 36 + 8
    block = struct.pack("<IHH", 0, len(whole), len(whole)) + whole
    head = struct.pack("<4sIIIIIBBHHHHH", b"MSCF", 0, first + len(table) + len(block), 0, first, 0, 3, 1, 1, len(files), 0, 0, 0)
    return head + struct.pack("<IHH", first + len(table), 1, 0) + table + block
