"""SUBSCRIBE and UNSUBSCRIBE (RFC 3501 6.3.6, 6.3.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap import names
from iems.imap.grammar import Refused
from iems.imapd import places
from iems.imapd.commands.common import one_mailbox
from iems.imapd.engine import LOGGED_IN, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session


async def subscribe(session: Session, command: Command) -> bytes:
    """Carry out SUBSCRIBE; the text of the tagged answer. Raises Refused, StoreError."""
    name = names.check_new(command.arguments)
    if places.find(session, name) is None:
        raise Refused("[NONEXISTENT] No such mailbox")
    await session.services.store.subscribe(session.number, name)
    return b"OK SUBSCRIBE completed"


async def unsubscribe(session: Session, command: Command) -> bytes:
    """Carry out UNSUBSCRIBE; the text of the tagged answer. Raises Refused, StoreError."""
    # Also for a mailbox that is gone: that is how its name leaves the list.
    await session.services.store.unsubscribe(session.number, command.arguments.removesuffix("/"))
    return b"OK UNSUBSCRIBE completed"


SPECS = [
    Spec(b"SUBSCRIBE", LOGGED_IN, one_mailbox, subscribe),
    Spec(b"UNSUBSCRIBE", LOGGED_IN, one_mailbox, unsubscribe),
]
