"""What a mailbox owner wants of the Bayesian filter, as the directory keeps it: three outcomes between two thresholds (product.md 6)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from iems.bayes.filter import GOOD, SPAM
from iems.directory.entries import DirectoryRefusal
from iems.directory.spamcontrol import IGNORE, Action, action_of

ATTRIBUTE = "iemsBayes"
SUSPICIOUS = "Suspicious"


class BayesChoice(Struct, frozen=True):
    """spam, unsure: what becomes of mail at or above `limit`, and of mail between the thresholds. good, limit: scores."""

    spam: Action = Action("file", "Spam")
    unsure: Action = IGNORE
    good: float = GOOD
    limit: float = SPAM


class _Kept(Struct):
    spam: str
    unsure: str
    good: float
    limit: float


_decode = msgspec.json.Decoder(_Kept).decode


def choice_of(spam: str, unsure: str, good: float, limit: float) -> BayesChoice:
    """A choice in normal form. Raises DirectoryRefusal."""
    if not 0.0 < good <= limit < 1.0:
        raise DirectoryRefusal("thresholds are between 0 and 1, that of good mail first")
    found = BayesChoice(action_of(spam), action_of(unsure), good, limit)
    for action in (found.spam, found.unsure):
        if action.kind == "bounce":
            raise DirectoryRefusal("mail is not bounced for a guess: ignore, file or discard it")
    return found


def read(attributes: Mapping[str, list[str]]) -> BayesChoice | None:
    """The choice in an entry's attributes; None if the filter is off for it."""
    kept = attributes.get(ATTRIBUTE)
    if not kept:
        return None
    found = _decode(kept[0])
    return BayesChoice(action_of(found.spam), action_of(found.unsure), found.good, found.limit)


def written(choice: BayesChoice | None) -> dict[str, list[str]]:
    """The attribute that keeps a choice."""
    if choice is None:
        return {ATTRIBUTE: []}
    kept = _Kept(choice.spam.text, choice.unsure.text, choice.good, choice.limit)
    return {ATTRIBUTE: [msgspec.json.encode(kept).decode()]}
