"""Takes messages from the input queue in batches and moves them to the queues of their output channels.

A crash at any point loses nothing and repeats nothing that shows: until the queue's transaction the message is still in
the input queue, and routing it again gives the same items. Recipients that can't be routed (or that a module refuses) are settled first,
together with the report to the sender (one record); the others of the message stay in the input queue and are taken again at once.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from iems.directory import Directory
from iems.directory.srs import forwarding
from iems.directory.tagkeys import TagKeys
from iems.errors import DirectoryUnavailable
from iems.model import INPUT, Channel, Outcome, Recipient, Reply, Result, id_text, rope_length
from iems.preprocessor.batch import Plan, Planner, again_item, parts_items
from iems.preprocessor.matrix import Matrices
from iems.preprocessor.modules import Module, TryLater, installed
from iems.preprocessor.notices import Notices
from iems.preprocessor.pipeline import examine
from iems.preprocessor.tags import Tags
from iems.spool import ContentWriter, Item, Message, Settlement, Spool, dsn
from iems.spool.verify import quarantine

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

BATCH = 128
#: Messages above this are examined two at a time.
LARGE_OCTETS = 1 << 20
#: Wait when the directory or the disk does not answer.
PAUSE_S = 1.0
#: Wait before a message we failed on is tried again.
BROKEN_S = 60.0

TRY_AGAIN = Reply(451, 3, 0, "Internal error")
NO_DIRECTORY = Reply(451, 4, 3, "The directory does not answer")
AT_ONCE = Reply(451, 3, 0, "Other recipients were refused first")


class Worker:
    """A process that routes."""

    def __init__(self, ctx: WorkerContext, modules: tuple[Module, ...] | None = None) -> None:
        self.ctx = ctx
        self.directory = Directory(ctx.home / "directory")
        tags = self._tags = Tags(TagKeys(ctx.home), self.directory.peers, self.directory.is_local)
        found = installed(
            ctx.config, ctx.home, self.directory, tags.keeps, lambda name, **detail: ctx.log.event(name, None, **detail), ctx
        ) if modules is None else modules
        self.modules = {module.name: module for module in found}
        self._wants = [module.wants for module in found]
        self.spool = Spool.open(ctx)
        self._notices = Notices(ctx, self.spool)
        forwards = forwarding(ctx.config, ctx.home, self.directory)
        self.planner = Planner(
            self.directory.resolve if forwards is None else forwards.resolve,
            self.spool.blobs.read_range,
            ctx.hostname,
            ctx.config.preprocessor.max_trips,
            forwards.reverse_path if forwards is not None else None,
            tags,
            self._ends_loops,
        )
        self._channels = {int(channel): channel.name for channel in Channel}
        self._matrices = Matrices((), {})
        self._matrices_version = -1
        self._later: list[tuple[Item, TryLater]] = []
        self._small, self._large = asyncio.Semaphore(32), asyncio.Semaphore(2)
        self._double_bounces = ctx.config.spool.double_bounces == "postmaster"
        self._stopping = False
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to take."""
        self.ctx.on_wake(self._woken.set)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def drain(self, deadline_s: float) -> None:
        """Take nothing more; the batch in work is finished."""
        self._stopping = True
        self._woken.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=deadline_s)
            self._task.cancel()
        await self._notices.close()
        self.spool.close()
        self.directory.close()

    async def _run(self) -> None:
        spool, ctx = self.spool, self.ctx
        while not self._stopping:
            try:
                items, due_s = spool.take(INPUT, BATCH)
                if not items:
                    # Parked first, looked again second: what is posted between the two wakes us.
                    self._woken.clear()
                    ctx.park()
                    items, due_s = spool.take(INPUT, BATCH)
                    if not items:
                        await self._wait(due_s)
                    ctx.unpark()
                if items:
                    await self._handle(items)
                    # The loop comes round: heartbeat, log, signals.
                    await asyncio.sleep(0)
            except Exception as fault:
                ctx.count("errors_total")
                ctx.log.error("preprocessor", fault)
                await self._pause()

    async def _wait(self, timeout_s: float | None) -> None:
        if self._stopping:
            return
        try:
            await asyncio.wait_for(self._woken.wait(), timeout_s)
        except TimeoutError:
            pass

    async def _pause(self) -> None:
        self._woken.clear()
        await self._wait(PAUSE_S)

    async def _handle(self, items: list[Item]) -> None:
        """Route a batch. Whatever happens, no lease is left behind while this worker lives."""
        ctx, spool = self.ctx, self.spool
        left = {id(item): item for item in items}
        try:
            batch = self.planner.plan(items, ctx.working_on)
            if self._wants and (wanted := [plan for plan in batch.plans if not plan.failed and self._wanted(plan)]):
                await self._examine(wanted)
                batch.plans = [plan for plan in batch.plans if not self._set_aside(plan, batch.broken, left)]
            refused = [plan for plan in batch.plans if plan.failed or plan.discarded]
            ready = (
                [plan for plan in batch.plans if not plan.failed and not plan.discarded]
                if refused
                else batch.plans
            )
            if ready:
                for plan in ready:
                    if plan.item.envelope.verdicts or any(part.tags for part in plan.parts):
                        self._tag(plan)
                moves = [
                    (plan.item, parts_items(plan.item, plan.parts, Item) if plan.again is None else [again_item(plan, Item)])
                    for plan in ready
                ]
                # Told first: the next worker may log what it does with the item before the move returns here.
                for plan in ready:
                    if plan.again is None:
                        self._tell(plan)
                spool.move(moves)
                for plan in ready:
                    del left[id(plan.item)]
                    for what in plan.notices:
                        self._notices.add(plan.item, what)
                ctx.count("messages_routed_total", len(ready))
            ctx.working_on(None)
            for plan in refused:
                await self._refuse(plan)
                del left[id(plan.item)]
            later, self._later = self._later, []
            for item, reason in later:
                ctx.log.event("deferred", item.id, None, reply=str(reason), next_attempt_s=reason.seconds)
                await self._put_off(item, reason.reply, reason.seconds, reason.lifetime_s)
                del left[id(item)]
            for item, fault in batch.broken:
                ctx.count("errors_total")
                ctx.log.error("message can't be routed", fault, item.id)
                await self._put_off(item, TRY_AGAIN, BROKEN_S)
                del left[id(item)]
            if batch.later:
                for item in batch.later:
                    if self._unheard(item):
                        await self._put_off(item, NO_DIRECTORY, PAUSE_S)
                        del left[id(item)]
                ctx.log.error("directory", DirectoryUnavailable(f"{len(batch.later)} messages wait for it"))
        finally:
            ctx.working_on(None)
            if left:
                spool.give_back(left.values())
        if left:
            await self._pause()

    def _tag(self, plan: Plan) -> None:
        """Sign the tags for peers that keep them: last, so that they say what all modules found."""
        item = plan.item
        for part in plan.parts:
            self._tags.outgoing(item.envelope, part, part.rope or item.rope, self.spool.blobs.read_range)

    def _tell(self, plan: Plan) -> None:
        """Log where each recipient goes."""
        event, message_id, channels = self.ctx.log.event, plan.item.id, self._channels
        for recipient, reason in plan.dropped:
            event("discarded", message_id, recipient.address, reason=reason, channel=channels[recipient.channel])
        for address, recipient, reason in plan.redirected:
            event("redirected", message_id, recipient.address, to=address, reason=reason, channel=channels[recipient.channel])
        if len(plan.parts) > 1:
            event("split", message_id, parts=len(plan.parts))
        for part in plan.parts:
            name = channels[part.channel]
            for recipient in part.recipients:
                if recipient.original == recipient.address:
                    event("routed", message_id, recipient.address, channel=name, destination=part.destination)
                else:
                    event(
                        "routed",
                        message_id,
                        recipient.address,
                        channel=name,
                        destination=part.destination,
                        original=recipient.original,
                    )

    async def _refuse(self, plan: Plan) -> None:
        """Settle the recipients that can't be routed, with the report to the sender; the rest is taken again."""
        ctx, item = self.ctx, plan.item
        failed = [Result(recipient, Outcome.FAILED, reply) for recipient, reply in plan.failed]
        discarded = [Result(recipient, Outcome.DISCARDED) for recipient, _ in plan.discarded]
        gone = {id(result.recipient) for result in failed + discarded}
        rest = [_later(r, AT_ONCE, 0.0) for r in item.envelope.recipients if id(r) not in gone]
        settlement = Settlement(item, failed + discarded + rest)
        report = self._report(plan, failed) if failed else None
        if report is None:
            await self.spool.settle([settlement])
        else:
            report.settled = [settlement]
            await self.spool.settle([settlement], [report])
            ctx.count("dsn_total")
            ctx.log.event(
                "dsn",
                report.id,
                report.envelope.recipients[0].address,
                parent=id_text(item.id),
                kind="failed",
            )
        ctx.count("messages_failed_total", len(failed))
        ctx.count("messages_discarded_total", len(discarded))
        for recipient, reason in plan.discarded:
            ctx.log.event("discarded", item.id, recipient.address, reason=reason)
        for what in plan.notices:
            self._notices.add(item, what)
        for result in failed:
            reply = result.reply
            assert reply is not None
            ctx.log.event(
                "failed",
                item.id,
                result.recipient.address,
                reply=f"{reply.code} {reply.status} {reply.text}",
                loop=plan.loop,
            )
            if not dsn.heard(item.envelope, result.recipient, self._double_bounces):
                # A notice that can't be delivered ends here: no notice about a notice (RFC 5321 6.1).
                ctx.log.event("discarded", item.id, result.recipient.address, why="double bounce")

    def _unheard(self, item: Item) -> list[Recipient]:
        """The recipients of whose delay the sender is to hear now (RFC 3461 4.1), once, as of mail that waits to be relayed."""
        notice_s = self.ctx.config.smtpc.delay_notice_s
        if not notice_s or not item.envelope.reverse_path or self.spool.age_s(item) < notice_s:
            return []
        return [recipient for recipient in item.envelope.recipients if not recipient.delay_noticed and dsn.wanted(recipient, "delayed")]

    async def _put_off(self, item: Item, reply: Reply, seconds: float, lifetime_s: float | None = None) -> None:
        """Let a message wait, and tell its sender when that takes long. lifetime_s: age at which it will not wait any more, if that is known."""
        ctx = self.ctx
        age_s, notice_s = self.spool.age_s(item), ctx.config.smtpc.delay_notice_s
        if age_s < notice_s and item.envelope.reverse_path:
            seconds = min(seconds, max(notice_s - age_s, PAUSE_S))
        unheard = {id(recipient) for recipient in self._unheard(item)}
        results = [_later(recipient, reply, seconds) for recipient in item.envelope.recipients]
        settlement = Settlement(item, results)
        report = None
        if unheard:
            now_ns = time.time_ns()
            try:
                head = self.spool.blobs.read_range(item.rope, 0, dsn.HEAD_OCTETS)
            except (OSError, EOFError) as fault:
                ctx.log.error("the content can't be read", fault, item.id)
                head = b""
            report = dsn.make(
                item,
                [result for result in results if id(result.recipient) in unheard],
                "delayed",
                hostname=ctx.hostname,
                postmaster=f"postmaster@{ctx.config.domain or ctx.hostname}",
                content_head=head,
                now_ns=now_ns,
                retry_until_ns=None if lifetime_s is None else now_ns + int(max(lifetime_s - age_s, 0.0) * 1e9),
            )
        if report is None:
            await self.spool.settle([settlement])
            return
        for result in results:
            result.recipient.delay_noticed |= id(result.recipient) in unheard
        report.settled = [settlement]
        await self.spool.settle([settlement], [report])
        ctx.count("dsn_total")
        ctx.log.event("dsn", report.id, report.envelope.recipients[0].address, parent=id_text(item.id), kind="delayed")

    def _report(self, plan: Plan, failed: list[Result]) -> Message | None:
        ctx, item = self.ctx, plan.item
        domain = ctx.config.domain or ctx.hostname
        postmaster = f"postmaster@{domain}"
        report = dsn.make(
            item,
            failed,
            "failed",
            hostname=ctx.hostname,
            postmaster=postmaster,
            content_head=self.spool.blobs.read_range(item.rope, 0, dsn.HEAD_OCTETS),
            now_ns=time.time_ns(),
            double_bounces=self._double_bounces,
        )
        if report is not None and plan.loop and ctx.config.preprocessor.loop_to_postmaster:
            address = postmaster.encode()
            report.envelope.recipients = [Recipient(address, address)]
        return report

    def _ends_loops(self, input_channel: int, output_channel: int) -> bool:
        """Whether the matrix of loop detection says so; asked only of mail that loops."""
        return Matrices(("loopdetection",), self.directory.matrices()).runs("loopdetection", input_channel, output_channel)

    def _wanted(self, plan: Plan) -> bool:
        envelope = plan.item.envelope
        return any(wants(envelope) for wants in self._wants)

    async def _examine(self, plans: list[Plan]) -> None:
        """Run the modules each plan's matrix names."""
        version = self.directory.version
        if version != self._matrices_version:
            self._matrices = Matrices(tuple(self.modules), self.directory.matrices())
            self._matrices_version = version
        writer = ContentWriter(self.spool)
        # Together: one that waits for a scanner does not hold up the others. Each scanner bounds how many it looks at.
        await asyncio.gather(*(self._examine_one(plan, writer) for plan in plans))

    async def _examine_one(self, plan: Plan, writer: ContentWriter) -> None:
        # Modules hold the content they look at: many small ones at once, few large ones.
        room = self._large if rope_length(plan.item.rope) > LARGE_OCTETS else self._small
        async with room:
            await self._examined(plan, writer)

    async def _examined(self, plan: Plan, writer: ContentWriter) -> None:
        self.ctx.working_on(plan.item.id)
        try:
            age_s = self.spool.age_s(plan.item)
            read, ways = self.spool.blobs.read_range, self.planner.ways
            ran = await examine(plan, self._matrices, self.modules, read, writer.append, self.ctx.count, age_s, ways)
        except TryLater as error:
            plan.later = error
            return
        except Exception as fault:
            plan.fault = fault
            return
        for name, note, whose in ran:
            if whose:
                for address in whose:
                    self.ctx.log.event("examined", plan.item.id, address, module=name, note=note)
            else:
                self.ctx.log.event("examined", plan.item.id, module=name, note=note)
        if plan.dropped:
            plan.parts = [part for part in plan.parts if part.recipients]

    def _set_aside(self, plan: Plan, broken: list[tuple[Item, Exception]], left: dict[int, Item]) -> bool:
        """Deal with a message no module could or would let go on; whether it is one."""
        item = plan.item
        if plan.fault is not None:
            broken.append((item, plan.fault))
            return True
        if plan.later is not None:
            self._later.append((item, plan.later))
            return True
        if plan.quarantine:
            with self.spool.index.change() as change:
                quarantine(change, item, plan.quarantine)
            del left[id(item)]
            self.ctx.log.event("quarantined", item.id, why=plan.quarantine)
            return True
        return False


def _later(recipient: Recipient, reply: Reply, seconds: float) -> Result:
    return Result(recipient, Outcome.DEFERRED, reply, seconds)
