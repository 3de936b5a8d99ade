"""What other settings would have made of a user's mail of the last days: the decisions of delivery once more, without their effects.

Messages are read where they are now, what was expunged or discarded among them while it can still be brought back. What delivery wrote in
front of each says how it came (reverse path, tags, score). Of mail that was refused, or discarded longer ago, the header and how it came are
noted (`unkept.py`): that is judged again as far as no text is asked for. Reads only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

from msgspec import Struct, structs

from iems.bayes.delivered import as_it_came
from iems.bayes.filter import Filter, Score
from iems.directory.bayeschoice import BayesChoice
from iems.directory.spamcontrol import Action, SpamControl
from iems.imap.mailboxes import normal
from iems.lmda.delivery import Planner, Policy
from iems.lmda.replies import loops, no_answer
from iems.lmda.rules import said_of
from iems.lmda.unkept import Unkept
from iems.message import header, tag, verdict
from iems.message.words import decode_words
from iems.model import Channel, Envelope, Outcome, Recipient, Result
from iems.sieve import Environment, run
from iems.sieve.actions import FileInto, Keep, Redirect, Reject, Vacation
from iems.sieve.compiler import Script
from iems.sieve.message import ContentMessage
from iems.spool.items import Item
from iems.store import shared
from iems.store.reader import Reader
from iems.store.rows import DISCARDED, Row
from iems.store.wire import Delivery

HEAD_OCTETS: Final = 64 << 10
#: A longer message is not given to rules or filters here.
CONTENT_MAX: Final = 32 << 20
_NO_RECORD: Final = "unknown"
_NO_TEXT: Final = "unknown: its text is gone"


class Settings(Struct):
    """What is tried. spam, bayes: None as in the directory. script: None for none. site: of who chose nothing. separator: of addresses."""

    spam: SpamControl | None
    bayes: BayesChoice | None
    script: Script | None
    site: Action
    separator: str = "+"


class Found(Struct):
    """One message as it came, and where it is now. said: its record. head: its start. content: all of it, None if that is too long or gone.

    score: the one its record has, None without.
    """

    time_s: int
    mailbox: str
    envelope: Envelope
    origin: bytes
    said: list[verdict.Item]
    head: bytes
    content: Callable[[], bytes | None]
    size: int
    score: float | None = None
    gone: bool = False


class Seen(Struct):
    """One message. mailbox: where it is now. happened: what its record says became of it at delivery, "unknown" without a record.

    would: what would have become of it. why: the record it would have had.
    """

    time_s: int
    mailbox: str
    sender: str
    subject: str
    happened: str
    would: str
    why: str

    @property
    def changed(self) -> bool:
        """Whether something else would have become of it."""
        return self.happened not in (self.would, _NO_RECORD) and self.would != _NO_TEXT


class Skipped(Struct):
    """Messages that were not looked at: not delivered here (Sent, drafts, imported), too long, or not readable. gone: judged, if only by their
    headers, as their text was not kept."""

    foreign: int = 0
    long: int = 0
    damaged: int = 0
    gone: int = 0


class Preview:
    """One user's. reader: of the store. account: of the directory. find: address -> account. judge: for mail without a score.

    unkept: what was refused or discarded (`unkept.read`).
    """

    def __init__(
        self, reader: Reader, account: Any, find: Callable[[str], Any], settings: Settings, judge: Filter, skipped: Skipped,
        unkept: Sequence[Unkept] = (),
    ) -> None:  # fmt: skip
        self._reader = reader
        self._account = account
        self._find = find
        self._settings = settings
        self._judge = judge
        self._skipped = skipped
        self._unkept = unkept
        tried = structs.replace(
            account, spam=settings.spam, bayes=settings.bayes, filtered=settings.script is not None, enabled=True, may_receive=True, quota_octets=None
        )
        self._planner = Planner(lambda address: tried, Policy(spam=settings.site), lambda item: 0)
        self._boxes = reader.mailboxes(account.number)
        #: (sender, answer) -> when, as the memory of vacation answers would have it.
        self._answered: dict[tuple[str, str], int] = {}

    def run(self, since_s: float) -> Iterator[Seen]:
        """The messages that came since then, the oldest first."""
        for _, find in sorted(self._messages(since_s), key=lambda each: each[0]):
            try:
                found = find()
                seen = self._one(found) if found is not None else None
            except (OSError, EOFError):
                self._skipped.damaged += 1
                continue
            if seen is not None:
                yield seen

    # What there is

    def _messages(self, since_s: float) -> Iterator[tuple[int, Callable[[], Found | None]]]:
        """When each came, and what reads it."""
        seen: set[bytes] = set()
        number = self._account.number
        for box in self._boxes:
            table = None if box.noselect else self._reader.table(number, box.id)
            if table is None:
                continue
            dates = table[1]
            for uid in dates["uid"][dates["internaldate"] >= since_s].tolist():
                row = self._reader.message(number, box.id, uid)
                # A copy of it in another mailbox is the same mail.
                if row is not None and row.origin not in seen:
                    seen.add(row.origin)
                    yield row.internaldate_s, partial(self._stored, box.name, row)
        for trashed in self._reader.trash(number):
            row = trashed.row
            if row.internaldate_s >= since_s and row.origin not in seen:
                seen.add(row.origin)
                yield row.internaldate_s, partial(self._stored, "(discarded)" if row.flags & DISCARDED else "(expunged)", row)
        for note in self._unkept:
            if note.time_s >= since_s and note.origin not in seen:
                seen.add(note.origin)
                yield note.time_s, partial(self._noted, note)

    def _stored(self, mailbox: str, row: Row) -> Found | None:
        """A message of the store; None if it was not delivered to this account."""
        start = self._reader.blobs.read_range(row.rope, 0, HEAD_OCTETS)
        front = _front(start)
        path = next(iter(header.values(front, b"return-path")), b"<>").strip(b"<>")
        address = next(iter(header.values(front, b"delivered-to")), b"")
        owner = self._find(address.decode("utf-8", "replace")) if address else None
        if owner is None or owner.number != self._account.number:
            self._skipped.foreign += 1
            return None
        tags = [each for raw in header.values(front, tag.FIELD) if (each := tag.parse(raw)) is not None]
        envelope = Envelope(Channel.SMTPD, path, [Recipient(address, address)], row.internaldate_s * 10**9, row.size)
        if tags:
            envelope.client_ip, envelope.verdicts = tags[0].ip, tags[0].verdicts
        said = verdict.parse(verdict.recorded(start))
        envelope.asked = tuple(_answers(said, {(each.check, each.subject) for each in envelope.verdicts}))
        return Found(
            row.internaldate_s, mailbox, envelope, row.origin, said, as_it_came(start), partial(self._content, row), row.size, _score_in(front)
        )

    def _noted(self, note: Unkept) -> Found:
        """A message of which only the header was kept."""
        envelope = Envelope(Channel.SMTPD, note.reverse_path, [Recipient(note.address, note.address)], note.time_s * 10**9, note.size)
        envelope.client_ip, envelope.verdicts, envelope.asked = note.client_ip, note.verdicts, note.asked
        self._skipped.gone += 1
        said = verdict.parse(note.record)
        return Found(note.time_s, "(gone)", envelope, note.origin, said, note.head, lambda: None, note.size, note.score, True)

    # What would become of it

    def _one(self, found: Found) -> Seen:
        envelope, head = found.envelope, found.head
        [recipient] = envelope.recipients
        item = Item(found.origin, Channel.LOCAL, "", envelope, [b""])
        batch: list[Delivery] = []
        work = self._planner.plan(item, (b"", b""), 0, batch, head)
        would = why = ""
        if work.unjudged is not None:
            batch = []
            scores = self._scores(found)
            if not scores:
                would, why = _NO_TEXT, "the Bayesian filter has no score of it"
            else:
                work = self._planner.plan(item, (b"", b""), 0, batch, head, scores)
        if would:
            pass
        elif work.filtered is not None:
            [filtered] = work.filtered.values()
            would, why = self._script(found, filtered)
        else:
            [slot] = work.slots
            would, why = _outcome(slot, batch), work.records.get(recipient.address, verdict.PLAIN)
        subject = header.values(head, b"subject", 0, header.header_end(head))
        path = envelope.reverse_path.decode("utf-8", "replace")
        return Seen(found.time_s, found.mailbox, path, decode_words(subject[0]) if subject else "", _happened(found.said), would, why)

    def _scores(self, found: Found) -> dict[int, Score]:
        """The score delivery wrote down, so that other thresholds are tried on the same one; without one, today's; {} if there is no text."""
        if found.score is not None:
            return {self._account.number: Score(found.score, "", [])}
        content = found.content()
        return {self._account.number: self._judge.score(content)} if content is not None else {}

    def _content(self, row: Row) -> bytes | None:
        if row.size > CONTENT_MAX:
            self._skipped.long += 1
            return None
        return as_it_came(self._reader.blobs.read(row.rope))

    def _script(self, found: Found, filtered: Any) -> tuple[str, str]:
        envelope = found.envelope
        script = self._settings.script
        assert script is not None
        content = found.content()
        if content is None:
            if not found.gone:
                return "INBOX", "too long to be tried"
            if "body" in script.extensions:
                return _NO_TEXT, "the script looks into texts"
            content = found.head
        address = filtered.recipient.address.decode("utf-8", "replace")
        message = ContentMessage(filtered.lines + content, envelope.reverse_path.decode("utf-8", "replace"), address)
        message.size = max(message.size, found.size)
        environment = Environment(
            now=datetime.fromtimestamp(found.time_s).astimezone(),
            separator=self._settings.separator,
            exists=lambda name: any(box.name == normal(name) and not box.noselect for box in self._boxes) or self._may_insert(name),
            special_use=lambda use: next((str(box.name) for box in self._boxes if box.special_use.lower() == use.lower()), ""),
            variables=filtered.variables,
        )
        wanted = run(script, message, environment)
        places: list[str] = []
        beside: list[str] = []
        refused = False
        for action in wanted.actions:
            if isinstance(action, Keep):
                places.append("INBOX")
            elif isinstance(action, FileInto):
                name = normal(action.mailbox)
                here = action.create or environment.exists(name)
                places.append(name if here and (not name.startswith(shared.ROOTS) or self._may_insert(name)) else "INBOX")
            elif isinstance(action, Reject):
                refused = True
            elif isinstance(action, Redirect):
                if loops(message, self._account.address):
                    places.append("INBOX")
                else:
                    beside.append(f"{action.address} (forwarded)")
            elif self._answers(message, action, [self._account.address, address], filtered.variables, found.time_s):
                beside.append(f"{message.reverse_path} (vacation)")
        aims = [*dict.fromkeys(places), *beside]
        if refused:
            aims.append("(refused)")
        elif not places and not any(aim.endswith("(forwarded)") for aim in beside):
            aims.append("(discarded)")
        return ", ".join(aims), verdict.value([*filtered.said, *said_of(script, wanted)])

    def _may_insert(self, name: str) -> bool:
        found = shared.find(self._reader, self._find, self._account.number, name)
        return found is not None and found.may_insert

    def _answers(self, message: ContentMessage, action: Vacation, own: list[str], variables: dict[str, str], time_s: int) -> bool:
        if no_answer(message, action, own, variables.get("iems.verdict", "") == "spam"):
            return False
        key = (message.reverse_path.lower(), action.handle or action.reason)
        last = self._answered.get(key)
        if last is not None and time_s - last < action.interval_s:
            return False
        self._answered[key] = time_s
        return True


