"""AUTHENTICATE PLAIN (RFC 3501 6.2.2, RFC 4616), with an initial response (RFC 4959)."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from iems.imap.grammar import Arguments, Bad
from iems.imapd.commands.login import authenticate
from iems.imapd.engine import Command, Spec, State

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from iems.imapd.session import Session


def parse(arguments: Arguments) -> tuple[bytes, bytes | None]:
    """(mechanism, initial response in base64 or None)."""
    arguments.space()
    mechanism = arguments.word()
    if arguments.at_end():
        return mechanism, None
    arguments.space()
    initial = arguments.data[arguments.pos :]
    return mechanism, b"" if initial == b"=" else initial


def run(session: Session, command: Command) -> bytes | Coroutine[Any, Any, bytes | None] | None:
    mechanism, initial = command.arguments
    if mechanism != b"PLAIN":
        return b"NO [CANNOT] Unknown mechanism"
    if not session.may_login:
        return b"NO [PRIVACYREQUIRED] Passwords are taken over TLS only"
    if initial is not None:
        return respond(session, initial)

    def response(line: bytes) -> None:
        try:
            session.start(command, respond(session, line))
        except Bad as fault:
            session.finish(command, b"BAD " + str(fault).encode())

    session.expect(response, b"")
    return None


def respond(session: Session, encoded: bytes) -> Coroutine[Any, Any, bytes | None]:
    """Go on with the client's response. Raises `Bad` if it is cancelled or malformed."""
    if encoded == b"*":
        raise Bad("Authentication cancelled")
    try:
        message = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise Bad("Malformed base64") from None
    parts = message.split(b"\0")
    if len(parts) != 3:
        raise Bad("Malformed PLAIN message")
    authzid, login, password = parts
    if authzid and authzid.lower() != login.lower():
        # Nobody acts for somebody else; the check below fails for an empty name.
        login = password = b""
    return authenticate(session, login, password)


SPECS = [Spec(b"AUTHENTICATE", State.NOT_AUTHENTICATED, parse, run)]
