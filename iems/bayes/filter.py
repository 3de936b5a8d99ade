"""Scoring: how a message stands between a user's good mail and his spam. Threads may share one Filter."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from iems._native import kernel
from iems._native.bayes_py import WEIGHTS, names
from iems.bayes.parts import sections
from iems.bayes.prior import Prior
from iems.bayes.side import Damaged, Side

_bayes = kernel("bayes")

#: A score this far from 0.5 (in log odds: 1.5) is a verdict; what lies between is "unsure".
SPAM = 0.65
GOOD = 0.35
#: Log odds at which a score is halfway between 0.5 and 1.
SCALE = 3.5
#: Added to the belief where something is known. Spam that looks like good mail is commoner than the reverse, so the point
#: where both mistakes are as frequent lies below 0.
LEAN = 0.5
#: What the belief comes to at most, either way: half of it at this much. A few features that were only ever seen in one
#: kind make it grow without bound, and then it is as often wrong as when it is moderate.
BEND = 5.0
#: How much of the linear sum is added to it.
LINEAR = 0.4
#: Log odds of a message of which nothing is known, if all mail given so far was spam (less if only most; - for good).
HABIT = 0.1
#: Folders whose tables one Filters keeps mapped.
MAX_OPEN = 1_000

Stamp = tuple[int, int, int] | None


class Score(Struct, frozen=True):
    """What the filter thinks of a message.

    score: above 0 and below 1, 0.5 undecided; grows with the log odds. verdict: "good", "unsure" or "spam". evidence:
    the strongest features as (text, share in the log odds), the strongest first, if it was asked for.
    """

    score: float
    verdict: str
    evidence: list[tuple[str, float]] = []


def squeezed(odds: float) -> float:
    """Log odds as a score. Not the logistic function: it would write 0 or 1 for all that is clear, in any order."""
    return 0.5 + 0.5 * odds / (SCALE + abs(odds))


def opened(score: float) -> float:
    """The log odds of a score; the inverse of `squeezed`."""
    away = 2.0 * score - 1.0
    return SCALE * away / (1.0 - abs(away))


def verdict_of(score: float, good: float = GOOD, spam: float = SPAM) -> str:
    """"good" up to one threshold, "spam" from the other on, else "unsure"."""
    if score >= spam:
        return "spam"
    return "good" if score <= good else "unsure"


_EMPTY = Side()


def odds_of(found: bytes, good: Side, spam: Side, prior: Prior | None) -> float:
    """The log odds of features between two tables."""
    return read(found, good, spam, prior)[0]


def read(found: bytes, good: Side, spam: Side, prior: Prior | None) -> tuple[float, float, float]:
    """The log odds of features between two tables; the linear sum in them; the features' length (`score` of the kernel)."""
    belief, linear, length = _bayes.score(found, *arguments(good, spam, prior))
    if belief or linear:
        belief += LEAN
        return belief / (1.0 + abs(belief) / BEND) + _part(good, spam, prior) * linear, linear, length
    given = good.given + spam.given
    return HABIT * (spam.given - good.given) / given if given else 0.0, 0.0, length


def _part(good: Side, spam: Side, prior: Prior | None) -> float:
    """How much of the linear sum is added: LINEAR, less what is in the tables of the former layout."""
    sides = (good, spam, prior.good, prior.spam) if prior else (good, spam)
    former = sum(side.former for side in sides)
    return LINEAR * (1.0 - former / max(1, sum(side.weight for side in sides))) if former else LINEAR


def arguments(good: Side, spam: Side, prior: Prior | None) -> tuple[Any, ...]:
    """Tables as `score` of the kernel wants them. One alone would make everything look like its kind, so it doesn't count."""
    if not (good.messages and spam.messages):
        good = spam = _EMPTY
    mine = (good.table, good.bits, good.weight, spam.table, spam.bits, spam.weight)
    return mine + prior.arguments if prior else mine


class Filter:
    """The filter of one folder. prior: of the site, or None. good, spam: the two thresholds, in scores.

    A folder or file that is not there, or is damaged, knows nothing. Nothing is made or changed here.
    """

    def __init__(self, folder: Path, prior: Prior | None = None, good: float = GOOD, spam: float = SPAM) -> None:
        self.folder, self.prior = Path(folder), prior
        self.thresholds = good, spam
        self._seen: tuple[tuple[Stamp, Stamp], Side, Side] | None = None
        self._paths = str(self.folder / "good"), str(self.folder / "spam")

    def _stamp(self, path: str) -> Stamp:
        try:
            status = os.stat(path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def sides(self) -> tuple[Side, Side]:
        """The tables as they are now, mapped again if a file was replaced."""
        stamps = self._stamp(self._paths[0]), self._stamp(self._paths[1])
        seen = self._seen
        if seen is None or seen[0] != stamps:
            try:
                seen = stamps, Side.map(self.folder / "good"), Side.map(self.folder / "spam")
            except (Damaged, OSError):
                seen = stamps, _EMPTY, _EMPTY
            self._seen = seen
        return seen[1], seen[2]

    def score(self, content: bytes, evidence: int = 0) -> Score:
        """The score of a message; evidence: how many of the strongest features to name (that costs a millisecond or more)."""
        parts = sections(content)
        found = _bayes.features(parts)
        good, spam = self.sides()
        score = squeezed(odds_of(found, good, spam, self.prior))
        shown: list[tuple[str, float]] = []
        if evidence:
            shown = strongest(parts, found, good, spam, self.prior, evidence)
        return Score(score, verdict_of(score, *self.thresholds), shown)


def strongest(
    parts: list[tuple[int, bytes]], found: bytes, good: Side, spam: Side, prior: Prior | None, count: int
) -> list[tuple[str, float]]:
    """The `count` features that weigh most, and their share in the log odds; those of all and LEAN's make the whole."""
    tables = arguments(good, spam, prior)
    features = np.frombuffer(found, np.uint32)
    values = np.frombuffer(_bayes.weigh(found, *tables), np.float64).reshape(-1, 2)
    belief, _, length = _bayes.score(found, *tables)
    squares = np.square(np.array(WEIGHTS + (0.0,) * 6)[features & 7])
    known = squares[values[:, 0] != 0.0].sum()
    shares = _part(good, spam, prior) * values[:, 1] / (length or 1.0)
    if known:
        shares = shares + values[:, 0] / np.sqrt(known) / (1.0 + abs(belief + LEAN) / BEND)
    order = np.argsort(-np.abs(shares), kind="stable")[:count]
    shown = names(parts)
    return [(shown.get(int(features[at]), "?"), float(shares[at])) for at in order if shares[at]]


class Filters:
    """Filters of many folders, of which the last MAX_OPEN used stay mapped."""

    def __init__(self, prior: Prior | None = None, limit: int = MAX_OPEN) -> None:
        self.prior, self.limit = prior, limit
        self._open: OrderedDict[Path, Filter] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def of(self, folder: Path) -> Filter:
        """The filter of a folder."""
        with self._lock:
            found = self._open.pop(folder, None) or Filter(folder, self.prior)
            self._open[folder] = found
            if len(self._open) > self.limit:
                self._open.popitem(last=False)
        return found
