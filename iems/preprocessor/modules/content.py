"""Module `content`: a content filter (spamd, rspamd) scores a message; what then happens is set per output channel (product.md 1.6).

`tag` leaves the decision to the users and lists behind LOCAL and DL, as with a DNS-BL that tags.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from iems.message import build, header
from iems.message.words import decode_words
from iems.model import Channel, Envelope, Recipient, Reply, rope_length
from iems.model import Verdict as Tag
from iems.preprocessor.modules import TryLater, Verdict, Work
from iems.preprocessor.parts import Change
from iems.preprocessor.ropes import replaced
from iems.scan.breaker import ScanFailure
from iems.scan.checker import Checker, Score

ACTIONS = ("tag", "subject", "discard", "bounce", "archive", "pass")
RETRY_S = 60.0
HEAD_OCTETS = 64 << 10


class Content:
    """checker: who is asked. actions: output channel -> action; default: for the others. subject: put before the subject by that action.

    archive: a maildir for what is not delivered. max_octets: longer mail is not looked at. on_failure: `pass` or `defer`.
    """

    name = "content"
    on_tags = False

    def __init__(
        self, checker: Checker, default: str, actions: Mapping[int, str], *, subject: str, archive: Path, max_octets: int, on_failure: str
    ) -> None:
        self._checker = checker
        self._default = default
        self._actions = actions
        self._subject = subject
        self._archive = archive
        self._max_octets = max_octets
        self._on_failure = on_failure

    def wants(self, envelope: Envelope) -> bool:
        """Mail that came from somewhere else: not our own reports."""
        return envelope.input_channel != Channel.MTA

    async def examine(self, work: Work) -> Verdict:
        """What the filter says, done as set for each part's channel."""
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
        except ScanFailure as error:
            if self._on_failure == "defer":
                raise TryLater(Reply(451, 4, 7, "The content filter is not available"), RETRY_S, str(error)) from error
            return Verdict(note=str(error), failures=1)
        if not score.spam:
            return Verdict(note=f"{self._checker.name}: {score.text}")
        return await self._act(work, content, score)

    async def _act(self, work: Work, content: bytes, score: Score) -> Verdict:
        failed: list[tuple[Recipient, Reply]] = []
        dropped: list[tuple[Recipient, str]] = []
        tag = Tag("content", self._checker.kind, score.text)
        why = f"spam: {self._checker.name} {score.text}"
        archive = False
        for part in work.parts:
            action = self._actions.get(part.channel, self._default)
            if action == "bounce":
                failed += [(source, Reply(550, 7, 1, "Refused: the content was judged to be spam")) for source in part.sources]
            elif action in ("discard", "archive"):
                archive = archive or action == "archive"
                dropped += [(recipient, why) for recipient in part.recipients]
            elif action in ("tag", "subject"):
                part.tags += (tag,)
                if action == "subject":
                    part.rope = replaced(part.rope or work.rope, [(c.start, c.end, [c.new]) for c in _marked(content, self._subject)])
        if archive:
            await asyncio.to_thread(_keep, self._archive, content)
        return Verdict(failed=failed, dropped=dropped, note=f"{self._checker.name}: spam, {score.text}")


def _marked(content: bytes, mark: str) -> list[Change]:
    """The subject with a mark before it; a subject is made if there is none."""
    end = header.header_end(content[: HEAD_OCTETS * 8])
    for field in header.fields(content, 0, end):
        if field.name == b"subject":
            text = "".join(char for char in decode_words(content[field.value : field.end]).strip() if char.isprintable())
            if text.startswith(mark.strip()):
                return []
            return [Change(field.start, field.end, build.field("Subject", f"{mark}{text}"[:2000]))]
    return [Change(0, 0, build.field("Subject", mark))]


def _keep(folder: Path, content: bytes) -> None:
    """One message into a maildir, on the disk when this returns. Raises OSError."""
    for name in ("tmp", "new", "cur"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{time.time_ns() // 1000}.{os.getpid()}_{secrets.token_hex(4)}.iems"
    fd = os.open(folder / "tmp" / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    os.rename(folder / "tmp" / name, folder / "new" / name)
    opened = os.open(folder / "new", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
