"""Makes TNEF streams for tests."""

from __future__ import annotations

import struct

from compressed_rtf import compress


def attribute(level: int, identifier: int, value: bytes, checksum: int | None = None) -> bytes:
    """One attribute."""
    total = sum(value) & 0xFFFF if checksum is None else checksum
    return struct.pack("<BIi", level, identifier, len(value)) + value + struct.pack("<H", total)


def prop(identifier: int, kind: int, *values: bytes) -> bytes:
    """One property of variable length."""
    out = struct.pack("<HHI", kind, identifier, len(values))
    for value in values:
        out += struct.pack("<I", len(value)) + value + b"\0" * (-len(value) % 4)
    return out


def long_prop(identifier: int, value: int) -> bytes:
    """One property of 32 bits."""
    return struct.pack("<HHI", 3, identifier, value)


def named_prop(value: bytes) -> bytes:
    """A property with a name of its own."""
    name = "Keywords\0".encode("utf-16-le")
    return struct.pack("<HH", 0x101F, 0x8001) + b"g" * 16 + struct.pack("<II", 1, len(name)) + name + b"\0" * (-len(name) % 4) + struct.pack(
        "<II", 1, len(value)
    ) + value + b"\0" * (-len(value) % 4)  # fmt: skip


def props(*found: bytes) -> bytes:
    """A list of properties."""
    return struct.pack("<I", len(found)) + b"".join(found)


def stream(*attributes: bytes) -> bytes:
    """A whole stream."""
    return b"\x78\x9f\x3e\x22\x01\x00" + b"".join(attributes)


def attachment(name: str, data: bytes, kind: str = "", message: bytes = b"") -> bytes:
    """The attributes of one attachment; message: a stream that is attached as a message."""
    found = [prop(0x3707, 0x1F, (name + "\0").encode("utf-16-le")), named_prop("a\0".encode("utf-16-le"))]
    if kind:
        found.append(prop(0x370E, 0x1E, kind.encode() + b"\0"))
    if message:
        found.append(prop(0x3701, 0x0D, bytes.fromhex("0703020000000000c000000000000046") + message))
    short = name.encode("cp1252", "replace")[:8] + b"\0"
    return (
        attribute(2, 0x00069002, bytes(14))
        + attribute(2, 0x0006800F, data)
        + attribute(2, 0x00018010, short)
        + attribute(2, 0x00069005, props(*found))
    )


def rtf_body(text: bytes) -> bytes:
    """The attribute with a compressed RTF body."""
    return attribute(1, 0x00069003, props(long_prop(0x3FDE, 1252), prop(0x1009, 0x102, compress(text))))
