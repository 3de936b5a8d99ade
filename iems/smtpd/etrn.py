"""ETRN (RFC 1985): a host that was away asks for its mail; what waits for it is tried at once.

Allowed for domains of the forwarding table that are another server's, and for those in `smtpd.etrn_domains`. `@DOMAIN` means the domain
and what is below it, `#HOST` the queue of a relay that the forwarding table names. The mail goes where it always goes: who asks gets
nothing he would not get anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from iems.errors import DirectoryUnavailable
from iems.model import Channel, Reply
from iems.smtp import replies
from iems.spool.requeue import known_destinations, make_due

if TYPE_CHECKING:
    from iems.directory import Resolution
    from iems.smtpd.handlers import Handlers, Session
    from iems.spool import Spool

#: Seconds in which a second ETRN for the same node starts nothing, and nodes that are remembered for that.
PAUSE_S = 5.0
KNOWN_NODES = 1024
#: Destinations that one `@DOMAIN` starts.
MAX_DESTINATIONS = 256


class QueueRuns:
    """Starts queue runs of one worker. resolve: of the directory; identifiers: of its forwarding table. Both raise DirectoryUnavailable."""

    def __init__(
        self,
        spool: Spool,
        resolve: Callable[[bytes], Resolution],
        identifiers: Callable[[], set[str]],
        permitted: list[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool = spool
        self._resolve = resolve
        self._identifiers = identifiers
        self._permitted = [domain.lower().rstrip(".") for domain in permitted]
        self._clock = clock
        self._begun: dict[str, float] = {}

    def begin(self, handlers: Handlers, session: Session, node: str) -> Reply | None:
        """The reply to ETRN; None if it comes when the queue was looked at. node: as `grammar.etrn_node` gives it."""
        try:
            found = self._destinations(node)
        except DirectoryUnavailable:
            return replies.NODE_NOT_NOW
        if not found:
            return replies.NODE_NOT_ALLOWED
        now = self._clock()
        if now - self._begun.get(node, -PAUSE_S) < PAUSE_S:
            return replies.ETRN_STARTED
        if len(self._begun) >= KNOWN_NODES:
            self._begun.clear()
        self._begun[node] = now
        handlers.count("etrn_total")
        handlers.later(self._run(handlers, session, node, found))
        return None

    async def _run(self, handlers: Handlers, session: Session, node: str, destinations: set[str]) -> None:
        try:
            waiting = await make_due(self._spool, int(Channel.SMTPC), destinations)
        except Exception as fault:
            handlers.log.error("queue run failed", fault)
            reply = replies.NODE_NOT_NOW
        else:
            reply = replies.etrn_done(node, waiting)
            handlers.log.event("etrn", client=session.peer.ip, node=node, waiting=waiting)
        handlers.pending -= 1
        session.answer(reply)

    def _destinations(self, node: str) -> set[str]:
        """The queues a node's mail waits in; none if it may not be asked for."""
        if node.startswith("#"):
            name = node[1:]
            return {each for each in self._identifiers() if each.lower() == name}
        if not node.startswith("@"):
            return self._of_domain(node)
        domain = node[1:]
        found = self._of_domain(domain)
        if not found and not self._of_domain(f"any.{domain}"):
            return found
        found |= self._of_domain(f"any.{domain}") - {f"any.{domain}"}
        for name in known_destinations(self._spool, int(Channel.SMTPC), "." + domain, MAX_DESTINATIONS):
            found |= self._of_domain(name)
        return found or {domain}

    def _of_domain(self, domain: str) -> set[str]:
        resolution = self._resolve(b"postmaster@" + domain.encode("ascii"))
        if resolution.ours and not resolution.local:
            return {
                target.identifier or domain
                for target in resolution.targets
                if target.channel == Channel.SMTPC
            }
        if any(
            domain == one or (one.startswith("*.") and domain.endswith(one[1:])) for one in self._permitted
        ):
            return {domain}
        return set()
