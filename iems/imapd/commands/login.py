"""LOGIN (RFC 3501 6.2.3), and what it shares with AUTHENTICATE: checking a password and opening the account."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iems.errors import LoginHeldBack
from iems.imap.grammar import Arguments
from iems.imapd.commands.capability import capabilities
from iems.imapd.engine import Command, Spec, State

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from iems.directory import Account
    from iems.imapd.session import Session


def parse(arguments: Arguments) -> tuple[bytes, bytes]:
    """The arguments of LOGIN. Raises Bad."""
    arguments.space()
    login = arguments.astring()
    arguments.space()
    password = arguments.astring()
    arguments.end()
    return login, password


def run(session: Session, command: Command) -> bytes | Coroutine[Any, Any, bytes | None]:
    """Carry out LOGIN; the text of the tagged answer. Raises Refused, StoreError."""
    if not session.may_login:
        return b"NO [PRIVACYREQUIRED] Passwords are taken over TLS only"
    login, password = command.arguments
    return authenticate(session, login, password)


async def authenticate(session: Session, login: bytes, password: bytes) -> bytes | None:
    """Check a login and open its account; the text of the tagged reply."""
    services = session.services
    try:
        name, secret = login.decode("utf-8"), password.decode("utf-8")
    except UnicodeDecodeError:
        name, secret = "", ""
    if "\0" in name or "\0" in secret:
        name = secret = ""
    try:
        account = await services.authenticator.check(name, secret, session.peer_ip)
    except LoginHeldBack:
        return held_back(session)
    return failed(session, name) if account is None else await welcome(session, account)


def failed(session: Session, name: str) -> bytes:
    """Count and log a failure; the text of the tagged reply. One too many ends the session."""
    services = session.services
    services.count("logins_failed_total")
    services.log("login-failed", protocol="imap", user=name[:320], peer=session.peer_ip)
    _one_more(session)
    return b"NO [AUTHENTICATIONFAILED] Wrong name or password"


def held_back(session: Session) -> bytes:
    """The reply to an attempt that came too early."""
    _one_more(session)
    return b"NO [UNAVAILABLE] Too many failed logins from your network, try again later"


def _one_more(session: Session) -> None:
    session.failures += 1
    if session.failures >= session.services.max_failures:
        session.leaving = b"* BYE Too many failed logins\r\n"


async def welcome(session: Session, account: Account) -> bytes:
    """Open the account of a login; the text of the tagged reply."""
    services = session.services
    services.know(account)
    if not services.reader.mailboxes(account.number):
        await services.store.ensure(account.number)
    session.logged_in(account)
    services.count("logins_total")
    services.log(
        "login", protocol="imap", user=account.address, peer=session.peer_ip, tls=session.stream.secure
    )
    return b"OK [CAPABILITY " + capabilities(session) + b"] Logged in"


SPECS = [Spec(b"LOGIN", State.NOT_AUTHENTICATED, parse, run)]
