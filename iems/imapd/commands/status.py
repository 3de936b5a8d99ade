"""STATUS (RFC 3501 6.3.10), with SIZE (RFC 8438), HIGHESTMODSEQ (7162), DELETED (9051) and APPENDLIMIT (7889)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iems.imap import objectid
from iems.imap.flags import DELETED
from iems.imap.grammar import Arguments, Bad
from iems.imapd.commands.common import existing, mailbox_argument
from iems.imapd.engine import LOGGED_IN, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session

_KNOWN = {
    b"MESSAGES",
    b"RECENT",
    b"UIDNEXT",
    b"UIDVALIDITY",
    b"UNSEEN",
    b"HIGHESTMODSEQ",
    b"SIZE",
    b"DELETED",
    b"APPENDLIMIT",
    b"MAILBOXID",
    b"DELETED-STORAGE",
}


def items(arguments: Arguments) -> tuple[bytes, ...]:
    """The parenthesized list of items."""
    arguments.expect(b"(")
    wanted: dict[bytes, None] = {}
    while True:
        word = arguments.word()
        if word not in _KNOWN:
            raise Bad(f"Unknown STATUS item {word.decode()}")
        wanted[word] = None
        if arguments.accept(b")"):
            return tuple(wanted)
        arguments.space()


def parse(arguments: Arguments) -> tuple[str, tuple[bytes, ...]]:
    """The arguments of STATUS. Raises Bad."""
    name = mailbox_argument(arguments)
    arguments.space()
    wanted = items(arguments)
    arguments.end()
    return name, wanted


def response(session: Session, account: int, box: Any, name: str, wanted: tuple[bytes, ...], member: int = 0) -> bytes:
    """The STATUS response of a mailbox. name: as the client names it. member: whose \\Seen counts, in a shared mailbox."""
    parts = []
    for item in wanted:
        if item == b"MESSAGES":
            value = box.messages
        elif item == b"RECENT":
            value = _recent(session, account, box)
        elif item == b"UIDNEXT":
            value = box.uidnext
        elif item == b"UIDVALIDITY":
            value = box.uidvalidity
        elif item == b"UNSEEN":
            value = session.services.reader.unseen(account, box, member) if member else box.unseen
        elif item == b"HIGHESTMODSEQ":
            value = box.highestmodseq
            session.want_modseq()
        elif item == b"SIZE":
            value = box.size
        elif item == b"DELETED":
            value = box.deleted
        elif item == b"DELETED-STORAGE":
            value = _deleted_octets(session, account, box)
        elif item == b"MAILBOXID":
            parts.append(b"MAILBOXID (%b)" % objectid.mailbox(account, box.id))
            continue
        else:
            value = session.services.limits.content
            if not value:
                parts.append(b"APPENDLIMIT NIL")
                continue
        parts.append(b"%b %d" % (item, value))
    return b"* STATUS %b (%b)\r\n" % (session.mailbox_text(name), b" ".join(parts))


def _deleted_octets(session: Session, account: int, box: Any) -> int:
    """Octets of the messages that EXPUNGE would remove (RFC 9208 4.1.4)."""
    found = session.services.reader.table(account, box.id) if box.deleted else None
    if found is None:
        return 0
    table = found[1]
    return int(table["size"][(table["flags"] & DELETED) != 0].sum(dtype="u8"))


def _recent(session: Session, account: int, box: Any) -> int:
    if box.recent_uid >= box.uidnext:
        return 0
    selected = session.services.reader.select(account, box.id)
    return 0 if selected is None else sum(1 for uid in selected.uids if uid >= box.recent_uid)


def run(session: Session, command: Command) -> bytes:
    """Carry out STATUS; the text of the tagged answer. Raises Refused, StoreError."""
    name, wanted = command.arguments
    place = existing(session, name)
    session.send(response(session, place.account, place.box, place.name, wanted, place.member))
    return b"OK STATUS completed"


SPECS = [Spec(b"STATUS", LOGGED_IN, parse, run)]
