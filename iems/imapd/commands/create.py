"""CREATE (RFC 3501 6.3.3), with USE (RFC 6154)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap import names, objectid
from iems.imap.grammar import Arguments, Bad, Refused
from iems.imapd import places
from iems.imapd.commands.common import mailbox_argument
from iems.imapd.engine import LOGGED_IN, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session

_USES = {
    use.upper(): use for use in ("\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash")
}


def parse(arguments: Arguments) -> tuple[str, list[str]]:
    """The arguments of CREATE. Raises Bad."""
    name = mailbox_argument(arguments)
    uses: list[str] = []
    if arguments.accept(b" ("):
        word = arguments.word()
        if word != b"USE":
            raise Bad("USE expected")
        arguments.space()
        uses = [flag.decode("ascii", "replace").upper() for flag in arguments.flag_list()]
        arguments.expect(b")")
    arguments.end()
    return name, uses


async def run(session: Session, command: Command) -> bytes:
    """Carry out CREATE; the text of the tagged answer. Raises Refused, StoreError."""
    name, uses = command.arguments
    special_use = ""
    if uses:
        if len(uses) > 1 or uses[0] not in _USES or uses[0] in ("\\ALL", "\\FLAGGED"):
            raise Refused("[USEATTR] A mailbox can have one of \\Archive \\Drafts \\Junk \\Sent \\Trash")
        special_use = _USES[uses[0]]
        if any(box.special_use == special_use for box in session.services.reader.mailboxes(session.number)):
            raise Refused("[USEATTR] Another mailbox has this use")
    account, inner = session.number, names.check_new(name)
    above = places.above(session, inner)
    if above is not None:
        owner, inner, rights = above
        if "k" not in rights:
            raise Refused("[NOPERM] You may not do this here")
        account = owner.number
        if uses:
            raise Refused("[USEATTR] Special uses are the owner's to give")
    box = await session.services.store.create(account, inner, special_use)
    return b"OK [MAILBOXID (%b)] CREATE completed" % objectid.mailbox(account, box.id)


SPECS = [Spec(b"CREATE", LOGGED_IN, parse, run)]
