"""Which formats the databases of a home have, and conversion of mailboxes to the next format and back.

A partition of the format before is read and written as it is; what only the new one can do is off there. A conversion is one transaction of the
partition's environment: a process killed in it leaves the partition as it was. One row, Meta, says which format it is.

| from | to | what changes                                                                                        |
| ---- | -- | ---------------------------------------------------------------------------------------------------- |
| 1    | 2  | account rows name their domain and say whether the account was given away; rows count each domain     |
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec
from msgspec import Struct

from iems import reserve
from iems.errors import IemsError
from iems.spool import keys as spool_keys
from iems.spool import records
from iems.store import keys
from iems.store.findings import BAD
from iems.store.rows import FORMAT, FORMATS_READ, Account, DomainUse, Meta, encode

_MAP_OCTETS = 256 << 30
_decode_meta = msgspec.msgpack.Decoder(Meta).decode
_decode_account = msgspec.msgpack.Decoder(Account).decode
#: Fields of an account's row in format 1.
_FIELDS_1 = 6


class FormatRefusal(IemsError):
    """A database is of a format this program can't use, or can't be converted now."""


class Database(Struct):
    """A database of a home. version: its format, 0 if it can't be told. reads: the formats this program takes. wants: the one it writes."""

    name: str
    version: int
    reads: tuple[int, ...]
    wants: int
    rebuilt: bool = False

    @property
    def readable(self) -> bool:
        """Whether this program can work with it. What is rebuilt from other files may be of any age, but not newer."""
        return self.version in self.reads or (self.rebuilt and self.version < self.wants)


def _value(path: Path, key: bytes, db: bytes | None) -> bytes | None:
    reserve.lock_file(path)
    env = lmdb.open(str(path), readonly=True, create=False, map_size=_MAP_OCTETS, max_readers=4096, max_dbs=32, readahead=False)
    try:
        handle = env.open_db(db, create=False) if db is not None else None
        with env.begin() as txn:
            found = txn.get(key, db=handle) if handle is not None else txn.get(key)
            return bytes(found) if found is not None else None
    finally:
        env.close()


def partitions(store: Path) -> Iterator[Database]:
    """The partitions that have rows."""
    found = [path for path in store.glob("p*") if path.name[1:].isdigit() and (path / "index" / "data.mdb").exists()]
    for path in sorted(found, key=lambda path: int(path.name[1:])):
        try:
            raw = _value(path / "index", keys.META_KEY, None)
            version = _decode_meta(raw).version if raw is not None else FORMAT
        except (lmdb.Error, OSError, *BAD):
            version = 0  # its writer and fsck say what is wrong; the other partitions are served
        yield Database(path.name, version, FORMATS_READ, FORMAT)


def databases(home: Path, store: Path, spool: Path) -> Iterator[Database]:
    """Every database of a home that has a format."""
    from iems.directory import keys as directory_keys

    for path, name, key, db, version, rebuilt in (
        (home / "directory", "directory", b"format", b"meta", directory_keys.FORMAT, False),
        (spool / "index", "queue index", spool_keys.META_VERSION, b"meta", spool_keys.VERSION, True),
    ):
        if not (path / "data.mdb").exists():
            continue
        try:
            raw = _value(path, key, db)
        except (lmdb.Error, OSError):
            raw = None  # the index is made anew from the records, of the directory its users tell
        if raw is not None or not rebuilt:
            yield Database(name, int.from_bytes(raw or b"", "big"), (version,), version, rebuilt)
    # Only the youngest: a newer version that ran here wrote it.
    for path in sorted((spool / "segments").glob("*.seg"))[-1:]:
        with open(path, "rb") as file:
            version = records.segment_format(file.fileno())
        if version:
            yield Database("queue", version, (records.SEGMENT_FORMAT,), records.SEGMENT_FORMAT)
    yield from partitions(store)


def check(home: Path, store: Path, spool: Path) -> None:
    """Refuse a home this program can't work with. Raises FormatRefusal, one line."""
    for one in databases(home, store, spool):
        if not one.version:
            continue
        if one.version > one.wants:
            raise FormatRefusal(
                f"{home}: {one.name} is of format {one.version}, this version knows up to {one.wants}: the home was made or upgraded by a newer version"
            )
        if not one.readable:
            raise FormatRefusal(f"{home}: {one.name} is of format {one.version}, which this version does not know")


