"""GETQUOTA, GETQUOTAROOT and SETQUOTA (RFC 9208, 2087): roots are the account, and its domain (`@DOMAIN`) if that has a
quota; the directory says what they allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iems.imap.grammar import Arguments, Refused
from iems.imap.response import astring
from iems.imapd import places
from iems.imapd.commands.common import one_mailbox
from iems.imapd.engine import LOGGED_IN, Command, Spec

if TYPE_CHECKING:
    from iems.imapd.session import Session


def parse_root(arguments: Arguments) -> bytes:
    """The arguments of GETQUOTA. Raises Bad."""
    arguments.space()
    root = arguments.astring()
    arguments.end()
    return root


def parse_set(arguments: Arguments) -> None:
    """The arguments of SETQUOTA. Raises Bad."""
    arguments.space()
    arguments.astring()
    arguments.space()
    arguments.expect(b"(")
    if not arguments.accept(b")"):
        while True:
            arguments.word()
            arguments.space()
            arguments.number64()
            if arguments.accept(b")"):
                break
            arguments.space()
    arguments.end()


def _quota(session: Session, account: int, root: bytes, limit: int | None) -> bytes:
    if limit is None:
        return b"* QUOTA %b ()\r\n" % root
    used = session.services.reader.usage(account)[0]
    return b"* QUOTA %b (STORAGE %d %d)\r\n" % (root, -(-used // 1024), limit // 1024)


def _domain(session: Session, owner: Any) -> tuple[bytes, bytes] | None:
    """The root of the domain of an account and its response; None without a quota."""
    now = session.services.now_known(owner)
    limit = now.domain_quota_octets
    if limit is None:
        return None
    root = astring(b"@" + now.domain.encode())
    used = session.services.reader.domain_octets(now.domain)
    return root, b"* QUOTA %b (STORAGE %d %d)\r\n" % (root, -(-used // 1024), limit // 1024)


def run_get(session: Session, command: Command) -> bytes:
    """Carry out GETQUOTA; the text of the tagged answer. Raises Refused, StoreError."""
    if command.arguments:
        found = _domain(session, session.account)
        if found is not None and command.arguments.lower() == b"@" + session.account.domain.encode():
            session.send(found[1])
            return b"OK GETQUOTA completed"
        raise Refused("[NONEXISTENT] No such quota root")
    session.send(_quota(session, session.number, b'""', session.services.now_known(session.account).quota_octets))
    return b"OK GETQUOTA completed"


def run_root(session: Session, command: Command) -> bytes:
    """Carry out GETQUOTAROOT; the text of the tagged answer. Raises Refused, StoreError."""
    name = command.arguments
    place = places.find(session, name)
    if place is None:
        raise Refused("[NONEXISTENT] No such mailbox")
    place.require("r")
    root = b'""' if place.rights is None else astring(place.address.encode())
    text = _quota(session, place.account, root, place.quota_octets)
    domain = _domain(session, place.owner)
    # What another domain keeps is not for members of this one.
    if domain is not None and place.owner.domain == session.account.domain:
        root, text = root + b" " + domain[0], text + domain[1]
    session.send(b"* QUOTAROOT %b %b\r\n" % (session.mailbox_text(name), root) + text)
    return b"OK GETQUOTAROOT completed"


def run_set(session: Session, command: Command) -> bytes:
    """Carry out SETQUOTA; the text of the tagged answer. Raises Refused, StoreError."""
    raise Refused("[NOPERM] Quotas are set by the administrator")


SPECS = [
    Spec(b"GETQUOTA", LOGGED_IN, parse_root, run_get),
    Spec(b"GETQUOTAROOT", LOGGED_IN, one_mailbox, run_root),
    Spec(b"SETQUOTA", LOGGED_IN, parse_set, run_set),
]
