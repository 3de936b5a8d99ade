"""Whom a user's vacation answered, so that nobody is answered twice within the interval (RFC 5230 4.6), whatever crashes.

One file an account (`answered` beside its scripts) of records of 48 octets: seconds since 1970 (u64), interval in seconds (u32),
a hash of who was answered with what (16), the id of the message that was answered (16), CRC-32C of these (u32), little-endian. A
record is on the disk before the answer is recorded in the spool; it names the message, so that the same step done
again after a crash is not refused, and gives the same answer with the same id.
"""

from __future__ import annotations

import fcntl
import os
import struct
from hashlib import blake2b
from pathlib import Path

from iems._native import kernel
from iems.durable import sync_folder, write_durably

crc32c = kernel("crc32c").crc32c

#: Senders remembered at once for one account; above it none is answered until some have grown old.
SENDERS_MAX = 10_000

_RECORD = struct.Struct("<QI16s16s")
_OCTETS = _RECORD.size + 4


def key_of(sender: str, handle: str) -> bytes:
    """What stands for one sender and one kind of answer."""
    return blake2b(f"{handle}\0{sender.lower()}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


def may_answer(place: Path, key: bytes, interval_s: int, now_s: int, message: bytes, most: int = SENDERS_MAX) -> bool:
    """Whether this message is answered; if so that is on the disk when this returns. Blocks. Raises OSError.

    place: the folder of the account's scripts. interval_s: none to the same key within it. message: the id, 16 octets.
    """
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(place / "answered.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _decide(place / "answered", key, interval_s, now_s, message, most)
    finally:
        os.close(lock)


def _decide(file: Path, key: bytes, interval_s: int, now_s: int, message: bytes, most: int) -> bool:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        data = b""
    known: dict[bytes, tuple[int, int, bytes]] = {}
    for at in range(0, len(data) - _OCTETS + 1, _OCTETS):
        record = data[at : at + _RECORD.size]
        if crc32c(record).to_bytes(4, "little") == data[at + _RECORD.size : at + _OCTETS]:
            time_s, interval, found, origin = _RECORD.unpack(record)
            known[found] = (time_s, interval, origin)
    last = known.get(key)
    # The distance counts both ways: a clock set back must not open the door, nor one that was wrong once keep it shut for years.
    if last is not None and abs(now_s - last[0]) < interval_s:
        return last[2] == message
    living = {k: v for k, v in known.items() if abs(now_s - v[0]) < v[1] and k != key}
    if len(living) >= most:
        return False
    new = _packed(now_s, interval_s, key, message)
    torn = len(data) % _OCTETS
    if torn or len(data) > 2 * _OCTETS * (len(living) + 32):
        write_durably(file, b"".join(_packed(v[0], v[1], k, v[2]) for k, v in living.items()) + new)
        return True
    fresh = not data
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, new) != len(new):
            os.ftruncate(fd, len(data))
            raise OSError("the memory of answers could not be written whole")
        os.fdatasync(fd)
    finally:
        os.close(fd)
    if fresh:

        sync_folder(file.parent)
    return True


def _packed(time_s: int, interval_s: int, key: bytes, message: bytes) -> bytes:
    record = _RECORD.pack(time_s, interval_s, key, message)
    return record + int(crc32c(record)).to_bytes(4, "little")
