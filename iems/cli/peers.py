"""iemsctl peer: profiles of peer domains, in force at once; every change leaves an audit line."""

from __future__ import annotations

from typing import Any

import click
from msgspec import structs

from iems.cli.common import Group, Home, json_option, pass_home, say_json, table
from iems.cli.policy import directory_of

_TLS = ("default", "off", "may", "encrypt", "verify")
_SWITCH = click.Choice(["on", "off"], case_sensitive=False)


@click.group(cls=Group)
def peer() -> None:
    """What is different for one domain; `*.DOMAIN` stands for every sub-domain but not for DOMAIN."""


@peer.command("set")
@click.argument("domain")
@click.option("--accept", type=_SWITCH, help="Whether hosts of that name may send to us.")
@click.option("--transmit", type=_SWITCH, help="Whether mail for the domain leaves; off: it bounces.")
@click.option(
    "--queue-first", type=_SWITCH, help="Whether its mail waits for the next run before the first try."
)
@click.option(
    "--run-interval", type=float, metavar="S", help="Seconds between tries; 0: as smtpc.retry_s says."
)
@click.option(
    "--retry-period", type=float, metavar="H", help="Hours until mail is given up; 0: smtpc.lifetime_s."
)
@click.option(
    "--max-sessions", type=int, metavar="N", help="Connections at once; 0: as smtpc.max_per_host says."
)
@click.option("--max-messages", type=int, metavar="N", help="Messages a connection; 0: smtpc.max_messages.")
@click.option("--max-in", type=int, metavar="OCTETS", help="Largest message from it; 0: smtpd.size_limit.")
@click.option("--max-out", type=int, metavar="OCTETS", help="Largest message to it; 0: no limit of ours.")
@click.option("--keep-tags", type=_SWITCH, help="Whether our spam tags stay in mail to it.")
@click.option("--tls", type=click.Choice(_TLS), help="TLS towards it; default: as smtpc.tls says.")
@click.option(
    "--client-certificate", metavar="NAME", help="Certificate shown to it; default: smtpc.client_certificate; none."
)
@pass_home
def peer_set(home: Home, domain: str, **options: Any) -> None:
    """Set the profile of DOMAIN; what is not named stays as it is."""
    names = {
        "run_interval": "run_interval_s",
        "retry_period": "retry_period_h",
        "max_in": "max_in_octets",
        "max_out": "max_out_octets",
    }
    values = {
        names.get(name, name): value.lower() == "on" if value in ("on", "off") and name not in ("tls", "client_certificate") else value
        for name, value in options.items()
        if value is not None
    }
    with directory_of(home) as directory:
        directory.set_peer(domain, **values)


@peer.command("remove")
@click.argument("domain")
@pass_home
def peer_remove(home: Home, domain: str) -> None:
    """Remove the profile of DOMAIN."""
    with directory_of(home) as directory:
        directory.remove_peer(domain)


@peer.command("list")
@json_option
@pass_home
def peer_list(home: Home, as_json: bool) -> None:
    """List the profiles; a number of 0 stands for the setting of all."""
    with directory_of(home) as directory:
        found = directory.peers().list()
    rows = [structs.asdict(profile) for profile in found]
    if as_json:
        for row in rows:
            say_json(row)
    elif rows:
        table(
            [
                tuple({True: "on", False: "off"}[v] if isinstance(v, bool) else v for v in row.values())
                for row in rows
            ],
            [name.upper() for name in rows[0]],
        )
