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

from msgspec import Struct, field

from iems.directory.directory import Directory
from iems.errors import DirectoryUnavailable
from iems.imap.mailboxes import normal
from iems.imap.rights import flag_right
from iems.lmda.answered import key_of, may_answer
from iems.lmda.delivery import TOO_LARGE, Filtered, Made, Planner, Work
from iems.lmda.replies import answer, loops, no_answer, redirected
from iems.message import verdict
from iems.model import Outcome, Reply, Result, child_id
from iems.sieve import Environment, run
from iems.sieve.actions import FileInto, Keep, Redirect, Reject, Vacation
from iems.sieve.errors import ScriptError
from iems.sieve.message import ContentMessage
from iems.sieve.run import Outcome as Wanted
from iems.spool.items import Item
from iems.store import shared
from iems.store.reader import Reader
from iems.store.scripts import Active, Refused, folder
from iems.store.shared import Shared
from iems.store.wire import Delivery, Place

if TYPE_CHECKING:
    from iems.master.child import WorkerContext
    from iems.sieve.compiler import Script

INBOX: Final = "INBOX"
#: The variables `iems.NAME` that say a message is spam, and with what value.
SPAM: Final = ("iems.verdict", "spam")


#: Content looked at together is about this long, or one message.
TOGETHER_OCTETS: Final = 1 << 20

_Waiting = tuple[Work, Filtered, tuple[bytes, bytes], int]


class _Later(Exception):
    """The script can't be read now."""


class _Decided(Struct):
    """wanted: by the script. said: for the record, what acted. allowed: whether a vacation answer may go. others: mailboxes of other
    accounts that it names; None for those where no mail may be put."""

    wanted: Wanted
    message: ContentMessage
    said: list[str]
    allowed: bool = False
    others: dict[str, Shared | None] = field(default_factory=dict)


def said_of(script: Script | None, wanted: Wanted) -> list[str]:
    """The items of the record that say which rules acted."""
    if wanted.error:
        return [verdict.item("rule", script.name if script is not None else "", f"failed: {wanted.error}")]
    if script is None:
        return []
    return [verdict.item("rule", script.place(line), command) for line, command in wanted.acted]


