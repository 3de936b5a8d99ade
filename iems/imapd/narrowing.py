"""Leaves out of a search the messages that can't match, by the full-text index; the exact check of the others is `commands.search`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from iems.fulltext.index import GRAM
from iems.imap import search
from iems.imap.grammar import Refused
from iems.message.text import fold

if TYPE_CHECKING:
    from iems.fulltext.finder import Found, Text
    from iems.imapd.session import Session
    from iems.imapd.view import View

#: Fields whose addresses are compared as they are meant, too, which need not be as they are written.
ADDRESSES = (b"FROM", b"TO", b"CC", b"BCC", b"SENDER", b"REPLY-TO")
#: Messages to look at below which the index is not asked, and messages it lacks from which on it is brought up to date.
FEW = 50

Mask = Any  # numpy bool array over the open questions


async def narrowed(session: Session, view: View, key: Any, judged: Any, positions: list[int]) -> tuple[list[int], bool]:
    """Those of `positions` (ascending) that may match, and whether the index is to be made or brought up to date once the search is answered.

    judged: what view and rows know, `of(key)` giving (holds, may hold). All of them may match if the key has no text to look up, or there is no
    index yet.
    """
    finder = session.services.finder
    if finder is None or len(positions) < FEW:
        return positions, False
    texts = _texts(key)
    if not texts:
        return positions, False
    found = await finder.find(view.account, view.mailbox_id, texts)
    if session.view is not view:
        raise Refused("The mailbox is gone")
    uids = np.frombuffer(view.uids.tobytes(), np.uint32)
    behind = int(np.count_nonzero(uids > (found.upto if found else 0)))
    want = behind >= (FEW if found else session.services.fulltext_from)
    if found is None:
        return positions, want
    at = np.array(positions, np.int64)
    uids = uids[at]
    unknown = (uids > found.upto) | np.isin(uids, found.long)
    keep: list[int] = at[unknown | _may(key, judged, found, at, uids)].tolist()
    return keep, want


def _texts(key: Any) -> set[Text]:
    """The texts the index can be asked for, where an answer leaves something out."""
    match key:
        case search.And(keys):
            return {text for part in keys for text in _texts(part)}
        case search.Or(left, right):
            return _texts(left) | _texts(right)
    text = _text(key)
    return {text} if text is not None and len(text[0]) >= GRAM else set()


def _text(key: Any) -> Text | None:
    """What the index is asked for a key; of a field it knows only that its value is in the header."""
    match key:
        case search.Text(text, header):
            return fold(text), not header
        case search.Header(name, text) if name not in ADDRESSES:
            return fold(text), False
    return None


def _may(key: Any, judged: Any, found: Found, at: np.ndarray, uids: np.ndarray) -> Mask:
    """Which of the messages at positions `at` may match, as far as the index knows them."""
    match key:
        case search.And(keys):
            mask = np.ones(len(at), bool)
            for part in keys:
                mask &= _may(part, judged, found, at, uids)
            return mask
        case search.Or(left, right):
            return _may(left, judged, found, at, uids) | _may(right, judged, found, at, uids)
    text = _text(key)
    known = found.uids.get(text) if text is not None else None
    return np.isin(uids, known) if known is not None else judged.of(key)[1][at]
