"""Asks the store for a command: over its socket while the server runs, else by opening the partition itself."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from typing import Any

import msgspec

from iems.errors import StoreError, StoreUnavailable
from iems.store import wire
from iems.store.client import StoreClient
from iems.store.partition import Job, Partition

#: How long a command waits for a store that is busy or being started.
PATIENCE_S = 10.0


def ask(home: Path, store: Path, spool: Path, partition: int, account: int, body: Any, undelete_s: float) -> bytes:
    """The packed answer to one request of `account`. Raises StoreError (refused), StoreUnavailable.

    store: HOME/store. undelete_s: as `store.undelete_s` says.
    """
    folder = store / f"p{partition}"
    if not folder.is_dir():
        raise StoreError("the account has no mail yet", "NONEXISTENT")
    fd = os.open(folder / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return asyncio.run(_over_socket(home, partition, account, body))
        return _alone(folder, spool, partition, body, undelete_s)
    finally:
        os.close(fd)


async def _over_socket(home: Path, partition: int, account: int, body: Any) -> bytes:
    client = StoreClient(
        asyncio.get_running_loop(), home / "run", partition_of=lambda _: partition, patience_s=PATIENCE_S
    )
    try:
        return await client.ask(account, body)
    finally:
        client.close()


def _alone(folder: Path, spool: Path, number: int, body: Any, undelete_s: float) -> bytes:
    partition = Partition(folder, spool, number=number, undelete_s=undelete_s)
    try:
        [outcome] = partition.apply([Job(0, 0, 0, body)])
    finally:
        partition.close()
    if outcome.status == wire.BUSY:
        raise StoreUnavailable("the store can't write now: the disk may be full")
    if outcome.status == wire.REFUSED:
        code, text = msgspec.msgpack.decode(outcome.value, type=tuple[str, str])
        raise StoreError(text, code)
    return outcome.value
