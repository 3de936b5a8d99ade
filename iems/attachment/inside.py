"""Names of the files in an archive or a TNEF stream, one level deep. No file is unpacked, so nothing can blow up; of what is packed as a whole
(`packed.py`), a stated number of octets is.

Listed are zip, tar, gzip, bzip2, xz, RAR, 7z, cabinets and TNEF. What else is known to be an archive is told as one that can't be listed.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Sequence

from iems.attachment import packed, rar, sevenzip, sniff
from iems.attachment.octets import BadArchive, NoArchive, Octets
from iems.message import tnef

MAX_NAMES = 10_000
#: Longer archives are not listed.
MAX_OCTETS = 64 << 20
#: A program that unpacks itself stands before its archive; so far the programs that open archives look for its beginning.
BEFORE_OCTETS = 4 << 20
#: A zip archive ends with at most so many octets from this mark on.
_ZIP_END, _ZIP_END_OCTETS = b"PK\x05\x06", 65_558
_ZIP_HIDDEN = 0x2000
_LOOK_ELSEWHERE = frozenset((
    "application/x-iso9660-image", "application/x-arj", "application/x-ace-compressed", "application/x-lzh-compressed", "application/zstd",
    "application/x-compress", "application/x-lzip", "application/x-ms-wim", "application/x-xar", "application/x-vhd", "application/x-vhdx",
    "application/x-archive", "application/x-cpio",
))  # fmt: skip

Listed = tuple[list[tuple[str, str]], str]


def listed(octets: bytes, names: Sequence[str] = (), room: packed.Room | None = None) -> Listed:
    """((name, type by content or "") of each file inside, what could not be read or ""). names: what the archive itself is called. room: of the message."""
    kind = sniff.media_type(octets)
    if len(octets) > MAX_OCTETS:
        return [], "too long to be looked into"
    found: list[tuple[str, str]] = []
    bare: list[str] = []
    try:
        if kind == "application/ms-tnef":
            return _wrapped(octets)
        if kind == "application/zip" or _ZIP_END in octets[-_ZIP_END_OCTETS:]:
            found = [(name, "") for name in _local_names(octets)]
            names_there, trouble = _zip(octets)
            if len(found) > MAX_NAMES:
                trouble = "too many files"
            return list(dict.fromkeys([*found, *((name, "") for name in names_there)])), trouble
        if kind == "application/x-tar":
            trouble = _tar(octets, bare)
            return [(name, "") for name in bare], trouble
        if kind in packed.KINDS:
            return _packed(octets, kind, names, room or packed.Room())
        if kind == "application/vnd.ms-cab-compressed":
            _cabinet(octets, bare)
            return [(name, "") for name in bare], ""
        for mark, read in ((rar.MARK, rar.listed), (sevenzip.MARK, sevenzip.listed)):
            at = octets.find(mark, 0, BEFORE_OCTETS)
            while at >= 0:
                try:
                    trouble = read(octets, at, MAX_NAMES, bare)
                    return [(name, "") for name in bare], trouble
                except NoArchive:
                    # Programs hold such marks, too: only what begins with one says that it is an archive.
                    if not at:
                        raise
                at = octets.find(mark, at + 1, BEFORE_OCTETS)
    except (zipfile.BadZipFile, tarfile.TarError, BadArchive, ValueError, NotImplementedError, RuntimeError, *packed.FAULTS) as error:
        return [*found, *((name, "") for name in bare)], f"a broken archive: {error}"
    return [], "an archive of a kind that is not looked into" if kind in _LOOK_ELSEWHERE else ""


def _zip(octets: bytes) -> tuple[list[str], str]:
    with zipfile.ZipFile(io.BytesIO(octets)) as archive:
        entries = archive.filelist
        if any(entry.flag_bits & _ZIP_HIDDEN for entry in entries):
            return [], "an archive whose names are encrypted"
        # As it was written, before what comes after a NUL was cut off.
        names = [name for entry in entries[:MAX_NAMES] for name in dict.fromkeys((entry.filename, entry.orig_filename))]
    return names, "too many files" if len(entries) > MAX_NAMES else ""


def _local_names(octets: bytes) -> list[str]:
    """Names by the header before each file, which is what a program sees that reads a zip archive from its beginning."""
    names: list[str] = []
    at = octets.find(b"PK\x03\x04")
    while at >= 0 and len(names) <= MAX_NAMES:
        flags, length = int.from_bytes(octets[at + 6 : at + 8], "little"), int.from_bytes(octets[at + 26 : at + 28], "little")
        raw = octets[at + 30 : at + 30 + length]
        if length and len(raw) == length:
            names.append(raw.decode("utf-8" if flags & 0x800 else "cp437", "replace"))
        at = octets.find(b"PK\x03\x04", at + 4)
    return names


def _packed(octets: bytes, kind: str, names: Sequence[str], room: packed.Room) -> Listed:
    inner = [_gzip_name(octets)] if kind == "application/gzip" else []
    inner = list(dict.fromkeys(name for name in (*inner, *(packed.stem(name) for name in names)) if name))
    there: list[str] = []
    found = [(name, "") for name in inner]
    try:
        real = packed.beginning(octets, kind, room)
        found = [(name, real) for name in inner or [""]] if inner or real else []
        if real != "application/x-tar":
            return found, ""
        trouble = packed.archived(octets, kind, MAX_NAMES, room, there)
    except (tarfile.TarError, BadArchive, ValueError, *packed.FAULTS) as error:
        trouble = f"a broken archive: {error}"
    return [*found, *((name, "") for name in there)], trouble


def _cabinet(octets: bytes, names: list[str]) -> None:
    """Names in a cabinet's directory."""
    head = Octets(octets)
    fields = struct.unpack("<4sIIIIIBBHHHHH", head.take(36))
    table, count = Octets(octets, min(fields[4], len(octets))), fields[9]
    for _ in range(count):
        attributes = int.from_bytes(table.take(16)[14:16], "little")
        end = octets.find(b"\0", table.at, table.at + 1024)
        if end < 0:
            raise BadArchive("a name without an end")
        names.append(table.take(end - table.at).decode("utf-8" if attributes & 0x80 else "cp437", "replace"))
        table.take(1)


def _wrapped(octets: bytes) -> Listed:
    found = tnef.parse(octets)
    if found is None:
        return [], "no TNEF after all"
    names: list[tuple[str, str]] = []
    for attachment in found.attachments:
        names.append((attachment.name, sniff.media_type(attachment.data) or attachment.content_type.lower()))
        if attachment.message is not None:
            names += [(name, "") for name in attachment.message.names()]
    return names, found.defects[0] if found.defects else ""


def _tar(octets: bytes, names: list[str]) -> str:
    with tarfile.open(fileobj=io.BytesIO(octets), mode="r:", ignore_zeros=True) as archive:
        return packed.members(archive, MAX_NAMES, names)


def _gzip_name(octets: bytes) -> str:
    """The name in the header of a gzip file (RFC 1952 2.3)."""
    if len(octets) < 10 or not octets[3] & 8:
        return ""
    at = 10
    if octets[3] & 4:
        at += 2 + int.from_bytes(octets[at : at + 2], "little")
    end = octets.find(b"\0", at, at + 1024)
    return octets[at:end].decode("latin-1") if end > at else ""