class Rules:
    """Runs scripts. ctx: the worker's. planner: makes the deliveries. executor: one thread, where scripts run.

    partition: told of the owners of mailboxes to which mail goes by the rules of others.
    """

    def __init__(
        self, ctx: WorkerContext, directory: Directory, planner: Planner, executor: Executor, partition: Callable[[Any], None]
    ) -> None:
        self._partition = partition
        self._ctx = ctx
        self._directory = directory
        self._planner = planner
        self._executor = executor
        self._store = ctx.config.store_path(ctx.home)
        self._active = Active(self._store)
        self._mailboxes: Reader | None = None

    async def apply(
        self, works: list[tuple[Work, tuple[bytes, bytes], int]], read: Callable[[Item], bytes], batch: list[Delivery]
    ) -> None:
        """Run the scripts of all `filtered` of these works: fill the slots, append deliveries to `batch`, note messages in `made`.

        works: each with summary and octets, as for `Planner.plan`. read: gives the content of an item; called in the thread.
        """
        waiting: list[_Waiting] = []
        held = 0
        for work, summary, octets in works:
            for filtered in (work.filtered or {}).values():
                waiting.append((work, filtered, summary, octets))
                held += octets
                if held >= TOGETHER_OCTETS:
                    await self._together(waiting, read, batch)
                    waiting, held = [], 0
        await self._together(waiting, read, batch)

    async def _together(self, waiting: list[_Waiting], read: Callable[[Item], bytes], batch: list[Delivery]) -> None:
        """Run some scripts with one change to the thread and back."""
        if not waiting:
            return
        found = await self._ctx.loop.run_in_executor(
            self._executor, lambda: [self._decide(work, filtered, read) for work, filtered, _, _ in waiting]
        )
        for (work, filtered, summary, octets), decided in zip(waiting, found, strict=True):
            if decided is not None:  # else the slots say "later" already
                self._carry_out(work, filtered, decided, summary, octets, batch)

    # In the thread

    def _decide(self, work: Work, filtered: Filtered, read: Callable[[Item], bytes]) -> _Decided | None:
        """What the script wants, and what is to be known to do it; None if that can't be had now."""
        self._ctx.working_on(work.item.id)
        try:
            return self._decided(work, filtered, read)
        except _Later:
            return None

    def _decided(self, work: Work, filtered: Filtered, read: Callable[[Item], bytes]) -> _Decided:
        item, account = work.item, filtered.account
        try:
            content = read(item)
        except (OSError, EOFError) as error:
            self._ctx.log.error("the content can't be read for a script", error, item.id)
            raise _Later from None
        # Scripts see what readers will: the tags are in the lines in front.
        message = ContentMessage(
            filtered.lines + content,
            _text(item.envelope.reverse_path),
            _text(filtered.recipient.original or filtered.recipient.address),
        )
        wanted, script = self._run(item.id, filtered, message)
        decided = _Decided(wanted, message, said_of(script, wanted))
        for action in wanted.actions:
            if isinstance(action, Vacation):
                decided.allowed = self._may_answer(item.id, filtered, message, action, account)
            elif isinstance(action, FileInto) and action.mailbox.startswith(shared.ROOTS):
                decided.others[action.mailbox] = self._other(item.id, account.number, action.mailbox)
        return decided

    def _other(self, item_id: bytes, number: int, name: str) -> Shared | None:
        """The mailbox of somebody else that a name means; None if the account may put no mail there."""
        try:
            found = shared.find(self._reader(), self._directory.account, number, name)
        except DirectoryUnavailable as error:
            self._ctx.log.error("the directory can't say whose mailbox it is", error, item_id)
            raise _Later from None
        return found if found is not None and found.may_insert and found.owner.enabled else None

    def _run(self, item_id: bytes, filtered: Filtered, message: ContentMessage) -> tuple[Wanted, Script | None]:
        account = filtered.account
        script: Script | None = None
        try:
            script = self._active.script(account.address, account.number)
            if script is None:
                return Wanted([Keep()]), None
            environment = Environment(
                now=datetime.now().astimezone(),
                separator=self._directory.detail_separator(),
                exists=lambda name: self._exists(account.number, name),
                special_use=lambda use: self._special_use(account.number, use),
                variables=filtered.variables,
            )
            return run(script, message, environment), script
        except OSError as error:
            self._ctx.log.error("a script can't be read", error, item_id)
            raise _Later from None
        except (Refused, ScriptError) as error:
            return Wanted([Keep()], f"the script can't be used: {error}"), script
        except Exception as error:
            # A fault of ours must not keep mail in the queue.
            self._ctx.log.error("a script failed", error, item_id)
            return Wanted([Keep()], "internal error"), script

    def _reader(self) -> Reader:
        if self._mailboxes is None:
            self._mailboxes = Reader(self._store)
        return self._mailboxes

    def _boxes(self, account: int) -> list[Any]:
        return self._reader().mailboxes(account)

    def _exists(self, account: int, name: str) -> bool:
        name = normal(name)
        if name.startswith(shared.ROOTS):
            found = shared.find(self._reader(), self._directory.account, account, name)
            return found is not None and found.may_insert
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
        self, work: Work, filtered: Filtered, decided: _Decided, summary: tuple[bytes, bytes], octets: int, batch: list[Delivery]
    ) -> None:
        wanted, message, allowed = decided.wanted, decided.message, decided.allowed
        others: dict[int, tuple[Shared, list[str]]] = {}
        said = [*filtered.said, *decided.said]
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
            elif isinstance(action, FileInto) and action.mailbox in decided.others:
                other = decided.others[action.mailbox]
                if other is None:
                    self._ctx.log.event("not-shared", item.id, recipient.address, mailbox=action.mailbox, why="no right to put mail there")
                    said.append(verdict.item("rule", "", f"no right to {action.mailbox}"))
                    places.append(Place(INBOX, list(action.flags)))
                else:
                    flags = [flag for flag in action.flags if flag_right(flag) in other.rights]
                    others[other.box.id] = other, flags
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
        said += [verdict.item("to", place.mailbox) for place in places]
        said += [verdict.item("to", shared.name_of(other.owner, other.box.name)) for other, _ in others.values()]
        said += [verdict.item("to", sent.message.envelope.recipients[0].address.decode("utf-8", "replace"), sent.event) for sent in made]
        if result is not None or not said[-1].startswith("to="):
            said.append(verdict.item("to", "", "refused" if result is not None else "discarded"))
        record = verdict.value(said)
        filtered.lines += verdict.line(record)
        slot: Result | int
        if result is not None:
            slot = result
            if places:  # copies; the sender is refused all the same
                self._delivery(work, filtered, places, summary, octets, batch)
            self._elsewhere(work, filtered, others, summary, octets, batch)
        elif others and not places:
            [slot, *_] = self._elsewhere(work, filtered, others, summary, octets, batch, first_or_inbox=True)
        elif places or not any(isinstance(action, Redirect) for action in wanted.actions):
            slot = self._delivery(work, filtered, places, summary, octets, batch)
            self._elsewhere(work, filtered, others, summary, octets, batch)
        else:
            slot = Result(recipient, Outcome.EXPANDED)
        for number in filtered.slots:
            own = item.envelope.recipients[number]
            work.records[own.address] = record
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

    def _elsewhere(
        self, work: Work, filtered: Filtered, others: dict[int, tuple[Shared, list[str]]], summary: tuple[bytes, bytes], octets: int,
        batch: list[Delivery], first_or_inbox: bool = False,
    ) -> list[Result | int]:  # fmt: skip
        """Deliveries to mailboxes of others, under ids that are the same each time and differ from what these get themselves.

        first_or_inbox: what the owner of the first one doesn't take goes to the recipient's INBOX.
        """
        made: list[Result | int] = []
        for other, flags in others.values():
            owner, own = other.owner, self._planner.delivery(work.item, filtered.account, filtered.lines, summary, octets)
            if own is None:
                made.append(Result(filtered.recipient, Outcome.FAILED, TOO_LARGE))
                continue
            cause = b"shared\0%d\0%d" % (filtered.account.number, other.box.id)
            # As for the owner, with his quota and that of his domain.
            delivery = self._planner.delivery(work.item, owner, filtered.lines, summary, octets)
            assert delivery is not None
            delivery.origin, delivery.mailbox, delivery.flags = child_id(work.item.id, cause), other.box.name, flags
            work.instead[len(batch)] = own if first_or_inbox and not made else None
            work.beside[len(batch)] = filtered.slots[0]
            self._partition(owner)
            made.append(len(batch))
            batch.append(delivery)
        return made

    def close(self) -> None:
        """Close what was opened; no script runs any more."""
        if self._mailboxes is not None:
            self._mailboxes.close()


def _text(address: bytes) -> str:
    return address.decode("utf-8", "replace")
