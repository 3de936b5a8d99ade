"""Role `janitor`: recovers what dead workers left, builds a lost index again, reclaims segments, serves the metrics.

It does a round when woken (the master wakes it after a death) and every few seconds; long work goes in slices, so the
loop keeps its heartbeat. The work itself is in `iems/spool/recovery.py` and `reclaim.py`.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import lmdb

from iems.errors import SpoolError
from iems.janitor.accounts import DeletedAccounts
from iems.janitor.metrics import publish_queue, serve_metrics
from iems.janitor.oldlogs import OldLogs
from iems.janitor.storage import StorageCare
from iems.spool import Spool, keys, reclaim, recovery, soundness
from iems.spool.index import is_damage
from iems.spool.rebuild import rebuild, repair

#: Seconds between rounds nobody asked for, and between rounds of reclaim.
ROUND_S = 5.0
RECLAIM_S = 30.0
#: Seconds between readings of the whole index; and rounds with dead workers after which it is read at once.
VERIFY_S = 600.0
VERIFY_DEATHS = 3


class Worker:
    """The janitor's worker."""

    def __init__(self, ctx: Any) -> None:
        self.ctx = ctx
        self.spool = Spool.open(ctx)
        self._asked = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._metrics: list[asyncio.Task[None]] = []
        self._building: asyncio.Task[None] | None = None
        self._reclaim_at = 0.0
        self._verify_at = 0.0
        self._deaths = 0
        self._accounts = DeletedAccounts(ctx)
        self._reports: Any = None
        self._training: asyncio.Future[None] | None = None
        self._teacher: Any = None
        self._old_logs = OldLogs(ctx, self.spool)
        self._storage = StorageCare(ctx, ctx.config.store_path(ctx.home), self.spool)

    async def start(self) -> None:
        """Begin with a first round in the background, so that the ports open at once."""
        self.ctx.on_wake(self._asked.set)
        for sock in self.ctx.sockets.get("metrics", []):
            self._metrics.append(asyncio.ensure_future(serve_metrics(self.ctx, sock)))
        self._tasks.append(asyncio.ensure_future(self._rounds()))

    async def _rounds(self) -> None:
        while not self._stopping:
            self.ctx.park()
            self._asked.clear()
            try:
                await self.round()
            except (SpoolError, OSError, lmdb.Error, ValueError) as error:
                # Nothing is lost by waiting: what is not recovered now is recovered in the next round.
                self.ctx.log.error("janitor round failed", error)
                if is_damage(error):
                    recovery.distrust(self.spool.params.path)
            try:
                await asyncio.wait_for(self._asked.wait(), ROUND_S)
            except TimeoutError:
                pass

    async def round(self) -> None:
        """Everything once."""
        index = self.spool.index
        index.refresh()
        if time.monotonic() >= self._verify_at or self._deaths >= VERIFY_DEATHS:
            await self._verify()
        if recovery.distrusted(self.spool.params.path):
            await self._replace()
        index.env.reader_check()
        index.set_meta(keys.META_QUEUE_MS, index.clock.now_ms().to_bytes(8, "big"))
        begun = time.monotonic()
        found = await recovery.recover(self.spool, self.ctx.alive, self.ctx.blamed())
        if found.segments or found.returned or found.quarantined:
            self._deaths += 1
            self.ctx.log.event(
                "recovered",
                None,
                segments=found.segments,
                settled=found.settled,
                voided=found.voided,
                messages=found.messages,
                returned=found.returned,
                quarantined=found.quarantined,
                seconds=round(time.monotonic() - begun, 3),
            )
            for channel in {key[0] for key, n in self._waiting().items() if n}:
                self.spool.announce(channel)
        publish_queue(self.ctx, index)
        self.spool.ballast.restore()
        await self._accounts.round()
        if self._training is None or self._training.done():
            self._training = asyncio.ensure_future(self._train())
        self._storage.round(self._accounts.directory)
        await self._report()
        await self._old_logs.round()
        if index.is_rebuilding():
            # beside the rounds: workers die while an index is built, too
            if self._building is None or self._building.done():
                self._building = asyncio.ensure_future(self._build())
        elif time.monotonic() >= self._reclaim_at:
            self._reclaim_at = time.monotonic() + RECLAIM_S
            await self._reclaim()

    async def _report(self) -> None:
        """DMARC reports, where there is something to report of: without, nothing of it is imported."""
        if self._reports is None and (self.ctx.home / "dmarc").is_dir():
            from iems.janitor.dmarc import DmarcReports

            self._reports = DmarcReports(self.ctx, self.spool)
        if self._reports is not None:
            await self._reports.round()

    async def _train(self) -> None:
        """Teach the Bayesian filters, beside the rounds: recovery must not wait for it."""
        directory = self._accounts.directory
        if directory is None or not directory.any_bayes():
            return
        if self._teacher is None:
            from iems.janitor.training import Training

            config = self.ctx.config
            prior = config.lmda.bayes_prior
            self._teacher = Training(self.ctx, config.store_path(self.ctx.home), self.ctx.home / prior if prior else None)
        await self._teacher.round(directory)

    async def _verify(self) -> None:
        """Have the index read by a process of its own, before this one might die of it."""
        wrong = await soundness.sound(self.spool.params.path)
        self._verify_at = time.monotonic() + VERIFY_S
        self._deaths = 0
        if wrong and recovery.distrust(self.spool.params.path):
            self.ctx.log.event("spool_index_damaged", None, reason=wrong)

    async def _replace(self) -> None:
        """Somebody met a damaged page: a new index takes the place of this one, and is filled beside the rounds."""
        if self._building is not None:
            self._building.cancel()
            await asyncio.wait((self._building,))
            self._building = None
        recovery.replace_index(self.spool)
        self.ctx.log.event("spool_index_replaced", None)

    async def _build(self) -> None:
        begun = time.monotonic()
        try:
            found = await rebuild(self.spool)
        except (SpoolError, OSError, lmdb.Error) as error:
            self.ctx.log.error("rebuilding the spool's index failed; it goes on in the next round", error)
            return
        if found is not None:
            self.ctx.log.event(
                "rebuilt",
                None,
                segments=found.segments,
                records=found.records,
                messages=found.messages,
                complete=found.complete,
                damaged=found.damaged,
                seconds=round(time.monotonic() - begun, 3),
            )

    async def _reclaim(self) -> None:
        mended, unfound = await repair(self.spool)
        if mended or unfound:
            self.ctx.log.event("repaired", None, messages=mended, unfound=unfound)
        moved = await reclaim.move_old(self.spool)
        found = await reclaim.reclaim(self.spool)
        orphans = reclaim.remove_orphans(self.spool)
        if found.files or moved.moved or moved.damaged or orphans:
            self.ctx.log.event(
                "reclaimed",
                None,
                files=found.files,
                octets=found.octets,
                moved=moved.moved,
                damaged=moved.damaged,
                orphans=orphans,
            )

    def _waiting(self) -> dict[tuple[int, int], int]:
        return {key: n for key, n in self.spool.index.counts().items() if key[1] in (keys.FRESH, keys.RETRY)}

    async def drain(self, deadline_s: float) -> None:
        """Stop after the slice in work."""
        self._stopping = True
        self._asked.set()
        for task in self._metrics:
            task.cancel()
        if self._building is not None:
            self._building.cancel()  # the next start goes on where it was
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=deadline_s)
            for task in late:
                task.cancel()
        if self._training is not None:
            await asyncio.wait((self._training,), timeout=deadline_s)
        if self._teacher is not None:
            self._teacher.close()
        await self._storage.close()
        self._accounts.close()
        if self._reports is not None:
            await self._reports.close()
        self.spool.close()
