"""Module `tnef`: unwraps what Outlook wrapped (`winmail.dat`), so that every other module and every reader sees ordinary parts.

The message comes back on input channel TNEF and goes through the matrices of that row. The rest of its content stays where it lies.
"""

from __future__ import annotations

import asyncio

from iems._native import kernel
from iems.message import expand, tnef
from iems.message.structure import Structure
from iems.message.text import part_octets
from iems.message.words import content_type
from iems.model import Channel, Envelope, rope_length
from iems.preprocessor.modules import Verdict, Work
from iems.preprocessor.parts import Change, edited, part_replaced

_mime = kernel("mime")

#: A longer message is left as it is.
MAX_OCTETS = 64 << 20
#: Above this the work is done in a thread.
THREAD_OCTETS = 256 << 10
#: Wrapped parts of one message that are unwrapped.
MAX_WRAPPED = 16
_TYPES = ("application/ms-tnef", "application/vnd.ms-tnef")


class Tnef:
    """See the module."""

    name = "tnef"
    on_tags = False

    def wants(self, envelope: Envelope) -> bool:
        """All mail that has not been unwrapped."""
        return envelope.input_channel != Channel.TNEF

    async def examine(self, work: Work) -> Verdict:
        """The content with every wrapped part replaced by what is in it."""
        octets = rope_length(work.rope)
        if octets > MAX_OCTETS:
            return Verdict()
        content = work.read(work.rope, 0, octets)
        if b"tnef" not in content and b"TNEF" not in content and b"Tnef" not in content:
            return Verdict()
        if octets > THREAD_OCTETS:
            changes, notes = await asyncio.to_thread(unwrapped, content)
        else:
            changes, notes = unwrapped(content)
        if not changes:
            return Verdict(note="; ".join(notes))
        return Verdict(rope=await edited(work, changes), reenter=Channel.TNEF, note="; ".join(notes))


def unwrapped(content: bytes) -> tuple[list[Change], list[str]]:
    """What to change in a message, and what was found."""
    structure = Structure.parse(content)
    changes: list[Change] = []
    notes: list[str] = []
    leaves = [leaf for row in range(len(structure)) if (leaf := structure.at(row)).kind == _mime.LEAF]
    types = ["/".join(content_type(content[slice(*leaf.content_type)])[:2]) for leaf in leaves]
    has_text = any(kind.startswith("text/") and leaf.body_end - leaf.body_start > 2 for leaf, kind in zip(leaves, types, strict=True))
    for leaf, kind in zip(leaves, types, strict=True):
        if kind not in _TYPES:
            continue
        found = tnef.parse(part_octets(content, leaf))
        if found is None:
            notes.append("a part that says it is TNEF and is not")
            continue
        if len(changes) == MAX_WRAPPED:
            notes.append("more wrapped parts than are unwrapped")
            break
        notes += found.defects[:3]
        if found.names():
            notes.append("unwrapped " + ", ".join(expand.clean_name(name) for name in found.names()[:20]))
        changes += part_replaced(content, leaf, expand.expanded(found, body=not has_text))
    return changes, notes
