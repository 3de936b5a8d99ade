"""ID (RFC 2971)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import iems
from iems.imap.grammar import Arguments, Bad
from iems.imap.response import string
from iems.imapd.engine import ANY, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session

#: RFC 2971 3.3.
MAX_FIELDS = 30
MAX_NAME_OCTETS = 30
MAX_VALUE_OCTETS = 1024

_REPLY = b'* ID ("name" "IEMS" "version" ' + string(iems.__version__.encode()) + b")\r\n"


def parse(arguments: Arguments) -> dict[str, str]:
    """What the client says of itself."""
    arguments.space()
    said: dict[str, str] = {}
    if not arguments.accept(b"("):
        if arguments.nstring() is not None:
            raise Bad("List or NIL expected")
        arguments.end()
        return said
    if not arguments.accept(b")"):
        while True:
            name = arguments.string()
            arguments.space()
            value = arguments.nstring()
            if len(name) > MAX_NAME_OCTETS or len(value or b"") > MAX_VALUE_OCTETS or len(said) >= MAX_FIELDS:
                raise Bad("Too much in ID")
            said[name.decode("utf-8", "replace").lower()] = (value or b"").decode("utf-8", "replace")
            if arguments.accept(b")"):
                break
            arguments.space()
    arguments.end()
    return said


def run(session: Session, command: Command) -> bytes:
    """Carry out ID; the text of the tagged answer. Raises Refused, StoreError."""
    said = command.arguments
    if said:
        session.services.log(
            "imap-client", peer=session.peer_ip, name=said.get("name", ""), version=said.get("version", "")
        )
    session.send(_REPLY)
    return b"OK ID completed"


SPECS = [Spec(b"ID", ANY, parse, run)]
