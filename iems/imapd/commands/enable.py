"""ENABLE (RFC 5161)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap.grammar import Arguments
from iems.imapd.engine import LOGGED_IN, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session


def parse(arguments: Arguments) -> list[bytes]:
    wanted = []
    while True:
        arguments.space()
        wanted.append(arguments.word())
        if arguments.at_end():
            return wanted


def run(session: Session, command: Command) -> bytes:
    # What is unknown or was enabled before is left out of the answer, not refused (RFC 5161 3.1).
    if b"CONDSTORE" in command.arguments and b"CONDSTORE" not in session.enabled:
        session.want_modseq()
        session.send(b"* ENABLED CONDSTORE\r\n")
    else:
        session.send(b"* ENABLED\r\n")
    return b"OK ENABLE completed"


SPECS = [Spec(b"ENABLE", LOGGED_IN, parse, run)]
