"""What a session tells without being asked: searches kept up to date (RFC 5267) and the selected mailbox for NOTIFY (5465)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.errors import StoreError
from iems.imap.fetch import Request
from iems.imap.grammar import Bad, Refused
from iems.imapd import contexts
from iems.imapd.commands import fetch

if TYPE_CHECKING:
    from iems.imapd.engine import Command
    from iems.imapd.session import Session
    from iems.imapd.view import View


async def finish_contexts(session: Session, command: Command, reply: bytes) -> None:
    """Tell of searches kept up to date, then the tagged reply."""
    text = await _context_updates(session)
    session.running = None
    if session.closing:
        return
    session.stream.send(text + command.tag + b" " + reply + b"\r\n")
    session.done(command, None)
    session.resume()


async def _context_updates(session: Session) -> bytes:
    try:
        return await contexts.update(session)
    except Exception as fault:
        # Updates are a service beside the command: without them its reply still comes.
        if not isinstance(fault, Refused | StoreError):
            session.services.error("search updates failed", fault)
        return b""


async def push_contexts(session: Session) -> None:
    """Tell an idling client of searches kept up to date."""
    text = await _context_updates(session)
    if session.idling and not session.closing:
        session.stream.send(text)


def notified(session: Session) -> None:
    """Something of the account changed: tell of the selected mailbox too, if NOTIFY asks for that."""
    notifier, view = session.notifier, session.view
    if notifier is None or view is None or session.idling or not notifier.may_tell() or not session.may_go_on():
        return
    session.refresh(False)
    if session.view is not view or session.closing:
        return
    assert notifier.selected is not None
    told = view.told
    text = view.updates(notifier.selected.kind == b"SELECTED")
    if text:
        session.send(text)
    request = notifier.selected.request
    if request is not None and view.told > told:
        new = range(told, view.told)
        session.running = session.services.loop.create_task(_tell_new(session, view, new, request))


async def _tell_new(session: Session, view: View, positions: range, request: Request) -> None:
    """FETCH of new messages, as NOTIFY asked for."""
    try:
        await fetch.tell(session, view, positions, request)
    except (Bad, Refused, StoreError):
        pass  # gone meanwhile: the client will be told
    except Exception as fault:
        session.services.error("NOTIFY failed", fault)
    session.running = None
    if not session.closing:
        session.resume()
