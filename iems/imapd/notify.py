"""What a client wants to hear of without asking (RFC 5465): the state behind the command NOTIFY.

One watch of the whole account, and one of each other account that has mailboxes for this one if a filter names such; when something
changed, mailboxes are compared with what the client was told of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from iems.errors import DirectoryUnavailable
from iems.imap import fetch
from iems.imapd import places
from iems.imapd.engine import State
from iems.store.shared import ROOTS

if TYPE_CHECKING:
    from iems.imapd.session import Session

#: Changes are gathered this long before mailboxes are compared, so that a busy account costs little.
GATHER_S = 0.05

EVENTS = (b"MessageNew", b"MessageExpunge", b"FlagChange", b"MailboxName", b"SubscriptionChange")


class Group(Struct, frozen=True):
    """Events of one filter. kind: PERSONAL, INBOXES, SUBSCRIBED, SUBTREE, MAILBOXES, SELECTED, SELECTED-DELAYED."""

    kind: bytes
    names: tuple[str, ...]
    events: frozenset[bytes]
    request: fetch.Request | None = None

    @property
    def beyond(self) -> bool:
        """Whether mailboxes of others may be meant."""
        return self.kind == b"SUBSCRIBED" or any((name + "/").startswith(ROOTS) for name in self.names)

    def holds(self, box: Any) -> bool:
        """Whether a mailbox is among those meant."""
        if self.kind == b"PERSONAL":
            return not box.foreign
        if self.kind == b"INBOXES":
            return bool(box.name == "INBOX")
        if self.kind == b"SUBSCRIBED":
            return bool(box.subscribed)
        if self.kind == b"MAILBOXES":
            return box.name in self.names
        if self.kind == b"SUBTREE":
            return any(box.name == name or box.name.startswith(name + "/") for name in self.names)
        return False


class _Known(Struct, frozen=True):
    """What the client knows of a mailbox. name: as the client calls it. member: whose \\Seen counts; 0: there is one for all."""

    account: int
    id: int
    name: str
    subscribed: bool
    noselect: bool
    uidvalidity: int
    uidnext: int
    messages: int
    unseen: int
    highestmodseq: int
    foreign: bool = False
    member: int = 0


def _known(account: int, box: Any, name: str, subscribed: bool, foreign: bool = False, member: int = 0) -> _Known:
    return _Known(
        account, box.id, name, subscribed, box.noselect, box.uidvalidity, box.uidnext, box.messages, box.unseen,
        box.highestmodseq, foreign, member,
    )  # fmt: skip


class Notifier:
    """The groups a session asked for; the first one that holds a mailbox decides about it (RFC 5465 3).

    then(session): called when mailboxes were compared, to tell of the selected one.
    """

    def __init__(self, session: Session, groups: list[Group], then: Callable[[Session], None]) -> None:
        self._session = session
        self._then = then
        self.groups = [group for group in groups if not group.kind.startswith(b"SELECTED")]
        self.selected = next((group for group in groups if group.kind.startswith(b"SELECTED")), None)
        self._beyond = any(group.beyond for group in self.groups)
        self._watched: set[int] = set()
        self._waiting = False
        self._account = session.number
        self._boxes: dict[tuple[int, int], _Known] = {}
        self._boxes = self._now()

    def close(self) -> None:
        """No more notifications."""
        for account in self._watched:
            self._session.services.store.unwatch(account, 0, self._changed)
        self._watched.clear()
        self._waiting = True

    def _now(self) -> dict[tuple[int, int], _Known]:
        """The mailboxes as they are, all their accounts watched."""
        session = self._session
        reader = session.services.reader
        accounts = {self._account}
        found = {(self._account, box.id): _known(self._account, box, box.name, box.subscribed) for box in reader.mailboxes(self._account)}
        if self._beyond:
            subscribed = set(reader.subscriptions(self._account))
            try:
                accounts.update(owner.number for owner in places.owners(session))
                for place in places.foreign(session):
                    if place.may("r"):
                        known = _known(place.account, place.box, place.name, place.name in subscribed, True, place.member)
                        found[place.account, place.box.id] = known
            except DirectoryUnavailable:
                found |= {key: known for key, known in self._boxes.items() if known.foreign}
        for account in accounts - self._watched:
            session.services.store.watch(account, 0, self._changed)
        self._watched |= accounts
        return found

    def group(self, box: Any) -> Group | None:
        """The group that decides about a mailbox."""
        return next((group for group in self.groups if group.holds(box)), None)

    def statuses(self) -> bytes:
        """STATUS of all mailboxes whose messages are watched, for SET STATUS."""
        parts = []
        for box in self._boxes.values():
            group = self.group(box)
            if group is None or box.noselect or self._is_selected(box):
                continue
            if group.events & {b"MESSAGENEW", b"MESSAGEEXPUNGE", b"FLAGCHANGE"}:
                parts.append(self._status(box, True, True))
        return b"".join(parts)

    def _is_selected(self, box: _Known) -> bool:
        view = self._session.view
        return view is not None and (view.account, view.mailbox_id) == (box.account, box.id)

    def _changed(self, modseq: int) -> None:
        if not self._waiting:
            self._waiting = True
            self._session.services.loop.call_later(GATHER_S, self._look)

    def _look(self) -> None:
        session = self._session
        if session.notifier is not self:
            return
        self._waiting = False
        if session.closing:
            return
        now = self._now()
        parts = []
        for key, known in now.items():
            old = self._boxes.get(key)
            if old != known:
                parts.append(self._of(old, known))
        for key, gone in self._boxes.items():
            if key not in now:
                parts.append(self._gone(gone))
        self._boxes = now
        text = b"".join(parts)
        if text:
            session.send(text)
        self._then(session)

    def _of(self, old: _Known | None, now: _Known) -> bytes:
        """What to tell of one mailbox."""
        group = self.group(now)
        if group is None:
            return b""
        events = group.events
        text = self._session.mailbox_text
        parts = []
        attributes = [rb"\NonExistent"] if now.noselect else []
        attributes += [rb"\Subscribed"] if now.subscribed else []
        if b"MAILBOXNAME" in events and (old is None or old.name != now.name or old.noselect != now.noselect):
            renamed = b' ("OLDNAME" (%b))' % text(old.name) if old is not None and old.name != now.name else b""
            parts.append(b'* LIST (%b) "/" %b%b\r\n' % (b" ".join(attributes), text(now.name), renamed))
        elif b"SUBSCRIPTIONCHANGE" in events and old is not None and old.subscribed != now.subscribed:
            parts.append(b'* LIST (%b) "/" %b\r\n' % (b" ".join(attributes), text(now.name)))
        if now.noselect or self._is_selected(now):
            return b"".join(parts)
        counts = old is None or (old.messages, old.uidnext) != (now.messages, now.uidnext)
        flags = old is not None and not counts and old.highestmodseq != now.highestmodseq
        if (counts and events & {b"MESSAGENEW", b"MESSAGEEXPUNGE"}) or (flags and b"FLAGCHANGE" in events):
            parts.append(self._status(now, counts, b"FLAGCHANGE" in events))
        return b"".join(parts)

    def _status(self, box: _Known, counts: bool, flags: bool) -> bytes:
        items = [b"UIDVALIDITY %d" % box.uidvalidity]
        if counts:
            items += [b"MESSAGES %d" % box.messages, b"UIDNEXT %d" % box.uidnext]
        if flags:
            unseen = self._session.services.reader.unseen(box.account, box, box.member) if box.member else box.unseen
            items.append(b"UNSEEN %d" % unseen)
            if b"CONDSTORE" in self._session.enabled:
                items.append(b"HIGHESTMODSEQ %d" % box.highestmodseq)
        return b"* STATUS %b (%b)\r\n" % (self._session.mailbox_text(box.name), b" ".join(items))

    def _gone(self, old: _Known) -> bytes:
        group = self.group(old)
        if group is None or b"MAILBOXNAME" not in group.events:
            return b""
        return b'* LIST (\\NonExistent) "/" %b\r\n' % self._session.mailbox_text(old.name)

    def may_tell(self) -> bool:
        """Whether the selected mailbox's changes may be told now: no command runs or is on its way."""
        session = self._session
        return (
            self.selected is not None
            and session.running is None
            and session.engine.state == State.SELECTED
            and session.engine.idle
        )
