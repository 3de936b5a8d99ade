"""A site-wide prior: what mail here looks like, for users who have taught their filter nothing yet.

The file: magic, the length of the first table's file content (8 octets each), then the contents of two files as in a
folder (`side`). It is mapped read-only by all workers, so its pages are in memory once.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from iems.bayes.side import Damaged, Side
from iems.durable import write_durably
from iems.errors import IemsError

_HEAD = struct.Struct("<8sQ")
_MAGIC = b"IEMSpri1"


class Prior:
    """Two tables that no user changes. Raises IemsError if the file is no prior or damaged, OSError."""

    def __init__(self, path: Path) -> None:
        try:
            with open(path, "rb") as file:
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            magic, length = _HEAD.unpack(view[: _HEAD.size])
            if magic != _MAGIC:
                raise Damaged("no prior")
            self.good = Side.read(view[_HEAD.size : _HEAD.size + length])
            self.spam = Side.read(view[_HEAD.size + length :])
        except (ValueError, struct.error) as exc:
            raise IemsError(f"{path} is no whole prior ({exc}): build it again") from exc

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As `score` of the kernel wants it."""
        return (self.good.table, self.good.bits, self.good.weight, self.spam.table, self.spam.bits, self.spam.weight)


def write(path: Path, good: Side, spam: Side) -> None:
    """Make a prior of two tables. What names single messages (digests) is left out."""
    good.digests, spam.digests = {}, {}
    first = good.octets()
    write_durably(path, _HEAD.pack(_MAGIC, len(first)) + first + spam.octets())
