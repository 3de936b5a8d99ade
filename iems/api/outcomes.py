"""What clients say became of an item, made durable: the outcome of each recipient, with the notices that follow from it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from iems.model import Channel, Outcome, Reply, Result, id_text
from iems.spool import dsn
from iems.spool.items import Item, Message, Settlement

if TYPE_CHECKING:
    from iems.master.child import WorkerContext
    from iems.spool.spool import Spool

TOO_LONG = Reply(550, 4, 7, "Delivery time expired")


class Outcomes:
    """Settles items of a worker."""

    def __init__(self, ctx: WorkerContext, spool: Spool) -> None:
        self._ctx = ctx
        self._spool = spool
        self._postmaster = f"postmaster@{ctx.config.domain or ctx.hostname}"

    async def settle(self, item: Item, results: list[Result]) -> None:
        """On the disk when it returns. What is deferred past the lifetime of mail fails. Raises SpoolError."""
        if self._spool.age_s(item) > self._ctx.config.smtpc.lifetime_s:
            results = [
                Result(r.recipient, Outcome.FAILED, _last(r.reply)) if r.outcome == Outcome.DEFERRED else r
                for r in results
            ]
        settlement = Settlement(item, results)
        notices = self._notices(settlement)
        if notices:
            await self._spool.settle([], notices)
        else:
            await self._spool.settle([settlement], flush=True)
        self._tell(settlement, notices)

    def _notices(self, settlement: Settlement) -> list[Message]:
        item = settlement.item
        if not item.envelope.reverse_path:
            return []
        outcomes = {result.outcome for result in settlement.results}
        wishes = any(result.recipient.notify for result in settlement.results)
        kinds: list[dsn.Kind] = []
        if Outcome.FAILED in outcomes:
            kinds.append("failed")
        if Outcome.DELIVERED in outcomes and wishes:
            kinds.append("delivered")
        if Outcome.RELAYED in outcomes and wishes:
            kinds.append("relayed")
        if not kinds:
            return []
        try:
            head = self._spool.blobs.read_range(item.rope, 0, dsn.HEAD_OCTETS)
        except (OSError, EOFError):
            head = b""
        made = [
            dsn.make(
                item,
                settlement.results,
                kind,
                hostname=self._ctx.hostname,
                postmaster=self._postmaster,
                content_head=head,
                now_ns=time.time_ns(),
            )
            for kind in kinds
        ]
        notices = [message for message in made if message is not None]
        for message in notices:
            message.settled = [settlement]
        return notices

    def _tell(self, settlement: Settlement, notices: list[Message]) -> None:
        ctx, item = self._ctx, settlement.item
        channel = Channel(item.channel).name
        for message in notices:
            ctx.count("dsn_total")
            ctx.log.event("dsn", message.id, message.envelope.recipients[0].address, parent=id_text(item.id))
        for result in settlement.results:
            address = result.recipient.address
            said = _said(result.reply)
            if result.outcome == Outcome.DEFERRED:
                ctx.count("messages_deferred_total")
                ctx.log.event(
                    "deferred", item.id, address, channel=channel, reply=said, next_attempt_s=result.next_attempt_s
                )
            elif result.outcome == Outcome.FAILED:
                ctx.count("messages_failed_total")
                ctx.log.event("failed", item.id, address, channel=channel, reply=said)
                if not item.envelope.reverse_path:
                    # A notice that can't be delivered ends here: no notice about a notice (RFC 5321 6.1).
                    ctx.log.event("discarded", item.id, address, why="double bounce")
            else:
                name = "delivered" if result.outcome == Outcome.DELIVERED else "relayed"
                ctx.count(f"messages_{name}_total")
                ctx.log.event(name, item.id, address, channel=channel, reply=said)


def _last(reply: Reply | None) -> Reply:
    """What stands in the report of a recipient that was deferred too often."""
    if reply is None:
        return TOO_LONG
    return Reply(TOO_LONG.code, TOO_LONG.subject, TOO_LONG.detail, f"{TOO_LONG.text}; last: {reply.text}")


def _said(reply: Reply | None) -> str:
    return f"{reply.code} {reply.status} {reply.text}" if reply is not None else ""
