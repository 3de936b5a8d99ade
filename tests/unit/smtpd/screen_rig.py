"""A server with a screen, its DNS, and a client that waits for answers."""

import asyncio

from iems.config import Config, Smtpd
from iems.directory.screening import ban_of, zone_of
from iems.net.resolver import Resolver
from iems.smtpd.screen import Screen


def screened(server, bans=(), zones=(), dns=None, clock=None, **smtpd):
    """`server` with a screen. bans, zones: arguments of `ban_of` and `zone_of`. dns: address of the server to ask."""
    directory = server.handlers.directory
    directory.bans = [ban_of(*ban) for ban in bans]
    directory.zones = [zone_of(*zone) for zone in zones]
    resolver = Resolver([dns or ("127.0.0.1", 9)], timeout_s=0.2, attempts=1)
    config = Config(hostname="mx.test", domain="mx.test", smtpd=Smtpd(**smtpd))
    more = {"clock": clock} if clock else {}
    server.handlers.screen = Screen(config, server.handlers.policy, directory, resolver, server.log, **more)
    if dns:
        server.handlers._spawn = server.handlers._as_task
    return server


async def say(server, octets):
    """What the server answers, once nothing is awaited any more."""
    out = server.feed(octets)
    while server.handlers._tasks:
        server.output = b""
        await asyncio.wait(set(server.handlers._tasks))
        while server.spool.waiting:
            server.spool.run()
        out += server.output
    return out


def codes(out):
    """The code of each reply."""
    return [line[:3].decode() for line in out.splitlines() if line[3:4] == b" "]
