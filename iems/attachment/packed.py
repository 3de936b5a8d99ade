"""What is in a file packed by gzip, bzip2 or xz: its beginning, and the names of a tar archive. Unpacked is no more than a stated number of octets."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from iems.attachment import sniff
from iems.attachment.octets import BadArchive

KINDS: dict[str, Callable[[BinaryIO], Any]] = {"application/gzip": gzip.open, "application/x-bzip2": bz2.open, "application/x-xz": lzma.open}
#: Octets unpacked in the search for names, of one message.
UNPACKED_MAX = 64 << 20
_SNIFFED = 40_000
_ENDINGS = {".gz": "", ".bz2": "", ".xz": "", ".z": "", ".tgz": ".tar", ".tbz": ".tar", ".tbz2": ".tar", ".txz": ".tar", ".taz": ".tar"}
FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError, MemoryError)


class Room:
    """How many octets may still be unpacked."""

    def __init__(self) -> None:
        self.left = UNPACKED_MAX

    def take(self, octets: int) -> None:
        """Raises BadArchive if there is no more room."""
        self.left -= octets
        if self.left < 0:
            raise BadArchive("more than is unpacked to be looked into")


class _Unpacked(io.RawIOBase):
    """A stream of so many octets at most, which ends where it is broken. fault: what is wrong there."""

    def __init__(self, stream: Any, room: Room) -> None:
        self._stream = stream
        self._room = room
        self.fault: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            found = self._stream.read1(min(len(buffer), 1 << 20))
        except FAULTS as fault:
            self.fault = fault
            return 0
        self._room.take(len(found))
        buffer[: len(found)] = found
        return len(found)


def stem(name: str) -> str:
    """What a file is called once it is unpacked, "" if its name does not tell."""
    lower = name.rstrip(". ").lower()
    for ending, tail in _ENDINGS.items():
        if lower.endswith(ending):
            return name[: len(lower) - len(ending)] + tail
    return ""


def beginning(octets: bytes, kind: str, room: Room) -> str:
    """The media type of what is packed, "" if it is not known. kind: of KINDS. Raises one of FAULTS if nothing can be unpacked, BadArchive."""
    room.take(_SNIFFED)
    stream = KINDS[kind](io.BytesIO(octets))
    found = b""
    try:
        while len(found) < _SNIFFED and (piece := stream.read1(512)):
            found += piece
    except FAULTS:
        # What comes before the place where it is broken can be unpacked.
        if not found:
            raise
    return sniff.media_type(found)


def archived(octets: bytes, kind: str, most: int, room: Room, names: list[str]) -> str:
    """What could not be read of a packed tar archive, or "". names: gets those of its files. Raises one of FAULTS, tarfile.TarError, BadArchive."""
    unpacked = _Unpacked(KINDS[kind](io.BytesIO(octets)), room)
    with tarfile.open(fileobj=cast(BinaryIO, io.BufferedReader(unpacked, 1 << 16)), mode="r|", ignore_zeros=True) as archive:
        trouble = members(archive, most, names)
    if unpacked.fault is not None:
        raise unpacked.fault
    return trouble


def members(archive: tarfile.TarFile, most: int, names: list[str]) -> str:
    """The same of one that is open, with `ignore_zeros`: programs look for the next file behind what is broken, and behind an end."""
    for entry in archive:
        if len(names) == most:
            return "too many files"
        names.append(entry.name)
    return ""
