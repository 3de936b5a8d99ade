"""iemsctl dmarc: aggregate reports to the domains whose mail came in (RFC 7489 7.2)."""

from __future__ import annotations

import re
from typing import Any

import click

from iems.cli.common import Failed, Group, Home, json_option, note, pass_home, say, say_json, table


@click.group(cls=Group)
def dmarc() -> None:
    """DMARC reports."""


@dmarc.group(cls=Group)
def report() -> None:
    """What reports are made of, and sending them by hand; with `authres.reports` they leave by themselves each night."""


def _day(home: Home, day: str) -> str:
    """`2026-11-24` or `20261124` as the latter; by default the last finished day with rows, else the last one."""
    import time

    from iems.authres import reports

    if day:
        found = re.fullmatch(r"(\d{4})-?(\d\d)-?(\d\d)", day)
        if not found:
            raise click.BadParameter(f"{day!r} is no day such as 2026-11-24", param_hint="--day")
        return "".join(found.groups())
    known = reports.days(home.path)
    finished = [one for one in known if one < reports.day_of(time.time())]
    return (finished or known or [""])[-1]


@report.command("show")
@click.option("--day", default="", help="As 2026-11-24 (UTC); by default the last finished one.")
@click.option("--domain", default="", help="Show the report (XML) of one domain.")
@json_option
@pass_home
def show(home: Home, day: str, domain: str, as_json: bool) -> None:
    """List the domains that asked for reports about a day, with their messages."""
    from iems.authres import reports
    from iems.authres.reportmail import Report, xml

    chosen = _day(home, day)
    found = [Report(name, chosen, rows) for name, rows in sorted(reports.counted(home.path, chosen, domain.lower()).items())]
    if domain:
        if not found:
            raise Failed(f"nothing about {domain} on {chosen or 'any day'}")
        config = home.config()
        submitter = config.domain or config.hostname
        say(xml(found[0], submitter, config.authres.report_address or f"postmaster@{submitter}").decode())
        return
    rows: list[dict[str, Any]] = [
        {"day": one.day, "domain": one.domain, "messages": one.messages, "passed": _passed(one), "to": list(one.published.rua)}
        for one in found
    ]
    if as_json:
        for row in rows:
            say_json(row)
    elif rows:
        table([(*list(row.values())[:-1], ", ".join(row["to"])) for row in rows], ("DAY", "DOMAIN", "MESSAGES", "PASSED", "TO"))


def _passed(one: Any) -> int:
    return sum(count for row, count in one.rows.items() if row.dkim or row.spf)


@report.command("send")
@click.option("--day", default="", help="As 2026-11-24 (UTC); by default the last finished one.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent to whom, and send nothing.")
@pass_home
def send(home: Home, day: str, dry_run: bool) -> None:
    """Send the reports of a day now; those that were sent already are not sent again."""
    from iems.authres import reports
    from iems.authres.reportmail import Report

    chosen = _day(home, day)
    found = [Report(name, chosen, rows) for name, rows in sorted(reports.counted(home.path, chosen).items())]
    for one in found:
        for address in one.published.rua:
            say(f"{one.domain} {one.day} to {address}: {one.messages} messages")
    if not found:
        note("no rows: nothing to report")
        return
    if not dry_run:
        asked = home.path / "dmarc/send"
        part = asked.with_suffix(".part")
        part.write_text(chosen + "\n", "ascii")
        part.rename(asked)
        note("the janitor of the running server sends them, or at its next start; see event dmarc-report in the log")
