"""A folder as text, one JSON object a line, to carry it to another machine or to look at it.

The first line: {"iems-bayes": 2, "good": {...}, "spam": {...}} with the figures of each table. Then, in any order,
{"side": "good", "count": 3, "keys": ["0a1b2c3d", ...]} (features whose lessons weigh 3) and {"side": "good", "weight": 5,
"digests": [...]} (messages whose lessons weigh 5). Version 1, of keys of 32 bits and without weights, can be read too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct

from iems.bayes.side import MAX_DIGESTS, MAX_WEIGHT, Side
from iems.bayes.trainer import NAMES, Trainer
from iems.errors import IemsError

#: Keys of one line.
PER_LINE = 500

_Number = Annotated[int, Meta(ge=0, le=(1 << 62))]
_Hex4 = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}\Z")]
_Hex8 = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]


class Figures(Struct, forbid_unknown_fields=True):
    """The numbers of one table."""

    messages: _Number = 0
    weight: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    former: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    given: _Number = 0
    given_octets: _Number = 0
    halved: Annotated[int, Meta(ge=0, le=1 << 30)] = 0


class Head(Struct, rename={"version": "iems-bayes"}, forbid_unknown_fields=True):
    """The first line."""

    version: int
    good: Figures
    spam: Figures


class Line(Struct, forbid_unknown_fields=True):
    """Any other line."""

    side: str
    count: Annotated[int, Meta(ge=1, le=(1 << 23))] = 1
    weight: Annotated[int, Meta(ge=0, le=MAX_WEIGHT)] = 1
    keys: list[_Hex4] = []
    digests: list[_Hex8] = []


def export(folder: Path) -> Iterator[bytes]:
    """The lines of a folder, without line ends."""
    with Trainer(folder) as trainer:
        good, spam = trainer.sides
        if trainer.damaged:
            raise IemsError(f"{folder}: {'; '.join(trainer.damaged)}")
    figures = [Figures(side.messages, side.weight, side.former, side.given, side.given_octets, side.halved) for side in (good, spam)]
    yield msgspec.json.encode(Head(2, *figures))
    for name, side in zip(NAMES, (good, spam), strict=True):
        items = side.items()
        for count in np.unique(items[:, 1]).tolist():
            keys = np.sort(items[items[:, 1] == count, 0]).tolist()
            for at in range(0, len(keys), PER_LINE):
                shown = [f"{key:08x}" for key in keys[at : at + PER_LINE]]
                yield msgspec.json.encode({"side": name, "count": count, "keys": shown})
        for weight in sorted(set(side.digests.values())):
            digests = [digest for digest, its in side.digests.items() if its == weight]
            for at in range(0, len(digests), PER_LINE):
                shown = [f"{digest:016x}" for digest in digests[at : at + PER_LINE]]
                yield msgspec.json.encode({"side": name, "weight": weight, "digests": shown})


def load(folder: Path, lines: Iterable[bytes], replace: bool = False) -> None:
    """Put what `export` gave into a folder. Nothing is changed unless every line can be read.

    replace: in the place of what is there. Raises IemsError for a line that is wrong, or if something is there.
    """
    sides = (Side(), Side())
    head: Head | None = None
    number = 0
    for number, text in enumerate(lines, 1):
        try:
            if head is None:
                head = msgspec.json.decode(text, type=Head)
                if head.version not in (1, 2):
                    raise ValueError(f"version {head.version} is not known")
                continue
            line = msgspec.json.decode(text, type=Line)
            side = sides[NAMES.index(line.side)]
        except ValueError as exc:
            raise IemsError(f"line {number}: {exc}") from exc
        keys = np.array([int(key, 16) for key in line.keys], np.uint32)
        side.add(keys >> np.uint32(3) if head.version == 1 else keys, line.count)
        for digest in line.digests[:MAX_DIGESTS]:
            side.remember(int(digest, 16), line.weight)
    if head is None:
        raise IemsError("nothing to import: the first line is missing")
    for side, figures in zip(sides, (head.good, head.spam), strict=True):
        side.messages, side.given, side.given_octets = figures.messages, figures.given, figures.given_octets
        side.halved, side.weight, side.former = figures.halved, figures.weight, figures.former
        if head.version == 1:
            side.weight = side.former = figures.messages
    with Trainer(folder) as trainer:
        if any(side.given for side in trainer.sides) and not replace:
            raise IemsError(f"{folder} has learnt something already: --replace puts the import in its place")
        for side in sides:
            side.sequence = max(one.sequence for one in trainer.sides)
        trainer.replace(*sides)
        trainer.commit()
        for name in ("waiting", "undo"):
            trainer.folder.joinpath(name).unlink(missing_ok=True)
