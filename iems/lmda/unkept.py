"""Mail that is not in a user's mailboxes because he, or the site, wanted so: what `iemsctl preview` needs to decide about it once more.

One file an account, `unkept` beside its scripts: of each message refused or discarded by spam control, the Bayesian filter or a script how it
came (as in the envelope), what its record says, and its header; no text. A record is magic (4 octets), length (u32), CRC-32C (u32),
little-endian, and MessagePack. They are not flushed: what a power cut takes is missing in a preview, no more. Records go when they are older
than DAYS, and the older half when the file has reached OCTETS_MAX.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from iems._native import kernel
from iems.durable import write_durably
from iems.message.header import header_end
from iems.model import Verdict

crc32c = kernel("crc32c").crc32c

DAYS: Final = 30
#: Of one account.
OCTETS_MAX: Final = 4 << 20
#: Octets of a header that are kept, before compression.
HEAD_OCTETS: Final = 8 << 10

_FILE = "unkept"
_FRAME = struct.Struct("<4sII")
_MAGIC = b"\xd5unk"
_LONGEST = 64 << 10


class Unkept(Struct, array_like=True):
    """One message. origin: its id. address: of the recipient. record: the verdict record he would have had. score: what his Bayesian filter
    says, None if it is off. packed: the start of the header, compressed."""

    version: int
    origin: bytes
    time_s: int
    size: int
    reverse_path: bytes
    address: bytes
    client_ip: str
    verdicts: tuple[Verdict, ...]
    asked: tuple[Verdict, ...]
    record: str
    score: float | None
    packed: bytes

    @property
    def head(self) -> bytes:
        """The start of the message: whole header fields and the empty line."""
        return zlib.decompressobj().decompress(self.packed, 4 * HEAD_OCTETS)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Unkept).decode


def packed(content: bytes) -> bytes:
    """The header at the start of a message as it is kept; a long one ends with a whole field."""
    head = content[: header_end(content, 0, min(len(content), HEAD_OCTETS))]
    if len(head) == HEAD_OCTETS and not head.endswith(b"\n\r\n"):
        end = head.rfind(b"\n")
        while end > 0 and head[end + 1 : end + 2] in b" \t":
            end = head.rfind(b"\n", 0, end)
        head = head[: end + 1] + b"\r\n"
    return zlib.compress(head, 1)


def keep(place: Path, notes: Iterable[Unkept], now_s: float) -> None:
    """Add records. place: the folder of the account's scripts (`store.scripts.folder`). Blocks. Raises OSError."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = place / _FILE
    while True:
        fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            found = os.fstat(fd)
            if found.st_ino != os.stat(file).st_ino:
                continue  # another has put a shorter one in its place meanwhile
            if found.st_size >= OCTETS_MAX:
                _shorten(place, now_s)
                continue
            os.write(fd, b"".join(map(_framed, notes)))
            return
        finally:
            os.close(fd)


def _framed(note: Unkept) -> bytes:
    data = _encode(note)
    return _FRAME.pack(_MAGIC, len(data), crc32c(data)) + data


def _shorten(place: Path, now_s: float) -> None:
    kept: list[bytes] = []
    room = OCTETS_MAX // 2
    for note in reversed(read(place, now_s - DAYS * 86_400)):
        kept.append(_framed(note))
        room -= len(kept[-1])
        if room < 0:
            break
    write_durably(place / _FILE, b"".join(reversed(kept)))


def read(place: Path, since_s: float) -> list[Unkept]:
    """The records since then, each message once, in the order they came in; what is damaged is passed over. Raises OSError."""
    try:
        data = (place / _FILE).read_bytes()
    except FileNotFoundError:
        return []
    found: dict[bytes, Unkept] = {}
    at = data.find(_MAGIC)
    while 0 <= at <= len(data) - _FRAME.size:
        _, length, crc = _FRAME.unpack_from(data, at)
        end = at + _FRAME.size + length
        octets = data[at + _FRAME.size : end]
        if length <= _LONGEST and end <= len(data) and crc32c(octets) == crc:
            try:
                note = _decode(octets)
                if note.time_s >= since_s:
                    found[note.origin] = note
            except msgspec.DecodeError:
                pass  # of a version to come
            at = data.find(_MAGIC, end)
        else:
            at = data.find(_MAGIC, at + 1)
    return list(found.values())
