"""Recipients of relay domains at RCPT: taken only if they are known, so that no notice about them goes to a forged sender."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from iems.config import host_port
from iems.directory.relaydomains import RelayDomains
from iems.errors import DirectoryUnavailable
from iems.model import Reply
from iems.net.callahead import Callahead
from iems.smtp import replies

if TYPE_CHECKING:
    from iems.smtpd.handlers import Handlers, Session


class Directory(Protocol):
    """What is asked of the directory. All raise DirectoryUnavailable."""

    def relay_domains(self) -> RelayDomains:
        """The table with its checks."""

    def relays_to(self, address: bytes) -> bool:
        """Whether an address is on the list."""


class RelayChecks:
    """Looks at a recipient as the domain forwarding table says."""

    def __init__(self, directory: Directory, callahead: Callahead) -> None:
        self._directory = directory
        self._callahead = callahead

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
        host = host_port(row.identifier, self._callahead.port) if row.identifier else None
        handlers.later(self._ask(handlers, session, host, path))
        return None

    async def _ask(
        self, handlers: Handlers, session: Session, host: tuple[str, int] | None, path: Any
    ) -> None:
        try:
            exists = await self._callahead.exists(host, path.address)
        except Exception as fault:
            handlers.log.error("call-ahead failed", fault)
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
