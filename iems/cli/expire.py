"""iemsctl expire: mail that goes by itself after some days; every change leaves an audit line."""

from __future__ import annotations

import click

from iems.cli.common import Group, Home, json_option, pass_home, say_json, table
from iems.cli.policy import directory_of

_domain = click.option("--domain", default="", help="Only accounts of this domain; such a rule comes before those for all.")


@click.group(cls=Group)
def expire() -> None:
    """Rules of expiry. Without any (the default) mail is kept for ever."""


@expire.command("add")
@click.argument("pattern", metavar="MAILBOX")
@click.argument("days", type=int)
@_domain
@pass_home
def expire_add(home: Home, pattern: str, days: int, domain: str) -> None:
    """Let mail go that has been in MAILBOX for DAYS days; it can be undeleted for the usual time.

    MAILBOX is a name or a pattern such as `Lists/*`. Of several rules for one mailbox that with the fewest days counts.
    """
    with directory_of(home) as directory:
        directory.add_expiry(pattern, days, domain)


@expire.command("remove")
@click.argument("pattern", metavar="MAILBOX")
@_domain
@pass_home
def expire_remove(home: Home, pattern: str, domain: str) -> None:
    """Remove a rule."""
    with directory_of(home) as directory:
        directory.remove_expiry(pattern, domain)


@expire.command("list")
@json_option
@pass_home
def expire_list(home: Home, as_json: bool) -> None:
    """List the rules."""
    with directory_of(home) as directory:
        found = directory.expiry()
    if as_json:
        for rule in found:
            say_json({"mailbox": rule.pattern, "days": rule.days, "domain": rule.domain or None})
    elif found:
        table([(rule.pattern, rule.days, rule.domain or "all") for rule in found], ("MAILBOX", "DAYS", "DOMAIN"))
