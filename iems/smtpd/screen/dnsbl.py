"""DNS block lists (RFC 5782): asked about a client, all at once, and themselves tested.

A list that does not answer, answers nonsense or fails the test of RFC 5782 5 is sick for a while: it is not asked, lists nobody, and
the log has one alarm for each time it fell sick. So a list that is closed down, or wants no more of our questions, refuses no mail.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Iterable
from typing import Any

from iems.directory.screening import TROUBLE, Zone
from iems.model import Reply, Verdict
from iems.net.resolver import DnsFailure, Resolver
from iems.smtpd.screen.verdicts import Findings, Refusal, answered, joined

#: A list in order is tested again after this time.
TEST_S = 3600.0
#: Of a list's explanation at most this many characters are shown to the client.
TEXT_LENGTH = 200
_LISTED = ipaddress.ip_network("127.0.0.0/8")
#: What RFC 5782 5 wants never listed, and listed by a list of IPv4, of IPv6 addresses.
NEVER, ALWAYS, ALWAYS_6 = "127.0.0.1", "127.0.0.2", "::ffff:127.0.0.2"


class Sick(Exception):
    """The list can't be believed; the text says why."""


def question(ip: str, zone: str) -> str:
    """The name that a list is asked for (RFC 5782 2.1, 2.4)."""
    address = ipaddress.ip_address(ip)
    digits: Iterable[str]
    if address.version == 4:
        digits = str(address).split(".")
    else:
        digits = address.exploded.replace(":", "")
    return ".".join([*reversed(list(digits)), zone])


class List:
    """One zone and how it is: `sick_until` and `tested_until` are of the clock, in seconds."""

    __slots__ = ("_spans", "_testing", "sick_until", "tested_until", "zone")

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self._spans = zone.spans()
        self._testing: asyncio.Task[None] | None = None
        self.sick_until = 0.0
        self.tested_until = 0.0

    def counts(self, records: Iterable[str]) -> str:
        """The first answer that is a listing by the codes set, "" if none is. Raises Sick."""
        hit = ""
        for text in records:
            address = ipaddress.IPv4Address(text)
            if address not in _LISTED:
                raise Sick(f"it answers {text}, which no list does")
            if address in TROUBLE:
                raise Sick(f"it answers {text}: it does not serve us")
            number = int(address)
            # 127.0.0.1 is what a resolver that blocks names makes up (RFC 5782 2.3): a code only if it is set as one.
            if any(first <= number <= last for first, last in self._spans) or (
                not self._spans and text != "127.0.0.1"
            ):
                hit = hit or text
        return hit

    async def tested(self, ask: Callable[[str], Any], now: float) -> None:
        """Test the list if that is due; several who wait share one test. Raises Sick, DnsFailure, TimeoutError."""
        if now < self.tested_until:
            return
        if self._testing is None:
            self._testing = asyncio.get_running_loop().create_task(self._test(ask))
            self._testing.add_done_callback(self._test_over)
        # Shielded: a client that goes must not take the test from the others.
        await asyncio.shield(self._testing)
        self.tested_until = now + TEST_S

    def _test_over(self, task: asyncio.Task[None]) -> None:
        self._testing = None
        if not task.cancelled():
            task.exception()  # each who waits has it, and perhaps nobody does any more

    async def _test(self, ask: Callable[[str], Any]) -> None:
        name = self.zone.name
        never, always = await asyncio.gather(ask(question(NEVER, name)), ask(question(ALWAYS, name)))
        for text in (*never, *always):
            self.counts((text,))
        if never:
            raise Sick(f"it lists {NEVER}, so it lists everybody")
        if not always and not await ask(question(ALWAYS_6, name)):
            raise Sick(f"it does not list {ALWAYS}, so it lists nobody")


class Lists:
    """The zones in use. ask for a client gives what they say of it.

    timeout_s: for one look-up. sick_s: how long a sick list is left alone. log: gets the alarms. clock: seconds.
    """

    def __init__(
        self,
        resolver: Resolver,
        log: Any,
        *,
        timeout_s: float,
        sick_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver = resolver
        self._log = log
        self._timeout_s = timeout_s
        self._sick_s = sick_s
        self._clock = clock
        self._lists: list[List] = []

    def __bool__(self) -> bool:
        return bool(self._lists)

    def use(self, zones: Iterable[Zone]) -> None:
        """Use these zones from now on; what is known of those in use already stays known."""
        known = {one.zone: one for one in self._lists}
        self._lists = [known.get(zone) or List(zone) for zone in zones]

    async def ask(self, ip: str) -> Findings:
        """What all lists say of a client, asked at once."""
        return joined(await asyncio.gather(*(self._ask_one(one, ip) for one in self._lists)))

    async def _look_up(self, name: str) -> tuple[str, ...]:
        async with asyncio.timeout(self._timeout_s):
            answer = await self._resolver.query(name, "A")
        records: tuple[str, ...] = answer.records
        return records

    async def _ask_one(self, one: List, ip: str) -> Findings:
        now = self._clock()
        if now < one.sick_until:
            return answered("dnsbl", one.zone.name, "sick, not asked")
        name = question(ip, one.zone.name)
        asked, test = await asyncio.gather(
            self._look_up(name), one.tested(self._look_up, now), return_exceptions=True
        )
        for fault in (test, asked):
            if isinstance(fault, BaseException):
                return self._trouble(one, fault)
        assert not isinstance(asked, BaseException)
        try:
            hit = one.counts(asked)
        except Sick as fault:
            return self._trouble(one, fault)
        if one.sick_until:
            one.sick_until = 0.0
            self._log.event("dnsbl-well", zone=one.zone.name)
        if not hit:
            return answered("dnsbl", one.zone.name, "not listed")
        if one.zone.action == "tag":
            return Findings(None, (Verdict("dnsbl", one.zone.name, hit),))
        return Findings(Refusal(await self._refusal(name, one.zone.name), "dnsbl", f"{one.zone.name} {hit}"))

    def _trouble(self, one: List, fault: BaseException) -> Findings:
        if not isinstance(fault, Sick | DnsFailure | TimeoutError | ValueError):
            raise fault
        now = self._clock()
        if now >= one.sick_until:  # of several who saw it at once, the first tells
            one.sick_until = now + self._sick_s
            one.tested_until = 0.0
            why = "no answer in time" if isinstance(fault, TimeoutError) else str(fault)
            self._log.event("alarm", what="dnsbl-sick", zone=one.zone.name, why=why, pause_s=self._sick_s)
        return answered("dnsbl", one.zone.name, "no answer")

    async def _refusal(self, name: str, zone: str) -> Reply:
        text = ""
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._resolver.query(name, "TXT")
        except (DnsFailure, TimeoutError, ValueError):
            pass  # it is only the explanation
        else:
            for record in found.records:
                shown = record.decode("ascii", "replace").replace("\ufffd", "?")
                text = "".join(char if char.isprintable() else " " for char in shown)[:TEXT_LENGTH].strip()
                break
        return Reply(550, 7, 1, f"Your address is listed by {zone}" + (f": {text}" if text else ""))
