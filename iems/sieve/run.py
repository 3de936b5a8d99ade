"""One script on one message: state, budget, and the rules of what is kept (RFC 5228 2.10).

Nothing is done while a script runs: actions are gathered, and given back only if it ends well. Where it goes wrong the
message is kept and nothing else happens, with a note that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct, field

from iems.sieve.actions import Action, FileInto, Keep, Redirect, Reject, Vacation
from iems.sieve.errors import RunError

if TYPE_CHECKING:
    from iems.sieve.compiler import Script
    from iems.sieve.message import Message

#: What a script may cost on one message, in units of at most some 150 ns: about a second at the very worst, milliseconds for all
#: that people write.
BUDGET = 6_000_000
ACTIONS_MAX = 32
REDIRECTS_MAX = 4


def _never(_: str) -> bool:
    return False


def _nowhere(_: str) -> str:
    return ""


class Environment(Struct):
    """What a script can know beside the message.

    now: with its zone. separator: between user and detail of an address ("" if there are no details). exists: whether the
    user has a mailbox (by name). special_use: the name of the mailbox with an attribute such as `\\Junk`, "" if there is
    none. variables: what the server says, as `iems.NAME` -> value.
    """

    now: datetime = field(default_factory=lambda: datetime.fromtimestamp(0, UTC))
    separator: str = "+"
    exists: Callable[[str], bool] = _never
    special_use: Callable[[str], str] = _nowhere
    variables: Mapping[str, str] = field(default_factory=dict)


class Outcome(Struct):
    """What is to be done. actions: none is "discard". error: why the script failed; the action is `Keep` then.

    acted: (line, command) of the commands that acted, in their order; none is the implicit keep.
    """

    actions: list[Action]
    error: str = ""
    acted: list[tuple[int, str]] = field(default_factory=list)


class Run:
    """The state of a script while it runs."""

    __slots__ = (
        "_left",
        "acted",
        "actions",
        "environment",
        "flags",
        "implicit_keep",
        "matched",
        "message",
        "stays",
        "variables",
    )

    def __init__(self, message: Message, environment: Environment, budget: int) -> None:
        self.message = message
        self.environment = environment
        self._left = budget
        self.actions: list[Action] = []
        self.acted: list[tuple[int, str]] = []
        self.implicit_keep = True
        #: Whether an action other than a copy was asked for: it can't go together with reject.
        self.stays = False
        self.flags: list[str] = []
        self.variables: dict[str, str] = dict(environment.variables)
        self.matched: list[str] = []

    def spend(self, units: int) -> None:
        """Pay for work. Raises RunError when the budget is used up."""
        self._left -= units
        if self._left < 0:
            raise RunError("the script takes too long on this message")

    def add(self, action: Action, copy: bool = False) -> None:
        """Ask for an action; copy: the implicit keep stays (RFC 3894). Raises RunError for one that can't be."""
        if not copy:
            self.implicit_keep = False
            self.stays = self.stays or not isinstance(action, Reject)
        if action in self.actions:
            return
        if isinstance(action, (Reject, Vacation)) and any(isinstance(each, type(action)) for each in self.actions):
            raise RunError(f"{type(action).__name__.lower()} a second time")
        for number, each in enumerate(self.actions):
            # The same mailbox gets it once (RFC 5228 2.10.3), with the flags of all (RFC 5232).
            if isinstance(each, Keep) and isinstance(action, Keep):
                self.actions[number] = Keep(_union(each.flags, action.flags))
                return
            if isinstance(each, FileInto) and isinstance(action, FileInto) and each.mailbox == action.mailbox:
                self.actions[number] = FileInto(
                    each.mailbox, _union(each.flags, action.flags), each.create or action.create
                )
                return
        if len(self.actions) >= ACTIONS_MAX:
            raise RunError(f"more than {ACTIONS_MAX} actions")
        if isinstance(action, Redirect) and sum(isinstance(each, Redirect) for each in self.actions) >= REDIRECTS_MAX:
            raise RunError(f"more than {REDIRECTS_MAX} redirects")
        self.actions.append(action)

    def finish(self) -> list[Action]:
        """The actions, the implicit keep among them. Raises RunError if they can't go together."""
        if self.stays and any(isinstance(each, Reject) for each in self.actions):
            raise RunError("reject can't go together with keep, fileinto or redirect")
        if any(isinstance(each, Reject) for each in self.actions):
            # Who is refused gets no answer beside (RFC 5230 4.7): one report is enough.
            self.actions = [each for each in self.actions if not isinstance(each, Vacation)]
        if self.implicit_keep:
            flags = tuple(self.flags)
            self.actions.append(Keep(flags))
        return self.actions


def _union(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    known = {flag.lower() for flag in one}
    return one + tuple(flag for flag in other if flag.lower() not in known)


def run(script: Script, message: Message, environment: Environment | None = None, budget: int = BUDGET) -> Outcome:
    """What `script` wants done with `message`. Never raises for what is in either."""
    state = Run(message, environment or Environment(), budget)
    try:
        script.block(state)
        return Outcome(state.finish(), acted=state.acted)
    except RunError as error:
        return Outcome([Keep()], str(error))
