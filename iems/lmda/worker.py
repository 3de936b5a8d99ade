"""Role `lmda`: takes LOCAL items from the spool, delivers them to the store, settles them, tells senders of failures.

Several batches are on their way at once, so that content is read and summarized while the store commits the batch before. A delivery
is one per (origin, account) in the store, so whatever is repeated after a crash is delivered once; the store
forgets an origin only when the outcome's record is on the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from iems.blobs import Blobs
from iems.directory.directory import Directory
from iems.directory.spamcontrol import action_of
from iems.errors import SpoolError, StoreUnavailable
from iems.lmda.delivery import Made, Planner, Policy, Work, messages_due
from iems.lmda.delivery import summary as summarized
from iems.lmda.spamcontrol import Decision
from iems.lmda.unkept import HEAD_OCTETS as UNKEPT_OCTETS
from iems.lmda.unkept import Unkept, keep, packed
from iems.message import verdict
from iems.model import Channel, Outcome, id_text, rope_length
from iems.spool.dsn import heard
from iems.spool.items import Item, Message, Settlement
from iems.spool.spool import Spool
from iems.spool.verify import ContentDamaged, Verifier, quarantine
from iems.store.client import StoreClient
from iems.store.quota import DomainRoom
from iems.store.reader import Reader
from iems.store.scripts import folder
from iems.store.wire import Delivered, Delivery

if TYPE_CHECKING:
    from iems.bayes.filter import Score
    from iems.lmda.bayesian import Judge
    from iems.lmda.rules import Rules
    from iems.master.child import WorkerContext

#: Batches on their way to the store at once.
BATCHES = 4
#: Content above this is read and summarized in a thread.
THREAD_OCTETS = 1 << 20
#: A request to the store stays below these (frames are at most 16 MiB, transactions 256 entries).
REQUEST_OCTETS = 8 << 20
REQUEST_DELIVERIES = 128
#: Pauses while the store is busy or away; then the items go back to the queue.
BUSY_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FORGET_S = 2.0
#: Octets of content that a batch holds until its filters and scripts have seen it; what is beyond is read again.
KEPT_OCTETS = 4 << 20
#: Of tagged mail, so much is read for the From field.
HEAD_OCTETS = 64 << 10
FORGET_PAIRS = 512
_REFUSED = verdict.item("to", "", "refused")


class _Unjudged(NamedTuple):
    """An item whose recipients' Bayesian filters are still to be asked. work: as it was planned without them."""

    item: Item
    work: Work
    summary: tuple[bytes, bytes]
    octets: int
    head: bytes


