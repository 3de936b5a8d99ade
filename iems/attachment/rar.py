"""Names of the files in a RAR archive, out of its headers: versions 1.5 to 4, and 5. Nothing is unpacked.

A header is skipped by the lengths it gives, so the work is bounded by the number of headers that fit into the octets.
"""

from __future__ import annotations

from zlib import crc32

from iems.attachment.octets import BadArchive, NoArchive, Octets

MARK = b"Rar!\x1a\x07"
HIDDEN = "an archive whose names are encrypted"
#: A longer header is none of RAR 5.
_HEADER_MAX = 2 << 20


def listed(octets: bytes, at: int, most: int, names: list[str]) -> str:
    """What could not be read of the archive that begins at an offset, or "". names: gets those of its files, `most` at most, also of what comes before
    the place where it is broken. Raises BadArchive, NoArchive."""
    mark = octets[at + len(MARK) : at + len(MARK) + 2]
    if mark[:1] == b"\0":
        return _old(octets, at + 7, most, names)
    if mark == b"\1\0":
        return _new(octets, at + 8, most, names)
    raise NoArchive("a RAR archive of an unknown version")


def _old(octets: bytes, at: int, most: int, names: list[str]) -> str:
    """Version 1.5 to 4."""
    first = True
    while at < len(octets):
        block = Octets(octets, at)
        checksum, kind, flags, size = block.number(2), block.number(1), block.number(2), block.number(2)
        if size < 7:
            raise (NoArchive if first else BadArchive)("a header without a length")
        head = Octets(Octets(octets, at).take(size), 7)
        if first and (kind != 0x73 or crc32(head.octets[2:13]) & 0xFFFF != checksum):
            raise NoArchive("no main header")
        first = False
        if kind == 0x73 and flags & 0x80:
            return HIDDEN
        if kind == 0x7B:
            break
        at += size
        if kind in (0x74, 0x7A):
            packed = head.number(4)
            head.take(15)
            length = head.number(2)
            head.take(4)
            if flags & 0x100:
                packed += head.number(4) << 32
                head.take(4)
            if kind == 0x74:
                names += _names(head.take(length), bool(flags & 0x200))
            at += packed
        elif flags & 0x8000:
            at += head.number(4)
        if len(names) > most:
            del names[most:]
            return "too many files"
    return ""


def _names(raw: bytes, wide: bool) -> list[str]:
    """The names a program may read: the plain one, and the one in Unicode."""
    plain, end, packed = raw.partition(b"\0")
    found = [_decoded(plain)]
    if wide and end:
        found.append(_widened(plain, packed))
    return found


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _widened(plain: bytes, packed: bytes) -> str:
    """A name in Unicode, which is told by how it differs from the plain one."""
    units: list[int] = []
    high = packed[:1]
    stream = Octets(packed, len(high))
    flags = bits = 0
    while stream.left:
        if not bits:
            flags, bits = stream.number(1), 8
            if not stream.left:
                break
        bits -= 2
        how = flags >> bits & 3
        if how == 0:
            units.append(stream.number(1))
        elif how == 1:
            units.append(stream.number(1) | high[0] << 8)
        elif how == 2:
            units.append(stream.number(min(2, stream.left)))
        else:
            count = stream.number(1)
            add = stream.number(1) if count & 0x80 and stream.left else 0
            over = high[0] << 8 if count & 0x80 else 0
            for octet in plain[len(units) : len(units) + (count & 0x7F) + 2]:
                units.append((octet + add & 0xFF) | over)
    return b"".join(unit.to_bytes(2, "little") for unit in units).decode("utf-16-le", "replace")


def _new(octets: bytes, at: int, most: int, names: list[str]) -> str:
    """Version 5."""
    first = True
    while at < len(octets):
        block = Octets(octets, at)
        checksum, size = block.number(4), _vint(block)
        start = block.at
        if not 0 < size <= _HEADER_MAX:
            raise (NoArchive if first else BadArchive)("a header without a length")
        head = Octets(block.take(size))
        if crc32(octets[at + 4 : start + size]) != checksum:
            raise (NoArchive if first else BadArchive)("a header with a wrong checksum")
        first = False
        kind, flags = _vint(head), _vint(head)
        if flags & 1:
            _vint(head)
        at = start + size + (_vint(head) if flags & 2 else 0)
        if kind == 4:
            return HIDDEN
        if kind == 5:
            break
        if kind == 2:
            names.append(_name(head))
            if len(names) > most:
                del names[most:]
                return "too many files"
    return ""


def _name(head: Octets) -> str:
    flags = _vint(head)
    _vint(head)  # size
    _vint(head)  # attributes
    head.take((4 if flags & 2 else 0) + (4 if flags & 4 else 0))
    _vint(head)  # compression
    _vint(head)  # system
    return head.take(_vint(head)).decode("utf-8", "replace").partition("\0")[0]


def _vint(stream: Octets) -> int:
    """A number of seven bits an octet, the lowest first; the last one's eighth bit is 0."""
    value = 0
    for shift in range(0, 70, 7):
        octet = stream.number(1)
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value
    raise BadArchive("a number without an end")
