"""Module `antivirus`: one scanner after the other looks at a message; the first that finds something decides (product.md 1.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from msgspec import structs

from iems._native import kernel
from iems.message import build
from iems.message.structure import Structure
from iems.message.text import part_octets
from iems.model import Envelope, Recipient, Reply, rope_length
from iems.model import Verdict as Tag
from iems.net.breaker import NoAnswer
from iems.preprocessor.absence import Absence
from iems.preprocessor.modules import Verdict, Work
from iems.preprocessor.parts import Change, edited, part_replaced

_mime = kernel("mime")

CHUNK_OCTETS = 256 << 10
#: For `strip` the parts are looked at one by one, of messages up to this length.
STRIP_OCTETS = 64 << 20
_HEADER_ONLY = 2


class Scanner(Protocol):
    """clamd, an ICAP server or a command."""

    name: str

    async def scan(self, content: AsyncIterator[bytes]) -> str:
        """The virus, or "". Raises NoAnswer."""


class AntiVirus:
    """scanners: in the order they are asked. infected: `tag`, `bounce`, `quarantine`, `delete` or `strip`. absence: what if one does not answer.
    tell: whether the postmaster hears of what is deleted."""

    name = "antivirus"
    on_tags = False

    def __init__(self, scanners: Sequence[Scanner], infected: str, absence: Absence, hostname: str, tell: bool = False) -> None:
        self._tell = tell
        self._scanners = scanners
        self._infected = infected
        self._absence = absence
        self._hostname = hostname

    def wants(self, envelope: Envelope) -> bool:
        """All mail."""
        return True

    async def examine(self, work: Work) -> Verdict:
        """What the scanners say."""
        if work.released:
            return Verdict(note="released from quarantine by an administrator")
        asked = []
        failures = 0
        refused: list[tuple[Recipient, Reply]] = []
        for scanner in self._scanners:
            try:
                virus = await scanner.scan(_content(work))
            except NoAnswer as error:
                refused += self._absence.refused(work, error)
                asked.append(f"{scanner.name}: not available")
                failures += 1
                continue
            asked.append(f"{scanner.name}: {virus or 'clean'}")
            if virus:
                verdict = await self._act(work, scanner, virus, "; ".join(asked))
                return structs.replace(verdict, failed=[*refused, *verdict.failed])
        return Verdict(failed=refused, note="; ".join(asked), failures=failures)

    async def _act(self, work: Work, scanner: Scanner, virus: str, note: str) -> Verdict:
        what = f"virus {virus}"
        action = self._infected
        if action == "bounce" and not work.envelope.reverse_path:
            action = "delete"  # nobody to tell, and it must not arrive
        sources = [source for part in work.parts for source in part.sources]
        if action == "tag":
            return Verdict(tags=(Tag(self.name, scanner.name, virus),), note=f"{note}; tagged")
        if action == "strip":
            try:
                changes = await self._infected_parts(work, scanner, virus)
            except NoAnswer:
                changes = []  # it is infected, that much is known
            if changes:
                return Verdict(rope=await edited(work, changes), note=f"{note}; removed")
            action = "quarantine"
        if action == "quarantine":
            return Verdict(quarantine=what, note=note)
        if action == "delete":
            return Verdict(discarded=[(source, what) for source in sources], note=note, notice=f"deleted, {what}" if self._tell else "")
        # The report is looked at as well: with the virus in it, nobody would ever be told.
        work.envelope.ret = _HEADER_ONLY
        return Verdict(failed=[(source, Reply(550, 7, 1, f"Refused: {what}")) for source in sources], note=note)

    async def _infected_parts(self, work: Work, scanner: Scanner, virus: str) -> list[Change]:
        """Notices in the place of the parts that are infected; none if it is not single parts that are."""
        length = rope_length(work.rope)
        if length > STRIP_OCTETS:
            return []
        content = work.read(work.rope, 0, length)
        structure = Structure.parse(content)
        changes: list[Change] = []
        for row in range(len(structure)):
            part = structure.at(row)
            if part.kind != _mime.LEAF or part.body_end <= part.body_start:
                continue
            if found := await scanner.scan(_octets(part_octets(content, part))):
                notice = f"An attachment was removed from this message by {self._hostname}: {found}.\r\n"
                changes += part_replaced(content, part, build.text_part(notice))
        changes.sort()
        # What is left must be clean as a whole.
        if changes and not await scanner.scan(_octets(_changed(content, changes))):
            return changes
        return []


def _changed(content: bytes, changes: Sequence[Change]) -> bytes:
    """The content with changes made, in the order of their places."""
    out, at = [], 0
    for change in changes:
        out += [content[at : change.start], change.new]
        at = change.end
    return b"".join([*out, content[at:]])


async def _content(work: Work) -> AsyncIterator[bytes]:
    length = rope_length(work.rope)
    for at in range(0, length, CHUNK_OCTETS):
        yield work.read(work.rope, at, min(CHUNK_OCTETS, length - at))


async def _octets(octets: bytes) -> AsyncIterator[bytes]:
    yield octets


__all__ = ["AntiVirus", "Scanner"]
