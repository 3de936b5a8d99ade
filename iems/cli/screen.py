"""iemsctl ban, dnsbl: who is turned away at the door, in force at once.

They work with the server stopped or running; every change leaves an audit line in log/directory.log.
"""

from __future__ import annotations

import click

from iems.cli.common import Group, Home, json_option, pass_home, say_json, table
from iems.cli.policy import directory_of

KINDS = click.Choice(["address", "domain", "ip", "range", "cidr"], case_sensitive=False)


@click.group(cls=Group)
def ban() -> None:
    """Senders and clients whose mail is not taken."""


@ban.command("add")
@click.argument("kind", type=KINDS)
@click.argument("value")
@click.option(
    "--reply",
    type=click.Choice(["553", "451"]),
    default="553",
    show_default=True,
    help="For good (553; a banned client gets 554), or for now (451; a client gets 421).",
)
@pass_home
def ban_add(home: Home, kind: str, value: str, reply: str) -> None:
    """Ban VALUE: an address, a domain (`*.DOMAIN` covers sub-domains), an ip, a range FIRST-LAST or a cidr network."""
    with directory_of(home) as directory:
        directory.add_ban(kind, value, int(reply))


@ban.command("remove")
@click.argument("kind", type=KINDS)
@click.argument("value")
@pass_home
def ban_remove(home: Home, kind: str, value: str) -> None:
    """Lift a ban."""
    with directory_of(home) as directory:
        directory.remove_ban(kind, value)


@ban.command("list")
@json_option
@pass_home
def ban_list(home: Home, as_json: bool) -> None:
    """List the bans, oldest first."""
    with directory_of(home) as directory:
        found = directory.screen_lists()
    assert found is not None
    if as_json:
        for one in found[1]:
            say_json({"kind": one.kind, "value": one.value, "reply": one.reply})
    elif found[1]:
        table([(one.kind, one.value, one.reply) for one in found[1]], ("KIND", "VALUE", "REPLY"))


@click.group(cls=Group)
def dnsbl() -> None:
    """DNS block lists (RFC 5782) that smtpd asks about its clients."""


@dnsbl.command("add")
@click.argument("zone")
@click.option(
    "--action",
    type=click.Choice(["reject", "tag"]),
    required=True,
    help="Refuse mail from a listed client, or take it with a tag.",
)
@click.option(
    "--codes", default="", help="Answers that count, as 127.0.0.2,127.0.0.4-11; else any of 127.0.0.0/8."
)
@pass_home
def dnsbl_add(home: Home, zone: str, action: str, codes: str) -> None:
    """Ask ZONE about clients, or change its action and codes."""
    with directory_of(home) as directory:
        directory.add_dnsbl(zone, action, codes)


@dnsbl.command("remove")
@click.argument("zone")
@pass_home
def dnsbl_remove(home: Home, zone: str) -> None:
    """Ask ZONE no more."""
    with directory_of(home) as directory:
        directory.remove_dnsbl(zone)


@dnsbl.command("list")
@json_option
@pass_home
def dnsbl_list(home: Home, as_json: bool) -> None:
    """List the zones, oldest first."""
    with directory_of(home) as directory:
        found = directory.screen_lists()
    assert found is not None
    if as_json:
        for zone in found[2]:
            say_json({"zone": zone.name, "action": zone.action, "codes": zone.codes})
    elif found[2]:
        table(
            [(zone.name, zone.action, ",".join(zone.codes) or "any") for zone in found[2]],
            ("ZONE", "ACTION", "CODES"),
        )
