"""Role `bsmtp`: encodes items of BSMTPOUT, picks batches up by POP3, IMAP and from a folder, hands what is in them to the INPUT queue.

Out: an item and the carrier made of it are one record, so a crash between leaves the item or the carrier, never both, never neither.
By ODMR the role only asks, and carries octets to a worker of smtpd (docs/odmr.md).
In: a mail is deleted where it came from only when all its messages are in the spool and its key is in the memory. After a crash the spool's
segments say which messages of a mail were handed in before (`spool/accepted.py`), so the rest is handed in and nothing twice.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from iems.blobs import Blobs
from iems.bsmtp import batch, carrier
from iems.bsmtp.batch import BatchError, Entry, Limits
from iems.bsmtp.memory import Memory
from iems.bsmtp.pickup import NoPlace, Taken, Taker, Trust, tail
from iems.directory.directory import Directory
from iems.errors import DirectoryUnavailable, IemsError, SpoolError, SpoolFull
from iems.model import Channel, Envelope, Notify, Outcome, Recipient, Reply, Result, child_id, id_text
from iems.net import handover
from iems.net.imapclient import ImapClient
from iems.net.odmr import OdmrClient
from iems.net.pop3 import Pop3Client, context_of
from iems.secretfile import SecretError, read_secret
from iems.smtp import grammar
from iems.spool import dsn
from iems.spool.accepted import accepted_ids
from iems.spool.items import Item, Message, Settlement
from iems.spool.spool import Spool
from iems.spool.verify import ContentDamaged, Verifier, quarantine

if TYPE_CHECKING:
    from iems.config import Pickup
    from iems.master.child import WorkerContext

T = TypeVar("T")

#: Items taken from the queue at once.
TAKE = 16
#: Messages, and octets, handed to the spool in one piece.
GROUP_MESSAGES = 128
GROUP_OCTETS = 32 << 20
#: Wait when disk or queue fail, and before an item is tried again whose content can't be read.
PAUSE_S = 5.0
RETRY_S = 300.0
#: Files of the folder taken in one look.
FILES = 1000
#: Workers that may die over one mail; then it stays where it is.
DEATHS = 3
ODMR_PORT = 366
KEY_LEAST_OCTETS = 16

BAD_TUNNEL = Reply(553, 1, 3, "The address the batches go to can't be written")
LOOP = Reply(554, 4, 6, "Too many turns through a tunnel: it leads back into itself")
BAD_ENVELOPE = Reply(553, 1, 0, "The envelope can't be put into a batch")
PASSED_ON = Reply(250, 1, 5, "Put into a batch")
UNREADABLE = Reply(451, 3, 0, "Content can't be read, try again later")
TOO_LONG = Reply(550, 4, 7, "Delivery time expired")


class _Made(Struct):
    """What became of an item in the thread: a carrier, or the reply why there is none."""

    content: list[bytes]
    refused: Reply | None = None


class Worker:
    """See the module."""

    def __init__(self, ctx: WorkerContext) -> None:
        self._ctx = ctx
        self._config = ctx.config.bsmtp
        self._domain = ctx.config.domain or ctx.hostname
        self._postmaster = f"postmaster@{self._domain}"
        self._double_bounces = ctx.config.spool.double_bounces == "postmaster"
        self._stop = asyncio.Event()
        self._woken = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._memory: Memory | None = None
        #: Tails of ids in the spool, of mail that may be fetched again.
        self._known: set[bytes] = set()
        #: One mail in work at a time, in or out: the board has room for one to be blamed.
        self._work = asyncio.Lock()
        self._blamed: dict[bytes, int] = {}
        self._told: set[tuple[str, bytes]] = set()

    async def start(self) -> None:
        """Open spool and directory, begin to encode and to pick up."""
        ctx, config = self._ctx, self._config
        self._directory = Directory(ctx.home / "directory")
        self._spool = Spool.open(ctx)
        #: Reads contents and makes carriers; has descriptors of its own.
        self._making = ThreadPoolExecutor(1, thread_name_prefix="bsmtp-out")
        self._blobs = Blobs(self._spool.blobs.folders, max_open=16)
        self._verifier = Verifier(self._blobs)
        #: Takes mail apart; alone in using directory and memory.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="bsmtp-in")
        self._taker = Taker(
            self._directory.resolve,
            ctx.hostname,
            Limits(config.max_octets, config.max_messages, config.max_recipients),
        )
        ctx.on_wake(self._woken.set)
        if config.encoder:
            self._run(self._encode())
        if config.pickup or config.folder:
            self._run(self._pick_up())

    def _run(self, coroutine: Any) -> None:
        task = self._ctx.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, deadline_s: float) -> None:
        """Take nothing more; what is in work is finished, or found again at the next start."""
        self._stop.set()
        self._woken.set()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=max(deadline_s - 0.5, 0.0))
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=0.2)
        self._making.shutdown(wait=True)
        self._reading.shutdown(wait=True)
        if self._memory is not None:
            self._memory.close()
        self._blobs.close()
        self._spool.close()
        self._directory.close()

    async def _sleep(self, seconds: float) -> None:
        """Until a stop, or so many seconds."""
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            pass

    def _failed(self, what: str, error: BaseException, id: bytes | None = None) -> None:
        self._ctx.count("errors_total")
        self._ctx.log.error(what, error, id)

    def _key(self, name: str) -> bytes:
        """The key in a file of the settings, b"" without one. Raises SecretError."""
        return read_secret(self._ctx.home / name, KEY_LEAST_OCTETS) if name else b""

    # --- out

    async def _encode(self) -> None:
        ctx = self._ctx
        while not self._stop.is_set():
            try:
                items, due_s = self._spool.take(Channel.BSMTPOUT, TAKE)
                if not items:
                    # Parked first, looked again second: what is posted between the two wakes us.
                    self._woken.clear()
                    ctx.park()
                    items, due_s = self._spool.take(Channel.BSMTPOUT, TAKE)
                    if not items and not self._stop.is_set():
                        try:
                            await asyncio.wait_for(self._woken.wait(), due_s)
                        except TimeoutError:
                            pass
                    ctx.unpark()
                if items:
                    await self._tunnel(items)
            except Exception as error:
                self._failed("batches can't be made", error)
                await self._sleep(PAUSE_S)

    async def _tunnel(self, items: list[Item]) -> None:
        """Make a carrier of each item and settle it with it. Items without an outcome go back to the queue."""
        left = list(items)
        try:
            while left:
                async with self._work:
                    await self._tunnel_one(left[0])
                    del left[0]
        finally:
            if left:
                self._spool.give_back(left)

    async def _tunnel_one(self, item: Item) -> None:
        ctx = self._ctx
        ctx.working_on(item.id)
        try:
            ctx.log.event("leased", item.id, channel="BSMTPOUT", attempts=item.attempts)
            made = await ctx.loop.run_in_executor(self._making, self._make, item)
        except ContentDamaged as error:
            with self._spool.index.change() as change:
                quarantine(change, item, f"content damaged: {error.strerror}")
            ctx.log.event("quarantined", item.id, why="content damaged", cause=error.strerror)
        except (OSError, EOFError) as error:
            self._failed("the content can't be read", error, item.id)
            await self._later(item)
        else:
            await self._settle(item, made)
        finally:
            ctx.working_on(None)

    def _make(self, item: Item) -> _Made:
        """In the thread: the carrier of an item. Raises OSError, EOFError, SecretError."""
        content = self._verifier.read(item)
        key = self._key(self._config.key_file)
        to = item.destination
        path = grammar.rcpt(b"TO:<%b>" % to.encode("utf-8", "surrogateescape"))
        if isinstance(path, Reply):
            return _Made([], BAD_TUNNEL)
        if carrier.is_loop(content, self._ctx.hostname):
            return _Made([], LOOP)
        try:
            written = batch.encode([Entry.of(item.envelope, content)], self._ctx.hostname.encode())
        except BatchError as error:
            return _Made([], Reply(BAD_ENVELOPE.code, BAD_ENVELOPE.subject, BAD_ENVELOPE.detail, str(error)))
        try:
            made = carrier.make(
                written,
                sender=self._postmaster,
                to=to,
                hostname=self._ctx.hostname,
                unique=_carrier_id(item),
                content=content,
                now_s=int(time.time()),
                key=key,
            )
        except ValueError:
            return _Made([], BAD_TUNNEL)
        return _Made(made)

    async def _settle(self, item: Item, made: _Made) -> None:
        ctx, envelope = self._ctx, item.envelope
        if made.refused is not None:
            await self._refuse(item, made.refused)
            return
        to = item.destination.encode()
        id = _carrier_id(item)
        hears = any(not r.notify or r.notify & Notify.FAILURE for r in envelope.recipients)
        message = Message(
            id,
            Envelope(
                Channel.MTA,
                envelope.reverse_path,
                [Recipient(to, to, notify=0 if hears else int(Notify.NEVER))],
                time.time_ns(),
                smtputf8=not (to + envelope.reverse_path).isascii(),
                parent=item.id,
            ),
            made.content,
            [Settlement(item, [Result(r, Outcome.RELAYED, PASSED_ON) for r in envelope.recipients])],
        )
        await self._spool.settle([], [message])
        for recipient in envelope.recipients:
            ctx.log.event(
                "relayed", item.id, recipient.address, channel="BSMTPOUT", batch=id_text(id), to=item.destination
            )
        ctx.log.event("accepted", id, to, parent=id_text(item.id), recipients=1, size=message.envelope.size)
        ctx.count("messages_relayed_total", len(envelope.recipients))

    async def _later(self, item: Item) -> None:
        """Try again, until the message's time is over."""
        if self._spool.age_s(item) > self._ctx.config.smtpc.lifetime_s:
            await self._refuse(item, TOO_LONG)
            return
        results = [Result(r, Outcome.DEFERRED, UNREADABLE, RETRY_S) for r in item.envelope.recipients]
        await self._spool.settle([Settlement(item, results)])
        self._ctx.count("messages_deferred_total", len(results))
        for result in results:
            self._ctx.log.event(
                "deferred", item.id, result.recipient.address, reply=_said(UNREADABLE), next_attempt_s=RETRY_S
            )

    async def _refuse(self, item: Item, reply: Reply) -> None:
        """Fail all recipients, with the report to the sender."""
        ctx = self._ctx
        settlement = Settlement(item, [Result(r, Outcome.FAILED, reply) for r in item.envelope.recipients])
        try:
            head = self._spool.blobs.read_range(item.rope, 0, dsn.HEAD_OCTETS)
        except (OSError, EOFError):
            head = b""
        report = dsn.make(
            item,
            settlement.results,
            "failed",
            hostname=ctx.hostname,
            postmaster=self._postmaster,
            content_head=head,
            now_ns=time.time_ns(),
            double_bounces=self._double_bounces,
        )
        if report is None:
            await self._spool.settle([settlement])
        else:
            report.settled = [settlement]
            await self._spool.settle([], [report])
            ctx.count("dsn_total")
            ctx.log.event("dsn", report.id, report.envelope.recipients[0].address, parent=id_text(item.id), kind="failed")
        ctx.count("messages_failed_total", len(settlement.results))
        for result in settlement.results:
            ctx.log.event("failed", item.id, result.recipient.address, reply=_said(reply))
            if not dsn.heard(item.envelope, result.recipient, self._double_bounces):
                # A notice that can't be delivered ends here: no notice about a notice (RFC 5321 6.1).
                ctx.log.event("discarded", item.id, result.recipient.address, why="double bounce")

    # --- in

    async def _pick_up(self) -> None:
        """Learn what was taken in before, then look at folder and maildrops, each in its own time."""
        while self._memory is None and not self._stop.is_set():
            try:
                self._memory, self._known = await self._in_thread(self._remember)
            except Exception as error:
                self._failed("what was picked up before can't be read", error)
                await self._sleep(PAUSE_S)
        if self._stop.is_set():
            return
        if self._config.folder:
            self._run(self._regularly("the folder", self._config.folder_interval_s, self._folder))
        for profile in self._config.pickup:
            self._run(self._profile(profile))

    def _remember(self) -> tuple[Memory, set[bytes]]:
        """In the thread."""
        memory = Memory(self._ctx.home / "bsmtp" / "taken", int(time.time()))
        try:
            ids = accepted_ids(self._spool.params.path, self._spool.index, self._ctx.role)
        except BaseException:
            memory.close()
            raise
        self._blamed = self._ctx.blamed()
        return memory, {tail(id) for id in ids}

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await self._ctx.loop.run_in_executor(self._reading, work, *arguments)

    async def _profile(self, profile: Pickup) -> None:
        await self._regularly(f"pick-up {profile.name}", profile.interval_s, lambda: self._session(profile))

    async def _regularly(self, what: str, interval_s: float, look: Callable[[], Any]) -> None:
        """Call `look` every `interval_s`; at once again while it says that there is more."""
        while not self._stop.is_set():
            more = False
            try:
                more = await look()
            except Exception as error:
                self._failed(what, error)
            if not more:
                await self._sleep(interval_s)

    def _trust(self, name: str, key_file: str, relay: bool, senders: tuple[str, ...] = (), to: str = "") -> Trust:
        """Raises SecretError: a key that is asked for and can't be read never means that none is needed."""
        address = (to or self._postmaster).encode()
        return Trust(name, address, senders, self._key(key_file or self._config.key_file), relay)

    async def _take_in(self, trust: Trust, unique: bytes, content: bytes) -> None:
        """Make all messages of a mail durable, and remember it; on return it may be deleted where it is.

        Raises NoPlace, DirectoryUnavailable, SpoolError, OSError: then it must stay.
        """
        async with self._work:
            memory = self._memory
            assert memory is not None
            suspect = bytes(6) + hashlib.blake2b(b"\0".join((trust.name.encode(), unique, content)), digest_size=10).digest()
            if self._blamed.get(suspect, 0) >= DEATHS:
                raise NoPlace(f"{self._blamed[suspect]} workers died over it")
            self._ctx.working_on(suspect)
            try:
                taken = await self._in_thread(self._taker.take, trust, unique, content, time.time_ns())
                if taken.key in memory:
                    self._ctx.log.event("repeated", None, profile=trust.name, why="this mail was taken in before")
                    return
                await self._submit(trust, taken)
                await self._in_thread(memory.note, taken.key, int(time.time()))
            finally:
                self._ctx.working_on(None)
            self._known.difference_update(tail(message.id) for message in taken.messages)
        if taken.problem:
            self._ctx.log.event("batch_refused", taken.messages[0].id, profile=trust.name, why=taken.problem)

    async def _submit(self, trust: Trust, taken: Taken) -> None:
        """Hand in the messages of a mail that the spool has not yet."""
        ctx, spool = self._ctx, self._spool
        if spool.ballast.short():
            raise SpoolFull("the disk is full")
        fresh = [message for message in taken.messages if tail(message.id) not in self._known]
        while fresh:
            group: list[Message] = []
            octets = 0
            while fresh and len(group) < GROUP_MESSAGES and (not group or octets < GROUP_OCTETS):
                group.append(fresh.pop(0))
                octets += group[-1].envelope.size
            await spool.settle([], group)
            self._known.update(tail(message.id) for message in group)
            for message in group:
                envelope = message.envelope
                recipients = envelope.recipients
                ctx.count("messages_accepted_total")
                ctx.count("octets_in_total", envelope.size)
                ctx.log.event(
                    "accepted",
                    message.id,
                    recipients[0].address if len(recipients) == 1 else None,
                    reverse_path=envelope.reverse_path.decode("utf-8", "backslashreplace"),
                    recipients=len(recipients),
                    size=envelope.size,
                    channel="BSMTPIN",
                    profile=trust.name,
                )

    async def _session(self, profile: Pickup) -> bool:
        """One session with a maildrop; whether there is more. Mail that can't come in now stays."""
        if profile.protocol == "odmr":
            return await self._fetch(profile)
        ctx, home = self._ctx, self._ctx.home
        trust = self._trust(profile.name, profile.key_file, profile.relay, tuple(profile.senders), profile.deliver_to)
        password = read_secret(home / profile.password_file).decode("utf-8", "surrogateescape")
        context = None
        if profile.tls != "none":
            ca_file = str(home / profile.ca_file) if profile.ca_file else ""
            context = await ctx.loop.run_in_executor(None, context_of, ca_file, profile.verify)
        client: Pop3Client | ImapClient
        if profile.protocol == "imap":
            client, ports = ImapClient(profile.timeout_s, profile.mailbox), (993, 143)
        else:
            client, ports = Pop3Client(profile.timeout_s), (995, 110)
        try:
            port = profile.port or ports[profile.tls != "implicit"]
            await client.connect(profile.host, port, profile.tls, context)
            await client.login(profile.login, password)
            more, trouble = await self._maildrop(client, profile, trust)
            await client.quit()
        finally:
            client.close()
        if trouble is not None:
            raise trouble
        return more

    async def _fetch(self, profile: Pickup) -> bool:
        """One connection by ODMR: what comes over it is smtpd's to take, which answers for it as for any mail. False: it brought all there was."""
        ctx, home = self._ctx, self._ctx.home
        password = read_secret(home / profile.password_file).decode("utf-8", "surrogateescape")
        context = None
        if profile.tls != "none":
            ca_file = str(home / profile.ca_file) if profile.ca_file else ""
            context = await ctx.loop.run_in_executor(None, context_of, ca_file, profile.verify)
        client = OdmrClient(profile.timeout_s, ctx.hostname.encode("idna").decode())
        try:
            await client.connect(profile.host, profile.port or ODMR_PORT, profile.tls, context)
            await client.login(profile.login, password)
            if not await client.turn(profile.domains):
                await client.quit()
                return False
            ip, port = client.peer
            given = handover.Given(client=ip, port=port, secure=bool(client.tls), tls=client.tls)
            sock = await handover.give(home / "run", "smtpd", given)
            ctx.log.event("fetching", profile=profile.name, client=ip)
            await client.carry(sock)
        finally:
            client.close()
        return False

    async def _maildrop(
        self, client: Pop3Client | ImapClient, profile: Pickup, trust: Trust
    ) -> tuple[bool, Exception | None]:
        """Take in and mark the mail of a session; (whether there is more, what ended it early)."""
        taken = 0
        for number, octets, unique in await client.listing():
            if taken >= profile.max_messages:
                return True, None
            if self._stop.is_set():
                break
            content = await client.retrieve(number, self._config.max_octets) if octets <= self._config.max_octets else None
            if content is None:
                self._left(profile.name, unique or b"%d" % octets, f"has more than {self._config.max_octets} octets")
                continue
            self._ctx.count("fetched_messages_total")
            try:
                await self._take_in(trust, unique, content)
            except NoPlace as error:
                self._left(profile.name, unique, str(error))
                continue
            except (DirectoryUnavailable, SpoolError, OSError) as error:
                return False, error
            await client.delete(number)
            taken += 1
        return False, None

    def _left(self, name: str, unique: bytes, why: str) -> None:
        """Say once that a mail stays where it is."""
        if (name, unique) not in self._told:
            if len(self._told) >= 10_000:
                self._told.clear()
            self._told.add((name, unique))
            self._failed(f"{name}: a mail stays in its place", IemsError(f"{unique.decode('utf-8', 'replace')!a} {why}"))

    async def _folder(self) -> bool:
        """Take in the files of the folder; whether there are more."""
        trust = self._trust("folder", "", self._config.folder_relay)
        folder = self._ctx.home / self._config.folder
        names = await self._in_thread(_files, folder)
        taken = 0
        for name in names[:FILES]:
            if self._stop.is_set():
                break
            content = await self._in_thread(_file, folder / name, self._config.max_octets)
            if content is None:
                self._left("folder", os.fsencode(name), "is no file, or too large")
                continue
            try:
                await self._take_in(trust, os.fsencode(name), content)
            except NoPlace as error:
                self._left("folder", os.fsencode(name), str(error))
                continue
            await self._in_thread(_remove, folder / name)
            taken += 1
        return bool(taken) and len(names) > FILES


def _said(reply: Reply) -> str:
    return f"{reply.code} {reply.status} {reply.text}"


def _carrier_id(item: Item) -> bytes:
    """The same for an item taken again after a crash."""
    cause = [b"bsmtp", item.destination.encode("utf-8", "surrogateescape"), *sorted(r.address for r in item.envelope.recipients)]
    return child_id(item.id, b"\0".join(cause))


def _files(folder: Path) -> list[str]:
    """Names of what was put into the folder: those with a dot in front are on their way (write there, then rename)."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _file(path: Path, limit: int) -> bytes | None:
    """The octets of a file, None if it is none, is gone or has more than `limit`. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, IsADirectoryError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
            return None
        raise
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        return file.read() if stat.S_ISREG(found.st_mode) and found.st_size <= limit else None


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


__all__ = ["SecretError", "Worker", "read_secret"]
