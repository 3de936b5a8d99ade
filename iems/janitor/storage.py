"""Care of the mailboxes that reads many rows: the sums of the day, and mail that has expired.

Done by a process of its own (`python -m iems.janitor.storage HOME sums|expire`), as the janitor's own must answer for workers that die, and may
open a partition once only. It tells what it did in a line of JSON.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from iems import config as settings
from iems.directory import Directory
from iems.directory.expiry import Expiry, days_of
from iems.errors import DirectoryUnavailable, IemsError
from iems.store import usage
from iems.store.client import StoreClient
from iems.store.expire import expire
from iems.store.reader import Reader

LOOK_S = 600.0
FIRST_S = 60.0
#: Expired mail is looked for this often, and at once when the rules were changed.
EXPIRE_S = 3_600.0
#: A process that takes longer is ended; the next one goes on where it was.
LIMIT_S = 1_800


class StorageCare:
    """Starts what is due, one at a time. ctx: the worker's. store: HOME/store."""

    def __init__(self, ctx: Any, store: Path) -> None:
        self._ctx = ctx
        self._store = store
        self._sums_at = time.monotonic() + FIRST_S
        self._day = ""
        self._expire_at = 0.0
        self._version = -1
        self._rules: list[Expiry] | None = None
        self._task: asyncio.Future[None] | None = None

    def round(self, directory: Directory | None) -> None:
        """Begin what is due, beside the janitor's other work."""
        if directory is None or (self._task is not None and not self._task.done()):
            return
        now = time.monotonic()
        if now >= self._sums_at:
            self._sums_at = now + LOOK_S
            day = time.strftime("%Y-%m-%d", time.gmtime())
            if day != self._day and self._store.is_dir():
                self._day = day
                self._task = asyncio.ensure_future(self._run("sums"))
                return
        if self._expiry_due(directory, now):
            self._expire_at = now + EXPIRE_S
            self._task = asyncio.ensure_future(self._run("expire"))

    def _expiry_due(self, directory: Directory, now: float) -> bool:
        """Whether there are rules, and it is time or they were changed."""
        try:
            version = directory.version
            if version != self._version:
                self._version = version
                rules = directory.expiry()
                if rules != self._rules:
                    self._rules = rules
                    self._expire_at = 0.0
        except DirectoryUnavailable:
            return False
        return bool(self._rules) and now >= self._expire_at and self._store.is_dir()

    async def _run(self, what: str) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "iems.janitor.storage", str(self._ctx.home), what,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            said, error = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            self._ctx.log.error(f"{what} of the mailboxes failed", IemsError(error.decode(errors="replace").strip()[-300:] or str(process.returncode)))
            if what == "sums":
                self._day = ""
            return
        done = msgspec.json.decode(said)
        if done:
            self._ctx.log.event(f"storage-{what}", None, **done)

    async def close(self) -> None:
        """End what is under way: every step of it is whole or not done."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))


def sums(home: Path) -> dict[str, int]:
    """Note the sums of today, unless they are: {octets, messages, users}, or nothing. Raises OSError, lmdb.Error, IemsError."""
    store = settings.load(home / "conf" / "iems.toml").store_path(home)
    known = usage.history(store)
    now = time.time()
    if known and known[-1].day >= time.strftime("%Y-%m-%d", time.gmtime(now)):
        return {}  # noted before a restart
    directory = Directory(home / "directory", who="janitor")
    try:
        accounts = [(account.number, account.address) for account in directory.list_accounts()]
    finally:
        directory.close()
    day = usage.summed(accounts, usage.usages(store), now)
    usage.note(store, day)
    return {"octets": day.total.octets, "messages": day.total.messages, "users": day.total.accounts}


def expired(home: Path) -> dict[str, int]:
    """Let expired mail go: {messages}, or nothing. Raises OSError, lmdb.Error, IemsError."""
    store = settings.load(home / "conf" / "iems.toml").store_path(home)
    directory = Directory(home / "directory", who="janitor")
    try:
        rules = directory.expiry()
        accounts = directory.list_accounts()
    finally:
        directory.close()
    partitions = {account.number: account.partition for account in accounts}

    async def work() -> int:
        reader = Reader(store)
        client = StoreClient(asyncio.get_running_loop(), home / "run", partition_of=partitions.__getitem__)
        try:
            return await expire(
                reader, client, [(account.number, account.address) for account in accounts],
                lambda address, mailbox: days_of(rules, address, mailbox), time.time(),
            )  # fmt: skip
        finally:
            client.close()
            reader.close()

    count = asyncio.run(work()) if rules else 0
    return {"messages": count} if count else {}


def main(home: Path, what: str) -> int:
    """The process; its exit code."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LIMIT_S)
    try:
        done = {"sums": sums, "expire": expired}[what](home)
    except (OSError, lmdb.Error, IemsError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(done))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
