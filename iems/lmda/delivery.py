"""One batch of local deliveries: from queue items to deliveries, from the store's answers to results.

Pure but for the account look-up and the reader of contents it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct, field

from iems.directory.spamcontrol import IGNORE, Action, SpamControl
from iems.errors import DirectoryUnavailable
from iems.lmda import spamcontrol
from iems.lmda.spamcontrol import Decision
from iems.message import summarize, tag, verdict
from iems.model import Outcome, Recipient, Reply, Result
from iems.spool.items import Item, Message
from iems.store.wire import Delivered, Delivery

if TYPE_CHECKING:
    from iems.bayes.filter import Score

NO_SUCH_MAILBOX = Reply(550, 1, 1, "No such mailbox here")
DISABLED = Reply(550, 2, 1, "Mailbox disabled, not accepting messages")
FULL_FOR_NOW = Reply(452, 2, 2, "Mailbox full")
FULL = Reply(552, 2, 2, "Mailbox full")
TOO_LONG = Reply(550, 4, 7, "Delivery time expired")
DIRECTORY_AWAY = Reply(451, 3, 0, "Directory not available, try again later")
CONTENT_GONE = Reply(451, 3, 0, "Content can't be read, try again later")
BEING_MOVED = Reply(451, 3, 0, "Mailbox is being moved, try again later")
DOMAIN_FULL_FOR_NOW = Reply(452, 2, 2, "No room left for this domain")
DOMAIN_FULL = Reply(552, 2, 2, "No room left for this domain")
#: Seconds until mail for an account that is being moved is tried again.
MOVED_S = 1.0
LOCAL_FAULT = Reply(451, 3, 0, "Local error, try again later")
TOO_LARGE = Reply(552, 3, 4, "Message too large for the mailbox")
DELIVERED = Reply(250, 1, 5, "Delivered")

#: A summary for content the parser failed on: the message stays readable (BODY[]).
_NIL_ENVELOPE = b"(NIL NIL NIL NIL NIL NIL NIL NIL NIL NIL)"
_SIZE_MAX = 0xFFFF_FFFF


class Account(Protocol):
    """What is needed of a directory's account."""

    number: int
    enabled: bool
    quota_octets: int | None
    domain: str
    partition: int
    may_receive: bool
    spam: SpamControl | None
    filtered: bool
    bayes: Any


class Policy(Struct, frozen=True):
    """Settings of delivery. over_quota: "defer" or "fail"; the delay doubles from retry_s to retry_max_s; lifetime_s: then it fails.

    spam: what becomes of tagged mail for owners who chose nothing.
    """

    over_quota: str = "defer"
    retry_s: float = 60.0
    retry_max_s: float = 3600.0
    lifetime_s: float = 432_000.0
    spam: Action = IGNORE


class Filtered(Struct):
    """A recipient whose mail goes through a script of his: `Rules` fills the slots. lines: what stands before the content.
    variables: what the script can read of checks made before it, as `iems.NAME` -> value. said: the record so far."""

    recipient: Recipient
    account: Any
    lines: bytes
    slots: list[int] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


class Made(Struct):
    """A message that a script has made, which counts with the outcome in `slot`. event: its name in the log.

    always: it counts even if delivery fails for good.
    """

    slot: int
    message: Message
    event: str
    always: bool


class Known(Struct):
    """What was found out about an item when it was planned first, for planning it again. accounts: by recipient's address.
    tagged: account number -> what its owner's spam control makes of the message."""

    accounts: dict[bytes, Any] = field(default_factory=dict)
    tagged: dict[int, Decision] = field(default_factory=dict)


class Work(Struct):
    """One item on its way: `slots` holds for each recipient its result, or the index of its delivery in the batch.

    decisions: of tagged mail, recipient's address -> what its owner's rules made of it. filtered: recipients still to go through
    their scripts, by account number; None if there are none. made: what scripts send. dropped: deliveries that scripts discard.
    unjudged: accounts whose Bayesian filter is still to be asked; then the item is planned again with its scores.
    records: recipient's address -> the verdict record, of recipients about whose mail there is something to say.
    instead: deliveries to a mailbox of somebody else -> what the recipient himself gets if that one takes it not, or None. beside: deliveries
    to mailboxes of others -> the slot of the recipient whose rule made them. known: for planning it again.
    """

    item: Item
    slots: list[Result | int] = field(default_factory=list)
    decisions: dict[bytes, Decision] = field(default_factory=dict)
    filtered: dict[int, Filtered] | None = None
    made: list[Made] = field(default_factory=list)
    dropped: set[int] | None = None
    unjudged: list[Any] | None = None
    records: dict[bytes, str] = field(default_factory=dict)
    instead: dict[int, Delivery | None] = field(default_factory=dict)
    beside: dict[int, int] = field(default_factory=dict)
    known: Known | None = None


