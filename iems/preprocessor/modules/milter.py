"""Module `milter`: existing milters look at a message, one after the other; each sees what the one before it has made of it.

They are told the message as if it came in just now, but it is accepted: a refusal becomes a report, or what the settings say.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from msgspec import Struct, structs

from iems.message.header import Field, fields, header_end
from iems.model import Channel, Envelope, Extent, Recipient, Reply, Rope, id_text, rope_length
from iems.model import Verdict as Tag
from iems.net.breaker import NoAnswer
from iems.preprocessor.absence import Absence
from iems.preprocessor.modules import TryLater, Verdict, Work
from iems.preprocessor.ropes import replaced
from iems.preprocessor.trips import Trips
from iems.scan import milterwire as wire
from iems.scan.milter import Answer, Mail

CHUNK_OCTETS = 256 << 10
HEAD_OCTETS = 64 << 10
#: Headers with more are put aside: a milter that gets each field by itself would be busy with them for minutes.
HEADER_MAX = 4 << 20
FIELDS_MAX = 10_000
RETRY_S = 60.0
RETRY_MAX_S = 1800.0
#: Shorter headers stand in the rope itself.
INLINE_OCTETS = 2_048


class Asked(Protocol):
    """A milter's client."""

    name: str

    async def examine(self, mail: Mail) -> Answer:
        """What it says. Raises NoAnswer."""


class Head(Struct):
    """A message's header. content: its octets up to the body. fields: all of it. own: how many fields at the top milters are not shown."""

    content: bytes
    fields: list[Field]
    own: int

    def shown(self) -> list[tuple[bytes, bytes]]:
        """(name, value) of the fields a milter is told."""
        content = self.content
        return [
            (content[field.start : field.value - 1].rstrip(b" \t"), content[field.value : field.end].rstrip(b"\r\n"))
            for field in self.fields[self.own :]
            if field.name
        ]


class Milters:
    """milters: in the order they are asked. rejected: `bounce`, `quarantine` or `delete`; discarded: `delete` or `quarantine`.

    on_failure: `defer` or `pass`. lifetime_s: age at which mail that is put off again and again is refused.
    """

    name = "milter"
    on_tags = False

    def __init__(
        self,
        milters: Sequence[Asked],
        *,
        hostname: str,
        rejected: str,
        discarded: str,
        absence: Absence,
        lifetime_s: float,
    ) -> None:
        self._milters = milters
        self._trips = Trips(hostname)
        self._rejected = rejected
        self._discarded = discarded
        self._absence = absence
        self._lifetime_s = lifetime_s

    def wants(self, envelope: Envelope) -> bool:
        """Mail that came from somewhere else: not our own reports."""
        return envelope.input_channel != Channel.MTA

    async def examine(self, work: Work) -> Verdict:
        """What the milters say, one after the other."""
        if work.released:
            return Verdict(note="released from quarantine by an administrator")
        left = {id(source): source for part in work.parts for source in part.sources}
        failed: list[tuple[Recipient, Reply]] = []
        gone: list[tuple[Recipient, str]] = []
        notes: list[str] = []
        rope = work.rope
        failures = 0
        tags: tuple[Tag, ...] = ()
        for milter in self._milters:
            here = structs.replace(work, rope=rope)
            head = self._head(here)
            if head is None:
                return Verdict(quarantine="the header is too long for milters", note="the header is too long")
            recipients = list({source.address: None for source in left.values()})
            try:
                answer = await milter.examine(_mail(here, head, recipients))
            except NoAnswer as error:
                notes.append(f"{milter.name}: not available")
                failures += 1
                for source, reply in self._absence.refused(work, error):
                    if left.pop(id(source), None) is not None:
                        failed.append((source, reply))
                if not left:
                    break
                continue
            notes.append(f"{milter.name}: {answer.text}")
            note = "; ".join(notes)
            if answer.quarantine and not answer.discard and answer.reply is None:
                return Verdict(quarantine=f"milter {milter.name}: {answer.quarantine}", note=note)
            if answer.discard:
                return self._end(list(left.values()), failed, gone, None, f"milter {milter.name}: discard", note)
            if answer.reply is not None:
                reply = self._final(work.age_s, answer.reply, note)
                if self._rejected == "tag":
                    tags += (Tag(self.name, milter.name, answer.text),)
                    continue  # it goes on as it was
                return self._end(list(left.values()), failed, gone, reply, f"milter {milter.name}: {answer.text}", note)
            refused = dict(answer.refused)
            removed = {address.strip().removeprefix(b"<").removesuffix(b">").lower() for address in answer.removed}
            for source in list(left.values()):
                if source.address in refused:
                    verdict = self._end([source], [], [], refused[source.address], f"milter {milter.name}: refused", note)
                    if verdict.quarantine:
                        return verdict
                    failed += verdict.failed
                    gone += verdict.discarded
                elif source.address.lower() in removed:
                    gone.append((source, f"milter {milter.name}: recipient removed"))
                else:
                    continue
                del left[id(source)]
            if answer.changes or answer.body is not None:
                rope = await _changed(here, head, answer)
            if not left:
                break
        changed = rope if rope is not work.rope else None
        return Verdict(rope=changed, failed=failed, discarded=gone, tags=tags, note="; ".join(notes), failures=failures)

    def _head(self, work: Work) -> Head | None:
        """The header of the content as it is now; None if it is too long."""
        length = rope_length(work.rope)
        most = HEAD_OCTETS
        while True:
            content = work.read(work.rope, 0, min(most, length))
            end = header_end(content)
            if end < len(content) or most >= length:
                break
            if most >= HEADER_MAX:
                return None
            most *= 4
        found = list(fields(content, 0, end))
        if end > HEADER_MAX or len(found) > FIELDS_MAX:
            return None
        # The Received line of this host is not there yet when a mail server asks its milters.
        first = content[: found[0].end] if found else b""
        return Head(content[:end], found, 1 if first and self._trips.count(first) else 0)

    def _final(self, age_s: float, reply: Reply, reason: str) -> Reply:
        """The refusal of a message. Raises TryLater while it is only put off."""
        if not reply.transient:
            return reply
        if age_s < self._lifetime_s:
            raise TryLater(reply, min(max(RETRY_S, age_s / 4), RETRY_MAX_S), reason, self._lifetime_s)
        return Reply(554, 4, 7, f"Put off for too long: {reply.text}")

    def _end(
        self,
        sources: list[Recipient],
        failed: list[tuple[Recipient, Reply]],
        gone: list[tuple[Recipient, str]],
        reply: Reply | None,
        why: str,
        note: str,
    ) -> Verdict:
        """What becomes of these recipients. reply: of a refusal; None for a discard. failed, gone: what was so before."""
        action = self._discarded if reply is None else self._rejected
        if action == "quarantine":
            return Verdict(quarantine=why, note=note)
        # One recipient refused is nothing about the message that a tag could say to the others.
        if reply is not None and action in ("bounce", "tag"):
            # A refused report has nobody to tell; the worker logs its end.
            return Verdict(failed=[*failed, *((source, reply) for source in sources)], discarded=gone, note=note)
        return Verdict(failed=failed, discarded=[*gone, *((source, why) for source in sources)], note=note)


