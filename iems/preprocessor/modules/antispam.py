"""Module `antispam`: acts on tagged mail for channels that can't (SMTPC, BSMTPOUT, CCMAIL, NOTES), as the administrator set.

Mail for LOCAL and DL passes: users and lists decide there. So does mail to peers that keep our tags: their users decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from iems.model import Channel, Envelope, Recipient, Reply
from iems.preprocessor.modules import Verdict, Work
from iems.preprocessor.route import Part

REFUSED = Reply(550, 7, 1, "Mail that was marked as spam is not passed on")
_DECIDE = (Channel.LOCAL, Channel.DL)


class AntiSpam:
    """default: what is set for a channel (`directory.tagging`). keeps_tags: whether a part leaves with our tags on it."""

    name = "antispam"
    on_tags = True

    def __init__(self, default: Callable[[int], str], keeps_tags: Callable[[Part], bool]) -> None:
        self._default = default
        self._keeps_tags = keeps_tags

    def wants(self, envelope: Envelope) -> bool:
        """Only tagged mail; what a module before this one has tagged comes anyway."""
        return bool(envelope.verdicts)

    async def examine(self, work: Work) -> Verdict:
        """What the default of each part's channel says."""
        failed: list[tuple[Recipient, Reply]] = []
        dropped: list[tuple[Recipient, str]] = []
        acts: Counter[str] = Counter()
        for part in work.parts:
            action = self._action(part)
            acts[action] += len(part.recipients)
            if action == "bounce":
                failed += [(source, REFUSED) for source in part.sources]
            elif action == "discard":
                why = (work.envelope.verdicts + part.tags)[0]
                dropped += [(recipient, f"tagged: {why}") for recipient in part.recipients]
        return Verdict(failed=failed, dropped=dropped, note=", ".join(f"{act} {n}" for act, n in sorted(acts.items())))

    def _action(self, part: Part) -> str:
        if part.channel in _DECIDE or self._keeps_tags(part):
            return "pass"
        found = self._default(part.channel)
        return "pass" if found == "none" else found