class Change(Struct):
    """What a conversion does, or would do, with a partition."""

    name: str
    old: int
    new: int
    accounts: int = 0
    domains: int = 0


def convert(store: Path, name: str, addresses: dict[int, str], back: bool = False, dry_run: bool = False) -> Change | None:
    """Convert one partition to this program's format, or with `back` to the one before; None if it is of that format.

    addresses: number -> address of each account. Raises FormatRefusal (in use, or in a state the older format does not know), OSError, lmdb.Error.
    """
    folder = store / name
    fd = os.open(folder / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not dry_run:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FormatRefusal(f"{name} is in use: stop the server first") from None
        reserve.lock_file(folder / "index")
        env = lmdb.open(str(folder / "index"), readonly=dry_run, create=False, map_size=_MAP_OCTETS, max_readers=4096, readahead=False)
        try:
            # One transaction, synced by its commit: killed before it, the partition is as it was.
            with env.begin(write=not dry_run) as txn:
                return _convert(txn, name, addresses, FORMAT - 1 if back else FORMAT, dry_run)
        finally:
            env.close()
    finally:
        os.close(fd)


def _convert(txn: Any, name: str, addresses: dict[int, str], new: int, dry_run: bool) -> Change | None:
    try:
        meta = _decode_meta(txn.get(keys.META_KEY) or b"")
    except BAD:
        raise FormatRefusal(f"the format of {name} can't be read: iemsctl fsck tells more") from None
    if meta.version == new:
        return None
    if meta.version not in FORMATS_READ:
        raise FormatRefusal(f"{name} is of format {meta.version}, which this version does not know")
    change = Change(name, meta.version, new)
    uses: dict[str, DomainUse] = {}
    rows: list[tuple[bytes, bytes]] = []
    went = _went(txn) if new == 1 else []
    for key, raw in _accounts(txn, meta.number):
        row = _decode_account(raw)
        number = int.from_bytes(key[:4], "big")
        change.accounts += 1
        if new == 1:
            if row.given >= 0:
                raise FormatRefusal(f"{name}: account {number} is on its way to another partition: finish the move first (iemsuser move)")
            rows.append((key, encode(msgspec.structs.astuple(row)[:_FIELDS_1])))
            continue
        row.domain = addresses.get(number, "").rpartition("@")[2]
        rows.append((key, encode(row)))
        if row.domain:
            use = uses.setdefault(row.domain, DomainUse())
            use.octets += row.octets
            use.messages += row.messages
            use.accounts += 1
    change.domains = len(uses)
    if dry_run:
        return change
    for key, value in rows:
        txn.put(key, value)
    for key in _keys(txn, keys.head(0, keys.DOMAIN)):
        txn.delete(key)
    if new == 1:
        for number in went:
            txn.delete(keys.staged(number))
    for domain, use in uses.items():
        txn.put(keys.domain(domain), encode(use))
    txn.put(keys.META_KEY, encode(Meta(new, meta.number)))
    return change


def _keys(txn: Any, prefix: bytes) -> list[bytes]:
    cursor = txn.cursor()
    found = []
    if cursor.set_range(prefix):
        for key in cursor.iternext(values=False):
            if not key.startswith(prefix):
                break
            found.append(bytes(key))
    return found


def _went(txn: Any) -> list[int]:
    """The accounts that moved away, of which a row is left that the older format does not know."""
    cursor = txn.cursor()
    number, found = 0, []
    while number < 0xFFFF_FFFF and cursor.set_range(keys.head(number + 1, 0)):
        number = int.from_bytes(cursor.key()[:4], "big")
        if txn.get(keys.staged(number)) is not None:
            found.append(number)
    return found


def _accounts(txn: Any, partition: int) -> Iterator[tuple[bytes, bytes]]:
    """The account rows: (key, value). Raises FormatRefusal if there are rows of an account being moved."""
    cursor = txn.cursor()
    number = 0
    while number < 0xFFFF_FFFF and cursor.set_range(keys.head(number + 1, 0)):
        number = int.from_bytes(cursor.key()[:4], "big")
        raw = txn.get(keys.account(number))
        if raw is not None:
            yield keys.account(number), bytes(raw)
        elif txn.get(keys.staged(number), partition.to_bytes(4, "big")) != partition.to_bytes(4, "big"):
            raise FormatRefusal(f"account {number} is being moved: finish that first (iemsuser move)")