def fallback_summary(size: int) -> tuple[bytes, bytes]:
    """ENVELOPE and BODYSTRUCTURE of octets nothing is known about."""
    structure = b'("APPLICATION" "OCTET-STRING" NIL NIL NIL "BINARY" %d NIL NIL NIL NIL)' % size
    return _NIL_ENVELOPE, structure


def header_lines(reverse_path: bytes, address: bytes) -> bytes:
    """What final delivery puts in front (RFC 5321 4.4). Line ends can't be in an address; if they were, they would not get through."""
    if b"\r" in reverse_path or b"\n" in reverse_path:
        reverse_path = b""
    if b"\r" in address or b"\n" in address:
        address = b""
    return b"Return-Path: <%b>\r\nDelivered-To: %b\r\n" % (reverse_path, address)


def delay_s(policy: Policy, attempts: int) -> float:
    """Seconds until a deferred recipient is tried again; attempts: tries before this one."""
    return min(policy.retry_s * 2.0 ** min(attempts, 20), policy.retry_max_s)


def summary(content: bytes) -> tuple[tuple[bytes, bytes], Exception | None]:
    """ENVELOPE and BODYSTRUCTURE of `content`, and what went wrong. Never raises; may run in a thread."""
    try:
        return summarize(content), None
    except Exception as error:
        # A message the parser can't take must not stay in the queue for ever: it is delivered, readable as octets.
        return fallback_summary(len(content)), error


def aim(action: Action | None) -> str:
    """The item of the record that says where mail goes by an action; None: to INBOX."""
    if action is not None and action.kind == "discard":
        return verdict.item("to", "", "discarded")
    return verdict.item("to", (action.mailbox if action is not None else "") or "INBOX")


def judged_item(decision: Decision, choice: Any) -> str:
    """The item of the record that says what a Bayesian filter thought, under which thresholds."""
    said, score = decision.rule.rpartition(", ")[2].split()
    return verdict.item("bayes", said, f"{score}, limits {choice.good:g} {choice.limit:g}, action {decision.action.text}")


def _script_verdict(decision: Decision) -> str:
    """What a script reads of the checks before it: good, unsure or spam."""
    if decision.rule == spamcontrol.WHITE_LIST:
        return "good"
    words = decision.rule.partition(", ")[2].split()
    return words[0] if words else "spam"


def _is_allowed(decision: Decision | None) -> bool:
    """Whether a white list has spoken: then no filter is asked."""
    return decision is not None and decision.rule == spamcontrol.WHITE_LIST


def messages_due(work: Work, results: list[Result]) -> list[Made]:
    """What scripts send, as far as it belongs to the outcomes: nothing for a recipient that is tried again."""
    due = []
    for made in work.made:
        outcome = results[made.slot].outcome
        if outcome != Outcome.DEFERRED and (made.always or outcome != Outcome.FAILED):
            due.append(made)
    return due


