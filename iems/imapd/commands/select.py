"""SELECT and EXAMINE (RFC 3501 6.3.1, 6.3.2), with CONDSTORE and QRESYNC (RFC 7162), as RFC 9051 has it if enabled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from iems.errors import StoreError
from iems.imap import objectid, sequence
from iems.imap.grammar import SAVED, Arguments, Bad, Ranges, Refused
from iems.imapd.commands.common import existing, mailbox_argument
from iems.imapd.engine import LOGGED_IN, Command, Spec, Updates
from iems.imapd.view import UIDONLY, View

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from iems.imapd.places import Place
    from iems.imapd.session import Session

#: Pairs of the sequence match data that are looked at.
MAX_PAIRS = 10_000


class Resync(Struct, frozen=True):
    """The parameter QRESYNC: what the client knows of the mailbox."""

    uidvalidity: int
    modseq: int
    known: Ranges | None = None
    numbers: Ranges | None = None
    uids: Ranges | None = None


def _resync(arguments: Arguments) -> Resync:
    arguments.space()
    arguments.expect(b"(")
    uidvalidity = arguments.number()
    arguments.space()
    modseq = arguments.number64()
    known = numbers = uids = None
    if arguments.accept(b" "):
        if not arguments.looking_at(b"("):
            known = arguments.sequence_set()
            if known is SAVED:
                raise Bad("Uids expected")
        if known is None or arguments.accept(b" "):
            arguments.expect(b"(")
            numbers = arguments.sequence_set()
            arguments.space()
            uids = arguments.sequence_set()
            arguments.expect(b")")
            if numbers is SAVED or uids is SAVED:
                raise Bad("Numbers expected")
    arguments.expect(b")")
    return Resync(uidvalidity, modseq, known, numbers, uids)


def parse(arguments: Arguments) -> tuple[str, bool, Resync | None]:
    """(name, whether CONDSTORE is asked for, QRESYNC)."""
    name = mailbox_argument(arguments)
    condstore = False
    resync = None
    if arguments.accept(b" ("):
        while True:
            word = arguments.word()
            if word == b"QRESYNC":
                resync = _resync(arguments)
            elif word != b"CONDSTORE":
                raise Bad("Unknown SELECT parameter")
            condstore = True
            if arguments.accept(b")"):
                break
            arguments.space()
    arguments.end()
    return name, condstore, resync


def run(session: Session, command: Command) -> bytes | Coroutine[Any, Any, bytes]:
    """Carry out SELECT and EXAMINE; the text of the tagged answer. Raises Refused, StoreError."""
    name, condstore, resync = command.arguments
    if resync is not None and b"QRESYNC" not in session.enabled:
        raise Bad("QRESYNC was not enabled")
    if session.view is not None:
        session.deselect()
        session.send(b"* OK [CLOSED] Previous mailbox is closed\r\n")
    if condstore:
        session.want_modseq()
    place = existing(session, name)
    mailbox = place.box
    read_only = command.spec.name == b"EXAMINE" or not any(place.may(right) for right in "swte")
    if read_only or mailbox.recent_uid >= mailbox.uidnext or b"IMAP4REV2" in session.enabled:
        return open_view(session, place, read_only, mailbox.recent_uid, resync)
    return _take_recent(session, place, resync)


async def _take_recent(session: Session, place: Place, resync: Resync | None) -> bytes:
    try:
        recent_uid = await session.services.store.take_recent(place.account, place.box.id)
    except StoreError:
        # Reading goes on while the store's writer is away; the messages stay \Recent for the next session.
        recent_uid = place.box.recent_uid
    return open_view(session, place, False, recent_uid, resync)


def open_view(
    session: Session, place: Place, read_only: bool, recent_uid: int, resync: Resync | None = None
) -> bytes:
    """Select a mailbox and send what is to be known of it; the tagged reply."""
    services = session.services
    selected = services.views.select(services.reader, place.account, place.box.id, place.member)
    if selected is None:
        raise Refused("[NONEXISTENT] No such mailbox")
    rev2 = b"IMAP4REV2" in session.enabled
    view = View(place.account, selected, read_only, 1 << 32 if rev2 else recent_uid)
    view.rights = place.rights
    view.member = place.member
    session.select(view)
    parts = [view.flags_response(), b"* %d EXISTS\r\n" % len(view)]
    if rev2:
        parts.append(b'* LIST () "/" %b\r\n' % session.mailbox_text(place.name))
    else:
        parts.append(b"* %d RECENT\r\n" % view.recent())
        unseen = view.first_unseen() if not view.mode & UIDONLY else 0  # a number nobody can use
        if unseen:
            parts.append(b"* OK [UNSEEN %d] First unseen message\r\n" % unseen)
    parts.append(b"* OK [UIDVALIDITY %d] UIDs valid\r\n" % view.uidvalidity)
    parts.append(b"* OK [UIDNEXT %d] Predicted next UID\r\n" % view.uidnext)
    parts.append(b"* OK [HIGHESTMODSEQ %d] Highest\r\n" % view.modseq)
    parts.append(b"* OK [MAILBOXID (%b)] Stays\r\n" % objectid.mailbox(place.account, place.box.id))
    if resync is not None and resync.uidvalidity == view.uidvalidity and resync.modseq < view.modseq:
        parts.append(_resynced(session, view, selected, resync))
    session.send(b"".join(parts))
    return b"OK [READ-ONLY] EXAMINE completed" if read_only else b"OK [READ-WRITE] SELECT completed"


def _resynced(session: Session, view: View, selected: Any, resync: Resync) -> bytes:
    """VANISHED (EARLIER) and FETCH for what happened since (RFC 7162 3.2.5)."""
    parts = []
    gone = earlier(session, view, resync.modseq, resync.known)
    if gone and resync.numbers is not None and resync.uids is not None:
        low = _agreed(view, resync.numbers, resync.uids)
        gone = [uid for uid in gone if uid > low]
    if gone:
        parts.append(b"* VANISHED (EARLIER) " + sequence.render(gone) + b"\r\n")
    newer = np.nonzero(selected.modseq > resync.modseq)[0].tolist()
    if resync.known is not None:
        wanted = resync.known
        last = view.uids[-1] if view.uids else 0
        newer = [at for at in newer if sequence.contains(wanted, view.uids[at], last)]
    parts += [view.fetch_flags(at, True) for at in newer]
    return b"".join(parts)


def earlier(session: Session, view: View, since: int, known: Ranges | None) -> list[int]:
    """Uids that vanished after a mod-sequence; known: only of these."""
    gone: list[int] = session.services.reader.vanished(view.account, view.mailbox_id, since)
    if known is not None:
        last = view.uids[-1] if view.uids else 0
        gone = [uid for uid in gone if sequence.contains(known, uid, last)]
    return gone


def _agreed(view: View, numbers: Ranges, uids: Ranges) -> int:
    """The highest uid up to which client and server count alike (RFC 7162 3.2.5.2)."""
    low = 0
    pairs = zip(_counted(numbers), _counted(uids), strict=False)
    for _, (number, uid) in zip(range(MAX_PAIRS), pairs, strict=False):
        if not 1 <= number <= len(view) or view.uids[number - 1] != uid:
            break
        low = uid
    return low


def _counted(ranges: Ranges) -> Any:
    return (number for first, last in ranges for number in range(first, last + 1))


SPECS = [
    Spec(b"SELECT", LOGGED_IN, parse, run, Updates.NONE),
    Spec(b"EXAMINE", LOGGED_IN, parse, run, Updates.NONE),
]