class Worker:
    """See the module."""

    def __init__(self, ctx: WorkerContext) -> None:
        self._ctx = ctx
        self._loop = ctx.loop
        config = ctx.config.lmda
        self._limit = config.batch
        self._double_bounces = ctx.config.spool.double_bounces == "postmaster"
        self._policy = Policy(
            over_quota=config.over_quota,
            retry_s=config.retry_s,
            retry_max_s=config.retry_max_s,
            lifetime_s=config.lifetime_s,
            spam=action_of(config.spam_action),
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._paused_until = 0.0
        #: (origin, account) settled but maybe not yet flushed.
        self._settled: list[tuple[bytes, int]] = []
        self._forgetting: asyncio.Task[None] | None = None
        self._partitions: dict[int, int] = {}
        self._failures = 0

    async def start(self) -> None:
        """Open spool, directory and store, and begin to take."""
        ctx = self._ctx
        self._directory = Directory(ctx.home / "directory")
        self._spool = Spool.open(ctx)
        # Large content is read by one thread with descriptors of its own.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="lmda")
        self._reader_blobs = Blobs(self._spool.blobs.folders, max_open=16)
        self._verifier = Verifier(self._spool.blobs)
        self._reader_verifier = Verifier(self._reader_blobs)
        self._store = StoreClient(ctx.loop, ctx.home / "run", partition_of=self._partition_of)
        room = DomainRoom(lambda: Reader(ctx.config.store_path(ctx.home)), ctx.config.store.partitions)
        self._planner = Planner(self._account, self._policy, self._spool.age_s, room.of)
        self._rules: Rules | None = None
        self._judge: Judge | None = None
        ctx.on_wake(self._pump_soon)
        self._pump_soon()

    def _account(self, address: str) -> Any:
        account = self._directory.account(address)
        if account is not None:
            self._partitions[account.number] = account.partition
        return account

    def _know(self, account: Any) -> None:
        self._partitions[account.number] = account.partition

    async def _scores(self, unjudged: list[_Unjudged], read: Callable[[Item], bytes]) -> list[dict[int, Score]]:
        """What the Bayesian filters of the accounts of each item say; nothing where that can't be had."""
        if not unjudged:
            return []
        return await self._loop.run_in_executor(
            self._reader, lambda: [self._score(each.item, each.work.unjudged or [], read) for each in unjudged]
        )

    def _score(self, item: Item, accounts: list[Any], read: Callable[[Item], bytes]) -> dict[int, Score]:
        self._ctx.working_on(item.id)
        return self._judged(item, accounts, read)

    def _judged(self, item: Item, accounts: list[Any], read: Callable[[Item], bytes]) -> dict[int, Score]:
        try:
            if self._judge is None:
                from iems.lmda.bayesian import Judge

                prior = self._ctx.config.lmda.bayes_prior
                self._judge = Judge(self._ctx.config.store_path(self._ctx.home), self._ctx.home / prior if prior else None)
            return self._judge.scores(read(item), accounts)
        except Exception as error:
            # A filter that fails must not keep mail back.
            self._ctx.log.error("a Bayesian filter can't judge", error, item.id)
            return {}

    async def _filter(
        self, works: list[tuple[Work, tuple[bytes, bytes], int]], read: Callable[[Item], bytes], batch: list[Delivery]
    ) -> None:
        """Run the scripts of the recipients that have one. works: each with its summary and the octets of its content."""
        if self._rules is None:
            from iems.lmda.rules import Rules

            self._rules = Rules(self._ctx, self._directory, self._planner, self._reader, self._know)
        await self._rules.apply(works, read, batch)

    def _partition_of(self, account: int) -> int:
        return self._partitions.get(account, 0)

    # Taking

    def _pump_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ctx = self._ctx
        while len(self._tasks) < BATCHES and not ctx.draining:
            pause = self._paused_until - self._loop.time()
            if pause > 0:
                self._timer = self._loop.call_later(pause, self._pump_soon)
                return
            try:
                items, due_s = self._take()
            except Exception as error:
                self._pause("the queue can't be read", error)
                continue
            if not items:
                if due_s is not None:
                    self._timer = self._loop.call_later(max(due_s, 0.001), self._pump_soon)
                return
            task = self._loop.create_task(self._batch(items))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _take(self) -> tuple[list[Item], float | None]:
        """Items that are due; parked if there are none."""
        ctx = self._ctx
        items, due_s = self._spool.take(Channel.LOCAL, self._limit)
        if not items:
            ctx.park()
            items, due_s = self._spool.take(Channel.LOCAL, self._limit)
            if items:
                ctx.unpark()
        return items, due_s

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._pause("a batch failed", error)
        self._pump_soon()

    def _pause(self, what: str, error: BaseException) -> None:
        """Something outside this batch is wrong: no haste."""
        self._ctx.log.error(what, error)
        self._failures += 1
        self._paused_until = self._loop.time() + min(0.1 * 2.0 ** min(self._failures, 8), 10.0)

    # One batch

    async def _batch(self, items: list[Item]) -> None:
        given = False
        try:
            given = await self._deliver(items)
            if given:
                self._failures = 0
        finally:
            if not given:
                self._spool.give_back(items)

    async def _deliver(self, items: list[Item]) -> bool:
        """Deliver and settle; False if the items must go back to the queue."""
        ctx = self._ctx
        batch: list[Delivery] = []
        works: list[Work] = []
        # What is asked of a thread is asked for all of the batch at once: one change to the thread and back costs as much as a script.
        unjudged: list[_Unjudged] = []
        filtered: list[tuple[Work, tuple[bytes, bytes], int]] = []
        contents: dict[int, bytes] = {}  # by id(item)
        room = KEPT_OCTETS
        event = ctx.log.event
        for item in items:
            # A message that kills the process while it is read is blamed for it.
            ctx.working_on(item.id)
            event("leased", item.id, channel="LOCAL", attempts=item.attempts)
            octets = rope_length(item.rope)
            if octets > THREAD_OCTETS:
                summary, error, _ = await self._loop.run_in_executor(self._reader, _summary, item, self._reader_verifier)
                content = b""
            else:
                summary, error, content = _summary(item, self._verifier)
            if isinstance(error, ContentDamaged):
                self._put_aside(item, error)
                continue
            if error is not None:
                ctx.log.error("no summary" if summary else "the content can't be read", error, item.id)
            head = b""
            if item.envelope.verdicts and summary:
                head = content[:HEAD_OCTETS] or self._spool.blobs.read_range(item.rope, 0, HEAD_OCTETS)
            if summary and len(content) <= room:
                contents[id(item)] = content
            planned = len(batch)
            work = self._planner.plan(item, summary, octets, batch, head)
            if work.unjudged is not None and summary is not None:
                del batch[planned:]
                unjudged.append(_Unjudged(item, work, summary, octets, head))
                room -= len(contents.get(id(item), b""))
                continue
            if work.filtered is not None and summary is not None:
                filtered.append((work, summary, octets))
                room -= len(contents.get(id(item), b""))
            else:
                contents.pop(id(item), None)
            works.append(work)

        def read(item: Item) -> bytes:
            """The content once more; called in the thread."""
            return contents.get(id(item)) or self._reader_blobs.read(item.rope)

        for judged, scores in zip(unjudged, await self._scores(unjudged, read), strict=True):
            work = self._planner.plan(
                judged.item, judged.summary, judged.octets, batch, judged.head, scores, judged.work.known
            )
            if work.filtered is not None:
                filtered.append((work, judged.summary, judged.octets))
            works.append(work)
        if filtered:
            await self._filter(filtered, read, batch)
        ctx.working_on(None)
        try:
            answers = await self._ask(batch)
            await self._instead(works, batch, answers)
        except StoreUnavailable as error:
            self._pause("the store is not available", error)
            return False
        outcomes = [Settlement(work.item, self._planner.answer(work, answers)) for work in works]
        made = {
            number: made
            for number, work in enumerate(works)
            if work.made and (made := messages_due(work, outcomes[number].results))
        }
        return await self._settle(works, outcomes, batch, answers, made)

    def _put_aside(self, item: Item, error: ContentDamaged) -> None:
        """Quarantine a message whose octets are not those that were accepted; a person decides."""
        with self._spool.index.change() as change:
            quarantine(change, item, f"content damaged: {error.strerror}")
        self._ctx.log.event("quarantined", item.id, why="content damaged", cause=error.strerror)

    async def _instead(self, works: list[Work], batch: list[Delivery], answers: list[Delivered]) -> None:
        """What mailboxes of others did not take goes to the INBOX of the recipient whose rule named them. Raises StoreUnavailable."""
        places: list[int] = []
        for work in works:
            for place, own in work.instead.items():
                answer = answers[place]
                if answer.status in ("ok", "duplicate"):
                    continue
                recipient = work.item.envelope.recipients[work.beside.pop(place)].address
                why = answer.text or answer.status
                self._ctx.log.event("not-shared", work.item.id, recipient, mailbox=batch[place].mailbox, why=why)
                if own is not None:
                    batch[place] = own
                    places.append(place)
        if places:
            for place, answer in zip(places, await self._ask([batch[place] for place in places]), strict=True):
                answers[place] = answer

    async def _ask(self, batch: list[Delivery]) -> list[Delivered]:
        """Deliver in requests of bounded size; again while the store is busy. Raises StoreUnavailable."""
        answers: list[Delivered] = []
        for part in _parts(batch):
            for pause in (*BUSY_S, None):
                try:
                    answers += await self._store.deliver(part)
                    break
                except StoreUnavailable:
                    if pause is None or self._ctx.draining:
                        raise
                    await asyncio.sleep(pause)
        return answers

    async def _settle(
        self,
        works: list[Work],
        outcomes: list[Settlement],
        batch: list[Delivery],
        answers: list[Delivered],
        made: dict[int, list[Made]],
    ) -> bool:
        """made: by place in `outcomes` the messages of scripts, recorded together with the outcome."""
        settlements: list[Settlement] = []
        messages: list[Message] = []
        told = 0
        for number, settlement in enumerate(outcomes):
            notices = self._notices(settlement)
            told += len(notices)
            for sent in made.get(number, ()):
                sent.message.settled = [settlement]
                notices.append(sent.message)
            if notices:
                messages += notices
            else:
                settlements.append(settlement)
        try:
            await self._spool.settle(settlements, messages)
        except SpoolError as error:
            self._pause("outcomes can't be recorded", error)
            return False
        self._tell(works, outcomes, told)
        if unkept := [place for place, work in enumerate(works) if work.records and _not_kept(work, outcomes[place])]:
            self._loop.run_in_executor(self._reader, self._note_unkept, [(works[place], outcomes[place]) for place in unkept])
        for number, all_sent in made.items():
            for sent in all_sent:
                to = sent.message.envelope.recipients[0].address
                self._ctx.log.event(sent.event, outcomes[number].item.id, to, child=id_text(sent.message.id))
        # What failed and what was deferred has no dedup row: nothing to forget. What a rule put beside a deferred one comes again.
        coming = {
            place
            for work, settlement in zip(works, outcomes, strict=True)
            for place, slot in work.beside.items()
            if settlement.results[slot].outcome == Outcome.DEFERRED
        }
        self._settled += [
            (delivery.origin, delivery.account)
            for place, (delivery, answer) in enumerate(zip(batch, answers, strict=True))
            if place not in coming and answer.status in ("ok", "duplicate")
        ]
        if self._settled and self._forgetting is None:
            self._forgetting = self._loop.create_task(self._forget_later())
        return True

    def _note_unkept(self, gone: list[tuple[Work, Settlement]]) -> None:
        """Note, for previews, what was refused or discarded by a decision of its recipient. In the thread."""
        for work, settlement in gone:
            item = work.item
            envelope = item.envelope
            try:
                notes: dict[int, tuple[Any, Unkept]] = {}
                head = packed(self._reader_blobs.read_range(item.rope, 0, UNKEPT_OCTETS))
                for address in _not_kept(work, settlement):
                    account = self._directory.account(address.decode("utf-8", "surrogateescape"))
                    if account is None or account.number in notes:
                        continue
                    score = None
                    if account.bayes is not None:
                        found = self._judged(item, [account], lambda item: self._reader_blobs.read(item.rope)).get(account.number)
                        score = found.score if found is not None else None
                    note = Unkept(
                        1, item.id, envelope.received_ns // 1_000_000_000, rope_length(item.rope), envelope.reverse_path, address,
                        envelope.client_ip, envelope.verdicts, tuple(envelope.asked), work.records[address], score, head,
                    )  # fmt: skip
                    notes[account.number] = account, note
                store = self._ctx.config.store_path(self._ctx.home)
                for account, note in notes.values():
                    keep(folder(store, account.address, account.number), [note], time.time())
            except Exception as error:
                self._ctx.log.error("a preview will not know of a message", error, item.id)

    def _notices(self, settlement: Settlement) -> list[Message]:
        """The notifications that follow from an item's results, each carrying its settlement."""
        kinds = {result.outcome for result in settlement.results}
        messages: list[Message] = []
        item = settlement.item
        if item.envelope.reverse_path or (self._double_bounces and item.envelope.input_channel == Channel.MTA):
            if Outcome.FAILED in kinds:
                messages += self._notice(settlement, "failed")
            if Outcome.DELIVERED in kinds and any(result.recipient.notify for result in settlement.results):
                messages += self._notice(settlement, "delivered")
        return messages

    def _notice(self, settlement: Settlement, kind: Any) -> list[Message]:
        from iems.spool import dsn

        item = settlement.item
        try:
            head = self._spool.blobs.read_range(item.rope, 0, dsn.HEAD_OCTETS)
        except (OSError, EOFError):
            head = b""
        hostname = self._ctx.config.hostname
        message = dsn.make(
            item,
            settlement.results,
            kind,
            hostname=hostname,
            postmaster=f"postmaster@{self._ctx.config.domain or hostname}",
            content_head=head,
            now_ns=time.time_ns(),
            double_bounces=self._double_bounces,
        )
        if message is None:
            return []
        message.settled = [settlement]
        return [message]

    def _tell(self, works: list[Work], outcomes: list[Settlement], notices: int) -> None:
        """Log and count what became of every recipient."""
        ctx = self._ctx
        event = ctx.log.event
        delivered = deferred = failed = discarded = 0
        for work, settlement in zip(works, outcomes, strict=True):
            item = settlement.item
            decisions, records = work.decisions, work.records
            for result in settlement.results:
                recipient = result.recipient.address
                outcome = result.outcome
                said = {"verdict": records[recipient]} if recipient in records else {}
                if outcome == Outcome.DELIVERED:
                    delivered += 1
                    decision = decisions.get(recipient) if decisions else None
                    if decision is None:
                        event("delivered", item.id, recipient, channel="LOCAL", **said)
                    else:
                        event("delivered", item.id, recipient, channel="LOCAL", **_because(decision), **said)
                    continue
                if outcome == Outcome.DISCARDED:
                    discarded += 1
                    decision = decisions.get(recipient)
                    if decision is not None and decision.action.kind == "discard":
                        event("discarded", item.id, recipient, **_because(decision), **said)
                    else:
                        event("discarded", item.id, recipient, why="a rule of the recipient", **said)
                    continue
                if outcome == Outcome.EXPANDED:
                    delivered += 1  # to others, in messages of their own
                    event("redirected", item.id, recipient, **said)
                    continue
                reply = result.reply
                answer = f"{reply.code} {reply.status} {reply.text}" if reply is not None else ""
                if outcome == Outcome.DEFERRED:
                    deferred += 1
                    event("deferred", item.id, recipient, reply=answer, next_attempt_s=result.next_attempt_s)
                else:
                    failed += 1
                    decision = decisions.get(recipient) if decisions else None
                    event("failed", item.id, recipient, reply=answer, **(_because(decision) if decision is not None else {}), **said)
                    if not heard(item.envelope, result.recipient, self._double_bounces):
                        # A notice that can't be delivered ends here: no notice about a notice (RFC 5321 6.1).
                        event("discarded", item.id, recipient, why="double bounce")
        if delivered:
            ctx.count("messages_delivered_total", delivered)
        if deferred:
            ctx.count("messages_deferred_total", deferred)
        if failed:
            ctx.count("messages_failed_total", failed)
        if discarded:
            ctx.count("messages_discarded_total", discarded)
        if notices:
            ctx.count("dsn_total", notices)

    # Forgetting

    async def _forget_later(self) -> None:
        """Tell the store which origins can't come again, once their outcomes are on the disk."""
        try:
            while self._settled:
                await asyncio.sleep(0 if self._ctx.draining else FORGET_S)
                await self._forget()
        except StoreUnavailable:
            pass  # with the next batch
        except Exception as error:
            self._ctx.log.error("the store was not told what to forget", error)
        finally:
            self._forgetting = None

    async def _forget(self) -> None:
        pairs, self._settled = self._settled, []
        try:
            await self._spool.flushed()
            while pairs:
                await self._store.forget(pairs[:FORGET_PAIRS])
                del pairs[:FORGET_PAIRS]
        finally:
            self._settled = pairs + self._settled

    # Ending

    async def drain(self, deadline_s: float) -> None:
        """Take nothing more, finish the batches on their way, give back what can't be finished."""
        if self._timer is not None:
            self._timer.cancel()
        until = self._loop.time() + max(deadline_s - 0.5, 0)
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=until - self._loop.time())
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=0.2)
        if self._forgetting is not None:
            self._forgetting.cancel()
        if self._settled:
            try:
                await asyncio.wait_for(self._forget(), max(until - self._loop.time(), 0.05))
            except (TimeoutError, StoreUnavailable, SpoolError):
                pass  # the rows stay until their time is over; nothing is delivered twice
        self._store.close()
        self._reader.shutdown(wait=True)
        if self._rules is not None:
            self._rules.close()
        self._reader_blobs.close()
        self._spool.close()
        self._directory.close()


