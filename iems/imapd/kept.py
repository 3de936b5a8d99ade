"""Large mailboxes that were selected lately: their arrays, so that the next SELECT looks only at what changed since.

A worker keeps a few of them, bounded in octets. Small mailboxes are read in less time than it would take to look here.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from iems.store.reader import Selected

if TYPE_CHECKING:
    from iems.imapd.view import View

#: Messages of a mailbox that is worth it; octets kept by one worker, at 20 a message.
KEPT_FROM = 20_000
MAX_OCTETS = 32 << 20
#: Changes above which all of a mailbox is read anew.
MAX_CHANGES = 2_000


class _Kept(Struct):
    modseq: int
    uidnext: int
    uids: array[int]
    flags: array[int]
    modseqs: array[int]


class KeptViews:
    """See the module."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], _Kept] = {}
        self.octets = 0

    def held(self) -> list[tuple[int, int]]:
        """(account, mailbox id) of what is kept, the latest last."""
        return list(self._kept)

    def keep(self, view: View) -> None:
        """The arrays of a view that nobody uses any more."""
        if view.gone:
            view.updates(True)
        self._drop((view.account, view.mailbox_id))
        octets = 20 * len(view)
        if octets > MAX_OCTETS:
            return
        while self.octets + octets > MAX_OCTETS:
            self._drop(next(iter(self._kept)))
        self._kept[view.account, view.mailbox_id] = _Kept(
            view.modseq, view.uidnext, view.uids, view.flags, view.modseqs
        )
        self.octets += octets

    def _drop(self, key: tuple[int, int]) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self.octets -= 20 * len(found.uids)

    def select(self, reader: Any, account: int, mailbox_id: int, member: int = 0) -> Selected | None:
        """As `Reader.select`, from what is kept where that is less work; the arrays are to be read only, and before the next call.

        What members of a shared mailbox see is not kept.
        """
        if member:
            seen: Selected | None = reader.select(account, mailbox_id, member)
            return seen
        kept = self._kept.get((account, mailbox_id))
        if kept is not None:
            found = self._brought_up(reader, account, mailbox_id, kept)
            if found is not None:
                return found
            self._drop((account, mailbox_id))
        selected: Selected | None = reader.select(account, mailbox_id)
        return selected

    def _brought_up(self, reader: Any, account: int, mailbox_id: int, kept: _Kept) -> Selected | None:
        noted = reader.noted(account, mailbox_id, kept.modseq, kept.uidnext)
        if noted is None:
            return None
        changed, vanished, box = noted
        if len(changed) + len(vanished) > MAX_CHANGES:
            return None
        # Not copied here, as the view that comes of it copies them; what is kept stays as it is.
        uids = np.frombuffer(kept.uids, np.uint32)
        flags = np.frombuffer(kept.flags, np.uint64)
        modseqs = np.frombuffer(kept.modseqs, np.uint64)
        new = [item for item in changed if item[0] >= kept.uidnext]
        if len(new) < len(changed):
            flags, modseqs = flags.copy(), modseqs.copy()
        for uid, bits, modseq in changed[: len(changed) - len(new)]:
            at = int(np.searchsorted(uids, uid))
            if at == len(uids) or uids[at] != uid:
                return None
            flags[at], modseqs[at] = bits, modseq
        if vanished:
            gone = np.array(vanished, np.uint32)
            places = np.searchsorted(uids, gone)
            places = places[places < len(uids)]
            places = np.unique(places[np.isin(uids[places], gone)])
            uids, flags, modseqs = np.delete(uids, places), np.delete(flags, places), np.delete(modseqs, places)
        if new:
            uids = np.concatenate([uids, np.array([item[0] for item in new], np.uint32)])
            flags = np.concatenate([flags, np.array([item[1] for item in new], np.uint64)])
            modseqs = np.concatenate([modseqs, np.array([item[2] for item in new], np.uint64)])
        if len(uids) != box.messages:
            return None  # rows and counters differ: all is read anew
        return Selected(box, uids, flags, modseqs)
