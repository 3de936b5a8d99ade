"""ENABLE (RFC 5161): CONDSTORE and QRESYNC (7162), UTF8=ACCEPT (6855), IMAP4rev2 (9051), UIDONLY (9586)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap.grammar import Arguments
from iems.imapd.engine import LOGGED_IN, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session

#: What can be enabled, as it is written in the answer.
_NAMES = {
    b"CONDSTORE": b"CONDSTORE",
    b"QRESYNC": b"QRESYNC",
    b"UTF8=ACCEPT": b"UTF8=ACCEPT",
    b"IMAP4REV2": b"IMAP4rev2",
    b"UIDONLY": b"UIDONLY",
}


def parse(arguments: Arguments) -> list[bytes]:
    """The arguments of ENABLE. Raises Bad."""
    wanted = []
    while True:
        arguments.space()
        wanted.append(arguments.word())
        if arguments.at_end():
            return wanted


def run(session: Session, command: Command) -> bytes:
    """Carry out ENABLE; the text of the tagged answer. Raises Refused, StoreError."""
    # What is unknown or was enabled before is left out of the answer, not refused (RFC 5161 3.1).
    new = [word for word in dict.fromkeys(command.arguments) if word in _NAMES and word not in session.enabled]
    if b"CONDSTORE" in new or b"QRESYNC" in new:
        session.want_modseq()
    session.enable(new)
    session.send(b"* ENABLED" + b"".join([b" " + _NAMES[word] for word in new]) + b"\r\n")
    return b"OK ENABLE completed"


SPECS = [Spec(b"ENABLE", LOGGED_IN, parse, run)]
