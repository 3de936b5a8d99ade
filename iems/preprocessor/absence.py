"""What becomes of mail that a module can't have examined, as nobody answers: it goes on unseen, or waits, for so long at most."""

from __future__ import annotations

from collections.abc import Mapping

from iems.model import Channel, Recipient, Reply
from iems.preprocessor.modules import TryLater, Work

#: Until it is tried again: at first, and as it gets older.
RETRY_S = 60.0
RETRY_MAX_S = 300.0
#: So long our own reports wait at most, and then go on unseen: a report that is refused tells nobody.
REPORT_S = 3600.0
_HEADER_ONLY = 2


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
        ours = work.envelope.input_channel == Channel.MTA
        lifetime_s = min(self._lifetime_s, REPORT_S) if ours else self._lifetime_s
        if work.age_s < lifetime_s and any(self._for(part.channel) != "pass" for part in work.parts):
            seconds = min(max(RETRY_S, work.age_s / 10), RETRY_MAX_S, max(lifetime_s - work.age_s, 1.0))
            raise TryLater(Reply(451, 4, 7, f"{self._what} is not available"), seconds, str(reason), lifetime_s) from reason
        closed = [] if ours else [source for part in work.parts if self._for(part.channel) == "defer" for source in part.sources]
        if closed:
            # Nor does the report bring back what nobody has looked at.
            work.envelope.ret = _HEADER_ONLY
        reply = Reply(554, 4, 7, f"Not delivered: {self._what[0].lower()}{self._what[1:]} did not answer for too long")
        return [(source, reply) for source in closed]

    def _for(self, channel: int) -> str:
        return self._channels.get(channel, self._default)


__all__ = ["Absence"]
