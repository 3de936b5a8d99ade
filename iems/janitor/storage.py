"""Care of the mailboxes that reads many rows: the sums of the day, mail that has expired, quotas that are
nearly used up.

Done by a process of its own (`python -m iems.janitor.storage HOME sums|expire|quota|moves`), as the janitor's own must answer for workers that die, and may
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
from iems.durable import write_durably
from iems.errors import DirectoryUnavailable, IemsError
from iems.message import build
from iems.model import Channel, Envelope, Recipient
from iems.spool import Message, Spool
from iems.store import quota, usage
from iems.store.client import StoreClient
from iems.store.expire import expire
from iems.store.reader import Reader

LOOK_S = 600.0
FIRST_S = 60.0
#: Expired mail is looked for this often, and at once when the rules were changed.
EXPIRE_S = 3_600.0
#: Quotas are looked at this often while any account has one.
QUOTA_S = 300.0
WARNED = "quota-warned"
DOMAINS_WARNED = "quota-warned-domains"
#: Users one warning of a domain's quota goes to.
ENVELOPE_MAX = 500
#: Moves whose mover died are looked for this often.
MOVES_S = 60.0
#: A process that takes longer is ended; the next one goes on where it was.
LIMIT_S = 1_800


class StorageCare:
    """Starts what is due, one at a time. ctx: the worker's. store: HOME/store. spool: for mail to owners."""

    def __init__(self, ctx: Any, store: Path, spool: Spool) -> None:
        self._ctx = ctx
        self._spool = spool
        self._quota_at = time.monotonic() + FIRST_S
        self._quotas_of = -1  # the version of a directory without quotas
        self._percents = ctx.config.store.quota_warn_percent
        self._store = store
        self._sums_at = time.monotonic() + FIRST_S
        self._day = ""
        self._moves_at = 0.0
        self._expire_at = 0.0
        self._version = -1
        self._rules: list[Expiry] | None = None
        self._task: asyncio.Future[None] | None = None

    def round(self, directory: Directory | None) -> None:
        """Begin what is due, beside the janitor's other work."""
        if directory is None or (self._task is not None and not self._task.done()):
            return
        now = time.monotonic()
        if now >= self._moves_at:
            self._moves_at = now + MOVES_S
            if any((self._store / "moves").glob("[0-9]*")):
                self._task = asyncio.ensure_future(self._run("moves"))
                return
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
        elif self._percents and now >= self._quota_at and self._version != self._quotas_of and self._store.is_dir():
            self._quota_at = now + QUOTA_S
            self._task = asyncio.ensure_future(self.warn())

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
        said = await self._ask(what)
        if said is None:
            self._day = "" if what == "sums" else self._day
        elif done := msgspec.json.decode(said):
            self._ctx.log.event(f"storage-{what}", None, **done)

    async def warn(self) -> None:
        """Write to those who have crossed a threshold; what was told is noted after the mail is safe."""
        version = self._version
        said = await self._ask("quota")
        if said is None:
            return
        found = msgspec.json.decode(said, type=quota.Look)
        self._quotas_of = version if not found.quotas else -1
        try:
            for warning in found.warnings:
                (error,) = await self._spool.append([self._mail(warning)])
                if error is not None:
                    raise error
                self._ctx.log.event("quota-warning", None, address=warning.address, percent=warning.percent, used=warning.used_octets)
            if found.levels != levels(self._store):
                write_durably(self._store / WARNED, msgspec.json.encode(found.levels))
            for crossing in found.domains:
                for at in range(0, len(crossing.addresses), ENVELOPE_MAX):
                    (error,) = await self._spool.append([self._domain_mail(crossing, crossing.addresses[at : at + ENVELOPE_MAX])])
                    if error is not None:
                        raise error
                self._ctx.log.event("quota-warning", None, domain=crossing.domain, percent=crossing.percent, used=crossing.used_octets)
            if found.domain_levels != domain_levels(self._store):
                write_durably(self._store / DOMAINS_WARNED, msgspec.json.encode(found.domain_levels))
        except (OSError, IemsError) as fault:
            self._ctx.log.error("warnings of quotas wait", fault)

    def _mail(self, warning: quota.Crossing) -> Message:
        text = (
            f"The mail of {warning.address} takes {_size(warning.used_octets)} of {_size(warning.quota_octets)}\n"
            f"({100 * warning.used_octets // warning.quota_octets} %). New mail will be refused when there is no room left:\n"
            "please delete what you do not need.\n"
        )
        return self._written(f"<{warning.address}>", f"Your mailbox is more than {warning.percent} % full", text, [warning.address])

    def _domain_mail(self, crossing: quota.DomainCrossing, addresses: list[str]) -> Message:
        text = (
            f"The mail of all users of {crossing.domain} takes {_size(crossing.used_octets)} of {_size(crossing.quota_octets)}\n"
            f"({100 * crossing.used_octets // crossing.quota_octets} %). New mail to any of them will be refused when there is no room left:\n"
            "please delete what you do not need.\n"
        )
        subject = f"The mailboxes of {crossing.domain} are more than {crossing.percent} % full"
        return self._written("undisclosed-recipients:;", subject, text, addresses)

    def _written(self, to: str, subject: str, text: str, addresses: list[str]) -> Message:
        domain = self._ctx.config.domain or self._ctx.hostname
        id = self._spool.new_id()
        content = b"".join((
            build.raw_field("From", f"<postmaster@{domain}>"),
            build.raw_field("To", to),
            build.raw_field("Subject", subject),
            build.date_field(time.time()),
            build.raw_field("Message-ID", build.message_id(id, domain)),
            build.raw_field("Auto-Submitted", "auto-generated"),
            build.raw_field("MIME-Version", "1.0"),
            build.text_part(text),
        ))  # fmt: skip
        recipients = [Recipient(address.encode(), address.encode()) for address in addresses]
        envelope = Envelope(Channel.MTA, b"", recipients, time.time_ns())
        return Message(id, envelope, [content])

    async def _ask(self, what: str) -> bytes | None:
        """What the process says; None if it failed, which was logged."""
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
            return None
        return said

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


