"""Module `headerrules`: what becomes of mail whose header fits a rule (`iemsctl headerrule`)."""

from __future__ import annotations

from collections.abc import Callable

from iems.message.headerrules import HEAD_OCTETS, Rules
from iems.model import Channel, Envelope, Reply, rope_length
from iems.model import Verdict as Tag
from iems.preprocessor.modules import Verdict, Work

_SHOWN = 200


class HeaderRules:
    """rules: those that act, in the order they count."""

    name = "headerrules"
    on_tags = False

    def __init__(self, rules: Callable[[], Rules]) -> None:
        self._rules = rules

    def wants(self, envelope: Envelope) -> bool:
        """Mail that came from somewhere else, once there is a rule: not our own reports, which quote the very header."""
        return bool(self._rules()) and envelope.input_channel != Channel.MTA

    async def examine(self, work: Work) -> Verdict:
        """What the first rule that fits says."""
        if work.released:
            return Verdict(note="released from quarantine by an administrator")
        found = self._rules().first(work.read(work.rope, 0, min(HEAD_OCTETS, rope_length(work.rope))))
        if found is None:
            return Verdict()
        rule, value = found
        why = f"header rule {rule.name}"
        note = f"{rule.name}: {rule.action}"
        sources = [source for part in work.parts for source in part.sources]
        if rule.action == "tag":
            shown = "".join(char if " " <= char <= "~" else "?" for char in value[:_SHOWN])
            return Verdict(tags=(Tag("headerrule", rule.name, shown),), note=note)
        if rule.action == "quarantine":
            return Verdict(quarantine=why, note=note)
        if rule.action == "discard":
            return Verdict(discarded=[(source, why) for source in sources], note=note)
        if rule.action == "bounce":
            return Verdict(failed=[(source, Reply(550, 7, 1, "Refused: a header field is not accepted here")) for source in sources], note=note)
        return Verdict(note=note)
