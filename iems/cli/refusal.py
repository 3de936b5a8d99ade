"""iemsctl refusal: what stands behind the id in a 4xx or 5xx reply: who, when, why, and what to do."""

from __future__ import annotations

import time
from typing import Any

import click

from iems.cli.common import Failed, Group, Home, json_option, note, pass_home, say, say_json, table
from iems.cli.queue import Age
from iems.log import printable
from iems.refusals.causes import explain, rule_of
from iems.refusals.ring import Refusal


class _ById(Group):
    """A group whose argument may be an id instead of a command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command; `show` for what is none."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["show", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_ById)
def refusal() -> None:
    """Refusals by the id at the end of a reply: `iemsctl refusal ID`, or list."""


def _text(octets: bytes | None) -> str | None:
    return octets.decode("utf-8", "backslashreplace") if octets is not None else None


def shown(id: str, found: Refusal) -> dict[str, Any]:
    """A refusal for programs."""
    from iems.spool.admin import rfc3339

    reply = found.reply
    return {
        "id": id,
        "time": rfc3339(found.time_ns),
        "listener": found.listener,
        "client": found.client,
        "helo": _text(found.helo),
        "reverse_path": _text(found.reverse_path),
        "recipient": _text(found.recipient),
        "more_recipients": found.more,
        "user": found.user,
        "reply": f"{reply.code} {reply.status} {reply.text}",
        "rule": found.check or rule_of(reply),
        "subject": found.subject,
    }


@refusal.command(hidden=True)
@click.argument("id")
@json_option
@pass_home
def show(home: Home, id: str, as_json: bool) -> None:
    """Tell the cause of a refusal and what to do. ID: in brackets at the end of the reply."""
    from iems.refusals.reader import find

    try:
        found = find(home.path / "log" / "refusals", id)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="ID") from None
    if found is None:
        raise Failed(f"{id} is not kept: too old (log.refusals_octets), or given in the last second")
    entry = shown(id.strip("[]").upper(), found)
    cause = explain(found.reply, entry["rule"])
    if as_json:
        say_json(entry | {"cause": cause.why, "sender": cause.sender, "administrator": cause.administrator})
        return
    for key in ("id", "time", "listener", "client", "helo", "user"):
        if entry[key]:
            say(f"{key:14} {printable(str(entry[key]))}")
    if entry["reverse_path"] is not None:
        say(f"{'from':14} {printable('<' + entry['reverse_path'] + '>')}")
    if entry["recipient"]:
        more = f" and {found.more} more" if found.more else ""
        say(f"{'to':14} {printable('<' + entry['recipient'] + '>')}{more}")
    say(f"{'reply':14} {printable(entry['reply'])}")
    subject = f": {printable(entry['subject'])}" if entry["subject"] else ""
    say(f"{'rule':14} {entry['rule'] or '-'}{subject}")
    say("")
    say(f"Cause: {printable(cause.why)}")
    say(f"Sender: {cause.sender}")
    say(f"Administrator: {cause.administrator}")


@refusal.command("list")
@click.option("--client", default="", help="Address of the client, or the front of it.")
@click.option("--sender", help="The reverse-path; <> for the null path.")
@click.option("--recipient", help="Address of a recipient.")
@click.option("--since", type=Age(), metavar="AGE", help="No older than AGE: 90s, 15m, 2h, 7d.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="The youngest so many.")
@json_option
@pass_home
def refusal_list(
    home: Home,
    client: str,
    sender: str | None,
    recipient: str | None,
    since: float | None,
    limit: int,
    as_json: bool,
) -> None:
    """List refusals, the oldest first."""
    from collections import deque

    from iems.refusals.reader import Selection, matching

    since_ns = time.time_ns() - int(since * 1e9) if since is not None else 0
    number = 0
    youngest: deque[tuple[str, Refusal]] = deque(maxlen=limit)
    for pair in matching(home.path / "log" / "refusals", Selection(client, sender, recipient, since_ns)):
        number += 1
        youngest.append(pair)
    ordered = sorted(youngest, key=lambda pair: pair[1].time_ns)
    if as_json:
        for id, found in ordered:
            say_json(shown(id, found))
    elif ordered:
        rows = []
        for id, found in ordered:
            entry = shown(id, found)
            path = entry["reverse_path"]
            rows.append(
                (id, entry["time"], entry["client"], "-" if path is None else f"<{path}>", entry["recipient"] or "-", entry["reply"])
            )
        table(rows, ("ID", "TIME", "CLIENT", "FROM", "TO", "REPLY"))
    if number > limit:
        note(f"{number - limit} older ones not shown; see --limit")
