"""What becomes of mail that a module can't have examined, as nobody answers: it goes on unseen, or waits, for so long at most."""

from __future__ import annotations

from collections.abc import Mapping

from iems.model import Recipient, Reply
from iems.preprocessor.modules import TryLater, Work

#: Until it is tried again: at first, and as it gets older.
RETRY_S = 60.0
RETRY_MAX_S = 300.0


class Absence:
    """default: `pass`, `defer` (it waits, then is refused) or `defer_then_pass`. channels: output channel -> another.

    lifetime_s: age at which mail waits no more. what: who does not answer, for the sender's report.
    """

    def __init__(self, what: str, default: str, channels: Mapping[int, str], lifetime_s: float) -> None:
        self._what = what
        self._default = default
        self._channels = channels
        self._lifetime_s = lifetime_s

    def refused(self, work: Work, reason: Exception) -> list[tuple[Recipient, Reply]]:
        """The recipients that end here, each with the reply for the report; the others' mail goes on unseen. Raises TryLater while it waits.

        A message waits as a whole as long as one of its ways out is not to be taken unseen.
        """
        closed = [part for part in work.parts if self._for(part.channel) == "defer"]
        waiting = [part for part in work.parts if self._for(part.channel) != "pass"]
        if waiting and work.age_s < self._lifetime_s:
            seconds = min(max(RETRY_S, work.age_s / 10), RETRY_MAX_S, max(self._lifetime_s - work.age_s, 1.0))
            raise TryLater(Reply(451, 4, 7, f"{self._what} is not available"), seconds, str(reason)) from reason
        reply = Reply(554, 4, 7, f"Not delivered: {self._what[0].lower()}{self._what[1:]} did not answer for too long")
        return [(source, reply) for part in closed for source in part.sources]

    def _for(self, channel: int) -> str:
        return self._channels.get(channel, self._default)


__all__ = ["Absence"]
