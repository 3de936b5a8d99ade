"""How much mail there is: by account from the rows, by day in a small history file (HOME/store/history).

A line of JSON for each day, the oldest first, at most `DAYS`; written by the janitor, read by `iemsctl report storage`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import lmdb
import msgspec
from msgspec import Struct, field

from iems.durable import write_durably
from iems.store import keys
from iems.store.findings import BAD
from iems.store.rows import Account

#: Days kept, and domains named in a line (those with the most mail).
DAYS = 400
DOMAINS = 200
NAME = "history"
_decode_account = msgspec.msgpack.Decoder(Account).decode


class Sum(Struct, array_like=True):
    """Octets and messages of some accounts."""

    octets: int = 0
    messages: int = 0
    accounts: int = 0

    def add(self, octets: int, messages: int) -> None:
        """Count one account more."""
        self.octets += octets
        self.messages += messages
        self.accounts += 1


class Day(Struct):
    """What there was at a time (seconds since 1970): in all, and by domain."""

    day: str
    time_s: int
    total: Sum
    domains: dict[str, Sum] = field(default_factory=dict)


_decode_day = msgspec.json.Decoder(Day).decode


def usages(store: Path) -> dict[int, tuple[int, int]]:
    """Account -> (octets, messages) of all its mailboxes, trash not counted; accounts without a mailbox are not there.

    One snapshot of each partition. Raises lmdb.Error.
    """
    found: dict[int, tuple[int, int]] = {}
    for path in sorted(store.glob("p*/index")):
        if not (path / "data.mdb").exists():
            continue
        env = lmdb.open(str(path), readonly=True, create=False, max_readers=4096, map_size=256 << 30, readahead=False)
        try:
            with env.begin() as txn:
                cursor = txn.cursor()
                number = 0
                while number < 0xFFFF_FFFF and cursor.set_range(keys.head(number + 1, 0)):
                    number = int.from_bytes(cursor.key()[:4], "big")
                    raw = txn.get(keys.account(number))
                    if raw is None:
                        continue  # deleted
                    try:
                        row = _decode_account(raw)
                    except BAD:
                        continue  # fsck names it
                    if row.given < 0 or number not in found:
                        found[number] = (row.octets, row.messages)
        finally:
            env.close()
    return found


def summed(addresses: Iterable[tuple[int, str]], used: dict[int, tuple[int, int]], now_s: float) -> Day:
    """The sums of accounts (number, address)."""
    total = Sum()
    domains: dict[str, Sum] = {}
    for number, address in addresses:
        octets, messages = used.get(number, (0, 0))
        total.add(octets, messages)
        domains.setdefault(address.rpartition("@")[2], Sum()).add(octets, messages)
    return Day(time.strftime("%Y-%m-%d", time.gmtime(now_s)), int(now_s), total, domains)


def disk_octets(store: Path) -> int:
    """Octets the contents take on the disk; a file the spool still has too counts whole."""
    total = 0
    for folder in store.glob("p*/blobs"):
        for entry in os.scandir(folder):
            try:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def history(store: Path) -> list[Day]:
    """The days noted, the oldest first; lines that can't be read are left out."""
    try:
        lines = (store / NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines[-DAYS:]:
        try:
            found.append(_decode_day(line))
        except (*BAD, ValueError):
            continue
    return found


def note(store: Path, day: Day) -> None:
    """Add a day to the history, once; the oldest go. Whole or not at all."""
    known = [one for one in history(store) if one.day != day.day]
    largest = sorted(day.domains.items(), key=lambda one: (-one[1].octets, one[0]))[:DOMAINS]
    known.append(Day(day.day, day.time_s, day.total, dict(largest)))
    write_durably(store / NAME, b"".join(msgspec.json.encode(one) + b"\n" for one in known[-DAYS:]))
