"""Role `smtpc`: takes SMTPC items from the spool, relays them to other hosts, settles them, tells senders of failure and delay.

Fresh items are tried at once (the pending queue), deferred ones when they are due; the spool deals them out in turn over the
destinations, so one with much mail or a dead host holds up nobody else. Destinations with the same hosts (all of them in mode
"relay") share sessions. Connections to a destination grow in number with success and shrink with failure; a host that fails is
left alone for a while. An outcome is recorded after the remote host's 250 and flushed at once, but no session waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from iems.config import Config, host_port
from iems.directory.peers import NONE, Peer
from iems.errors import SpoolError
from iems.levels import LEVEL, SESSIONS
from iems.model import Channel, Extent, Notify, Outcome, Recipient, Reply, Result, id_text, rope_length
from iems.net.answers import Answers
from iems.net.resolver import Resolver
from iems.smtpc import engine, tlsrpt
from iems.smtpc.backoff import Policy, decide
from iems.smtpc.connections import (
    CHUNK_OCTETS,
    INLINE_OCTETS,
    Content,
    Session,
    Timeouts,
    client_tls,
    connect,
    is_text,
    read_range,
    stuffed,
)
from iems.smtpc.engine import Stage, Transaction, Wait
from iems.smtpc.fetches import AWAIT_S, AWAITED, Fetch, Fetches
from iems.smtpc.mx import Host, HostTable, Resolution, Route, Router, listening_addresses
from iems.smtpc.profiles import NEXT_RUN, Profiles, policy_of, refusal_of
from iems.smtpc.security import NEEDS, Need, Security, validating, verifying_tls
from iems.smtpc.siblings import Siblings, grouped
from iems.smtpc.sts import PolicyStore
from iems.smtpc.tallies import WRITE_S, Tallies
from iems.spool import dsn
from iems.spool.items import Item, Message, Settlement
from iems.spool.keys import destination_hash
from iems.spool.spool import Spool
from iems.spool.verify import Verifier
from iems.spool.weight import Weights

if TYPE_CHECKING:
    import ssl

    from iems.master.child import WorkerContext

#: Items taken from the spool at once, and held in all (most of them waiting for their turn).
TAKE: Final = 64
TURNS: Final = 2  # takes before the loop comes round
MAX_IN_HAND: Final = 4096
#: Items of one destination held; the spool is told, so that a slow host's mail stays there.
DESTINATION_IN_HAND: Final = 256
#: From so many items in hand on, a destination without a session gets few more: one in so many of the places left.
CROWDED: Final = MAX_IN_HAND // 2
FEW: Final = 512
#: With so many items in hand, outcomes are gathered for a moment: fewer and larger transactions of the queue. So are arrivals, if
#: the queue was looked at for others so many times within so short a time.
BUSY: Final = 8
GATHER_S: Final = 0.003
FLOOD: Final = 8
FLOOD_S: Final = 0.03
#: Outcomes recorded at once.
SETTLE: Final = 256
#: The same, where senders hear of them.
TOLD: Final = 16
#: Connections that may break under one message in one attempt.
TRIES: Final = 3
#: How long a host that failed is passed over, and a destination without a working one is not tried, at most.
BAD_HOST_S: Final = 60.0
DEAD_S: Final = 300.0
#: Items that fall due (or are pushed by hand) while their destination counts as dead may try it this often.
PROBE_S: Final = 5.0
#: How long a host may take to accept a connection while others wait for the place.
PATIENCE_S: Final = 2.0
#: Share of the connections that may be on their way to hosts which took none lately; the rest is for hosts that answer.
UNPROVEN_SHARE: Final = 0.75
#: How long a host that took a connection counts as one that answers.
PROVEN_S: Final = 3600.0
#: Where a domain's mail goes is looked up again after this time at the latest (the resolver minds the TTL).
ROUTE_S: Final = 60.0
#: A host whose TLS handshake failed is spoken to in the clear for this long.
NO_TLS_S: Final = 3600.0
FIRST_WINDOW: Final = 2.0
TICK_S: Final = 1.0

UNREADABLE = Reply(451, 3, 0, "content can't be read for now")
OUR_FAULT = Reply(451, 3, 0, "local error, try again later")
UNKNOWN_END = Reply(451, 4, 2, "connection lost after the content was sent; the message may arrive twice")
#: Replies the engine makes itself: no remote host said so.
_OWN_REPLIES: Final = {
    id(reply)
    for reply in (
        engine.TOO_BIG,
        engine.NEEDS_UTF8,
        engine.NEEDS_BINARY,
        engine.NEEDS_REQUIRETLS,
        engine.BAD_SENDER,
        engine.BAD_RECIPIENT,
        engine.NONSENSE,
    )
}


_RELAYED: Final = Outcome.RELAYED
_NO_NOTICES: Final[list[tuple[dsn.Kind, list[Result]]]] = []


class Work:
    """One item in hand. remaining: recipients without a result in this attempt; tries: connections that broke under it.

    remote: recipient's address -> host that gave the reply. silent: recipients relayed to a host without DSN (RFC 3461 5.2.2).
    """

    __slots__ = (
        "content",
        "destination",
        "item",
        "open",
        "remaining",
        "remote",
        "results",
        "silent",
        "size",
        "tries",
        "weight",
    )

    def __init__(self, item: Item, destination: Destination) -> None:
        self.item = item
        self.destination = destination
        self.remaining: list[Recipient] = list(item.envelope.recipients)
        self.results: list[Result] = []
        self.remote: dict[bytes, str] = {}
        self.silent: set[bytes] = set()
        rope = item.rope
        first = rope[0] if len(rope) == 1 else b""
        self.size = first.length if isinstance(first, Extent) else rope_length(rope)
        self.tries = 0
        self.weight = 0
        self.open = 0
        self.content: Content | None = None


class Destination:
    """Mail that goes to the same hosts: what waits, who works on it, how it fares."""

    __slots__ = (
        "backed_off",
        "dead_reply",
        "dead_until_s",
        "direct",
        "failed_s",
        "failures",
        "fetch",
        "idle",
        "key",
        "name",
        "needs",
        "opening",
        "profile",
        "ready",
        "requiretls",
        "route",
        "route_until_s",
        "routing",
        "sessions",
        "window",
    )

    def __init__(self, key: str, name: str, direct: bool) -> None:
        self.key = key
        self.name = name
        self.direct = direct
        #: The reversed connection that this is the mail of, if it is one.
        self.fetch: Fetch | None = None
        self.ready: deque[Work] = deque()
        self.sessions: set[Session] = set()
        self.idle: list[Session] = []
        self.opening = 0
        self.profile: Peer | None = None
        self.needs: dict[str, Need] = {}
        self.requiretls = False
        self.routing = False
        self.window = FIRST_WINDOW
        self.failures = 0
        self.failed_s = 0.0
        self.dead_until_s = 0.0
        self.dead_reply: Reply | None = None
        self.backed_off: set[str] = set()  # the spool's destinations that wait in the queue meanwhile
        self.route: Route | None = None
        self.route_until_s = 0.0


class Done:
    """An item whose attempt is over, on its way into the spool."""

    __slots__ = ("kinds", "settlement", "work")

    def __init__(
        self, work: Work, settlement: Settlement, kinds: list[tuple[dsn.Kind, list[Result]]]
    ) -> None:
        self.work = work
        self.settlement = settlement
        self.kinds = kinds


def classify(reply: Reply, refused_at: Wait | None, temporary_554: bool) -> Outcome:
    """What a reply means for a recipient. refused_at: what it answered, if it ended the whole transaction."""
    if reply.code < 300:
        return Outcome.RELAYED
    if reply.code < 500:
        return Outcome.DEFERRED
    if (
        reply.code == 554
        and temporary_554
        and refused_at in (Wait.DATA, Wait.END)
        and id(reply) not in _OWN_REPLIES
    ):
        return Outcome.DEFERRED
    return Outcome.FAILED


def own_ports(config: Config) -> frozenset[int]:
    """The ports on which this machine itself takes mail."""
    if not config.smtpd.enabled:
        return frozenset()
    ports = config.ports
    return frozenset(
        ports.base + port for port in (ports.smtp, ports.submission, ports.submissions, ports.lmtp) if port
    )


class Worker:
    """See the module."""

    def __init__(self, ctx: WorkerContext) -> None:
        self._ctx = ctx
        self._loop = ctx.loop
        config = ctx.config.smtpc
        self._config = config
        self._policy = Policy(config.retry_s, config.retry_max_s, config.lifetime_s, config.delay_notice_s)
        self._timeouts = Timeouts(
            connect_s=config.connect_timeout_s,
            greeting_s=config.greeting_timeout_s,
            helo_s=config.helo_timeout_s,
            mail_s=config.mail_timeout_s,
            rcpt_s=config.rcpt_timeout_s,
            data_s=config.data_timeout_s,
            block_s=config.block_timeout_s,
            end_s=config.end_timeout_s,
        )
        self._helo = ctx.hostname.encode("idna") if ctx.hostname else b"localhost"
        self._destinations: dict[str, Destination] = {}
        self._sessions: set[Session] = set()
        self._connecting = 0
        self._greeting = 0  # of these, those that are connected and wait for the greeting
        self._idle: dict[tuple[str, int], list[Session]] = {}
        self._waiting: dict[str, Destination] = {}  # for a connection to become free
        self._waiting_proven: dict[str, Destination] = {}  # the same, where a host is known to answer
        self._unproven = 0  # connections on their way to hosts that took none lately
        self._unproven_most = math.ceil(self._config.max_connections * UNPROVEN_SHARE)
        self._proven: dict[tuple[str, int], float] = {}  # host -> until when it counts as one that answers
        self._newest_first = False
        self._bad: dict[tuple[str, int], float] = {}
        self._no_tls: dict[tuple[str, int], float] = {}
        self._in_hand = 0
        self._held: dict[str, int] = {}  # the spool's destinations -> items in hand
        self._limited: set[str] = set()
        self._backing_off: dict[str, tuple[float, str]] = {}  # name -> (seconds, why), to be told to the spool
        self._passed: set[int] = set()  # destinations nothing is taken for while those in hand have no session
        self._plain: list[Done] = []
        self._told: list[Done] = []
        self._settling: dict[str, asyncio.Task[None]] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._dialling: dict[asyncio.Timeout, float] = {}  # connections not made yet, and since when
        self._timer: asyncio.TimerHandle | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._news: deque[float] = deque(maxlen=FLOOD)  # when the queue was looked at for what came last
        self._stopped = False
        self._over = False
        #: Domains whose sites fetch their mail, and the connections on which they do.
        self._on_demand = frozenset(domain.lower() for entry in ctx.config.smtpd.odmr for domain in entry.domains)
        self._fetches: Fetches | None = None
        self._paused_until_s = 0.0
        self._failures = 0
        self._max_per_host = config.max_per_host
        self._relayed_now = 0  # not yet counted on the board
        self._octets_now = 0
        self._empty: asyncio.Event = asyncio.Event()
        self._peers = NONE
        self._double_bounces = ctx.config.spool.double_bounces == "postmaster"
        self._siblings = Siblings(self._loop, self._tell)
        self._weights = Weights.of(config)
        self._next_run_s = 0.0
        self._tallies: Tallies | None = None
        self._tallied_s = 0.0
        self._reporting: asyncio.Task[None] | None = None
        self._shows = config.client_certificate
        self._certified: dict[tuple[bool, str], ssl.SSLContext] = {}  # TLS that shows a certificate of ours
        self._run_left = config.run_size if config.run_size and config.run_interval_s else MAX_IN_HAND

    async def start(self) -> None:
        """Open the spool and begin to take."""
        ctx = self._ctx
        self._spool = Spool.open(ctx)
        self._profiles = Profiles(ctx.home / "directory", ctx.log)
        self._verifier = Verifier(self._spool.blobs)
        self._tls: ssl.SSLContext = client_tls()
        self._checking: ssl.SSLContext | None = None
        self._need = NEEDS[self._config.tls]
        self._router = make_router(ctx.config, ctx.home / "conf", ctx.home, answers=ctx.answers)
        self._security = self._make_security()
        if self._tallies is not None and ctx.index == 0:
            self._reporting = self._loop.create_task(self._report())
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        if self._on_demand:
            self._fetches = Fetches(self, ctx.home / "run", ctx.index)
        ctx.on_wake(self._woken)
        self._pump_soon()

    def _make_security(self) -> Security:
        """What finds the needs of hosts beyond the setting; nothing is asked while DANE and MTA-STS are off."""
        config = self._config
        dane = config.dane
        dns = self._ctx.config.dns
        if dane and not validating([host_port(text, 53) for text in dns.servers], dns.validating):
            self._ctx.log.error("DANE is off: a DNS server is neither on loopback nor named in dns.validating")
            dane = False
        policies = None
        if config.tls_reports:
            self._tallies = Tallies(
                self._ctx.home / tlsrpt.FOLDER,
                f"smtpc-{self._ctx.index}",
                clock=time.time,
                sts=lambda domain: policies.known(domain) if policies is not None else None,
                log=self._ctx.log,
            )
        tallies = self._tallies
        if config.mta_sts:
            policies = PolicyStore(
                self._ctx.home / "cache" / "mta-sts",
                self._router.resolver,
                self._verifying(),
                port=config.mta_sts_port,
                log=self._ctx.log,
                failed=tallies.unfetched if tallies else None,
            )
        return Security(
            self._router.resolver, dane=dane, policies=policies, troubled=tallies.troubled if tallies else None
        )

    def _verifying(self) -> ssl.SSLContext:
        """TLS that checks certificates, made when first needed: it reads the system's authorities."""
        if self._checking is None:
            file = self._config.tls_ca_file
            self._checking = verifying_tls(self._ctx.home / file if file else "")
        return self._checking

    def _showing(self, need: Need) -> ssl.SSLContext | None:
        """TLS with a certificate of ours to show; None if there is none of that name."""
        which = (need.level == "verify", need.certificate)
        found = self._certified.get(which)
        if found is None:
            fd = self._ctx.client_tls.get(need.certificate)
            if fd is None:
                return None
            file = self._config.tls_ca_file
            found = verifying_tls(self._ctx.home / file if file else "") if which[0] else client_tls()
            found.load_cert_chain(f"/proc/self/fd/{fd}")
            self._certified[which] = found
        return found

    def _hearing(self, host: str) -> Callable[[str, bytes], None] | None:
        """What logs the dialogue with a host, if the level says so."""
        if LEVEL[self._ctx.config.log.level] < SESSIONS:
            return None
        log = self._ctx.log
        return lambda way, line: log.event("smtp", None, host=host, way=way, line=line)

    def _need_of(self, destination: Destination, host: Host) -> Need:
        """The TLS that a host must have for a destination's mail, and the certificate it is shown."""
        need = self._protection_of(destination, host)
        profile = destination.profile
        if not self._shows and (profile is None or profile.client_certificate == "default"):
            return need
        name = self._shows
        if profile is not None and profile.client_certificate != "default":
            name = profile.client_certificate if profile.client_certificate != "none" else ""
        return structs.replace(need, certificate=name) if name else need

    def _protection_of(self, destination: Destination, host: Host) -> Need:
        profile = destination.profile
        if destination.requiretls:
            found = destination.needs.get(host.name)
            return found if found is not None and found.level == "dane" else NEEDS["verify"]
        if profile is not None and profile.tls != "default":
            own = NEEDS[profile.tls]
            if not own.must:
                return own
            found = destination.needs.get(host.name)
            return found if found is not None and found.level in ("verify", "dane") else own
        found = destination.needs.get(host.name)
        if found is None or (found.level == "encrypt" and self._need.level == "verify"):
            return self._need
        return found

    # ---------------------------------------------------------------- taking

    def _pump_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _woken(self) -> None:
        """Something was put into the queue."""
        if self._scheduled:
            return
        # Many of those in hand may only wait for a dead host, and looks may have been for its sake: what counts is how densely this kind
        # of news has come of late.
        now_s = self._loop.time()
        news = self._news
        wait_s = 0.0
        if self._in_hand >= BUSY and len(news) == FLOOD and now_s - news[0] <= FLOOD_S:
            wait_s = max(news[-1] + GATHER_S - now_s, 0.0)
        news.append(now_s + wait_s)
        if not wait_s:
            self._pump_soon()
        else:
            self._scheduled = True
            self._loop.call_later(wait_s, self._pump)

    def _pump(self) -> None:
        """Take what is due while there is room; then wait, parked, until woken or something falls due."""
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ctx = self._ctx
        touched: dict[str, Destination] = {}
        now_s = self._loop.time()
        turns = 0
        interval_s = self._config.run_interval_s
        while not self._stopped and not ctx.draining:
            turns += 1
            if turns > TURNS:
                self._pump_soon()  # the loop comes round: sessions, heartbeat, deadlines
                break
            if now_s < self._paused_until_s:
                self._timer = self._loop.call_at(self._paused_until_s, self._pump_soon)
                break
            if interval_s and now_s < self._next_run_s:
                self._timer = self._loop.call_at(self._next_run_s, self._pump_soon)
                ctx.unpark()  # whoever posts need not wake this one; at its time it looks
                break
            limit = min(TAKE, MAX_IN_HAND - self._in_hand, self._run_left)
            if limit <= 0:
                ctx.unpark()  # others may take; this one looks again after the next settlement
                break
            # Parked before the look: what is posted after it wakes us, and one look is enough.
            ctx.park()
            try:
                items, due_s = self._spool.take(Channel.SMTPC, limit, self._passed)
            except Exception as error:
                self._pause("the queue can't be read", error)
                continue
            self._failures = 0
            if items:
                self._peers = self._profiles.now()
            for item in items:
                destination = self._accept(item, now_s)
                touched[destination.key] = destination
            if interval_s and self._run_over(len(items), limit, now_s):
                continue
            if len(items) == limit or (items and due_s is not None and due_s <= 0.0):
                continue
            if due_s is not None:
                self._timer = self._loop.call_later(max(due_s, GATHER_S), self._pump_soon)
            break
        for destination in touched.values():
            if self._weights is not None:
                # Begun ones stay in front; among equals the order of arrival stands.
                waiting = sorted(destination.ready, key=lambda work: (not (work.results or work.tries), work.weight))
                destination.ready = deque(waiting)
            self._drive(destination)

    def _run_over(self, taken: int, limit: int, now_s: float) -> bool:
        """With a run interval: whether this run has had its messages, or there are no more; the next one begins later."""
        self._run_left -= taken
        if taken == limit and self._run_left > 0:
            return False
        self._next_run_s = now_s + self._config.run_interval_s
        self._run_left = self._config.run_size or MAX_IN_HAND
        return True

    def _pause(self, what: str, error: BaseException) -> None:
        """Something outside a message is wrong: no haste."""
        self._ctx.log.error(what, error)
        self._failures += 1
        self._paused_until_s = self._loop.time() + min(0.1 * 2.0 ** min(self._failures, 8), 10.0)

    def _accept(self, item: Item, now_s: float) -> Destination:
        """Put an item where it waits for a session."""
        name = item.destination
        recipients = item.envelope.recipients
        direct = bool(recipients and recipients[0].identifier)
        key = self._router.key(name, direct)
        profile = None
        if self._peers:
            profile = self._profile(item)
            if profile is not None and not direct and (profile.max_sessions or profile.max_messages):
                key = name  # with limits of its own it shares no connections
        requiretls = item.envelope.requiretls
        if requiretls:
            key = f"{key} requiretls"
        destination = self._destinations.get(key)
        if destination is None:
            destination = self._destinations[key] = Destination(key, name, direct)
            destination.requiretls = requiretls
        if self._peers or destination.profile is not None:
            destination.profile = profile
        held = self._hold(item)
        if name in self._on_demand:
            work = Work(item, destination)
            if not self._barred(work):
                self._give_up(work, AWAITED, AWAIT_S)
            return destination
        if held >= DESTINATION_IN_HAND and name not in self._limited:
            self._limited.add(name)
            self._spool.limit_destination(Channel.SMTPC, name, DESTINATION_IN_HAND)
        if self._in_hand >= CROWDED and not destination.sessions and held * FEW >= MAX_IN_HAND - self._in_hand:
            self._passed.add(destination_hash(name))
        work = Work(item, destination)
        if self._weights is not None:
            work.weight = self._weights.of_item(item, self._spool.blobs, self._spool.age_s(item))
        if self._peers and self._held_back(work, profile):
            return destination
        if (
            destination.dead_reply is not None
            and now_s < destination.dead_until_s
            and not destination.opening
            and not destination.routing
            # what waited in the queue comes before its time only if it is late, or pushed by hand
            and not ((item.attempts or name in destination.backed_off) and now_s - destination.failed_s >= PROBE_S)
        ):
            wait_s = destination.dead_until_s - now_s
            self._back_off(destination, name, destination.dead_reply, wait_s)
            self._give_up(work, destination.dead_reply, wait_s)
            return destination
        if item.attempts:
            self._read_ahead(item)
        destination.ready.append(work)
        return destination

    def _hold(self, item: Item) -> int:
        """Count an item as in hand; how many of its destination are."""
        name = item.destination
        self._ctx.log.event("leased", item.id, channel="SMTPC", destination=name, attempts=item.attempts)
        self._in_hand += 1
        if item.fanout > len(item.envelope.recipients):
            self._siblings.came(item)
        held = self._held[name] = self._held.get(name, 0) + 1
        return held

    def _fetching(self, key: str, name: str) -> Destination:
        """The place of what goes over one reversed connection."""
        destination = self._destinations[key] = Destination(key, name, False)
        return destination

    def _fetched(self, item: Item, destination: Destination, reply: Reply | None) -> None:
        """Put an item where the connection that fetches it finds it. reply: why it may not go over that one, or None."""
        self._hold(item)
        work = Work(item, destination)
        self._peers = self._profiles.now()
        if self._barred(work):
            return
        if reply is not None:
            self._give_up(work, reply, AWAIT_S)
        else:
            destination.ready.append(work)

    def _leased_elsewhere(self, names: Collection[str]) -> bool:
        """Whether items of these destinations are in hand, here or with another worker."""
        return any(self._spool.destination(Channel.SMTPC, name).leased for name in names)

    def _profile(self, item: Item) -> Peer | None:
        """The profile of an item's (first) domain."""
        return self._profile_of(item, item.envelope.recipients[0])

    def _profile_of(self, item: Item, recipient: Recipient) -> Peer | None:
        """The profile for a recipient; where a relay host is the destination, the address says which domain it is."""
        name = item.destination
        if recipient.identifier:
            name = recipient.address.rpartition(b"@")[2].decode("utf-8", "replace")
        return self._peers.find(name)

    def _held_back(self, work: Work, profile: Peer | None) -> bool:
        """Whether a profile ends the attempt before it begins: not to be sent, too large, or to wait for the next run."""
        if profile is not None and profile.queue_first and not work.item.attempts:
            self._give_up(work, NEXT_RUN, 0.0)
            return True
        return self._barred(work)

    def _barred(self, work: Work) -> bool:
        """Answer for recipients whose domain's profile takes no such mail; whether none is left, and the attempt has ended."""
        if not self._peers:
            return False
        item = work.item
        for recipient in item.envelope.recipients:  # of several domains, if a relay host was named for them
            found = self._profile_of(item, recipient)
            reply = refusal_of(found, work.size) if found is not None else None
            if reply is not None:
                self._answer(work, [recipient], reply)
                work.remaining.remove(recipient)
        if work.remaining:
            return False
        self._complete(work)
        return True

    def _read_ahead(self, item: Item) -> None:
        """Old content may have left the page cache: have it read while the connection is made."""
        for piece in item.rope:
            if isinstance(piece, Extent):
                with contextlib.suppress(OSError):
                    fd = self._spool.blobs.fd(piece.blob)
                    os.posix_fadvise(
                        fd, piece.offset, min(piece.length, INLINE_OCTETS), os.POSIX_FADV_WILLNEED
                    )

    # ---------------------------------------------------------------- sessions

    def _drive(self, destination: Destination) -> None:
        """See to it that enough sessions work on what waits."""
        if destination.fetch is not None:
            destination.fetch.drive()
            return
        while destination.ready and destination.idle:
            session = destination.idle.pop()
            self._unrest(session)
            if session.need != self._need_of(destination, session.host):
                session.quit()
                continue
            destination.sessions.add(session)
            session.go_on()
        limit = self._config.max_per_host
        if destination.profile is not None:
            limit = destination.profile.max_sessions or limit
        while destination.ready and not self._over:
            route = destination.route
            if route is None or self._loop.time() >= destination.route_until_s:
                if not destination.routing:
                    destination.routing = True
                    self._start(self._find(destination))
                return
            want = min(int(destination.window), 1 + len(destination.ready) // 4, limit)
            if len(destination.sessions) + destination.opening >= want:
                return
            if self._reuse(destination, route):
                continue
            proven = any((host.address, host.port) in self._proven for host in route.hosts)
            if not self._place(proven):
                (self._waiting_proven if proven else self._waiting)[destination.key] = destination
                return
            destination.opening += 1
            self._connecting += 1
            self._unproven += not proven
            self._start(self._open(destination, route, proven))

    def _place(self, proven: bool) -> bool:
        """Whether there is a place for one more connection, if need be that of a session at rest."""
        if not proven and self._unproven >= self._unproven_most:
            return False
        return self._taken() < self._config.max_connections or self._evict()

    def _taken(self) -> int:
        """Connections there are or will be. One that waits for its greeting is a session already, and counts once."""
        return len(self._sessions) + self._connecting - self._greeting

    def _reuse(self, destination: Destination, route: Route) -> bool:
        """Take over an idle session to one of the best hosts."""
        if not self._idle:
            return False
        for host in route.hosts:
            if host.preference != route.hosts[0].preference:
                return False
            resting = self._idle.get((host.address, host.port))
            if resting and resting[-1].need == self._need_of(destination, host):
                session = resting[-1]
                session.destination.idle.remove(session)
                self._unrest(session)
                self._adopt(destination, session)
                return True
        return False

    def _adopt(self, destination: Destination, session: Session) -> None:
        if destination.profile is not None and destination.profile.max_messages:
            session.limit_messages(destination.profile.max_messages)
        session.destination = destination
        destination.sessions.add(session)
        session.go_on()

    def _unrest(self, session: Session) -> None:
        key = (session.host.address, session.host.port)
        resting = self._idle.get(key)
        if resting is not None:
            with contextlib.suppress(ValueError):
                resting.remove(session)
            if not resting:
                del self._idle[key]

    def _evict(self) -> bool:
        """End the session that has rested longest, to make room for one that is needed."""
        oldest = min(
            (s for resting in self._idle.values() for s in resting),
            key=lambda s: s.resting_since_s,
            default=None,
        )
        if oldest is None:
            return False
        self._part(oldest)
        self._sessions.discard(oldest)
        oldest.quit()
        return True

    def _part(self, session: Session) -> None:
        """Take a session out of its destination."""
        destination: Destination | None = session.destination
        if destination is not None:
            destination.sessions.discard(session)
            if session in destination.idle:
                destination.idle.remove(session)
        self._unrest(session)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _find(self, destination: Destination) -> None:
        """Look up where a destination's mail goes. Takes no place among the connections: DNS may be slow."""
        try:
            route = await self._router.find(destination.name, destination.direct)
            if self._security.active and route.reply is None:
                route, destination.needs = await self._security.find(destination.name, route)
            if destination.requiretls and route.mx and route.reply is None:
                route = self._vouched(destination, route)
        except Exception as error:
            self._ctx.log.error("no route could be found", error)
            route = Route((), OUR_FAULT)
        finally:
            destination.routing = False
        if route.reply is not None:
            self._failed(destination, route.reply, not route.reply.transient)
            return
        destination.route = route
        destination.route_until_s = self._loop.time() + ROUTE_S
        self._drive(destination)

    def _vouched(self, destination: Destination, route: Route) -> Route:
        """The hosts of a route whose names DNSSEC or a policy vouches for, as REQUIRETLS wants it (RFC 8689 4.2.1)."""
        sure = ("verify", "dane")
        hosts = tuple(
            host for host in route.hosts if host.name in destination.needs and destination.needs[host.name].level in sure
        )
        if hosts:
            return Route(hosts, mx=True)
        code = 451 if self._security.active else 550
        return Route((), Reply(code, 7, 30, "REQUIRETLS: nothing vouches for the mail hosts of the domain"))

    async def _open(self, destination: Destination, route: Route, proven: bool) -> None:
        """Connect to one of the destination's hosts, in order. proven: one of them took a connection lately."""
        reply: Reply | None
        try:
            reply = await self._connect(destination, route)
        except Exception as error:
            self._ctx.log.error("a connection could not be opened", error)
            reply = OUR_FAULT
        finally:
            destination.opening -= 1
            self._connecting -= 1
            self._unproven -= not proven
        if reply is not None:
            self._failed(destination, reply, False)
        self._drive(destination)
        self._let_wait_go()

    async def _connect(self, destination: Destination, route: Route) -> Reply | None:
        """None when a session works on the destination, or nothing is left to do; else why there is none."""
        now_s = self._loop.time()
        hosts = [
            host for host in route.hosts if self._bad.get((host.address, host.port), 0.0) <= now_s
        ] or list(route.hosts)
        last = OUR_FAULT
        for host in hosts:
            if not destination.ready or self._over or self._reuse(destination, Route((host,))):
                return None
            need = self._need_of(destination, host)
            counts = self._tallies is not None and (route.mx or host.name == destination.name)
            session, reply = await self._greet(host, need, destination.name if counts else "")
            if session is not None:
                self._bad.pop((host.address, host.port), None)
                self._proven[host.address, host.port] = self._loop.time() + PROVEN_S
                destination.failures = 0
                destination.dead_reply = None
                self._works(destination)
                self._adopt(destination, session)
                return None
            assert reply is not None
            last = reply
            if need.must and reply.subject == 7:
                continue  # good enough for others
            self._bad[host.address, host.port] = self._loop.time() + BAD_HOST_S
            self._proven.pop((host.address, host.port), None)
        return last

    async def _greet(self, host: Host, need: Need, domain: str = "") -> tuple[Session | None, Reply | None]:
        """A session that is ready, or why there is none. In the clear if the TLS handshake fails, unless TLS is needed.

        domain: whose report on TLS the connection belongs to; "": nobody's.
        """
        where = (host.address, host.port)
        tls: ssl.SSLContext | None = self._verifying() if need.level == "verify" else self._tls
        if need.certificate:
            tls = self._showing(need)
            if tls is None:
                return None, Reply(451, 7, 5, f"there is no client certificate {need.certificate} in smtpc.client_certificates")
        if need.level == "off" or (not need.must and self._no_tls.get(where, 0.0) > self._loop.time()):
            tls = None
        while True:
            try:
                async with asyncio.timeout(self._timeouts.connect_s) as limit:
                    self._dialling[limit] = self._loop.time()
                    try:
                        sock = await connect(self._loop, host)
                    finally:
                        del self._dialling[limit]
            except TimeoutError:
                return None, Reply(451, 4, 1, f"connect to {host}: timed out")
            except OSError as error:
                return None, Reply(451, 4, 1, f"connect to {host}: {_why(error)}")
            session = Session(
                self._loop,
                sock,
                host,
                self,
                helo=self._helo,
                timeouts=self._timeouts,
                blobs=self._spool.blobs,
                tls=tls,
                max_messages=self._config.max_messages,
                need=need,
                heard=self._hearing(str(host)),
            )
            self._sessions.add(session)
            self._ctx.count("sessions_total")
            own = sock.getsockname()[0] if domain else ""
            self._greeting += 1
            try:
                reply = await session.opened
            except asyncio.CancelledError:
                session.stream.abort()
                raise
            finally:
                self._greeting -= 1
            if domain and tls is not None and self._tallies is not None:
                self._tallies.connected(
                    domain, need, host, own, secure=session.secure, reply=reply, cause=session.tls_cause
                )
            if reply is None and not session.gone:
                if session.secure:
                    self._ctx.count("tls_total")
                return session, None
            self._sessions.discard(session)
            if session.tls_failed and tls is not None and not need.must:
                self._ctx.log.event("tls-failed", host=str(host), reply=_said(reply))
                self._no_tls[where] = self._loop.time() + NO_TLS_S
                tls = None
                continue
            reply = reply or UNKNOWN_END
            return None, Reply(451, reply.subject or 4, reply.detail, f"{host}: {reply.code} {reply.text}")

    def _failed(self, destination: Destination, reply: Reply, certain: bool) -> None:
        """No host of the destination could be reached."""
        if (destination.sessions or destination.opening) and not certain:
            # Others are at work or still trying: it takes no more connections, which is no reason to give anything up.
            destination.window = max(1.0, float(len(destination.sessions)))
            return
        destination.window = max(1.0, destination.window / 2)
        wait_s = 0.0
        if not certain:
            destination.failures += 1
            wait_s = min(DEAD_S, self._policy.retry_s * 2.0 ** min(destination.failures - 1, 16))
            wait_s *= random.uniform(0.8, 1.0)  # what failed together need not be tried together
            destination.failed_s = self._loop.time()
            destination.dead_until_s = destination.failed_s + wait_s
            destination.dead_reply = reply
            destination.route = None
        ready, destination.ready = destination.ready, deque()
        destination.backed_off.clear()
        for work in ready:
            if not certain:
                self._back_off(destination, work.item.destination, reply, wait_s)
            self._give_up(work, reply, wait_s)

    def _back_off(self, destination: Destination, name: str, reply: Reply, wait_s: float) -> None:
        """Have what waits for a dead destination stay in the queue; told to the spool with others of this moment."""
        if destination.requiretls or name in destination.backed_off:
            return  # where a message asks for more than the hosts have, others may still go
        destination.backed_off.add(name)
        if not self._backing_off:
            self._loop.call_later(GATHER_S, self._tell_back_off)
        self._backing_off[name] = (wait_s, _said(reply))

    def _tell_back_off(self) -> None:
        failed, self._backing_off = self._backing_off, {}
        if not self._over:
            self._queue_says(self._spool.back_off, failed)

    def _queue_says(self, tell: Callable[[int, Any], None], what: Any) -> None:
        """Tell the spool how destinations fare. What it can't note costs tries, no mail."""
        try:
            tell(Channel.SMTPC, what)
        except Exception as error:
            self._ctx.log.error("the queue can't be told of a destination", error)

    def _works(self, destination: Destination) -> None:
        """A host took a connection: what was backed off for its sake is due again."""
        names = destination.backed_off
        if destination.ready:
            names.add(destination.ready[0].item.destination)  # another worker may have had no luck with it
        for name in names:
            self._backing_off.pop(name, None)
        destination.backed_off = set()
        if names:
            self._queue_says(self._spool.succeeded, names)
            self._pump_soon()

    def _let_wait_go(self) -> None:
        """Connections may have become free: hosts that answer come first, they have few places to wait for."""
        while self._waiting_proven and self._free():
            destination = self._waiting_proven.pop(next(iter(self._waiting_proven)))
            self._drive(destination)
            if destination.key in self._waiting_proven:
                return
        while self._waiting and self._unproven < self._unproven_most and self._free():
            # The newest and the oldest in turn: fresh mail need not queue behind a crowd of mute hosts, and nobody starves.
            self._newest_first = not self._newest_first
            key = next(reversed(self._waiting) if self._newest_first else iter(self._waiting))
            destination = self._waiting.pop(key)
            self._drive(destination)
            if destination.key in self._waiting:
                return

    def _free(self) -> bool:
        return self._taken() < self._config.max_connections or bool(self._idle)

    # ---------------------------------------------------------------- what sessions ask and tell

    def next_transaction(self, session: Session) -> Transaction | None:
        """The next message of the session's destination."""
        destination: Destination = session.destination
        extensions = session.engine.extensions
        fetched = destination.fetch is not None
        if not fetched and (self._peers or self._security.active or destination.requiretls) and session.need != self._need_of(destination, session.host):
            return None  # another TLS is asked for meanwhile
        while destination.ready and not self._over:
            work = destination.ready.popleft()
            item = work.item
            envelope = item.envelope
            self._ctx.working_on(item.id)
            try:
                content = self._content(work, extensions.binary)
                if content.binary and not extensions.binary:
                    self._answer(work, work.remaining, engine.NEEDS_BINARY)
                    work.remaining = []
                elif envelope.smtputf8 and not extensions.smtputf8 and not self._plain_header(work, content):
                    self._answer(work, work.remaining, engine.NEEDS_UTF8)
                    work.remaining = []
            except (OSError, EOFError) as fault:
                self._ctx.log.error("the content can't be read", fault, item.id)
                self._give_up(work, UNREADABLE, 0.0)
                continue
            remaining = work.remaining
            if not remaining:
                self._complete(work)
                continue
            work.content = content
            if len(remaining) <= extensions.rcpt_max:
                recipients, work.remaining = remaining, []
            else:
                recipients, work.remaining = (
                    remaining[: extensions.rcpt_max],
                    remaining[extensions.rcpt_max :],
                )
            work.open += 1
            return Transaction(envelope, recipients, work.size, work, binary=content.binary)
        return None

    def _content(self, work: Work, binary_offered: bool) -> Content:
        """What to send. Raises OSError, EOFError."""
        item = work.item
        blobs = self._spool.blobs
        dot_free = item.envelope.dot_free
        binary = False
        if item.envelope.body == 2:
            # Some clients call everything binary: what is text in truth can go to any host.
            dot_free = False
            binary = binary_offered or not is_text(
                blobs.read_range(item.rope, start, CHUNK_OCTETS)
                for start in range(0, work.size, CHUNK_OCTETS)
            )
        data = None
        if work.size <= INLINE_OCTETS:
            data = self._verifier.read(item)
            if not binary:
                data = stuffed(data, dot_free)
        else:
            self._verifier.check(item)  # is it there, and whole? Before anything is said to the remote host
        return Content(item.rope, work.size, dot_free, data, binary)

    def _plain_header(self, work: Work, content: Content) -> bool:
        """Whether the header is ASCII, so that the message needs no SMTPUTF8 but for an address (RFC 6531 3.1)."""
        head = content.data or self._spool.blobs.read_range(work.item.rope, 0, INLINE_OCTETS)
        return head.partition(b"\r\n\r\n")[0].isascii()

    def finished(self, session: Session, transaction: Transaction) -> None:
        """Every recipient of a transaction has its reply."""
        work: Work = transaction.owner
        work.open -= 1
        destination: Destination = session.destination
        profile = destination.profile
        window = destination.window
        if window < (self._max_per_host if profile is None else profile.max_sessions or self._max_per_host):
            destination.window = window + 1.0 / window
            if destination.ready and int(destination.window) > int(window):
                self._loop.call_soon(self._drive, destination)  # one more connection for what waits
        host = session.name
        offers_dsn = session.engine.extensions.dsn
        if len(transaction.recipients) == 1 and not work.remaining and not work.results:
            # Nearly all mail: one recipient, taken by the host.
            recipient, reply = transaction.recipients[0], transaction.replies[0]
            if reply is not None and reply.code < 300 and (offers_dsn or not recipient.notify):
                self._relayed(work, recipient, reply, host)
                return
        ended_by = transaction.reply
        for recipient, reply in zip(transaction.recipients, transaction.replies, strict=True):
            if reply is None:
                work.remaining.append(recipient)
                continue
            whole = reply is ended_by
            if not whole and transaction.accepted and _too_many(reply):
                work.remaining.append(recipient)  # for a transaction of their own, now (RFC 5321 4.5.3.1.10)
                continue
            outcome = classify(reply, transaction.refused_at if whole else None, self._config.temporary_554)
            work.results.append(Result(recipient, outcome, reply))
            if id(reply) not in _OWN_REPLIES:
                work.remote[recipient.address] = host
            if outcome == Outcome.RELAYED and recipient.notify & Notify.SUCCESS and not offers_dsn:
                work.silent.add(recipient.address)
        self._go_on(work)

    def _relayed(self, work: Work, recipient: Recipient, reply: Reply, host: str) -> None:
        """What `_complete` does, for an item with one recipient that was relayed and nobody to tell."""
        item = work.item
        self._ctx.log.event("relayed", item.id, recipient.address, host=host, reply=_said(reply))
        work.content = None
        if self._siblings:
            self._siblings.left(item)
        self._plain.append(Done(work, Settlement(item, [Result(recipient, _RELAYED, reply)]), _NO_NOTICES))
        self._relayed_now += 1
        self._octets_now += work.size
        if "plain" not in self._settling:
            self._settle_soon("plain")

    def _go_on(self, work: Work) -> None:
        """After a part of an item's recipients: the rest, or the end of the attempt."""
        if work.remaining:
            if self._over and work.results:
                self._give_up(work, OUR_FAULT, 0.0)
            elif work not in work.destination.ready:
                work.destination.ready.appendleft(work)
        elif not work.open:
            self._complete(work)

    def rested(self, session: Session) -> None:
        """A session has nothing to do."""
        destination: Destination = session.destination
        if session in destination.idle:
            return
        if destination.fetch is not None:
            destination.fetch.rested()
            return
        destination.sessions.discard(session)
        if session.spent or self._stopped or destination.ready:
            session.quit()
            if destination.ready:
                self._loop.call_soon(self._drive, destination)
            return
        session.resting_since_s = self._loop.time()
        destination.idle.append(session)
        self._idle.setdefault((session.host.address, session.host.port), []).append(session)
        if self._waiting or self._waiting_proven:
            self._loop.call_soon(self._let_wait_go)

    def ended(self, session: Session, reply: Reply, unfinished: list[Transaction]) -> None:
        """A connection is gone."""
        self._sessions.discard(session)
        if session.destination is None:
            return
        destination: Destination = session.destination
        self._part(session)
        if unfinished and not session.used and destination.fetch is None:
            self._bad[session.host.address, session.host.port] = self._loop.time() + BAD_HOST_S
        host = session.name
        said = Reply(451, reply.subject or 4, reply.detail, f"{host}: {reply.code} {reply.text}")
        for transaction in reversed(unfinished):
            work: Work = transaction.owner
            work.open -= 1
            if transaction.stage == Stage.DOT:
                # The host may have taken it; only it knows. Trying again is the lesser evil (RFC 5321 6.1), said in the log.
                for recipient, known in zip(transaction.recipients, transaction.replies, strict=True):
                    if known is None:
                        work.results.append(Result(recipient, Outcome.DEFERRED, UNKNOWN_END))
                    else:
                        work.results.append(
                            Result(recipient, classify(known, None, self._config.temporary_554), known)
                        )
                        work.remote[recipient.address] = host
                self._ctx.log.event("duplicate-possible", work.item.id, host=host, reply=_said(reply))
                self._go_on(work)
                continue
            work.remaining = [*transaction.recipients, *work.remaining]
            if transaction.stage != Stage.WAITING:
                work.tries += 1
            if work.tries >= TRIES:
                self._give_up(work, said, 0.0)
            else:
                self._go_on(work)
        if unfinished:
            destination.window = max(1.0, destination.window / 2)
        self._loop.call_soon(self._drive, destination)
        self._loop.call_soon(self._let_wait_go)

    # ---------------------------------------------------------------- outcomes

    def _answer(self, work: Work, recipients: list[Recipient], reply: Reply) -> None:
        outcome = Outcome.FAILED if reply.code >= 500 else Outcome.DEFERRED
        work.results += [Result(recipient, outcome, reply) for recipient in recipients]

    def _give_up(self, work: Work, reply: Reply, not_before_s: float) -> None:
        """End an item's attempt with one reply for all that remain."""
        with contextlib.suppress(ValueError):
            work.destination.ready.remove(work)
        self._answer(work, work.remaining, reply)
        work.remaining = []
        if not work.open:
            self._complete(work, not_before_s)

    def _complete(self, work: Work, not_before_s: float = 0.0) -> None:
        """All recipients of an item have an outcome for this attempt: decide on retries and notices, hand it to the spool."""
        item = work.item
        event = self._ctx.log.event
        results = work.results
        relayed = deferred = failed = 0
        double = False
        decision = None
        kinds: list[tuple[dsn.Kind, list[Result]]] = []
        delayed: list[Result] = []
        for result in results:
            recipient = result.recipient
            if result.outcome == Outcome.DEFERRED:
                if decision is None:
                    decision = self._decide(work, not_before_s)
                if decision.expired:
                    result.outcome = Outcome.FAILED
                    result.reply = _expired(result.reply, self._policy_of(item).lifetime_s)
                else:
                    result.next_attempt_s = decision.next_attempt_s
                    if decision.notify and not recipient.delay_noticed and dsn.wanted(recipient, "delayed"):
                        recipient.delay_noticed = True
                        delayed.append(result)
            address = recipient.address
            said = _said(result.reply)
            host = work.remote.get(address)
            if result.outcome == Outcome.RELAYED:
                relayed += 1
                event("relayed", item.id, address, host=host, reply=said)
            elif result.outcome == Outcome.DEFERRED:
                deferred += 1
                event(
                    "deferred",
                    item.id,
                    address,
                    host=host,
                    reply=said,
                    next_attempt_s=round(result.next_attempt_s, 3),
                )
            else:
                failed += 1
                event("failed", item.id, address, host=host, reply=said)
                if not dsn.heard(item.envelope, recipient, self._double_bounces):
                    # A notice that can't be delivered ends here: no notice about a notice (RFC 5321 6.1).
                    event("discarded", item.id, address, why="double bounce")
                elif not item.envelope.reverse_path:
                    double = True
        count = self._ctx.count
        if relayed:
            count("messages_relayed_total", relayed)
            count("octets_out_total", work.size)
        if deferred:
            count("messages_deferred_total", deferred)
        if failed:
            count("messages_failed_total", failed)
        if item.envelope.reverse_path:
            if failed:
                kinds.append(("failed", results))
            if delayed:
                kinds.append(("delayed", delayed))
            if work.silent:
                kinds.append(
                    ("relayed", [result for result in results if result.recipient.address in work.silent])
                )
        elif double:
            kinds.append(("failed", results))
        work.content = None
        done = Done(work, Settlement(item, results), kinds)
        siblings = self._siblings
        if siblings:
            siblings.left(item)
        if kinds:
            if self._stopped or not siblings.hold(done):
                self._tell([done])
        else:
            self._plain.append(done)
            self._settle_soon("plain")

    def _tell(self, ends: list[Done]) -> None:
        """Settle items whose sender is to hear of it."""
        self._told += ends
        self._settle_soon("told")

    def _decide(self, work: Work, not_before_s: float) -> Any:
        item = work.item
        notice_due = bool(item.envelope.reverse_path) and any(
            result.outcome == Outcome.DEFERRED
            and not result.recipient.delay_noticed
            and dsn.wanted(result.recipient, "delayed")
            for result in work.results
        )
        return decide(
            self._policy_of(item),
            item.attempts + 1,
            self._spool.age_s(item),
            notice_due=notice_due,
            not_before_s=not_before_s,
        )

    def _policy_of(self, item: Item) -> Policy:
        """The retries of an item: those of its domain's profile, else the channel's."""
        profile = self._profile(item) if self._peers else None
        return self._policy if profile is None else policy_of(self._policy, profile)

    def _settle_soon(self, lane: str) -> None:
        if lane not in self._settling:
            run: Callable[[], Any] = self._settle_plain if lane == "plain" else self._settle_told
            task = self._loop.create_task(run())
            self._settling[lane] = task
            task.add_done_callback(partial(self._settled, lane))

    def _settled(self, lane: str, task: asyncio.Task[None]) -> None:
        self._settling.pop(lane, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._ctx.log.error("outcomes could not be recorded", error)
        if (self._plain if lane == "plain" else self._told) and not self._over:
            self._settle_soon(lane)

    async def _settle_plain(self) -> None:
        """Record outcomes, many at once: while one group is on its way to the disk the next gathers."""
        while self._plain:
            if self._in_hand >= BUSY and len(self._plain) < TAKE and not self._stopped:
                await asyncio.sleep(GATHER_S)
            if self._relayed_now:
                self._ctx.count("messages_relayed_total", self._relayed_now)
                self._ctx.count("octets_out_total", self._octets_now)
                self._relayed_now = self._octets_now = 0
            batch = self._plain[:SETTLE]
            del self._plain[:SETTLE]
            await self._record([done.settlement for done in batch], [])
            self._let_go(batch)

    async def _settle_told(self) -> None:
        """Record outcomes together with the notices that follow from them, in a lane of their own: a notice needs room on the
        disk, a mere outcome hardly any."""
        while self._told:
            batch = self._told[:TOLD]
            del self._told[:TOLD]
            messages: list[Message] = []
            for group in grouped(batch):
                messages += await self._notices(group)
            settlements = [done.settlement for done in batch]  # the spool passes over those a message carries
            await self._record(settlements, messages)
            if messages:
                self._ctx.count("dsn_total", len(messages))
                for message in messages:
                    envelope = message.envelope
                    self._ctx.log.event(
                        "dsn", message.id, envelope.recipients[0].address, parent=id_text(envelope.parent)
                    )
            self._let_go(batch)

    async def _record(self, settlements: list[Settlement], messages: list[Message]) -> None:
        """Settle; outcomes are facts, so it is tried until it succeeds or the worker ends."""
        pause_s = 0.5
        while True:
            try:
                await self._spool.settle(settlements, messages, flush=True)
                return
            except SpoolError as error:
                self._ctx.log.error("outcomes can't be recorded for now", error)
                if self._over:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 10.0)

    async def _notices(self, group: list[Done]) -> list[Message]:
        """The reports about ends of one message: one for each kind, whatever the destinations."""
        item = group[0].work.item
        remote: dict[bytes, str] = {}
        kinds: dict[dsn.Kind, tuple[list[Result], list[Settlement]]] = {}
        for done in group:
            remote |= done.work.remote
            for kind, results in done.kinds:
                told, settled = kinds.setdefault(kind, ([], []))
                told += results
                settled.append(done.settlement)
        try:
            head = await read_range(self._loop, self._spool.blobs, item.rope, 0, dsn.HEAD_OCTETS)
        except (OSError, EOFError) as fault:
            self._ctx.log.error("the content can't be read", fault, item.id)
            head = b""
        config = self._ctx.config
        now_ns = time.time_ns()
        lifetime_s = min(self._policy_of(done.work.item).lifetime_s for done in group)
        left_s = lifetime_s - self._spool.age_s(item)
        messages = []
        for kind, (results, settled) in kinds.items():
            message = dsn.make(
                item,
                results,
                kind,
                hostname=config.hostname,
                postmaster=f"postmaster@{config.domain or config.hostname}",
                content_head=head,
                now_ns=now_ns,
                remote=remote,
                retry_until_ns=now_ns + int(max(left_s, 0.0) * 1e9),
                double_bounces=self._double_bounces,
            )
            if message is not None:
                message.settled = settled
                messages.append(message)
        return messages

    def _let_go(self, batch: list[Done]) -> None:
        """The spool has the outcomes: room for more."""
        self._in_hand -= len(batch)
        held = self._held
        for done in batch:
            name = done.work.item.destination
            if self._passed:
                self._passed.discard(destination_hash(name))
            left = held[name] - 1
            if left:
                held[name] = left
            else:
                del held[name]
        if not self._in_hand:
            self._ctx.working_on(None)
            self._empty.set()
        if not self._stopped:
            self._pump_soon()

    # ---------------------------------------------------------------- time

    def _tick(self) -> None:
        """Deadlines, idle sessions, and what may be forgotten; once a second."""
        now_s = self._loop.time()
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        for session in list(self._sessions):
            session.tick(now_s)
        if self._waiting or self._waiting_proven:
            # Others wait for a place: hosts that don't answer at all have had theirs long enough.
            # One after the other until the next look: what follows from each must not hold up the sessions of others.
            late = [limit for limit, since_s in self._dialling.items() if now_s - since_s >= PATIENCE_S]
            for number, limit in enumerate(late):
                if not limit.expired():
                    limit.reschedule(now_s + TICK_S * number / len(late))
        idle_s = 0.0 if self._stopped else self._config.idle_s
        for session in [
            s for resting in self._idle.values() for s in resting if now_s - s.resting_since_s >= idle_s
        ]:
            self._part(session)
            session.quit()
        for table in (self._bad, self._no_tls, self._proven):
            for where in [where for where, until_s in table.items() if until_s <= now_s]:
                del table[where]
        for destination in list(self._destinations.values()):
            if not (
                destination.ready or destination.sessions or destination.idle or destination.opening
            ) and (destination.dead_until_s <= now_s and destination.route_until_s <= now_s):
                del self._destinations[destination.key]
        if self._tallies is not None and now_s - self._tallied_s >= WRITE_S:
            self._tallied_s = now_s
            self._start(self._tallies.write_beside())
        self._ctx.gauge("sessions_now", len(self._sessions))

    async def _report(self) -> None:
        """Send the reports on TLS of days that are over: soon after the start, then every hour, never on the dot of it."""
        reporter = tlsrpt.Reporter(
            self._ctx.home, self._ctx.config, self._router.resolver, self._submit, self._verifying
        )
        pause_s = random.uniform(60.0, 600.0)
        while True:
            await asyncio.sleep(pause_s)
            pause_s = random.uniform(3000.0, 4200.0)
            try:
                for sent in await reporter.run():
                    self._ctx.log.event("tls-report", day=sent.day, domain=sent.domain, state=sent.state, to=sent.how)
            except Exception as error:
                self._ctx.log.error("reports on TLS could not be sent", error)

    async def _submit(self, messages: list[Message]) -> None:
        for error in await self._spool.append(messages):
            if error is not None:
                raise error

    # ---------------------------------------------------------------- ending

    async def retire(self) -> None:
        """Take nothing more, finish what is under way."""
        await self._stop(None)

    async def drain(self, deadline_s: float) -> None:
        """Take nothing more, give back what waits, finish what is under way until the deadline, record outcomes."""
        end_s = self._loop.time() + deadline_s
        await self._stop(max(deadline_s - min(1.0, deadline_s / 4), 0.0))
        self._over = True
        for task in self._opening:
            task.cancel()
        for session in list(self._sessions):
            session.fail(OUR_FAULT)
        for destination in self._destinations.values():
            self._return(destination)
        if self._in_hand:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), max(end_s - self._loop.time(), 0.05))
        for task in list(self._settling.values()):
            task.cancel()
        if self._ticker is not None:
            self._ticker.cancel()
        if self._reporting is not None:
            self._reporting.cancel()
        if self._tallies is not None:
            self._tallies.write()
        self._profiles.close()
        self._spool.close()

    async def _stop(self, limit_s: float | None) -> None:
        self._stopped = True
        if self._fetches is not None:
            self._fetches.close()
        self._siblings.let_all_go()
        if self._timer is not None:
            self._timer.cancel()
        for destination in self._destinations.values():
            self._return(destination)
        for session in [s for resting in self._idle.values() for s in resting]:
            self._part(session)
            session.quit()
        if self._in_hand:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), limit_s)

    def _return(self, destination: Destination) -> None:
        """Give back items that nothing was done with yet."""
        untouched = [work for work in destination.ready if not work.results and not work.open]
        destination.ready = deque(work for work in destination.ready if work.results or work.open)
        if not untouched:
            return
        self._spool.give_back([work.item for work in untouched])
        self._in_hand -= len(untouched)
        for work in untouched:
            self._siblings.left(work.item)
            name = work.item.destination
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]


