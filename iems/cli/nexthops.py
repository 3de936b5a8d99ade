"""The hosts behind a route, with each look-up that found them: what `iemsctl route explain --hosts` shows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iems.net.resolver import DnsFailure, Exchanges

if TYPE_CHECKING:
    from iems.config import Config

Step = tuple[str, str]


class Recorder:
    """A resolver (`iems.smtpc.mx.Resolver`) that writes down what it is asked and what it says."""

    def __init__(self, resolver: Any, steps: list[Step]) -> None:
        self._resolver = resolver
        self._steps = steps

    async def exchanges(self, domain: str) -> Exchanges:
        """See `iems.net.resolver`."""
        question = f"DNS: MX of {domain}"
        try:
            found: Exchanges = await self._resolver.exchanges(domain)
        except (DnsFailure, ValueError) as error:
            self._steps.append((question, f"no answer: {error}"))
            raise
        if found.null:
            answer = "it takes no mail (null MX)"
        elif not found.exists:
            answer = "no such domain"
        elif found.implicit:
            answer = "none: the domain itself is its mail host"
        else:
            answer = ", ".join(f"{preference} {host}" for preference, host in found.hosts)
        self._steps.append((question, answer))
        return found

    async def addresses(self, host: str, families: str = "46") -> list[str]:
        """See `iems.net.resolver`."""
        question = f"DNS: addresses of {host}"
        try:
            found: list[str] = await self._resolver.addresses(host, families)
        except (DnsFailure, ValueError) as error:
            self._steps.append((question, f"no answer: {error}"))
            raise
        self._steps.append((question, ", ".join(found) or "none"))
        return found


    async def query(self, name: str, kind: str) -> Any:
        """See `iems.net.resolver`; no part of finding a host, so not written down."""
        return await self._resolver.query(name, kind)


def next_hops(config: Config, home: Path, ways: Iterable[tuple[str, bool]]) -> tuple[list[Step], list[dict[str, Any]]]:
    """(look-ups, hosts in the order in which they are tried) of destinations.

    ways: (domain or relay host, whether it is a relay host). A host: destination, host, address, port. Asks DNS, which may take seconds.
    """
    from iems.smtpc.worker import make_router

    steps: list[Step] = []
    hosts: list[dict[str, Any]] = []
    on_demand = {domain.lower() for entry in config.smtpd.odmr for domain in entry.domains}

    async def look() -> None:
        router = make_router(config, home / "conf", home)
        router.resolver = Recorder(router.resolver, steps)
        for destination, direct in dict.fromkeys(ways):
            question = f"mail hosts of {destination}"
            if not direct and destination in on_demand:
                steps.append((question, "none is tried: its site fetches its mail by ATRN (smtpd.odmr)"))
                continue
            route = await router.find(destination, direct)
            if route.reply is not None:
                steps.append((question, f"{route.reply.code} {route.reply.status} {route.reply.text}"))
                continue
            steps.append((question, ", ".join(str(host) for host in route.hosts)))
            hosts.extend(
                {"destination": destination, "host": host.name, "address": host.address, "port": host.port} for host in route.hosts
            )

    asyncio.run(look())
    return steps, hosts
