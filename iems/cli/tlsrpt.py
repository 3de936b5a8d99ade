"""iemsctl tlsrpt: what was counted of TLS towards other domains, and the reports about it (RFC 8460)."""

from __future__ import annotations

import asyncio
import json
import re

import click

from iems.cli.common import Failed, Group, Home, json_option, note, pass_home, say, say_json, table
from iems.cli.queue import wake_workers

_DAY = re.compile(r"\d{4}-\d\d-\d\d\Z")


def _day(_: click.Context, __: click.Parameter, value: str | None) -> str:
    if value is not None and not _DAY.match(value):
        raise click.BadParameter("a day is YYYY-MM-DD, of UTC")
    return value or ""


_day_option = click.option("--day", callback=_day, metavar="YYYY-MM-DD", help="This day (of UTC) only.")


@click.group(cls=Group)
def tlsrpt() -> None:
    """Reports on TLS connections to other domains: show, send. See smtpc.tls_reports."""


@tlsrpt.command("show")
@_day_option
@json_option
@pass_home
def tlsrpt_show(home: Home, day: str, as_json: bool) -> None:
    """What was counted and not reported yet: connections by domain and policy. The last minute may be missing."""
    from iems.smtpc import tlsrpt as reports

    folder = home.path / reports.FOLDER
    rows = []
    for found in reports.days(folder):
        if day and found != day:
            continue
        counted = reports.merged(folder, found)
        for domain in counted.domains():
            for tally in counted.of(domain):
                kinds: dict[str, int] = {}
                for key, number in tally.failures.items():
                    result = json.loads(key)["result"]
                    kinds[result] = kinds.get(result, 0) + number
                if as_json:
                    say_json({"day": found, "domain": domain, "policy": tally.kind, "good": tally.good, "bad": tally.bad, "failures": kinds})
                else:
                    why = ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items()))
                    rows.append((found, domain, tally.kind, tally.good, tally.bad, why))
        if counted.left_out:
            note(f"{found}: {counted.left_out} connections of further domains were not counted")
    if rows:
        table(rows, ("DAY", "DOMAIN", "POLICY", "GOOD", "BAD", "FAILURES"))


@tlsrpt.command("send")
@_day_option
@click.option("--dry-run", is_flag=True, help="Show the reports and where they would go; send nothing.")
@json_option
@pass_home
def tlsrpt_send(home: Home, day: str, dry_run: bool, as_json: bool) -> None:
    """Send the reports of days that are over now; the server does it by itself if smtpc.tls_reports is on."""
    from iems.net.resolver import Resolver
    from iems.smtpc.security import verifying_tls
    from iems.smtpc.tlsrpt import Reporter, Sent
    from iems.spool import admin
    from iems.spool.items import Message

    config = home.config()

    async def submit(messages: list[Message]) -> None:
        await asyncio.to_thread(admin.submit, home.path, messages)

    async def work() -> list[Sent]:
        file = config.smtpc.tls_ca_file
        reporter = Reporter(
            home.path,
            config,
            Resolver.of(config.dns),
            submit,
            lambda: verifying_tls(home.path / file if file else ""),
        )
        return await reporter.run(dry=dry_run, only=day)

    found = asyncio.run(work())
    for sent in found:
        if as_json:
            entry = {"day": sent.day, "domain": sent.domain, "state": sent.state, "to": sent.how}
            say_json(entry | ({"report": json.loads(sent.content)} if sent.content else {}))
        else:
            say(f"{sent.day} {sent.domain}: {sent.state}" + (f", {', '.join(sent.how)}" if sent.how else ""))
            if sent.content:
                say(json.dumps(json.loads(sent.content), indent=2))
    if not dry_run and any(sent.state == "sent" for sent in found):
        wake_workers(home)
    late = sum(sent.state in ("later", "failed") for sent in found)
    if late:
        raise Failed(f"{late} reports could not be sent")
