"""COMPRESS DEFLATE (RFC 4978)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.imap.grammar import Arguments, Refused
from iems.imapd.engine import LOGGED_IN, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session


def parse(arguments: Arguments) -> bytes:
    """The arguments of COMPRESS. Raises Bad."""
    arguments.space()
    algorithm = arguments.word()
    arguments.end()
    return algorithm


def run(session: Session, command: Command) -> None:
    """Carry out COMPRESS; the text of the tagged answer. Raises Refused, StoreError."""
    if command.arguments != b"DEFLATE":
        raise Refused("[CANNOT] Unknown compression")
    if session.compressed:
        raise Refused("[COMPRESSIONACTIVE] Compression is on already")
    session.finish(command, b"OK DEFLATE active")
    session.compress()


SPECS = [Spec(b"COMPRESS", LOGGED_IN, parse, run)]
