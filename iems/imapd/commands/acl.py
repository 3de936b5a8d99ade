"""GETACL, SETACL, DELETEACL, LISTRIGHTS and MYRIGHTS (RFC 4314). Identifiers are addresses of accounts of this home.

In a shared mailbox they are its members: each has the rights of its membership until one with `a` gives it others in a mailbox, no more than
he has himself. Who is a member says the administrator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iems.imap import rights
from iems.imap.grammar import Arguments, Bad, Refused
from iems.imap.response import astring
from iems.imapd import places
from iems.imapd.commands.common import mailbox_argument, one_mailbox
from iems.imapd.engine import LOGGED_IN, Command, Spec
from iems.imapd.places import Place
from iems.store import shared

if TYPE_CHECKING:
    from iems.imapd.session import Session


def _identifier(arguments: Arguments) -> str:
    arguments.space()
    try:
        return arguments.astring().decode("utf-8")
    except UnicodeDecodeError:
        raise Bad("Identifier is not UTF-8") from None


def parse_two(arguments: Arguments) -> tuple[str, str]:
    """The arguments of DELETEACL and LISTRIGHTS. Raises Bad."""
    name = mailbox_argument(arguments)
    identifier = _identifier(arguments)
    arguments.end()
    return name, identifier


def parse_set(arguments: Arguments) -> tuple[str, str, bytes]:
    """The arguments of SETACL. Raises Bad."""
    name, identifier = mailbox_argument(arguments), _identifier(arguments)
    arguments.space()
    text = arguments.astring()
    arguments.end()
    rights.change("", text)  # so that bad letters are refused before anything else
    return name, identifier, text


def _place(session: Session, name: str, right: str) -> Place:
    place = places.find(session, name)
    if place is None or place.box.noselect:
        raise Refused("[NONEXISTENT] No such mailbox")
    if right:
        place.require(right)
    return place


def _other(session: Session, place: Place, identifier: str) -> Any:
    """The account of an identifier that can be given rights. Raises `Refused`."""
    directory = session.services.directory
    account = directory.account(identifier) if directory is not None else None
    if account is None:
        raise Refused("[NONEXISTENT] No account of this address")
    if account.number == place.account:
        raise Refused("[CANNOT] The owner has all rights")
    if place.owner.shared and _owner_now(session, place).member(account.number) is None:
        raise Refused("[CANNOT] Not a member of this shared mailbox; the administrator makes members")
    session.services.know(account)
    return account


def _owner_now(session: Session, place: Place) -> Any:
    return session.services.now_known(place.owner)


def _entries(session: Session, place: Place) -> list[tuple[str, str]]:
    """(address, rights) of all that have some."""
    reader = session.services.reader
    if not place.owner.shared:
        listed = reader.acl(place.account, place.box.id).items()
        return [(place.address, rights.ALL), *sorted((address, held) for address, (_, held) in listed)]
    owner = _owner_now(session, place)
    found = [(one.address, shared.rights(reader, owner, place.box.id, one.number)) for one in owner.members]
    return [(address, held) for address, held in found if held]


def run_get(session: Session, command: Command) -> bytes:
    """Carry out GETACL; the text of the tagged answer. Raises Refused, StoreError."""
    place = _place(session, command.arguments, "a")
    parts = []
    for address, held in _entries(session, place):
        parts += [astring(address.encode()), rights.render(held)]
    session.send(b"* ACL %b %b\r\n" % (session.mailbox_text(place.name), b" ".join(parts)))
    return b"OK GETACL completed"


async def run_set(session: Session, command: Command) -> bytes:
    """Carry out SETACL; the text of the tagged answer. Raises Refused, StoreError."""
    name, identifier, text = command.arguments
    place = _place(session, name, "a")
    account = _other(session, place, identifier)
    held = shared.rights(session.services.reader, _owner_now(session, place), place.box.id, account.number)
    new = rights.change(held, text)
    if place.owner.shared and any(letter not in place.all_rights for letter in new if letter not in held):
        raise Refused("[NOPERM] You can give only rights you have yourself")
    await _store(session, place, account, new)
    return b"OK SETACL completed"


async def run_delete(session: Session, command: Command) -> bytes:
    """Carry out DELETEACL; the text of the tagged answer. Raises Refused, StoreError."""
    name, identifier = command.arguments
    place = _place(session, name, "a")
    await _store(session, place, _other(session, place, identifier), "")
    return b"OK DELETEACL completed"


async def _store(session: Session, place: Place, account: Any, letters: str) -> None:
    """Put an entry on the list. The grantee's note of who shares is there before the right, and goes after the last one."""
    services = session.services
    if place.owner.shared:
        await services.store.set_acl(place.account, place.box.id, account.address, account.number, letters or shared.NOTHING)
        return
    if letters:
        await services.store.set_shared(account.number, place.account, True)
    await services.store.set_acl(place.account, place.box.id, account.address, account.number, letters)
    if not letters:
        for box in services.reader.mailboxes(place.account):
            if any(number == account.number for number, _ in services.reader.acl(place.account, box.id).values()):
                return
        await services.store.set_shared(account.number, place.account, False)


def run_list(session: Session, command: Command) -> bytes:
    """Carry out LISTRIGHTS; the text of the tagged answer. Raises Refused, StoreError."""
    name, identifier = command.arguments
    place = _place(session, name, "a")
    shown = astring(identifier.encode())
    if identifier.lower() == place.address.lower() and not place.owner.shared:
        listed = rights.render(rights.ALL)
    else:
        listed = b'"" ' + b" ".join([letter.encode() for letter in rights.ALL])
    session.send(b"* LISTRIGHTS %b %b %b\r\n" % (session.mailbox_text(place.name), shown, listed))
    return b"OK LISTRIGHTS completed"


def run_my(session: Session, command: Command) -> bytes:
    """Carry out MYRIGHTS; the text of the tagged answer. Raises Refused, StoreError."""
    place = _place(session, command.arguments, "")
    session.send(b"* MYRIGHTS %b %b\r\n" % (session.mailbox_text(place.name), rights.render(place.all_rights)))
    return b"OK MYRIGHTS completed"


SPECS = [
    Spec(b"GETACL", LOGGED_IN, one_mailbox, run_get),
    Spec(b"SETACL", LOGGED_IN, parse_set, run_set),
    Spec(b"DELETEACL", LOGGED_IN, parse_two, run_delete),
    Spec(b"LISTRIGHTS", LOGGED_IN, parse_two, run_list),
    Spec(b"MYRIGHTS", LOGGED_IN, one_mailbox, run_my),
]
