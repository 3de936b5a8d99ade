"""What was taken in from maildrops and folders: a file of keys, so that the same mail fetched again is not delivered again.

Each key is a hash of where a mail came from and what was in it. The file (HOME/bsmtp/taken) has records of 24 octets: seconds since 1970 (u64),
the key (10), two octets of zero and the CRC-32C of these (u32), little-endian. A record is on the disk before its mail is deleted
where it came from. Keys older than `KEEP_S` are left out when the file is read.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from iems._native import kernel
from iems.durable import sync_folder

crc32c = kernel("crc32c").crc32c

KEY_OCTETS = 10
KEEP_S = 30 * 86_400
#: Keys kept at most: 24 MB of file. Above it the oldest go.
KEYS = 1_000_000

_RECORD = struct.Struct("<Q10sH")
_OCTETS = _RECORD.size + 4


class Memory:
    """The keys of one home. Used by one thread at a time; `note` blocks for a flush."""

    def __init__(self, path: Path, now_s: int, most: int = KEYS) -> None:
        """Read the file, or begin one. path: HOME/bsmtp/taken. A torn last record (a crash) is left out. Raises OSError."""
        self._path = path
        self._most = most
        self._keys: dict[bytes, int] = {}
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._read(now_s)
        self._fd = -1
        self._write_anew()

    def _read(self, now_s: int) -> None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        for at in range(0, len(data) - _OCTETS + 1, _OCTETS):
            record = data[at : at + _RECORD.size]
            if crc32c(record).to_bytes(4, "little") != data[at + _RECORD.size : at + _OCTETS]:
                continue
            time_s, key, _ = _RECORD.unpack(record)
            if time_s >= now_s - KEEP_S:
                self._keys[key] = time_s
        self._trim()

    def _trim(self) -> None:
        while len(self._keys) > self._most:
            del self._keys[next(iter(self._keys))]

    def _write_anew(self) -> None:
        """Replace the file by one with the living keys alone."""
        if self._fd >= 0:
            os.close(self._fd)
        fresh = self._path.with_name(self._path.name + ".new")
        with open(fresh, "wb", opener=_private) as file:
            for key, time_s in self._keys.items():
                file.write(_packed(key, time_s))
            file.flush()
            os.fsync(file.fileno())
        os.rename(fresh, self._path)
        sync_folder(self._path.parent)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._records = len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def note(self, key: bytes, now_s: int) -> None:
        """Remember a key, on the disk when this returns. Raises OSError."""
        if self._records >= 2 * self._most:
            self._keys = {k: t for k, t in self._keys.items() if t >= now_s - KEEP_S}
            self._trim()
            self._write_anew()
        record = _packed(key, now_s)
        if os.write(self._fd, record) != len(record):
            # Half a record would set every later one off its place.
            os.ftruncate(self._fd, self._records * _OCTETS)
            raise OSError("the memory of taken mail could not be written whole")
        os.fdatasync(self._fd)
        self._records += 1
        self._keys[key] = now_s
        self._trim()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _packed(key: bytes, time_s: int) -> bytes:
    record = _RECORD.pack(time_s, key, 0)
    return record + int(crc32c(record)).to_bytes(4, "little")
