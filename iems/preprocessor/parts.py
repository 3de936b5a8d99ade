"""Parts of a message replaced by others, as changes of its rope: what is not changed is not copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from iems.message.header import fields
from iems.message.structure import Part
from iems.model import Rope
from iems.preprocessor.modules import Work
from iems.preprocessor.ropes import replaced

#: Shorter pieces stand in the rope itself.
INLINE_OCTETS = 2_048


class Change(NamedTuple):
    """Octets [start, end) of the content become `new`."""

    start: int
    end: int
    new: bytes


async def edited(work: Work, changes: Sequence[Change]) -> Rope:
    """The message's rope with changes, in the order of their places; what is new is durable."""
    pieces: list[tuple[int, int, Rope]] = []
    for change in changes:
        new: Rope = []
        if change.new:
            new = [change.new if len(change.new) <= INLINE_OCTETS else await work.write(change.new)]
        pieces.append((change.start, change.end, new))
    return replaced(work.rope, pieces)


def part_replaced(content: bytes, leaf: Part, part: bytes) -> list[Change]:
    """Put a whole new part in the place of one. Of the message itself, fields that are not about its content stay."""
    if leaf.row:
        part = part.removesuffix(b"\r\n")
        if content[leaf.body_end : leaf.body_end + 1] not in (b"\r", b"\n", b""):
            part += b"\r\n"  # the part had no body, so its last line end was not its delimiter's
        return [Change(leaf.header_start, leaf.body_end, part)]
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
