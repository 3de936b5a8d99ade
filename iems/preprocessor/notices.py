"""Tells the postmaster what modules have ended or removed, where a setting asks for it: the first at once, then many at a time.

A flood of infected mail is no flood of notices: a worker sends one an hour at most, and one as it ends. What a notice tells is in the log, too, so
one that a crash takes with it is no loss of mail.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from iems.message import build
from iems.model import Channel, Envelope, Recipient, id_text
from iems.spool import Item, Message, Spool
from iems.spool.dsn import clean

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

INTERVAL_S = 3600.0
#: Messages named in a notice; recipients named of each.
SHOWN = 200
_RECIPIENTS = 10
#: Messages remembered as told of: one whose recipients end in several steps is told of once.
_KNOWN = 1_000
_LINE = 300


class Notices:
    """What waits to be told."""

    def __init__(self, ctx: WorkerContext, spool: Spool) -> None:
        self._ctx = ctx
        self._spool = spool
        self._lines: list[str] = []
        self._more = 0
        self._known: dict[tuple[bytes, str], None] = {}
        self._next = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def add(self, item: Item, what: str) -> None:
        """Something to tell of a message. Not of our own reports: a notice about a notice would have no end."""
        envelope = item.envelope
        if envelope.input_channel == Channel.MTA or (item.id, what) in self._known:
            return
        self._known[item.id, what] = None
        if len(self._known) > _KNOWN:
            del self._known[next(iter(self._known))]
        if len(self._lines) < SHOWN:
            named = ", ".join(f"<{clean(recipient.address)}>" for recipient in envelope.recipients[:_RECIPIENTS])
            if len(envelope.recipients) > _RECIPIENTS:
                named += f" and {len(envelope.recipients) - _RECIPIENTS} more"
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
            self._lines.append(f"{when} {id_text(item.id)}: {clean(what)[:_LINE]}; from <{clean(envelope.reverse_path)[:_LINE]}> to {named[:_LINE]}")
        else:
            self._more += 1
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(self._next, loop.time()), self._due)

    def _due(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        self._next = loop.time() + INTERVAL_S
        self._task = loop.create_task(self._send())

    async def close(self) -> None:
        """Send what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            await self._task
        await self._send()

    async def _send(self) -> None:
        lines, more = self._lines, self._more
        if not lines:
            return
        self._lines, self._more = [], 0
        ctx = self._ctx
        address = f"postmaster@{ctx.config.domain or ctx.hostname}"
        id = self._spool.new_id()
        text = f"{ctx.hostname} has ended mail, or removed something from it, as its settings say (times in UTC):\n\n" + "\n".join(lines) + "\n"
        if more:
            text += f"and {more} more, which the log names.\n"
        content = [
            build.address_field("From", [(address, "Mail system")]),
            build.address_field("To", [(address, "")]),
            build.field("Subject", f"{len(lines) + more} messages ended or changed at {ctx.hostname}"),
            build.date_field(time.time()),
            build.raw_field("Message-ID", build.message_id(id, ctx.hostname)),
            b"Auto-Submitted: auto-generated\r\n",
            b"MIME-Version: 1.0\r\n",
            build.text_part(text),
        ]
        octets = address.encode()
        envelope = Envelope(Channel.MTA, b"", [Recipient(octets, octets)], time.time_ns(), sum(map(len, content)))
        try:
            [error] = await self._spool.append([Message(id, envelope, content)])
            if error is not None:
                raise error
        except Exception as fault:
            ctx.log.error("the postmaster could not be told", fault)
            return
        ctx.log.event("notice-mailed", id, address, messages=len(lines) + more)


__all__ = ["INTERVAL_S", "SHOWN", "Notices"]