class Planner:
    """Makes deliveries of items.

    account: address -> account or None; raises DirectoryUnavailable. age_s: how long an item's message has been here.
    domain_room: what the domain of an account may have in its partition, None without a limit.
    """

    def __init__(
        self,
        account: Callable[[str], Any | None],
        policy: Policy,
        age_s: Callable[[Item], float],
        domain_room: Callable[[Any], int | None] = lambda account: None,
    ) -> None:
        self._account = account
        self._domain_room = domain_room
        self._policy = policy
        self._age_s = age_s

    def plan(
        self,
        item: Item,
        summary: tuple[bytes, bytes] | None,
        octets: int,
        batch: list[Delivery],
        head: bytes = b"",
        scores: Mapping[int, Score] | None = None,
        known: Known | None = None,
    ) -> Work:
        """Append the item's deliveries to `batch`. summary: None if the content can't be read; every recipient waits then.

        octets: length of the item's rope. head: start of the content, needed of tagged mail only. scores: account number ->
        what its Bayesian filter says; None before any was asked. known: of the work that it was planned to be before.
        """
        work = Work(item)
        known = work.known = known or Known()
        envelope = item.envelope
        seen: dict[int, int] = {}
        chosen: dict[int, Decision] = {}
        records: dict[int, str] = {}
        asked = verdict.answers(envelope.asked, envelope.verdicts) if envelope.asked or envelope.verdicts else None
        for recipient in envelope.recipients:
            slot: Result | int
            if summary is None:
                slot = self.deferred(recipient, item, CONTENT_GONE)
            else:
                found = known.accounts.get(recipient.address)
                if found is None:
                    found = self._find(recipient, item)
                if isinstance(found, Result):
                    slot = found
                elif found.number in seen:
                    # Two of its addresses lead to one mailbox: one copy (RFC 5321 leaves it open; people expect one).
                    slot = seen[found.number]
                    if found.number in chosen:
                        work.decisions[recipient.address] = chosen[found.number]
                    if found.number in records:
                        work.records[recipient.address] = records[found.number]
                else:
                    known.accounts[recipient.address] = found
                    lines = header_lines(envelope.reverse_path, recipient.address)
                    action = None
                    said = list(asked) if asked is not None else [verdict.NOTHING]
                    if envelope.verdicts:
                        action, lines = self._tagged(work, found, recipient, lines, head)
                        decision = chosen[found.number] = work.decisions[recipient.address]
                        said.append(verdict.item("spamcontrol", action.text, decision.rule))
                        if action.kind == "bounce":
                            work.records[recipient.address] = verdict.value([*said, verdict.item("to", "", "refused")])
                            work.slots.append(Result(recipient, Outcome.FAILED, spamcontrol.REFUSED))
                            continue
                        if action.kind == IGNORE.kind:
                            action = None
                    if found.bayes is not None and action is None and not _is_allowed(chosen.get(found.number)):
                        score = scores.get(found.number) if scores is not None else None
                        if score is None:
                            if scores is None:
                                work.unjudged = [*(work.unjudged or ()), found]
                        else:
                            action, lines = self._judged(work, found, recipient, lines, score)
                            decision = chosen[found.number] = work.decisions[recipient.address]
                            said.append(judged_item(decision, found.bayes))
                            if action.kind == IGNORE.kind:
                                action = None
                    if found.filtered and action is None:
                        work.slots.append(self._to_filter(work, recipient, found, lines, said))
                        continue
                    if len(said) == 1 and asked is None and action is None:
                        lines += verdict.PLAIN_LINE
                    else:
                        record = records[found.number] = verdict.value([*said, aim(action)])
                        work.records[recipient.address] = record
                        lines += verdict.line(record)
                    made = self.delivery(item, found, lines, summary, octets)
                    if made is None:
                        work.slots.append(Result(recipient, Outcome.FAILED, TOO_LARGE))
                        continue
                    if action is not None:
                        made.mailbox = action.mailbox or "INBOX"
                        made.discard = action.kind == "discard"
                        made.create = bool(action.mailbox)
                    slot = seen[found.number] = len(batch)
                    batch.append(made)
            work.slots.append(slot)
        return work

    def delivery(
        self, item: Item, account: Any, lines: bytes, summary: tuple[bytes, bytes], octets: int
    ) -> Delivery | None:
        """The delivery to the INBOX of an account under `lines`; None if the message is too large for any mailbox."""
        size = len(lines) + octets
        if size > _SIZE_MAX:
            return None
        envelope = item.envelope
        return Delivery(
            account.number,
            item.id,
            [lines, *item.rope],
            size,
            envelope.received_ns // 1_000_000_000,
            summary[0],
            summary[1],
            "INBOX",
            account.partition,
            [],
            envelope.dot_free,
            account.quota_octets,
            domain=account.domain,
            domain_octets=self._domain_room(account),
        )

    def _to_filter(self, work: Work, recipient: Recipient, account: Any, lines: bytes, said: list[str]) -> Result:
        """Note a recipient for `Rules`; what stands in his slot until then."""
        if work.filtered is None:
            work.filtered = {}
        known = work.filtered.get(account.number)
        if known is None:
            known = work.filtered[account.number] = Filtered(recipient, account, lines, said=said)
            decision = work.decisions.get(recipient.address)
            if decision is not None:
                known.variables = {
                    "iems.verdict": _script_verdict(decision),
                    "iems.tags": "\n".join(map(str, work.item.envelope.verdicts)),
                }
        # Two of its addresses lead to one mailbox: its script runs once.
        known.slots.append(len(work.slots))
        return self.deferred(recipient, work.item, LOCAL_FAULT)

    def _tagged(
        self, work: Work, account: Account, recipient: Recipient, lines: bytes, head: bytes
    ) -> tuple[Action, bytes]:
        """What the owner wants done with a tagged message, and the lines in front of it with the tag."""
        envelope = work.item.envelope
        assert work.known is not None
        tagged = work.known.tagged
        decision = tagged.get(account.number) or spamcontrol.decide(envelope, head, account.spam, self._policy.spam)
        tagged[account.number] = decision
        work.decisions[recipient.address] = decision
        shown = tag.for_reader(
            envelope.client_ip,
            envelope.received_ns // 1_000_000_000,
            envelope.verdicts,
            decision.action.text,
            decision.rule,
        )
        status = b"" if decision.rule == spamcontrol.WHITE_LIST else tag.STATUS
        return decision.action, lines + shown + status

    def _judged(
        self, work: Work, account: Account, recipient: Recipient, lines: bytes, score: Score
    ) -> tuple[Action, bytes]:
        """What the owner's filter makes of a message, and the lines in front of it with the verdict."""
        from iems.lmda import bayesian

        decision = bayesian.decide(score, account.bayes)
        work.decisions[recipient.address] = decision
        return decision.action, lines + bayesian.for_reader(score, account.bayes, decision.action)

    def _find(self, recipient: Recipient, item: Item) -> Any:
        """The account, or a result if there is none to deliver to."""
        try:
            found = self._account(recipient.address.decode("utf-8", "surrogateescape"))
        except DirectoryUnavailable:
            return self.deferred(recipient, item, DIRECTORY_AWAY)
        if found is None:
            return Result(recipient, Outcome.FAILED, NO_SUCH_MAILBOX)
        if not found.enabled or not found.may_receive:
            return Result(recipient, Outcome.FAILED, DISABLED)
        return found

    def deferred(self, recipient: Recipient, item: Item, reply: Reply) -> Result:
        """Try again later, unless the message has waited its whole life."""
        if self._age_s(item) >= self._policy.lifetime_s:
            return Result(recipient, Outcome.FAILED, TOO_LONG if reply.subject != 2 else FULL)
        return Result(recipient, Outcome.DEFERRED, reply, delay_s(self._policy, item.attempts))

    def answer(self, work: Work, answers: list[Delivered]) -> list[Result]:
        """The results of all recipients of `work`, from the store's answers to its deliveries."""
        item = work.item
        results = [
            self._result(recipient, item, answers[slot], work.decisions.get(recipient.address))
            if isinstance(slot, int)
            else slot
            for recipient, slot in zip(item.envelope.recipients, work.slots, strict=True)
        ]
        if work.dropped is not None:
            for result, place in zip(results, work.slots, strict=True):
                if isinstance(place, int) and place in work.dropped and result.outcome == Outcome.DELIVERED:
                    result.outcome, result.reply = Outcome.DISCARDED, None
        return results

    def _result(
        self, recipient: Recipient, item: Item, answer: Delivered, decision: Decision | None
    ) -> Result:
        status = answer.status
        if status == "ok" or status == "duplicate":
            if decision is not None and decision.action.kind == "discard":
                return Result(recipient, Outcome.DISCARDED)
            return Result(recipient, Outcome.DELIVERED, DELIVERED)
        if status == "overquota":
            domain = answer.text == "domain"
            if self._policy.over_quota == "fail":
                return Result(recipient, Outcome.FAILED, DOMAIN_FULL if domain else FULL)
            return self.deferred(recipient, item, DOMAIN_FULL_FOR_NOW if domain else FULL_FOR_NOW)
        if status == "moved":
            result = self.deferred(recipient, item, BEING_MOVED)
            result.next_attempt_s = min(result.next_attempt_s, MOVED_S)
            return result
        return self.deferred(recipient, item, LOCAL_FAULT)
