"""iemsctl report: how much mail there is, whose, and how it grew."""

from __future__ import annotations

import time

import click

from iems.cli.common import Group, Home, json_option, pass_home, say, say_json, table
from iems.cli.iemsuser import size_text
from iems.cli.policy import directory_of


@click.group(cls=Group)
def report() -> None:
    """Reports about the server's state."""


@report.command()
@click.option("--domain", default="", help="Only the users of this domain.")
@click.option("--top", type=click.IntRange(0, 1_000_000), default=20, show_default=True, help="Users to show, those with the most mail first; 0: all.")
@json_option
@pass_home
def storage(home: Home, domain: str, top: int, as_json: bool) -> None:
    """Show what users and domains keep, in all, and what it grew by since the last day noted before today.

    The janitor notes the sums once a day. Growth is empty where there is nothing to compare with. `disk` is what contents take on the disk: mail
    to several users is kept once, deleted mail until it is due.
    """
    from iems.store import usage

    path = home.config().store_path(home.path)
    domain = domain.lower()
    with directory_of(home) as directory:
        accounts = {account.number: account for account in directory.list_accounts(domain)}
        quotas = directory.domain_quotas()
        if domain and not accounts and domain not in directory.domains():
            raise click.BadParameter(f"{domain} is no local domain", param_hint="--domain")
    used = usage.usages(path)
    now = usage.summed(((number, account.address) for number, account in accounts.items()), used, time.time())
    earlier = next((day for day in reversed(usage.history(path)) if day.day < now.day), None)

    def growth(sum_: usage.Sum, before: usage.Sum | None) -> int | None:
        return sum_.octets - before.octets if before else None

    users = sorted(accounts.values(), key=lambda account: (-used.get(account.number, (0, 0))[0], account.address))
    shown = [(account, *used.get(account.number, (0, 0))) for account in (users[:top] if top else users)]
    named = sorted(now.domains.items(), key=lambda one: (-one[1].octets, one[0]))
    total_before = None if earlier is None else earlier.domains.get(domain) if domain else earlier.total
    disk = usage.disk_octets(path)
    since = earlier.day if earlier else None
    if as_json:
        for account, octets, messages in shown:
            say_json(
                {"kind": "user", "address": account.address, "used_bytes": octets, "messages": messages, "quota_bytes": account.quota_octets}
            )
        for name, one in named:
            before = earlier.domains.get(name) if earlier else None
            say_json(
                {"kind": "domain", "domain": name, "used_bytes": one.octets, "messages": one.messages, "users": one.accounts,
                 "growth_bytes": growth(one, before), "since": since, "quota_bytes": quotas.get(name)}
            )  # fmt: skip
        say_json(
            {"kind": "total", "used_bytes": now.total.octets, "messages": now.total.messages, "users": now.total.accounts,
             "growth_bytes": growth(now.total, total_before), "since": since, "disk_bytes": disk}
        )  # fmt: skip
        return
    if shown:
        table(
            [(a.address, size_text(octets), messages, size_text(a.quota_octets), f"{100 * octets / a.quota_octets:.0f}%" if a.quota_octets else "")
             for a, octets, messages in shown],
            ("USER", "USED", "MESSAGES", "QUOTA", "FULL"),
        )  # fmt: skip
        say("")
    rows = [
        (name, one.accounts, size_text(one.octets), one.messages, _signed(growth(one, earlier.domains.get(name) if earlier else None)),
         size_text(quotas.get(name)), f"{100 * one.octets / quotas[name]:.0f}%" if name in quotas else "")
        for name, one in named
    ]  # fmt: skip
    rows.append(("total", now.total.accounts, size_text(now.total.octets), now.total.messages, _signed(growth(now.total, total_before)), "", ""))
    table(rows, ("DOMAIN", "USERS", "USED", "MESSAGES", f"SINCE {since}" if since else "GROWTH", "QUOTA", "FULL"))
    say(f"on disk: {size_text(disk)} (all domains)")


def _signed(octets: int | None) -> str:
    return "" if octets is None else f"{'-' if octets < 0 else '+'}{size_text(abs(octets))}"
