"""Learning: messages into a user's two tables, safe against crashes, one learner at a time a folder.

Only what the filter gets wrong, or nearly so (THICKNESS, SURE), is learnt: that keeps tables small and tells apart better
than learning everything. A lesson has a weight, the more the filter was wrong the larger, which is added to the count of
each feature of the message in the table of its kind. So the difference of a feature's counts is its coefficient in a
logistic regression learnt by stochastic gradient, and their ratio what Robinson's formula asks for: one pair of tables, read
in both ways (`filter.read`). What was learnt is gone through again: all that a command was given (ROUNDS), and the last
MAX_RECENT lessons when there was a new one.

While only one kind of mail has been given there is nothing to be wrong about: such messages wait, as features, and are
learnt in turn with the first ones of the other kind.

Files of a folder: `good`, `spam` (tables), `journal` (what a command learnt, until it is in the tables), `undo` (what the
last command learnt, if that is not too much), `recent` (to be gone through again), `waiting`, `lock`. A lesson is a record
in the journal before it is in a table, and each table knows the last record that is in it, so a crash at any point loses no
record and counts none twice. A damaged table is put aside as `NAME.damaged`, with the other one: half of what was learnt
would be worse than none.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from iems._native import kernel
from iems.bayes import records
from iems.bayes.filter import odds_of, read, squeezed, verdict_of
from iems.bayes.parts import MAX_MESSAGE, sections
from iems.bayes.prior import Prior
from iems.bayes.records import Record
from iems.bayes.side import CAP_BITS, Damaged, Side, keys_of
from iems.durable import write_durably
from iems.errors import IemsError

_bayes = kernel("bayes")

#: Log odds within which a message is learnt though it is on the right side.
THICKNESS = 4.0
#: How probable the linear sum must make the right side, or it is learnt as well.
SURE = 0.99
#: Weight of a lesson in which the linear sum was wholly wrong, over the length of the message, and the most it can be.
STEP = 100.0
MAX_STEP = 100
#: How often a command goes again through all it was given.
ROUNDS = 2
#: Messages learnt last that are gone through again when one is learnt.
MAX_RECENT = 64
#: Octets of features that wait for the other kind; what comes then is learnt at once.
MAX_WAITING = 32 << 20
ENOUGH = 50
IN_TURN = 2
#: Octets of a command's records that are kept for undo.
MAX_UNDO = 256 << 10
#: Octets of the journal that make it go into the tables before the end of a command.
MAX_JOURNAL = 16 << 20
#: Messages learnt in a command that are looked at again at its end.
MAX_AGAIN = 2_000

GOOD, SPAM = 0, 1
NAMES = ("good", "spam")


class Outcome(Enum):
    """What became of a message that was given to learn."""

    LEARNT = "learnt"
    CLEAR = "clear"  # on the right side by far: not needed
    KNOWN = "known"  # learnt before
    MOVED = "moved"  # was learnt as the other kind; that was taken back first
    WAITS = "waits"  # nothing of the other kind has been given yet


class Trainer:
    """Learns into a folder, which is made if need be; a context manager that holds the folder's lock.

    prior: of the site; what it knows needs no learning. cap_bits: size at which a table stops growing. Not for several
    threads at once. Waits while another process or Trainer has the folder. Raises OSError.
    """

    def __init__(self, folder: Path, prior: Prior | None = None, cap_bits: int = CAP_BITS) -> None:
        self.folder, self.prior, self.cap_bits = Path(folder), prior, cap_bits
        self.damaged: list[str] = []
        self.sides = (Side(), Side())
        self._sequence = 0
        self._changed = False
        self._journal: BinaryIO | None = None
        self._journal_octets = 0
        self._again: list[bytes] = []  # features of messages to look at again
        self._clear = [0, 0]
        self._waits: dict[int, Record] = {}
        self._waiting_octets = 0
        self._recent: dict[int, Record] = {}  # first lessons, the latest last
        self._course: list[Record] = []  # what a command was given
        self._course_octets = 0
        self._lessons = 0

    def __enter__(self) -> Trainer:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._load()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._changed and (kind is None or not issubclass(kind, OSError)):
                self.commit()
        finally:
            if self._journal:
                self._journal.close()
                self._journal = None
            self._lock.close()

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _load(self) -> None:
        sides: list[Side | None] = []
        for name in NAMES:
            try:
                sides.append(Side.read(self._path(name).read_bytes(), writable=True))
            except FileNotFoundError:
                sides.append(None)
            except Damaged as exc:
                self.damaged.append(f"{name}: {exc}")
                sides.append(None)
        good, spam = sides
        if good is not None and spam is not None:
            self.sides = (good, spam)
        else:
            for name in NAMES:
                if self._path(name).exists():
                    self._path(name).replace(self._path(f"{name}.damaged"))
                    if not self.damaged:
                        self.damaged.append(f"{name}: the other table is missing")
            if self.damaged:
                for name in ("journal", "undo", "recent"):
                    self._path(name).unlink(missing_ok=True)
        self._sequence = max(side.sequence for side in self.sides)
        self._recent = {record.digest: record for record in records.read(self._path("recent"))}
        for record in records.read(self._path("journal")):
            self._apply(record)
            self._changed = True
        # What a crash left behind a record that is not whole would hide what is written now.
        if self._changed:
            self.commit()
        else:
            self._path("journal").unlink(missing_ok=True)
        for record in records.read(self._path("waiting")):
            self._waits[record.digest] = record
            self._waiting_octets += len(record.found)

    def _apply(self, record: Record) -> None:
        """Put a record into its table, unless it is there."""
        self._sequence = max(self._sequence, record.sequence)
        if record.lesson:
            self._recent.pop(record.digest, None)
        if record.lesson > 0:
            self._recent[record.digest] = record
            if len(self._recent) > MAX_RECENT:
                del self._recent[next(iter(self._recent))]
        side = self.sides[record.side]
        if record.sequence <= side.sequence:
            return
        side.add(keys_of(record.found), record.change, self.cap_bits)
        side.messages = max(0, side.messages + record.lesson)
        side.weight = max(0, side.weight + record.change)
        side.sequence = record.sequence
        if record.lesson < 0:
            side.digests.pop(record.digest, None)
        elif record.lesson or record.digest in side.digests:
            side.remember(record.digest, record.change)

    def _record(self, digest: int, size: int, change: int, side: int, lesson: int, found: bytes) -> None:
        self._sequence += 1
        record = Record(self._sequence, digest, size, change, side, lesson, found)
        if self._journal is None:
            self._journal = open(self._path("journal"), "ab", buffering=0)  # noqa: SIM115
        octets = record.octets()
        self._journal.write(octets)
        self._apply(record)
        self._changed = True
        self._journal_octets += len(octets)
        if self._journal_octets > MAX_JOURNAL:
            self.commit()

    def commit(self) -> None:
        """Write what was learnt into the tables; what the last command did can be undone from then on."""
        for name, side in zip(NAMES, self.sides, strict=True):
            side.write(self._path(name))
        if self._recent:
            write_durably(self._path("recent"), b"".join(record.octets() for record in self._recent.values()))
        else:
            self._path("recent").unlink(missing_ok=True)
        journal = self._path("journal")
        if self._journal:
            self._journal.close()
            self._journal = None
        self._journal_octets = 0
        if journal.exists():
            if journal.stat().st_size <= MAX_UNDO:
                journal.replace(self._path("undo"))
            else:
                journal.unlink()
                self._path("undo").unlink(missing_ok=True)
        self._changed = False

    def replace(self, good: Side, spam: Side) -> None:
        """Put other tables in the place of these; what waits or would be gone through again is forgotten."""
        self.sides = (good, spam)
        self._waits, self._waiting_octets, self._recent, self._course, self._course_octets = {}, 0, {}, [], 0

    # Learning

    def odds(self, found: bytes) -> float:
        """The log odds of features, as things stand."""
        return odds_of(found, *self.sides, self.prior)

    def learn(self, content: bytes, spam: bool) -> Outcome:
        """Learn one message. It is safe when the Trainer is left or `commit` returns."""
        [outcome] = self.learn_each([content], spam, 1)
        return outcome

    def learn_each(self, contents: Iterable[bytes], spam: bool, total: int) -> Iterator[Outcome]:
        """Learn `total` messages, one outcome each; those that wait for such ones are learnt in between.

        A few messages of one kind can't be weighed against hundreds of the other: up to ENOUGH given, each lets only
        IN_TURN of those that wait go on.
        """
        side = int(spam)
        waiting = [] if self._one_sided(side) else [r for _, r in sorted(self._waits.items()) if r.side != side]
        passed, lessons = 0, self._lessons
        for number, content in enumerate(contents, 1):
            yield self._learn(content, side, total > 1)
            until = min(len(waiting), number * len(waiting) // max(total, 1))
            if self.sides[side].given < ENOUGH:
                until = min(until, number * IN_TURN)
            self._drain(waiting[passed:until], total > 1)
            passed = max(passed, until)
        if self.sides[side].given >= ENOUGH:
            self._drain(waiting[passed:], total > 1)
            passed = len(waiting)
        if self._lessons > lessons:
            self._revise(ROUNDS if total > 1 else 0)
        if passed:
            for record in waiting[:passed]:
                self._waits.pop(record.digest, None)
            self.commit()
            self._write_waiting()

    def forget(self, content: bytes) -> bool:
        """Take a message back; False if it was not learnt."""
        digest = digest_of(content)
        for number, side in enumerate(self.sides):
            if digest in side.digests:
                self._record(digest, len(content), -side.digests[digest], number, -1, _bayes.features(sections(content)))
                return True
        return False

    def undo(self) -> int:
        """Take back what the last command learnt; how many messages that were. What is undone can be undone again.

        Raises IemsError if there is nothing, or it was too much to keep.
        """
        last = list(records.read(self._path("undo")))
        if not last:
            raise IemsError(f"{self.folder}: nothing to undo (a command that learnt very much can't be undone)")
        for record in reversed(last):
            self._record(record.digest, record.size, -record.change, record.side, -record.lesson, record.found)
        return len({record.digest for record in last if record.lesson})

    def now(self) -> dict[str, int]:
        """How this Trainer's messages would be judged now, by verdict."""
        counts = {"good": self._clear[GOOD], "unsure": 0, "spam": self._clear[SPAM]}
        for found in self._again:
            counts[verdict_of(squeezed(self.odds(found)))] += 1
        return counts

    def _one_sided(self, side: int) -> bool:
        """Whether there is nothing yet to tell messages of this kind from."""
        if self.prior is not None or self.sides[1 - side].messages:
            return False
        return all(record.side == side for record in self._waits.values())

    def _learn(self, content: bytes, side: int, course: bool) -> Outcome:
        digest = digest_of(content)
        here, other = self.sides[side], self.sides[1 - side]
        found = _bayes.features(sections(content))
        waits = self._waits.get(digest)
        if digest in here.digests or (waits is not None and waits.side == side):
            self._look_again(found)
            return Outcome.KNOWN
        here.given += 1
        here.given_octets += len(content)
        self._changed = True
        if digest in other.digests:
            self._record(digest, len(content), -other.digests[digest], 1 - side, -1, found)
            self._weigh(Record(0, digest, len(content), 0, side, 1, found), course, wanted=True)
            return Outcome.MOVED
        if waits is not None:
            # Said to be the other kind before anything was learnt: only the last word counts.
            del self._waits[digest]
            self._write_waiting()
        if self._one_sided(side) and self._waiting_octets < MAX_WAITING:
            self._wait(Record(0, digest, len(content), 0, side, 1, found))
            self._look_again(found)
            return Outcome.WAITS
        return self._weigh(Record(0, digest, len(content), 0, side, 1, found), course)

    def _wait(self, record: Record) -> None:
        self._waits[record.digest] = record
        self._waiting_octets += len(record.found)
        with open(self._path("waiting"), "ab") as file:
            file.write(record.octets())

    def _write_waiting(self) -> None:
        self._waiting_octets = sum(len(record.found) for record in self._waits.values())
        if not self._waits:
            self._path("waiting").unlink(missing_ok=True)
            return
        write_durably(self._path("waiting"), b"".join(record.octets() for record in self._waits.values()))

    def _drain(self, waiting: list[Record], course: bool) -> None:
        for record in waiting:
            if record.digest in self._waits and record.digest not in self.sides[record.side].digests:
                self._weigh(record, course)

    def _weigh(self, record: Record, course: bool, wanted: bool = False) -> Outcome:
        """Learn a message unless the filter is sure of it. course: come back to it at the end; wanted: in any case."""
        if course and self._course_octets < MAX_WAITING:
            self._course.append(record)
            self._course_octets += len(record.found)
        if not self._lesson(record, wanted):
            self._clear[record.side] += 1
            return Outcome.CLEAR
        self._look_again(record.found)
        return Outcome.LEARNT

    def _lesson(self, record: Record, wanted: bool = False) -> bool:
        """Give a lesson if there is something to learn from it, or it is wanted."""
        odds, linear, length = read(record.found, *self.sides, self.prior)
        doubt = 1.0 / (1.0 + math.exp(min(linear if record.side else -linear, 500.0)))
        if not wanted and (odds if record.side else -odds) >= THICKNESS and doubt <= 1.0 - SURE:
            return False
        weight = min(MAX_STEP, max(1, round(STEP * doubt / max(length, 1.0))))
        known = record.digest in self.sides[record.side].digests
        self._record(record.digest, record.size, weight, record.side, 0 if known else 1, record.found)
        self._lessons += 1
        return True

    def _revise(self, rounds: int) -> None:
        """Go through the last lessons again, the latest first, or so many times through the whole course."""
        for record in reversed(list(self._recent.values())):
            self._lesson(record)
        for _ in range(rounds):
            lessons = self._lessons
            for record in self._course:
                self._lesson(record)
            if self._lessons == lessons:
                break

    def _look_again(self, found: bytes) -> None:
        self._again.append(found)
        del self._again[:-MAX_AGAIN]


def digest_of(content: bytes) -> int:
    """What a message is recognised by."""
    return int.from_bytes(hashlib.blake2b(content[:MAX_MESSAGE], digest_size=8).digest(), "little")


def reset(folder: Path) -> None:
    """Forget everything."""
    with Trainer(folder) as trainer:
        trainer.replace(Side(), Side())
        for name in (*NAMES, "journal", "undo", "waiting", "recent"):
            trainer.folder.joinpath(name).unlink(missing_ok=True)
            trainer.folder.joinpath(f"{name}.damaged").unlink(missing_ok=True)
