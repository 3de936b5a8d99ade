"""Searches kept up to date for a client: RETURN (UPDATE) and CANCELUPDATE (RFC 5267).

A context lives with the selected mailbox. After each command, and while the client idles, messages that changed or came
are judged again; what was expunged leaves with its EXPUNGE.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from iems.imap import sequence
from iems.imap.grammar import Refused
from iems.imap.response import string
from iems.imap.results import Returned

if TYPE_CHECKING:
    from iems.imapd.engine import Command
    from iems.imapd.session import Session
    from iems.imapd.view import View

#: Contexts of one session.
MAX_CONTEXTS = 16


class Context:
    """One search. found: uids that match, in order (ascending for SEARCH). modseq: every change up to it was judged."""

    __slots__ = ("found", "key", "modseq", "order", "tag", "uid")

    def __init__(
        self, tag: bytes, uid: bool, key: Any, order: tuple[tuple[bytes, bool], ...], found: list[int], modseq: int
    ) -> None:
        self.tag = tag
        self.uid = uid
        self.key = key
        self.order = order
        self.found = found
        self.modseq = modseq

    def _response(self, what: bytes, changes: list[tuple[int, list[int]]]) -> bytes:
        """An ESEARCH with changes: (position in the results, numbers)."""
        text = b" ".join([b"%d %b" % (place, sequence.render(numbers)) for place, numbers in changes])
        uid = b" UID" if self.uid else b""
        return b"* ESEARCH (TAG %b)%b %b (%b)\r\n" % (string(self.tag), uid, what, text)

    def remove(self, view: View, uids: list[int]) -> bytes:
        """Take uids out of the results; what to tell. Positions are of a moment when all of them still have a number."""
        going = set(uids)
        if not going.intersection(self.found):
            return b""
        changes: list[tuple[int, list[int]]] = []
        if not self.order:
            changes.append((0, [self._number(view, uid) for uid in self.found if uid in going]))
        else:
            # From the end, so that the positions told are right one after the other (RFC 5267 4.3.3).
            for place in range(len(self.found) - 1, -1, -1):
                if self.found[place] in going:
                    changes.append((place + 1, [self._number(view, self.found[place])]))
        self.found = [uid for uid in self.found if uid not in going]
        return self._response(b"REMOVEFROM", changes)

    def add(self, view: View, wanted: list[int]) -> bytes:
        """Make `wanted` (all uids that match, in order) the results; what came is told."""
        known = set(self.found)
        changes: list[tuple[int, list[int]]] = []
        if not self.order:
            new = [self._number(view, uid) for uid in wanted if uid not in known]
            changes = [(0, new)] if new else []
        else:
            for place, uid in enumerate(wanted):
                if uid not in known:
                    changes.append((place + 1, [self._number(view, uid)]))
        self.found = wanted
        return self._response(b"ADDTO", changes) if changes else b""

    def _number(self, view: View, uid: int) -> int:
        return uid if self.uid else bisect_left(view.uids, uid) + 1


def begin(
    session: Session,
    command: Command,
    returned: Returned,
    key: Any,
    order: tuple[tuple[bytes, bool], ...],
    positions: list[int],
) -> None:
    """Keep a search if UPDATE asks for it; too many are answered without updates, which RFC 5267 4.2 allows."""
    if b"UPDATE" not in returned.options:
        return
    view = session.view
    assert view is not None
    if view.contexts is None:
        view.contexts = {}
    if len(view.contexts) >= MAX_CONTEXTS or command.tag in view.contexts:
        session.send(b"* NO [NOUPDATE %b] No further search is kept up to date\r\n" % string(command.tag))
        return
    uid_form = command.spec.name.startswith(b"UID")
    found = [view.uids[at] for at in positions]
    view.contexts[command.tag] = Context(command.tag, uid_form, key, order, found, view.modseq)


def expunged(view: View, uids: list[int]) -> bytes:
    """What to tell of messages before their EXPUNGE."""
    return b"".join([context.remove(view, uids) for context in (view.contexts or {}).values()])


async def update(session: Session) -> bytes:
    """Judge again what changed; the ESEARCH responses for all contexts."""
    from iems.imapd.commands import search, sort

    view = session.view
    parts: list[bytes] = []
    for context in list((view.contexts or {}).values()) if view is not None else ():
        assert view is not None
        if view.modseq <= context.modseq:
            continue
        since, until = context.modseq, view.modseq
        changed = [at for at in range(view.told) if view.modseqs[at] > since]
        matching = {view.uids[at] for at in await search.find(session, view, context.key, changed)}
        touched = {view.uids[at] for at in changed}
        left = [uid for uid in context.found if uid in touched and uid not in matching]
        parts.append(context.remove(view, left))
        wanted = sorted(set(context.found) | matching)
        if context.order:
            places = [at for uid in wanted if (at := view.position(uid)) >= 0]
            wanted = [view.uids[at] for at in await sort.ordered(session, view, places, context.order)]
        parts.append(context.add(view, wanted))
        context.modseq = until
        if session.view is not view:
            raise Refused("The mailbox is gone")
    return b"".join(parts)
