"""The scripts of recipients (MailSort, Sieve) at delivery: from actions to deliveries, results and messages.

Only recipients whose account has an active script come here; the worker decides that by one flag of the account. Scripts run in
a thread of the worker. What they send (forwards, vacation answers) is recorded together with the outcome of the recipient,
under ids that are the same each time, so a crash neither loses nor doubles it. Where anything goes wrong the mail is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from iems.directory.directory import Directory
from iems.lmda.answered import key_of, may_answer
from iems.lmda.delivery import TOO_LARGE, Filtered, Made, Planner, Work
from iems.lmda.replies import answer, loops, no_answer, redirected
from iems.model import Outcome, Reply, Result, Rope
from iems.sieve import Environment, run
from iems.sieve.actions import FileInto, Keep, Redirect, Reject, Vacation
from iems.sieve.errors import ScriptError
from iems.sieve.message import ContentMessage
from iems.sieve.run import Outcome as Wanted
from iems.sieve.scripts import Active, Refused, folder
from iems.store.names import normal
from iems.store.reader import Reader
from iems.store.wire import Delivery, Place

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

INBOX: Final = "INBOX"
#: The variables `iems.NAME` that say a message is spam, and with what value.
SPAM: Final = ("iems.verdict", "spam")


class _Later(Exception):
    """The script can't be read now."""


