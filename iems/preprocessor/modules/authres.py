"""Module `authres`: asks SPF, DKIM, DMARC and ARC about mail from outside and tells in Authentication-Results (RFC 8601).

Mail from our own networks and hosts passes as it is. Mail of users who logged in is not checked, but what it says in our name is
taken out all the same, as it is of mail that was picked up in batches. Unsure (DNS away, too slow) is `temperror`: told, and without effect.

A refusal comes after the message was taken, so it is a report to the sender. Where SPF does not vouch for the reverse-path the
report would go to somebody whose name was borrowed; then the message is dropped, and the log says so.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
import types
from collections.abc import Coroutine, Generator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from iems import model
from iems.authres import outcome, spf
from iems.authres.asking import Lookup
from iems.authres.dmarc import Dmarc
from iems.authres.header import claimed_id, write
from iems.authres.mail import Mail
from iems.authres.outcome import Outcome
from iems.authres.reports import Collector, row_of
from iems.model import Channel, Envelope, Recipient, Reply, Rope, rope_length
from iems.net.resolver import Resolver
from iems.preprocessor.modules import Verdict, Work
from iems.preprocessor.ropes import in_front, replaced

if TYPE_CHECKING:
    from iems.master.child import WorkerContext

_T = TypeVar("_T")

NAME: Final = "authres"
#: Under this name `Work.shared` has the rope and the `Mail` that were looked at, for modules that sign.
BODY: Final = "body"
REFUSED: Final = Reply(550, 7, 1, "The domain in From asks to refuse mail that it does not vouch for (DMARC)")
NO_IDENTITY: Final = Reply(550, 7, 1, "From must have exactly one address")
#: Answers of DNS that are kept, each of a few KiB at most.
KEPT_ANSWERS: Final = 20_000
#: Clients of which it is remembered whether they are ours.
KEPT_CLIENTS: Final = 4096
#: Octets of a header that are searched for forged fields.
MAX_HEADER: Final = 16 << 20
#: Forged fields that are left out as spans; with more, the header is written anew.
MAX_SPANS: Final = 16
#: Channels that bring mail from outside; of mail that was picked up, the client is not known.
_FROM_OUTSIDE: Final = frozenset((int(Channel.SMTPD), int(Channel.BSMTPIN)))
#: Messages remembered, so that one taken from the queue again is one in a report.
MAX_SEEN: Final = 1024
_FORGED = re.compile(
    rb"(?:\A|(?<=\r\n))(authentication-results[ \t]*:.*?(?:\r\n(?![ \t])|\Z))", re.IGNORECASE | re.DOTALL
)


@types.coroutine
def _resumed(coroutine: Coroutine[Any, Any, _T], awaited: Any) -> Generator[Any, Any, _T]:
    """Await a coroutine that was begun already and waits for `awaited`."""
    try:
        while True:
            try:
                given = yield awaited
            except BaseException as thrown:
                awaited = coroutine.throw(thrown)
            else:
                awaited = coroutine.send(given)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        coroutine.close()


class Authres:
    """The module. lookup: in place of a resolver made from the settings."""

    name = NAME
    on_tags = False

    def __init__(self, ctx: WorkerContext, lookup: Lookup | None = None) -> None:
        config = ctx.config
        self._ctx = ctx
        self._settings = config.authres
        # Strangers choose the names that are asked: the cache has a size of its own.
        dns = msgspec.structs.replace(config.dns, cache_records=min(config.dns.cache_records, KEPT_ANSWERS))
        self._lookup: Lookup = Resolver.of(dns, ctx.answers) if lookup is None else lookup
        self.authserv_id = (config.authres.authserv_id or ctx.hostname).lower()
        self._trusted = [
            ipaddress.ip_network(text, strict=False)
            for text in (*config.smtpd.trusted_networks, *config.authres.trusted_networks)
        ]
        self._loopback = config.smtpd.limit_loopback
        self._sealers = frozenset(domain.lower() for domain in config.authres.trusted_sealers)
        self._is_outside = lru_cache(maxsize=KEPT_CLIENTS)(self._outside)
        self._seen: dict[bytes, None] = {}
        self._rows = (
            Collector(ctx.home, ctx.slot, config.authres.report_rows_mb << 20) if config.authres.reports else None
        )

    def wants(self, envelope: Envelope) -> bool:
        """Mail from outside."""
        return envelope.input_channel in _FROM_OUTSIDE and self._is_outside(envelope.client_ip)

    async def examine(self, work: Work) -> Verdict:
        """Strip, check, tell, act."""
        envelope = work.envelope
        if envelope.input_channel not in _FROM_OUTSIDE or not self._is_outside(envelope.client_ip):
            return Verdict()
        size = rope_length(work.rope)
        mail = Mail(size, lambda start, length: work.read(work.rope, start, length))
        rope, stripped = await self._stripped(work, mail, size)
        notes = [f"{stripped} forged fields removed"] if stripped else []
        if envelope.auth or envelope.input_channel != Channel.SMTPD:
            return Verdict(rope=rope if stripped else None, note="; ".join(notes))
        found = work.shared.get(NAME)
        if found is None:
            found = work.shared[NAME] = await self._ask(work, mail)
            work.shared[BODY] = work.rope, mail
        helo = envelope.helo.decode("utf-8", "replace")
        sender = envelope.reverse_path.decode("utf-8", "replace")
        rope = in_front(write(self.authserv_id, outcome.words(found, helo, sender)), rope)
        notes += [
            f"{name}={word}"
            for name, word in [
                ("spf", found.spf.result if found.spf is not None else "none"),
                ("dkim", ",".join(one.result for one in found.dkim) or "none"),
                ("dmarc", found.dmarc.result),
                ("arc", found.arc.result),
            ]
            if name != "arc" or word != "none"
        ]
        action, why = self._action(found)
        if self._rows is not None and found.dmarc.record is not None and found.dmarc.record.rua and self._new(work.id):
            applied = {"reject": "reject", "tag": "quarantine"}.get(action, "none")
            self._rows.add(row_of(found, int(time.time()), envelope.client_ip, sender, applied, why))
        if action == "none":
            return Verdict(rope=rope, note="; ".join(notes))
        mark = model.Verdict("dmarc", found.dmarc.domain, f"{found.dmarc.result}, policy {found.dmarc.policy or 'none'}")
        if action == "tag":
            return Verdict(rope=rope, note="; ".join([*notes, "tagged"]), tags=(mark,))
        sources = list({id(source): source for part in work.parts for source in part.sources}.values())
        reply = REFUSED if found.dmarc.domain else NO_IDENTITY
        if found.spf is not None and found.spf.result == "pass" and found.spf.scope == "mailfrom":
            return Verdict(rope=rope, note="; ".join([*notes, "refused"]), failed=[(one, reply) for one in sources])
        dropped: list[tuple[Recipient, str]] = [(one, f"dmarc: {reply.text}") for one in sources]
        return Verdict(rope=rope, note="; ".join([*notes, "dropped"]), discarded=dropped)

    def _new(self, id: bytes) -> bool:
        """Whether a message is seen for the first time: other groups of it come by, and it may be taken from the queue again."""
        if id in self._seen:
            return False
        self._seen[id] = None
        if len(self._seen) > MAX_SEEN:
            del self._seen[next(iter(self._seen))]
        return True

    def _outside(self, client_ip: str) -> bool:
        """Whether a client is nobody of ours."""
        try:
            address = ipaddress.ip_address(client_ip)
        except ValueError:
            return True
        if address.is_loopback and not self._loopback:
            return False
        return not any(address.version == network.version and address in network for network in self._trusted)

    async def _ask(self, work: Work, mail: Mail) -> Outcome:
        envelope = work.envelope
        ip = envelope.client_ip if spf.address_of(envelope.client_ip) is not None else ""
        evaluating = outcome.evaluate(
            self._lookup,
            mail,
            ip=ip,
            helo=envelope.helo.decode("utf-8", "replace"),
            mail_from=envelope.reverse_path.decode("utf-8", "replace"),
            receiver=self.authserv_id,
            now_s=int(time.time()),
            # The id's last octets are random: a fair sample for pct=.
            sample=int.from_bytes(work.id[-4:], "big") % 100,
        )
        try:
            awaited = evaluating.send(None)
        except StopIteration as done:  # all answers were at hand: no timer is needed
            found: Outcome = done.value
            return found
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await _resumed(evaluating, awaited)
        except TimeoutError:
            late = Dmarc("temperror", outcome.from_domain(mail)[1], problem="not done in time")
            return Outcome("", None, (), late)

    def _action(self, found: Outcome) -> tuple[str, str]:
        """(none, tag or reject; why less than the domain asks for: "", local_policy or sampled_out)."""
        limit, policy = self._settings.dmarc, found.dmarc
        if policy.result == "permerror" and not found.identity:
            return {"none": "none", "quarantine-tag": "tag", "reject": "reject"}[limit], ""
        if policy.result != "fail" or policy.policy == "none":
            return "none", ""
        if (
            found.arc.result == "pass"
            and found.arc.sealer in self._sealers
            and found.arc.reported.get("dmarc") == "pass"
        ):
            return "none", "trusted_forwarder"
        wanted = policy.disposition
        sampled = "sampled_out" if wanted != policy.policy else ""
        if wanted == "none" or limit == "none":
            return "none", sampled or "local_policy"
        if wanted == "reject" and limit == "reject":
            return "reject", ""
        return "tag", sampled or ("local_policy" if wanted == "reject" else "")

    async def _stripped(self, work: Work, mail: Mail, size: int) -> tuple[Rope, int]:
        """The content without fields that claim to be ours, and how many there were."""
        header = mail.header
        if mail.cut:
            header = work.read(work.rope, 0, min(size, MAX_HEADER))
            header = header.partition(b"\r\n\r\n")[0]
        if b"authentication-results" not in header.lower():
            return work.rope, 0
        header += b"\r\n"
        spans = []
        for field in _FORGED.finditer(header):
            claimed = claimed_id(field[1].partition(b":")[2])
            if claimed is None or claimed == self.authserv_id:
                spans.append(field.span(1))
        if len(spans) <= MAX_SPANS:
            return replaced(work.rope, [(low, high, ()) for low, high in spans]), len(spans)
        kept, at = [], 0
        for low, high in spans:
            kept.append(header[at:low])
            at = high
        kept.append(header[at:])
        extent = await work.write(b"".join(kept))
        return replaced(work.rope, [(0, len(header), [extent])]), len(spans)
