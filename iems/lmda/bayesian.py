"""The Bayesian filter at delivery: each recipient's own tables judge the message, and his choice says what becomes of it.

Only accounts that have switched it on come here. Scores are made in the worker's thread; a filter that can't be read judges nothing, and the
mail goes its way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iems.bayes.filter import Filters, Score, verdict_of
from iems.bayes.prior import Prior
from iems.directory.bayeschoice import BayesChoice
from iems.directory.spamcontrol import IGNORE, Action
from iems.lmda.spamcontrol import Decision
from iems.store.homes import bayes_folder

FIELD = b"X-IEMS-Bayes"
#: How the log calls the rule.
RULE = "bayesian filter"

class Judge:
    """store: HOME/store. prior: file of the site-wide prior, None for none. Used by one thread."""

    def __init__(self, store: Path, prior: Path | None) -> None:
        self._store = store
        self._filters = Filters(Prior(prior) if prior is not None else None)

    def scores(self, content: bytes, accounts: list[Any]) -> dict[int, Score]:
        """Account number -> score, of each of these accounts."""
        return {
            account.number: self._filters.of(bayes_folder(self._store, account.address)).score(content)
            for account in accounts
        }


def decide(score: Score, choice: BayesChoice) -> Decision:
    """What an owner's choice makes of a score."""
    verdict = verdict_of(score.score, choice.good, choice.limit)
    action: Action = {"spam": choice.spam, "unsure": choice.unsure}.get(verdict, IGNORE)
    return Decision(action, f"{RULE}, {verdict} {score.score:.4f}")


def for_reader(score: Score, choice: BayesChoice, action: Action) -> bytes:
    """The field of delivered mail that says what was thought of it, with CRLF."""
    verdict = verdict_of(score.score, choice.good, choice.limit)
    shown = action.text if action.text.isascii() and action.text.isprintable() else action.kind
    return f"{FIELD.decode()}: {verdict} {score.score:.12f} (limits {choice.good:g} {choice.limit:g}; action {shown[:80]})\r\n".encode("ascii")