class Rules:
    """Runs scripts. ctx: the worker's. planner: makes the deliveries. executor: one thread, where scripts run."""

    def __init__(self, ctx: WorkerContext, directory: Directory, planner: Planner, executor: Executor) -> None:
        self._ctx = ctx
        self._directory = directory
        self._planner = planner
        self._executor = executor
        self._store = ctx.config.store_path(ctx.home)
        self._active = Active(self._store)
        self._mailboxes: Reader | None = None

    async def apply(
        self,
        work: Work,
        read: Callable[[Rope], bytes],
        summary: tuple[bytes, bytes],
        octets: int,
        batch: list[Delivery],
    ) -> None:
        """Run the scripts of `work.filtered`: fill the slots, append deliveries to `batch`, note messages in `work.made`.

        read: gives the content of a rope; called in the thread. summary, octets: as for `Planner.plan`.
        """
        for filtered in (work.filtered or {}).values():
            try:
                wanted, message, allowed = await self._ctx.loop.run_in_executor(
                    self._executor, self._decide, work, filtered, read
                )
            except _Later:
                continue  # the slots say "later" already
            self._carry_out(work, filtered, wanted, message, allowed, summary, octets, batch)

    # In the thread

    def _decide(
        self, work: Work, filtered: Filtered, read: Callable[[Rope], bytes]
    ) -> tuple[Wanted, ContentMessage, bool]:
        """What the script wants, and whether a vacation answer in it may go."""
        item, account = work.item, filtered.account
        try:
            content = read(item.rope)
        except (OSError, EOFError) as error:
            self._ctx.log.error("the content can't be read for a script", error, item.id)
            raise _Later from None
        # Scripts see what readers will: the tags are in the lines in front.
        message = ContentMessage(
            filtered.lines + content,
            _text(item.envelope.reverse_path),
            _text(filtered.recipient.original or filtered.recipient.address),
        )
        wanted = self._run(item.id, filtered, message)
        allowed = False
        for action in wanted.actions:
            if isinstance(action, Vacation):
                allowed = self._may_answer(item.id, filtered, message, action, account)
        return wanted, message, allowed

    def _run(self, item_id: bytes, filtered: Filtered, message: ContentMessage) -> Wanted:
        account = filtered.account
        try:
            script = self._active.script(account.address, account.number)
            if script is None:
                return Wanted([Keep()])
            environment = Environment(
                now=datetime.now().astimezone(),
                separator=self._directory.detail_separator(),
                exists=lambda name: self._exists(account.number, name),
                special_use=lambda use: self._special_use(account.number, use),
                variables=filtered.variables,
            )
            return run(script, message, environment)
        except OSError as error:
            self._ctx.log.error("a script can't be read", error, item_id)
            raise _Later from None
        except (Refused, ScriptError) as error:
            return Wanted([Keep()], f"the script can't be used: {error}")
        except Exception as error:
            # A fault of ours must not keep mail in the queue.
            self._ctx.log.error("a script failed", error, item_id)
            return Wanted([Keep()], "internal error")

    def _boxes(self, account: int) -> list[Any]:
        if self._mailboxes is None:
            self._mailboxes = Reader(self._store)
        return self._mailboxes.mailboxes(account)

    def _exists(self, account: int, name: str) -> bool:
        name = normal(name)
        return any(box.name == name and not box.noselect for box in self._boxes(account))

    def _special_use(self, account: int, use: str) -> str:
        for box in self._boxes(account):
            if box.special_use.lower() == use.lower():
                return str(box.name)
        return ""

    def _may_answer(
        self, item_id: bytes, filtered: Filtered, message: ContentMessage, action: Vacation, account: Any
    ) -> bool:
        spam = filtered.variables.get(SPAM[0], "").lower() == SPAM[1]
        why = no_answer(message, action, self._own(filtered), spam)
        if not why:
            try:
                handle = action.handle or "\0".join((action.subject, action.sender, str(action.mime), action.reason))
                place = folder(self._store, account.address, account.number)
                key = key_of(message.reverse_path, handle)
                if may_answer(place, key, action.interval_s, int(time.time()), item_id):
                    return True
                why = "the sender was answered lately"
            except OSError as error:
                self._ctx.log.error("the memory of answers fails: no answer", error, item_id)
                return False
        self._ctx.log.event("no-vacation", item_id, filtered.recipient.address, why=why)
        return False

    @staticmethod
    def _own(filtered: Filtered) -> list[str]:
        recipient = filtered.recipient
        return list(
            dict.fromkeys(
                (filtered.account.address, _text(recipient.address), _text(recipient.original or recipient.address))
            )
        )

    # In the loop

    def _carry_out(
        self, work: Work, filtered: Filtered, wanted: Wanted, message: ContentMessage, allowed: bool,
        summary: tuple[bytes, bytes], octets: int, batch: list[Delivery],
    ) -> None:  # fmt: skip
        item, recipient, first = work.item, filtered.recipient, filtered.slots[0]
        if wanted.error:
            self._ctx.log.event("script-failed", item.id, recipient.address, why=wanted.error[:500])
        places: list[Place] = []
        result: Result | None = None
        made: list[Made] = []
        owner, hostname, now_ns = filtered.account.address, self._ctx.config.hostname, time.time_ns()
        for action in wanted.actions:
            if isinstance(action, Keep):
                places.append(Place(INBOX, list(action.flags)))
            elif isinstance(action, FileInto):
                places.append(Place(normal(action.mailbox), list(action.flags), action.create))
            elif isinstance(action, Reject):
                text = " ".join(action.reason.split())[:1000] or "Refused by the recipient"
                result = Result(recipient, Outcome.FAILED, Reply(550, 7, 1, text))
            elif isinstance(action, Redirect):
                if loops(message, owner):
                    # Here again: passing it on once more would never end, so it stays.
                    self._ctx.log.event("loop", item.id, recipient.address, to=action.address)
                    places.append(Place(INBOX))
                    continue
                sent = redirected(
                    item,
                    message.content[len(filtered.lines) :],
                    owner,
                    action.address,
                    recipient.notify,
                    hostname,
                    now_ns,
                )
                made.append(Made(first, sent, "forwarded", True))
            elif allowed:
                try:
                    reply = answer(item, message, action, self._own(filtered), hostname, now_ns)
                    made.append(Made(first, reply, "vacation", False))
                except ValueError as error:
                    self._ctx.log.event("no-vacation", item.id, recipient.address, why=str(error))
        slot: Result | int
        if result is not None:
            slot = result
            if places:  # copies; the sender is refused all the same
                self._delivery(work, filtered, places, summary, octets, batch)
        elif places or not any(isinstance(action, Redirect) for action in wanted.actions):
            slot = self._delivery(work, filtered, places, summary, octets, batch)
        else:
            slot = Result(recipient, Outcome.EXPANDED)
        for number in filtered.slots:
            own = item.envelope.recipients[number]
            work.slots[number] = Result(own, slot.outcome, slot.reply) if isinstance(slot, Result) else slot
        work.made += made

    def _delivery(
        self,
        work: Work,
        filtered: Filtered,
        places: list[Place],
        summary: tuple[bytes, bytes],
        octets: int,
        batch: list[Delivery],
    ) -> Result | int:
        """One delivery to all mailboxes, each once; to none of them, it goes to the trash, from where it can be brought back."""
        made = self._planner.delivery(work.item, filtered.account, filtered.lines, summary, octets)
        if made is None:
            return Result(filtered.recipient, Outcome.FAILED, TOO_LARGE)
        if not places:
            made.discard = True
            work.dropped = (work.dropped or set()) | {len(batch)}
        else:
            unique = {place.mailbox: place for place in reversed(places)}
            first, *rest = reversed(unique.values())
            made.mailbox, made.flags, made.create, made.or_inbox, made.also = (
                first.mailbox,
                first.flags,
                first.create,
                True,
                rest,
            )
        batch.append(made)
        return len(batch) - 1

    def close(self) -> None:
        """Close what was opened; no script runs any more."""
        if self._mailboxes is not None:
            self._mailboxes.close()


def _text(address: bytes) -> str:
    return address.decode("utf-8", "replace")
