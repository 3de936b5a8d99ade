"""Brings a snapshot back: a whole home, or mail of one account into a home that works."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import msgspec

from iems.backup.snapshot import BackupFailure, manifest, verify
from iems.directory import Directory
from iems.model import id_text
from iems.store import keys
from iems.store.reader import Reader
from iems.store.rows import Account, Mailbox, encode
from iems.transfer.sources import Mail

_decode_account = msgspec.msgpack.Decoder(Account).decode
_decode_mailbox = msgspec.msgpack.Decoder(Mailbox).decode


def whole(folder: Path, name: str, home: Path) -> int:
    """Make a home of a snapshot; messages in it. home: missing or empty. Raises BackupFailure, OSError.

    Every mailbox gets a new UIDVALIDITY: mail that came after the snapshot had uids that will be given again (RFC 9051 2.3.1.1).
    """
    if home.exists() and any(home.iterdir()):
        raise BackupFailure(f"{home} is not empty")
    found = manifest(folder, name)
    wrong = next(verify(folder, name), "")
    if wrong:
        raise BackupFailure(f"the snapshot is damaged: {wrong}")
    place = folder / "snapshots" / name
    part = home.with_name(f".{home.name}.restored")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, mode=0o700)
    shutil.copytree(place / "conf", part / "conf")
    os.chmod(part / "conf", 0o700)
    (part / "directory").mkdir(mode=0o700)
    shutil.copyfile(place / "directory" / "data.mdb", part / "directory" / "data.mdb")
    os.chmod(part / "directory" / "data.mdb", 0o600)
    for partition, files in found.blobs.items():
        target = part / "store" / partition
        (target / "index").mkdir(parents=True, mode=0o700)
        (target / "blobs").mkdir(mode=0o700)
        shutil.copyfile(place / "store" / partition / "index" / "data.mdb", target / "index" / "data.mdb")
        for file, expected in files.items():
            with open(folder / "blobs" / partition / file, "rb") as old, open(target / "blobs" / file, "wb") as new:
                left = expected.size
                while left and (octets := old.read(min(4 << 20, left))):
                    new.write(octets)
                    left -= len(octets)
                new.flush()
                os.fsync(new.fileno())
        _new_validity(target / "index")
    if (place / "store" / "home").is_dir():
        shutil.copytree(place / "store" / "home", part / "store" / "home", dirs_exist_ok=True)
    for folder_name in ("log", "run", "spool"):
        (part / folder_name).mkdir(mode=0o700)
    if home.exists():
        home.rmdir()
    os.rename(part, home)
    return found.messages


def _new_validity(index: Path) -> None:
    env = lmdb.open(str(index), map_size=256 << 30, max_readers=4096)
    try:
        with env.begin(write=True) as txn:
            now = int(time.time())
            changes: list[tuple[bytes, bytes]] = []
            accounts: dict[int, Account] = {}
            for key, value in txn.cursor():
                number, kind = int.from_bytes(key[:4], "big"), key[4]
                if kind == keys.ACCOUNT and len(key) == 5:
                    accounts[number] = _decode_account(value)
                elif kind == keys.MAILBOX and number in accounts:
                    account, box = accounts[number], _decode_mailbox(value)
                    account.uidvalidity = box.uidvalidity = max(now, account.uidvalidity + 1, box.uidvalidity + 1)
                    changes.append((bytes(key), encode(box)))
            changes += [(keys.account(number), encode(account)) for number, account in accounts.items()]
            for key, value in changes:
                txn.put(key, value)
        env.sync(True)
    finally:
        env.close()


def mail(folder: Path, name: str, address: str, mailbox: str = "", message: str = "") -> Iterator[tuple[str, Mail]]:
    """(mailbox, message) of one account in a snapshot; only of one mailbox, or the message with one id, if that is named. Raises BackupFailure."""
    place = folder / "snapshots" / name
    manifest(folder, name)
    directory = Directory(place / "directory")
    try:
        account = directory.account(address)
    finally:
        directory.close()
    if account is None:
        raise BackupFailure(f"there was no account {address} in snapshot {name}")
    reader = Reader(place / "store")
    try:
        boxes = [box for box in reader.mailboxes(account.number) if not box.noselect and mailbox in ("", box.name)]
        if mailbox and not boxes:
            raise BackupFailure(f"{address} had no mailbox {mailbox} in snapshot {name}")
        for box in boxes:
            selected = reader.select(account.number, box.id)
            for uid in selected.uids.tolist() if selected is not None else ():
                row = reader.message(account.number, box.id, uid)
                if row is None or (message and id_text(row.origin) != message.upper()):
                    continue
                content = reader.blobs.read(row.rope)
                yield box.name, Mail(f"{box.name}, uid {uid}", (), content, box.flag_names(row.flags), row.internaldate_s)
    finally:
        reader.close()
