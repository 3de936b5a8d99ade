"""Decides TEXT and BODY for many messages at once, where they lie in the segments, in a thread that leaves the loop alone; what it is unsure of,
and everything else, is `commands.search`'s."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from iems.imap import search
from iems.imap.grammar import Refused
from iems.message import sift
from iems.message.text import fold

if TYPE_CHECKING:
    from iems.imapd.session import Session
    from iems.imapd.view import View

#: Messages below which it is less work to look at them one by one.
FEW = 4
#: Messages whose places are read in one turn of the loop; octets of messages read by one call of the thread.
ROWS = 1_000
OCTETS = 8 << 20
#: Files that are held open at a time.
FILES = 64

#: A folded text, and whether the header counts.
Text = tuple[str, bool]


class Sifted:
    """What is known of each message of a view: `holds(text)` gives (for sure, maybe), None for a text that was not looked for."""

    def __init__(self, texts: list[Text], count: int) -> None:
        self._column = {text: at for at, text in enumerate(texts)}
        self.verdicts = np.full((count, len(texts)), sift.UNSURE, np.uint8)

    def holds(self, text: Text) -> tuple[np.ndarray, np.ndarray] | None:
        """Boolean vectors over the positions of the view."""
        at = self._column.get(text)
        if at is None:
            return None
        column = self.verdicts[:, at]
        return column == sift.YES, column != sift.NO


async def sifted(session: Session, view: View, key: Any, positions: list[int], count: int, told: Callable[[int], None]) -> Sifted | None:
    """Judge the messages at `positions` (ascending; of `count`) by the texts of a search; None if there is nothing to judge.

    told: called now and then with the number of messages done. Raises Refused if the mailbox goes away.
    """
    texts = list(dict.fromkeys(_texts(key)))[: sift.MAX_KEYS]
    keys = [(octets, header) for text, header in texts if (octets := sift.key_of(text)) is not None]
    if len(positions) < FEW or not texts or len(keys) < len(texts):
        return None
    services = session.services
    found = Sifted(texts, count)
    places = np.array(positions, np.int64)
    uids = np.frombuffer(view.uids.tobytes(), np.uint32)[places]
    start = 0
    while start < len(uids):
        there, table, heads = services.reader.places(view.account, view.mailbox_id, uids, start, ROWS)
        some = _within(table)
        there, table = there[:some], table[:some]
        fds, pinned = _opened(services.reader.blobs, table)
        out = np.empty((some, len(keys)), np.uint8)
        at = 0
        try:
            while at < some:
                async with services.large:
                    at = await _finished(services.loop.run_in_executor(None, sift.sift, table, heads, fds, keys, at, OCTETS, out))
                await session.room()
                if session.view is not view:
                    raise Refused("The mailbox is gone")
                told(start + at)
        finally:
            for fd in pinned:
                services.reader.blobs.unpin(fd)
        if not some:
            break  # all that is left was expunged
        rows = np.searchsorted(uids, there)
        found.verdicts[places[rows]] = out
        start = int(rows[-1]) + 1
    return found


async def _finished(work: asyncio.Future[int]) -> int:
    """The outcome of work in a thread. Cancelled, it still waits: the thread reads from descriptors that must stay open."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _within(table: np.ndarray) -> int:
    """How many of the places lie in FILES different files."""
    _, first = np.unique(table[:, 3], return_index=True)
    return len(table) if len(first) <= FILES else int(np.sort(first)[FILES])


def _opened(blobs: Any, table: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """(descriptor of each place, -1 for none; those that are pinned)."""
    fds = np.full(len(table), -1, np.int32)
    pinned: list[int] = []
    numbers, where = np.unique(table[:, 3], return_inverse=True)
    by_number = np.full(len(numbers), -1, np.int32)
    for at, number in enumerate(numbers.tolist()):
        if not number:
            continue
        try:
            fd = blobs.fd(number)
        except OSError:
            continue  # the search that reads it tells
        blobs.pin(fd)
        pinned.append(fd)
        by_number[at] = fd
    fds[:] = by_number[where]
    return fds, pinned


def _texts(key: Any) -> list[Text]:
    match key:
        case search.And(keys):
            return [text for part in keys for text in _texts(part)]
        case search.Or(left, right):
            return _texts(left) + _texts(right)
        case search.Not(inner):
            return _texts(inner)
        case search.Text(text, header):
            folded = fold(text)
            return [(folded, header)] if folded else []
    return []
