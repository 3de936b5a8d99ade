"""Module `tnef`: unwraps what Outlook wrapped (`winmail.dat`), so that every other module and every reader sees ordinary parts.

The message comes back on input channel TNEF and goes through the matrices of that row. The rest of its content stays where it lies.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from iems._native import kernel
from iems.message import expand, tnef
from iems.message.header import fields
from iems.message.structure import Part as Leaf
from iems.message.structure import Structure
from iems.message.text import part_octets
from iems.message.words import content_type
from iems.model import Channel, Envelope, rope_length
from iems.preprocessor.modules import Verdict, Work
from iems.preprocessor.ropes import replaced

_mime = kernel("mime")

#: A longer message is left as it is.
MAX_OCTETS = 64 << 20
#: Above this the work is done in a thread.
THREAD_OCTETS = 256 << 10
#: Wrapped parts of one message that are unwrapped.
MAX_WRAPPED = 16
_TYPES = ("application/ms-tnef", "application/vnd.ms-tnef")


class Change(NamedTuple):
    """Octets [start, end) of the content become `new`."""

    start: int
    end: int
    new: bytes


class Tnef:
    """See the module."""

    name = "tnef"

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
        pieces = [
            (change.start, change.end, [await work.write(change.new)] if change.new else []) for change in changes
        ]
        return Verdict(rope=replaced(work.rope, pieces), reenter=Channel.TNEF, note="; ".join(notes))


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
        changes += _part_changes(content, leaf, expand.expanded(found, body=not has_text))
    return changes, notes


def _part_changes(content: bytes, leaf: Leaf, part: bytes) -> list[Change]:
    """Put a whole new part in the place of one. Of the message itself, fields that are not about its content stay."""
    if leaf.row:
        return [Change(leaf.header_start, leaf.body_end, part.removesuffix(b"\r\n"))]
    changes = [
        Change(field.start, field.end, b"")
        for field in fields(content, leaf.header_start, leaf.body_start)
        if field.name.startswith(b"content-") or field.name == b"mime-version"
    ]
    # The header's empty line belongs to it: the new part brings its own.
    end = leaf.body_start
    for empty in (b"\r\n", b"\n"):
        if content.endswith(empty, 0, end) and (content.endswith(b"\n" + empty, 0, end) or end == len(empty)):
            end -= len(empty)
            break
    return [*(change for change in changes if change.end <= end), Change(end, leaf.body_end, b"MIME-Version: 1.0\r\n" + part)]