def _front(head: bytes) -> bytes:
    """The lines that delivery put in front."""
    found = verdict.FRONT.match(head)
    return found[0] if found is not None else b""


def _answers(said: list[verdict.Item], tags: set[tuple[str, str]]) -> Iterator[Any]:
    """What the record says of checks that tagged nothing."""
    from iems.model import Verdict

    for item in said:
        if item.name in ("asked", "more"):
            continue
        if item.name in ("spamcontrol", "bayes", "rule", "to"):
            return
        if (item.name, item.word) not in tags:
            yield Verdict(item.name, item.word, item.text)


def _happened(said: list[verdict.Item]) -> str:
    aims = [f"{item.word} ({item.text})".strip() if item.text else item.word for item in said if item.name == "to"]
    return ", ".join(aims) if aims else _NO_RECORD


def _score_in(front: bytes) -> float | None:
    """The score in the lines that delivery put in front."""
    for raw in header.values(front, b"x-iems-bayes"):
        words = raw.split()
        with contextlib.suppress(IndexError, ValueError):
            return float(words[1])
    return None


def _outcome(slot: Result | int, batch: list[Delivery]) -> str:
    if isinstance(slot, Result):
        return "(refused)" if slot.outcome == Outcome.FAILED else "(deferred)"
    delivery = batch[slot]
    return "(discarded)" if delivery.discard else delivery.mailbox


def since(days: float, now_s: float | None = None) -> float:
    """The time so many days ago, in seconds since 1970."""
    return (time.time() if now_s is None else now_s) - days * 86_400
