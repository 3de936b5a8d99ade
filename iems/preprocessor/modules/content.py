"""Module `content`: a content filter (spamd, rspamd) scores a message; what then happens is set per output channel (product.md 1.6).

`tag` leaves the decision to the users and lists behind LOCAL and DL, as with a DNS-BL that tags.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from iems.message import build, header
from iems.message.tag import STATUS
from iems.message.words import decode_words
from iems.model import Channel, Envelope, Recipient, Reply, rope_length
from iems.model import Verdict as Tag
from iems.net.breaker import NoAnswer
from iems.preprocessor.absence import Absence
from iems.preprocessor.modules import Verdict, Work
from iems.preprocessor.parts import Change
from iems.preprocessor.ropes import in_front, replaced
from iems.preprocessor.route import Part
from iems.scan.checker import Checker, Score

#: Channels behind which users and lists decide about tags; there a tag becomes the header field at delivery.
_DECIDE = (Channel.LOCAL, Channel.DL)
HEAD_OCTETS = 64 << 10
#: Characters kept of a word in a subject that gets a mark.
WORD_MAX = 400


class Content:
    """checker: who is asked. actions: output channel -> action; default: for the others. subject: put before the subject by that action.

    archive: keeps what is not delivered, on the disk when it returns. inspector: gets what is forwarded. refusal: the sentence of a bounce.
    max_octets: longer mail is not looked at. absence: what if the checker does not answer.
    """

    name = "content"
    on_tags = False

    def __init__(
        self,
        checker: Checker,
        default: str,
        actions: Mapping[int, str],
        *,
        subject: str,
        archive: Callable[[bytes], None],
        inspector: str,
        refusal: str,
        max_octets: int,
        absence: Absence,
    ) -> None:
        self._checker = checker
        self._default = default
        self._actions = actions
        self._subject = subject
        self._archive = archive
        self._inspector = inspector.encode()
        self._refusal = Reply(550, 7, 1, refusal)
        self._max_octets = max_octets
        self._absence = absence

    def wants(self, envelope: Envelope) -> bool:
        """Mail that came from somewhere else: not our own reports."""
        return envelope.input_channel != Channel.MTA

    async def examine(self, work: Work) -> Verdict:
        """What the filter says, done as set for each part's channel."""
        if work.released:
            return Verdict(note="released from quarantine by an administrator")
        length = rope_length(work.rope)
        if length > self._max_octets:
            return Verdict(note="too long to be checked")
        content = work.read(work.rope, 0, length)
        envelope = work.envelope
        try:
            score = await self._checker.check(
                content,
                ip=envelope.client_ip,
                helo=envelope.helo.decode("latin-1"),
                sender=envelope.reverse_path.decode("utf-8", "replace"),
                recipients=tuple(r.address.decode("utf-8", "replace") for r in envelope.recipients[:100]),
            )
        except NoAnswer as error:
            return Verdict(failed=self._absence.refused(work, error), note=str(error), failures=1)
        if not score.spam:
            return Verdict(note=f"{self._checker.name}: {score.text}")
        return await self._act(work, content, score)

    async def _act(self, work: Work, content: bytes, score: Score) -> Verdict:
        failed: list[tuple[Recipient, Reply]] = []
        dropped: list[tuple[Recipient, str]] = []
        redirected: list[tuple[Part, bytes, str]] = []
        tag = Tag("content", self._checker.kind, score.text)
        why = f"spam: {self._checker.name} {score.text}"
        archive = False
        for part in work.parts:
            action = self._actions.get(part.channel, self._default)
            if action == "bounce":
                failed += [(source, self._refusal) for source in part.sources]
            elif action in ("discard", "archive"):
                archive = archive or action == "archive"
                dropped += [(recipient, why) for recipient in part.recipients]
            elif action == "forward":
                redirected.append((part, self._inspector, why))
            elif action == "header" and part.channel not in _DECIDE:
                part.rope = in_front(STATUS, part.rope or work.rope)
            elif action in ("tag", "subject", "header"):
                part.tags += (tag,)
                if action == "subject":
                    part.rope = replaced(part.rope or work.rope, [(c.start, c.end, [c.new]) for c in _marked(content, self._subject)])
        if archive:
            await asyncio.to_thread(self._archive, content)
        return Verdict(failed=failed, dropped=dropped, redirected=redirected, note=f"{self._checker.name}: spam, {score.text}")


def _marked(content: bytes, mark: str) -> list[Change]:
    """The subject with a mark before it; a subject is made if there is none."""
    end = header.header_end(content[: HEAD_OCTETS * 8])
    for field in header.fields(content, 0, end):
        if field.name == b"subject":
            text = "".join(char for char in decode_words(content[field.value : field.end]).strip() if char.isprintable())
            if text.startswith(mark.strip()):
                return []
            # A word that is longer than a line may be can't be folded.
            text = " ".join(word[:WORD_MAX] for word in text.split(" "))
            return [Change(field.start, field.end, build.field("Subject", f"{mark}{text}"[:2000]))]
    return [Change(0, 0, build.field("Subject", mark))]
