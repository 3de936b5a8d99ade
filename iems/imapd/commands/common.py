"""Parsers and steps that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from iems.imap import names, sequence
from iems.imap.grammar import SAVED, Arguments, Refused
from iems.imapd import places

if TYPE_CHECKING:
    from iems.imapd.places import Place
    from iems.imapd.session import Session
    from iems.imapd.view import View


def no_arguments(arguments: Arguments) -> None:
    """Parser of a command without arguments."""
    arguments.end()


def mailbox_argument(arguments: Arguments) -> str:
    """A space and the name of a mailbox."""
    arguments.space()
    return names.mailbox(arguments.astring(), arguments.utf8)


def one_mailbox(arguments: Arguments) -> str:
    """Parser of a command whose only argument is a mailbox."""
    name = mailbox_argument(arguments)
    arguments.end()
    return name


def selected(session: Session) -> View:
    """The view of the selected mailbox; the engine lets no command here without one."""
    view = session.view
    if view is None:
        raise Refused("No mailbox is selected")
    return view


def writable(session: Session) -> View:
    """The view, if the mailbox was opened for writing."""
    view = selected(session)
    if view.read_only:
        raise Refused("[READ-ONLY] Mailbox was opened read-only")
    return view


def chosen(view: View, ranges: sequence.Ranges, uid: bool) -> Sequence[int]:
    """The positions a sequence set stands for in what the client knows."""
    if ranges is SAVED:
        found_saved = [view.position(number) for number in view.saved or ()]
        return [at for at in found_saved if 0 <= at < view.told]
    if uid:
        found = sequence.uid_positions(ranges, view.uids)
        if len(found) and found[-1] >= view.told:
            return [at for at in found if at < view.told]
        return found
    return sequence.positions(ranges, view.told)


def present(view: View, positions: Sequence[int]) -> list[int]:
    """The uids at positions, those already expunged elsewhere left out."""
    uids = view.uids
    gone = view.gone
    if isinstance(positions, range):
        found = uids[positions.start : positions.stop].tolist()
    else:
        found = [uids[at] for at in positions]
    return [uid for uid in found if uid not in gone] if gone else found


def existing(session: Session, name: str, trycreate: bool = False, right: str = "r") -> Place:
    """The mailbox of a name. Raises `Refused` if there is none that holds messages, or the session lacks the right."""
    place = places.find(session, name)
    if place is None or place.box.noselect:
        code = "[TRYCREATE]" if trycreate else "[NONEXISTENT]"
        raise Refused(f"{code} No such mailbox")
    place.require(right)
    return place


def highest(session: Session, view: View) -> bytes:
    """The response code that QRESYNC asks for where messages went (RFC 7162 3.2.7); b"" without it."""
    return b"[HIGHESTMODSEQ %d] " % view.modseq if b"QRESYNC" in session.enabled else b""


def permitted(view: View, rights: str) -> None:
    """Raises `Refused` if the selected mailbox is another's and one of the rights is missing."""
    if view.rights is not None and any(right not in view.rights for right in rights):
        raise Refused("[NOPERM] You may not do this here")
