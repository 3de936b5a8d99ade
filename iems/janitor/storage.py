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
from iems.errors import IemsError
from iems.store import usage

LOOK_S = 600.0
FIRST_S = 60.0
#: A process that takes longer is ended; the next one goes on where it was.
LIMIT_S = 1_800


class StorageCare:
    """Starts what is due, one at a time. ctx: the worker's. store: HOME/store."""

    def __init__(self, ctx: Any, store: Path) -> None:
        self._ctx = ctx
        self._store = store
        self._sums_at = time.monotonic() + FIRST_S
        self._day = ""
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


def main(home: Path, what: str) -> int:
    """The process; its exit code."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LIMIT_S)
    try:
        done = {"sums": sums}[what](home)
    except (OSError, lmdb.Error, IemsError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(done))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
