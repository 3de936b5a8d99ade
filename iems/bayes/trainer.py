"""Learning: messages into a user's two tables, safe against crashes, one learner at a time a folder.

Only what the filter gets wrong, or nearly so (THICKNESS), is learnt: that keeps tables small and tells apart better than
learning everything. While only one kind of mail has been given there is nothing to be wrong about: such messages wait,
as features, and are learnt in turn with the first ones of the other kind.

Files of a folder: `good`, `spam` (tables), `journal` (what a command learnt, until it is in the tables), `undo` (what the
last command learnt, if that is not too much), `waiting`, `lock`. A message learnt is a record in the journal before it
is in a table, and each table knows the last record that is in it, so a crash at any point loses no record and counts none
twice. A damaged table is put aside as `NAME.damaged`, with the other one: half of what was learnt would be worse than none.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from iems._native import kernel
from iems.bayes import records
from iems.bayes.filter import odds_of, squeezed, verdict_of
from iems.bayes.parts import MAX_MESSAGE, sections
from iems.bayes.prior import Prior
from iems.bayes.records import Record
from iems.bayes.side import CAP_BITS, Damaged, Side, keys_of
from iems.durable import write_durably
from iems.errors import IemsError

_bayes = kernel("bayes")

#: Log odds within which a message is learnt though it is on the right side.
THICKNESS = 4.0
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
                for name in ("journal", "undo"):
                    self._path(name).unlink(missing_ok=True)
        self._sequence = max(side.sequence for side in self.sides)
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
        side = self.sides[record.side]
        if record.sequence <= side.sequence:
            return
        side.add(keys_of(record.found), record.change, self.cap_bits)
        side.messages = max(0, side.messages + record.change)
        side.sequence = record.sequence
        if record.change > 0:
            side.remember(record.digest)
        else:
            side.digests.pop(record.digest, None)

    def _record(self, digest: int, size: int, change: int, side: int, found: bytes) -> None:
        self._sequence += 1
        record = Record(self._sequence, digest, size, change, side, found)
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
        passed = 0
        for number, content in enumerate(contents, 1):
            yield self._learn(content, side)
            until = min(len(waiting), number * len(waiting) // max(total, 1))
            if self.sides[side].given < ENOUGH:
                until = min(until, number * IN_TURN)
            self._drain(waiting[passed:until])
            passed = max(passed, until)
        if self.sides[side].given >= ENOUGH:
            self._drain(waiting[passed:])
            passed = len(waiting)
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
                self._record(digest, len(content), -1, number, _bayes.features(sections(content)))
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
            self._record(record.digest, record.size, -record.change, record.side, record.found)
        return len({record.digest for record in last})

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

    def _learn(self, content: bytes, side: int) -> Outcome:
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
            self._record(digest, len(content), -1, 1 - side, found)
            self._record(digest, len(content), 1, side, found)
            self._look_again(found)
            return Outcome.MOVED
        if waits is not None:
            # Said to be the other kind before anything was learnt: only the last word counts.
            del self._waits[digest]
            self._write_waiting()
        if self._one_sided(side) and self._waiting_octets < MAX_WAITING:
            self._wait(Record(0, digest, len(content), 1, side, found))
            self._look_again(found)
            return Outcome.WAITS
        return self._weigh(digest, len(content), side, found)

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

    def _drain(self, waiting: list[Record]) -> None:
        for record in waiting:
            if record.digest in self._waits and record.digest not in self.sides[record.side].digests:
                self._weigh(record.digest, record.size, record.side, record.found)

    def _weigh(self, digest: int, size: int, side: int, found: bytes) -> Outcome:
        """Learn a message unless the filter is sure of it."""
        odds = self.odds(found)
        if (odds if side else -odds) >= THICKNESS:
            self._clear[side] += 1
            return Outcome.CLEAR
        self._record(digest, size, 1, side, found)
        self._look_again(found)
        return Outcome.LEARNT

    def _look_again(self, found: bytes) -> None:
        self._again.append(found)
        del self._again[:-MAX_AGAIN]


def digest_of(content: bytes) -> int:
    """What a message is recognised by."""
    return int.from_bytes(hashlib.blake2b(content[:MAX_MESSAGE], digest_size=8).digest(), "little")


def reset(folder: Path) -> None:
    """Forget everything."""
    with Trainer(folder) as trainer:
        trainer.sides = (Side(), Side())
        for name in (*NAMES, "journal", "undo", "waiting"):
            trainer.folder.joinpath(name).unlink(missing_ok=True)
            trainer.folder.joinpath(f"{name}.damaged").unlink(missing_ok=True)
