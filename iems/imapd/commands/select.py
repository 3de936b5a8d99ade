"""SELECT and EXAMINE (RFC 3501 6.3.1, 6.3.2), with CONDSTORE (RFC 7162)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.errors import StoreError
from iems.imap.grammar import Arguments, Bad, Refused
from iems.imapd.commands.common import existing, mailbox_argument
from iems.imapd.engine import LOGGED_IN, Command, Spec, Updates
from iems.imapd.view import View

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from iems.imapd.session import Session


def parse(arguments: Arguments) -> tuple[str, bool]:
    """(name, whether CONDSTORE is asked for)."""
    name = mailbox_argument(arguments)
    condstore = False
    if arguments.accept(b" ("):
        while True:
            if arguments.word() != b"CONDSTORE":
                raise Bad("Unknown SELECT parameter")
            condstore = True
            if arguments.accept(b")"):
                break
            arguments.space()
    arguments.end()
    return name, condstore


def run(session: Session, command: Command) -> bytes | Coroutine[Any, Any, bytes]:
    name, condstore = command.arguments
    if session.view is not None:
        session.deselect()
        session.send(b"* OK [CLOSED] Previous mailbox is closed\r\n")
    if condstore:
        session.want_modseq()
    mailbox = existing(session, name)
    read_only = command.spec.name == b"EXAMINE"
    if read_only or mailbox.recent_uid >= mailbox.uidnext:
        return open_view(session, mailbox, read_only, mailbox.recent_uid)
    return _take_recent(session, mailbox)


async def _take_recent(session: Session, mailbox: Any) -> bytes:
    try:
        recent_uid = await session.services.store.take_recent(session.number, mailbox.id)
    except StoreError:
        # Reading goes on while the store's writer is away; the messages stay \Recent for the next session.
        recent_uid = mailbox.recent_uid
    return open_view(session, mailbox, False, recent_uid)


def open_view(session: Session, mailbox: Any, read_only: bool, recent_uid: int) -> bytes:
    """Select a mailbox and send what is to be known of it; the tagged reply."""
    selected = session.services.reader.select(session.number, mailbox.id)
    if selected is None:
        raise Refused("[NONEXISTENT] No such mailbox")
    view = View(session.number, selected, read_only, recent_uid)
    session.select(view)
    parts = [
        view.flags_response(),
        b"* %d EXISTS\r\n* %d RECENT\r\n" % (len(view), view.recent()),
    ]
    unseen = view.first_unseen()
    if unseen:
        parts.append(b"* OK [UNSEEN %d] First unseen message\r\n" % unseen)
    parts.append(b"* OK [UIDVALIDITY %d] UIDs valid\r\n" % view.uidvalidity)
    parts.append(b"* OK [UIDNEXT %d] Predicted next UID\r\n" % view.uidnext)
    parts.append(b"* OK [HIGHESTMODSEQ %d] Highest\r\n" % view.modseq)
    session.send(b"".join(parts))
    return b"OK [READ-ONLY] EXAMINE completed" if read_only else b"OK [READ-WRITE] SELECT completed"


SPECS = [
    Spec(b"SELECT", LOGGED_IN, parse, run, Updates.NONE),
    Spec(b"EXAMINE", LOGGED_IN, parse, run, Updates.NONE),
]