def make_router(config: Config, *folders: Any, answers: Answers | None = None) -> Router:
    """The router of a configuration. folders: where a relative host table is looked for, the last one if it is in none. answers: of DNS, shared."""
    smtpc = config.smtpc
    table = None
    if smtpc.host_table:
        paths = [folder / smtpc.host_table for folder in folders]
        table = HostTable(next((path for path in paths if path.exists()), paths[-1]), smtpc.port)
    ports = config.ports
    bind = ports.bind or (["127.0.0.1"] if ports.base else [])
    resolution: Resolution = smtpc.resolution
    return Router(
        Resolver.of(config.dns, answers),
        resolution=resolution,
        relay_hosts=[host_port(text, smtpc.port) for text in smtpc.relay_hosts],
        table=table,
        port=smtpc.port,
        hostname=config.hostname,
        own_ports=own_ports(config),
        local=listening_addresses(bind),
    )


def _too_many(reply: Reply) -> bool:
    """Whether a refused RCPT means "not with these others": 452, or 552 without a word of a full mailbox."""
    return reply.code in (452, 552) and (reply.subject, reply.detail) in ((0, 0), (5, 3))


def _said(reply: Reply | None) -> str:
    return f"{reply.code} {reply.status} {reply.text}" if reply is not None else ""


def _why(error: OSError) -> str:
    """What the system says of an error; event loops put words of their own into it."""
    return os.strerror(error.errno) if error.errno else str(error)


def _expired(reply: Reply | None, lifetime_s: float) -> Reply:
    """The reply for a recipient that ran out of time (RFC 3463 4.4.7); what was said last is kept."""
    span = f"{lifetime_s / 86400:.3g} days" if lifetime_s >= 86400 else f"{lifetime_s:.0f} seconds"
    return Reply(554, 4, 7, f"not delivered within {span}; last answer: {_said(reply)}")


__all__ = ["Destination", "Work", "Worker", "classify", "make_router", "own_ports"]
