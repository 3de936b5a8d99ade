"""Recipients of relay domains at RCPT: taken only if they are known, so that no notice about them goes to a forged sender."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from iems.config import host_port
from iems.directory.relaydomains import RelayDomains
from iems.errors import DirectoryUnavailable
from iems.model import Reply
from iems.net.callahead import Callahead
from iems.smtp import replies

if TYPE_CHECKING:
    from iems.smtpd.handlers import Handlers, Session
    from iems.smtpd.ldaplookup import LdapLookup


class Directory(Protocol):
    """What is asked of the directory. All raise DirectoryUnavailable."""

    def relay_domains(self) -> RelayDomains:
        """The table with its checks."""

    def relays_to(self, address: bytes) -> bool:
        """Whether an address is on the list."""


class RelayChecks:
    """Looks at a recipient as the domain forwarding table says."""

    def __init__(self, directory: Directory, callahead: Callahead, ldap: LdapLookup | None = None) -> None:
        self._directory = directory
        self._callahead = callahead
        self._ldap = ldap

    def rcpt(self, handlers: Handlers, session: Session, path: Any) -> Reply | None:
        """The reply to RCPT for a recipient (its `Path`) whose domain is another server's; None if it comes later."""
        address: bytes = path.address
        try:
            domains = self._directory.relay_domains()
            row = domains.find(address.rpartition(b"@")[2].decode("utf-8", "replace")) if domains else None
            if row is None or row.check == "none":
                return replies.RECIPIENT_OK
            if row.check == "list":
                if self._directory.relays_to(address):
                    return replies.RECIPIENT_OK
                return handlers.refused(session, path.original, replies.NO_SUCH_USER)
        except DirectoryUnavailable:
            return handlers.refused(session, path.original, replies.DIRECTORY_AWAY)
        if row.check == "ldap":
            if self._ldap is None:
                return handlers.refused(session, path.original, replies.CANNOT_CHECK)
            asked = self._ldap.exists(address)
        else:
            host = host_port(row.identifier, self._callahead.port) if row.identifier else None
            asked = self._callahead.exists(host, address)
        handlers.later(self._ask(handlers, session, asked, path))
        return None

    async def _ask(
        self, handlers: Handlers, session: Session, asked: Coroutine[Any, Any, bool | None], path: Any
    ) -> None:
        try:
            exists = await asked
        except Exception as fault:
            handlers.log.error("a recipient could not be checked", fault)
            exists = None
        reply = replies.RECIPIENT_OK
        if not exists:
            unknown = replies.CANNOT_CHECK if exists is None else replies.NO_SUCH_USER
            reply = handlers.refused(session, path.original, unknown)
        handlers.pending -= 1
        session.answer(reply)

    def close(self) -> None:
        """Give up what is under way."""
        self._callahead.close()
        if self._ldap is not None:
            self._ldap.close()
