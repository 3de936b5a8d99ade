"""AUTHENTICATE (RFC 3501 6.2.2), with an initial response (RFC 4959): the mechanisms are in `iems.sasl`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems import sasl
from iems.directory.login import settle
from iems.errors import LoginHeldBack
from iems.imap.grammar import Arguments, Bad
from iems.imapd.commands.capability import mechanisms
from iems.imapd.commands.login import failed, held_back, welcome
from iems.imapd.engine import Command, Spec, State

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from iems.imapd.session import Session

    _Result = bytes | Coroutine[Any, Any, bytes | None] | None


def parse(arguments: Arguments) -> tuple[bytes, bytes | None]:
    """(mechanism, initial response in base64 or None)."""
    arguments.space()
    mechanism = arguments.word()
    if arguments.at_end():
        return mechanism, None
    arguments.space()
    return mechanism, arguments.data[arguments.pos :]


def run(session: Session, command: Command) -> _Result:
    """Carry out AUTHENTICATE; the text of the tagged answer. Raises Refused, StoreError."""
    mechanism, initial = command.arguments
    if not session.may_login:
        return b"NO [PRIVACYREQUIRED] Passwords are taken over TLS only"
    name = mechanism.upper()
    exchange = None
    if name in mechanisms(session):
        exchange = sasl.begin(name, session.services.authenticator.offer, session.bindings)
    if exchange is None:
        return b"NO [CANNOT] Unknown mechanism"
    return _go_on(session, command, exchange, sasl.first(exchange, initial))


def _go_on(session: Session, command: Command, exchange: sasl.Exchange, outcome: sasl.Outcome) -> _Result:
    """Do what an outcome asks for. Raises `Bad` if the client's message was malformed."""
    if isinstance(outcome, sasl.Challenge):
        _challenge(session, command, exchange, outcome)
        return None
    if isinstance(outcome, sasl.Refused) and outcome.why == sasl.MALFORMED:
        raise Bad("Malformed authentication message")
    return _settled(session, command, exchange, outcome)


def _challenge(
    session: Session, command: Command, exchange: sasl.Exchange, challenge: sasl.Challenge
) -> None:
    def response(line: bytes) -> None:
        try:
            if line == b"*":
                raise Bad("Authentication cancelled")
            octets = sasl.decode(line)
            if octets is None:
                raise Bad("Malformed base64")
            result = _go_on(session, command, exchange, exchange.step(octets))
        except Bad as fault:
            session.finish(command, b"BAD " + str(fault).encode())
        else:
            if result is not None:
                assert not isinstance(result, bytes)
                session.start(command, result)

    session.expect(response, sasl.encode(challenge.octets))


async def _settled(
    session: Session, command: Command, exchange: sasl.Exchange, outcome: sasl.Outcome
) -> bytes | None:
    """Ask the directory; the text of the tagged reply, None if another challenge goes out first."""
    try:
        found = await settle(session.services.authenticator, exchange, outcome, session.peer_ip)
    except LoginHeldBack:
        return held_back(session)
    if isinstance(found, sasl.Challenge):
        _challenge(session, command, exchange, found)
        return None
    if isinstance(found, sasl.Refused):
        if found.why == sasl.MALFORMED:
            raise Bad("Malformed authentication message")
        return failed(session, exchange.login)
    return await welcome(session, found)


SPECS = [Spec(b"AUTHENTICATE", State.NOT_AUTHENTICATED, parse, run)]