def _mail(work: Work, head: Head, recipients: list[bytes]) -> Mail:
    envelope = work.envelope
    length, start = rope_length(work.rope), len(head.content)

    async def body() -> AsyncIterator[bytes]:
        for at in range(start, length, CHUNK_OCTETS):
            yield work.read(work.rope, at, min(CHUNK_OCTETS, length - at))

    arguments = [b"SIZE=%d" % length]
    if envelope.body:
        arguments.append((b"BODY=8BITMIME", b"BODY=BINARYMIME")[envelope.body - 1])
    if envelope.smtputf8:
        arguments.append(b"SMTPUTF8")
    return Mail(
        id_text(work.id), envelope.client_ip, envelope.helo, envelope.auth, envelope.reverse_path, tuple(arguments), recipients,
        head.shown(), body, work.write,
    )  # fmt: skip


def applied(head: Head, answer: Answer) -> list[bytes]:
    """The header's lines after the changes, field by field.

    An added field comes last. An inserted one gets its place among all fields, 0 is the top. A changed one is the n-th of its
    name, from 1, among those the milter was shown; with an empty value it goes, and if there is none it is added.
    """
    rows = [(field.name, head.content[field.start : field.end], at >= head.own) for at, field in enumerate(head.fields)]
    if rows and not rows[-1][1].endswith(b"\n"):
        name, raw, shown = rows[-1]
        rows[-1] = (name, raw + b"\r\n", shown)
    for change in answer.changes:
        name = change.name.lower()
        row = (name, wire.field(change.name, change.value, answer.leading_space), True)
        if change.action == wire.ADD_HEADER:
            rows.append(row)
            continue
        if change.action == wire.INSERT_HEADER:
            rows.insert(change.place, row)
            continue
        places = [at for at, (other, _, shown) in enumerate(rows) if other == name and shown]
        number = max(change.place, 1)
        if number <= len(places):
            rows[places[number - 1] : places[number - 1] + 1] = [row] if change.value else []
        elif change.value:
            rows.append(row)
    return [raw for _, raw, _ in rows]


async def _changed(work: Work, head: Head, answer: Answer) -> Rope:
    """The message with the changes; what is new is durable."""
    end = len(head.content)
    separator = head.content[head.fields[-1].end if head.fields else 0 :]
    changes: list[tuple[int, int, Sequence[Extent | bytes]]] = []
    if answer.changes:
        new = b"".join(applied(head, answer)) + (separator or b"\r\n")
        changes.append((0, end, [new] if len(new) <= INLINE_OCTETS else [await work.write(new)]))
    elif not separator:
        changes.append((end, end, [b"\r\n" if head.content.endswith(b"\n") or not end else b"\r\n\r\n"]))
    if answer.body is not None:
        changes.append((end, rope_length(work.rope), answer.body))
    return replaced(work.rope, changes)


__all__ = ["Milters"]