def _size(octets: int) -> str:
    return f"{octets / 1e6:,.1f} MB" if octets >= 100_000 else f"{octets:,} octets"


def levels(store: Path) -> dict[int, int]:
    """Number -> threshold of the quota that was told of last."""
    try:
        return msgspec.json.decode((store / WARNED).read_bytes(), type=dict[int, int])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}


def domain_levels(store: Path) -> dict[str, int]:
    """Domain -> threshold of its quota that was told of last."""
    try:
        return msgspec.json.decode((store / DOMAINS_WARNED).read_bytes(), type=dict[str, int])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}


def moved(home: Path) -> dict[str, int]:
    """Finish moves that were cut off after the account was handed over: {accounts}, or nothing. Raises OSError, lmdb.Error, IemsError."""
    from iems.store.move import MoveFailure, finish

    config = settings.load(home / "conf" / "iems.toml")
    directory = Directory(home / "directory", who="janitor")
    try:
        done = finish(home, config.store_path(home), home / config.spool.path, directory.set_partition, config.store.undelete_s)
    except MoveFailure:
        return {}  # a mover is at work
    finally:
        directory.close()
    return {"accounts": len(done)} if done else {}


def near(home: Path) -> quota.Look:
    """Who is near the quota. Raises OSError, lmdb.Error, IemsError."""
    config = settings.load(home / "conf" / "iems.toml")
    store = config.store_path(home)
    directory = Directory(home / "directory", who="janitor")
    try:
        accounts = [(account.number, account.address, account.quota_octets) for account in directory.list_accounts()]
        quotas = directory.domain_quotas()
    finally:
        directory.close()
    used, percents = usage.usages(store), config.store.quota_warn_percent
    found = quota.look(accounts, used, percents, levels(store))
    quota.look_at_domains(found, accounts, used, quotas, percents, domain_levels(store))
    return found


def main(home: Path, what: str) -> int:
    """The process; its exit code."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LIMIT_S)
    try:
        done = {"sums": sums, "expire": expired, "quota": near, "moves": moved}[what](home)
    except (OSError, lmdb.Error, IemsError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(done))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
