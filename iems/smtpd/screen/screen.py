"""The screen as handlers and worker see it: what is in force, who is spared, what was found out about a client.

`on` is the one thing the way of a message looks at while nothing is banned, asked or checked. Bans and zones are the directory's and
in force with the next connection, recipient or message; checks are settings.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from iems.errors import DirectoryUnavailable
from iems.model import Reply, Verdict
from iems.smtp import replies
from iems.smtp.grammar import Path
from iems.smtpd.policy import Peer, Policy
from iems.smtpd.screen.bans import Bans
from iems.smtpd.screen.dnsbl import Lists
from iems.smtpd.screen.sender import Checks
from iems.smtpd.screen.verdicts import NOTHING, Findings, Refusal, joined

if TYPE_CHECKING:
    from iems.config import Config
    from iems.directory import Directory
    from iems.net.resolver import Resolver

#: Octets of a header that are looked at for banned senders; a longer one is refused while something is banned.
HEADER_OCTETS = 262_144
HEADER_TOO_LONG = Refusal(Reply(554, 6, 0, "The header is too long"), "ban", "header")
HEADER_GONE = Refusal(replies.SYSTEM_FULL, "ban", "header")


class Screening:
    """What is known of one client and its transaction.

    peer, helo, state: whom and under which state of the directory `connection` was found. spared: nothing is asked about it.
    verdicts: of the transaction. tested: the state of the bans its reverse-path was tested under. looked: octets of its content that were
    looked at for the end of the header; ended: it is tested.
    """

    __slots__ = ("asked", "connection", "ended", "helo", "looked", "peer", "spared", "state", "tested", "verdicts")

    def __init__(self) -> None:
        self.peer: Peer | None = None
        self.helo = b""
        self.state = -1
        self.connection: Findings = NOTHING
        self.spared = True
        self.verdicts: tuple[Verdict, ...] = ()
        self.asked: tuple[Verdict, ...] = ()
        self.tested = -1
        self.looked = 0
        self.ended = False

    def begin(self) -> None:
        """A transaction begins."""
        self.verdicts = self.asked = ()
        self.tested = -1
        self.looked = 0
        self.ended = False


class Screen:
    """Everything that turns mail away before it is accepted, but recipients and limits.

    on: whether anything is in force. bans, lists, checks: what. Raises nothing when the directory is away: what was in force stays so.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        directory: Directory,
        resolver: Resolver,
        log: Any,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        smtpd = config.smtpd
        self._policy = policy
        self._directory = directory
        self._log = log
        self._places = tuple(smtpd.ban_places)
        # Content above `large_octets` goes to a file at once: the header has to be whole by then.
        self._header_octets = min(HEADER_OCTETS, config.spool.large_octets)
        self._allowed = [ipaddress.ip_network(text, strict=False) for text in smtpd.dnsbl_allow]
        self.lists = Lists(
            resolver, log, timeout_s=smtpd.screen_timeout_s, sick_s=smtpd.dnsbl_sick_s, clock=clock
        )
        self.checks = Checks(
            resolver,
            timeout_s=smtpd.screen_timeout_s,
            domain=smtpd.check_sender_domain,
            client=smtpd.check_client_name,
            helo=smtpd.check_helo,
            unqualified=smtpd.check_unqualified,
            clock=clock,
        )
        self.bans = Bans()
        #: The version of the directory that was looked at, and the state of bans and zones in it.
        self.seen = -1
        self.state = -1
        self.on = bool(self.checks)
        self.refresh()

    def refresh(self) -> None:
        """Take up what the directory has now; called when its version may have changed."""
        directory = self._directory
        try:
            seen = directory.refresh()
            if seen == self.seen:
                return
            found = directory.screen_lists(self.state)
        except DirectoryUnavailable:
            return  # looked at again with the next connection
        self.seen = seen
        if found is not None:
            self.state, bans, zones = found
            self.bans = Bans(bans, self._places)
            self.lists.use(zones)
            self.on = bool(bans or zones or self.checks)

    # ---------------------------------------------------------------- bans

    def client(self, ip: str) -> Refusal | None:
        """Whether a client is banned. ip: as the socket or a proxy gives it."""
        if not self.bans.clients:
            return None
        return self.bans.client(self._policy.peer(ip).ip)

    def sender(self, screening: Screening, reverse_path: bytes) -> Refusal | None:
        """Whether a reverse-path is banned; asked once under each state of the bans."""
        if screening.tested == self.state or not self.bans.at_mail:
            return None
        screening.tested = self.state
        return self.bans.sender(reverse_path)

    def arriving(self, screening: Screening, buffer: Any, octets: int) -> Refusal | None:
        """Content came in: test its header once it is whole.

        buffer: where the content stands, unless it has gone to a file. octets: of the content so far. A header is never copied while
        it comes in, so nobody can make us keep more than the spool's own staging counts.
        """
        if screening.ended or not self.bans.header:
            return None
        if octets > len(buffer):
            # To a file already: a ban came amid the content, or memory for content ran short amid the header.
            screening.ended = True
            return HEADER_GONE if screening.looked else None
        start = max(screening.looked - 3, 0)
        with memoryview(buffer) as view:
            end = _header_end(bytes(view[start : self._header_octets + 4]), start)
        screening.looked = octets
        if end < 0:
            return HEADER_TOO_LONG if octets > self._header_octets else None
        return self._header(screening, buffer, end)

    def arrived(self, screening: Screening, buffer: Any, octets: int) -> Refusal | None:
        """All content has come."""
        refusal = self.arriving(screening, buffer, octets)
        if refusal is None and not screening.ended and self.bans.header:
            refusal = self._header(screening, buffer, octets)
        return refusal

    def _header(self, screening: Screening, buffer: Any, end: int) -> Refusal | None:
        screening.ended = True
        with memoryview(buffer) as view:
            return self.bans.content(bytes(view[:end]))

    # ---------------------------------------------------------------- DNS-BL and sender checks

    def spares(self, peer: Peer, user: str) -> bool:
        """Whether nothing is asked about a client: trusted, logged in, or on loopback where limits spare it."""
        return bool(user) or peer.trusted or not peer.ip or not self._policy.limited(peer)

    def path(self, screening: Screening, path: Path) -> Refusal | None:
        """Look at a reverse-path or forward-path that may lack its domain."""
        if not self.checks.of_paths or screening.spared:
            return None
        return self.noted(screening, self.checks.path(path))

    def noted(self, screening: Screening, found: Findings) -> Refusal | None:
        """Keep the verdicts of a transaction; the refusal."""
        for verdict in found.verdicts:
            if verdict not in screening.verdicts:
                screening.verdicts += (verdict,)
        for verdict in found.asked:
            if verdict not in screening.asked:
                screening.asked += (verdict,)
        return found.refusal

    def questions(
        self, screening: Screening, peer: Peer, helo: bytes, reverse_path: bytes
    ) -> Awaitable[Findings] | Findings:
        """What is found of a client and a sender, or what will be when DNS has answered."""
        if screening.spared:
            return NOTHING
        if screening.peer is not peer or screening.helo != helo or screening.state != self.state:
            screening.connection = NOTHING
            if self.lists or self.checks.of_connection:
                return self._ask(screening, peer, helo, reverse_path)
            screening.peer, screening.helo, screening.state = peer, helo, self.state
        if screening.connection.refusal is None and not self.checks.is_well(reverse_path):
            return self._ask(screening, None, helo, reverse_path)
        return screening.connection

    async def _ask(
        self, screening: Screening, peer: Peer | None, helo: bytes, reverse_path: bytes
    ) -> Findings:
        """Ask about a client (None: it is known) and a sender, all at once."""
        state = self.state
        work = self.checks.sender(reverse_path)
        if peer is not None:
            of_client, *rest = await asyncio.gather(self._about(peer, helo), *work)
            screening.connection = of_client
            # "Try again later" is no answer to keep: the next message asks again.
            kept = of_client.refusal is None or not of_client.refusal.reply.transient
            screening.peer, screening.helo, screening.state = peer if kept else None, helo, state
        else:
            rest = await asyncio.gather(*work)
        return joined([screening.connection, *rest])

    async def _about(self, peer: Peer, helo: bytes) -> Findings:
        work: list[Awaitable[Findings]] = self.checks.connection(peer.ip, helo)
        if self.lists and not self._is_allowed(peer.ip):
            work.append(self.lists.ask(peer.ip))
        return joined(await asyncio.gather(*work)) if work else NOTHING

    def _is_allowed(self, ip: str) -> bool:
        address = ipaddress.ip_address(ip)
        return any(network.version == address.version and address in network for network in self._allowed)


def _header_end(piece: bytes, start: int) -> int:
    """Where a header of CRLF lines ends, in content of which `piece` is what begins at `start`; -1 if it has not ended yet."""
    if start == 0 and piece[:2] == b"\r\n":
        return 0
    found = piece.find(b"\r\n\r\n")
    return found + start if found >= 0 else -1