def _summary(item: Item, verifier: Verifier) -> tuple[tuple[bytes, bytes] | None, Exception | None, bytes]:
    """The summary of an item's content, None if it can't be read; what went wrong; the content."""
    try:
        content = verifier.read(item)
    except (OSError, EOFError) as error:
        return None, error, b""
    return *summarized(content), content


def _not_kept(work: Work, settlement: Settlement) -> list[bytes]:
    """Recipients whose mail was refused or discarded by a decision of theirs, not by a fault."""
    return [
        result.recipient.address
        for result in settlement.results
        if (record := work.records.get(result.recipient.address)) is not None
        and (result.outcome == Outcome.DISCARDED or (result.outcome == Outcome.FAILED and record.endswith(_REFUSED)))
    ]


def _parts(batch: list[Delivery]) -> Sequence[list[Delivery]]:
    """The batch cut into requests of bounded size."""
    parts: list[list[Delivery]] = []
    octets = REQUEST_OCTETS
    for delivery in batch:
        size = 512 + len(delivery.envelope) + len(delivery.bodystructure)
        if octets + size > REQUEST_OCTETS or len(parts[-1]) == REQUEST_DELIVERIES:
            parts.append([])
            octets = 0
        parts[-1].append(delivery)
        octets += size
    return parts


def _because(decision: Decision) -> dict[str, str]:
    """What the log says of a recipient's own choice."""
    rule = decision.rule
    return {"action": decision.action.text, "why": rule if rule.startswith("bayesian filter") else f"spam control: {rule}"}
