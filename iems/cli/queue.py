"""iemsctl queue: what waits, why, and until when; and what an operator does about it. Works with the server running or stopped."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iems.cli.common import Failed, Group, Home, duration, json_option, note, pass_home, say, say_json, table
from iems.cli.trace import normal_id
from iems.errors import ConfigError
from iems.log import printable
from iems.master.supervisor import running_pid
from iems.model import Channel, id_octets, id_text

if TYPE_CHECKING:
    from iems.spool.admin import Selection
    from iems.spool.weight import Weights

CHANNELS = ["INPUT", *(channel.name for channel in Channel if channel >= 32)]


if TYPE_CHECKING:
    _ParamType = click.ParamType[float]
else:  # generic only in later releases of click than the oldest we run with
    _ParamType = click.ParamType

dry_run_option = click.option("--dry-run", is_flag=True, help="Only show what would be changed.")


class Age(_ParamType):
    """A time span: a number with s, m, h or d behind it; seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds. Usage error if it is no time span."""
        found = re.fullmatch(r"([0-9]{1,9})([smhd])", str(value))
        if found is None:
            self.fail(f"{value!r} is no time span: write 90s, 15m, 2h or 7d", param, ctx)
        return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def selectors(function: Callable[..., Any]) -> Callable[..., Any]:
    """IDs, --channel, --sender, --recipient, --domain, --reason, --older, --younger."""
    for option in (
        click.option("--younger", type=Age(), metavar="AGE", help="Accepted less than AGE ago."),
        click.option(
            "--older", type=Age(), metavar="AGE", help="Accepted AGE ago or earlier: 90s, 15m, 2h, 7d."
        ),
        click.option("--reason", help="Part of why it waits: its last reply, or its destination's trouble."),
        click.option("--domain", help="Domain of a recipient."),
        click.option("--recipient", help="Address of a recipient."),
        click.option("--sender", help="The reverse-path; <> for the null path."),
        click.option(
            "--channel", type=click.Choice(CHANNELS, case_sensitive=False), help="Queue of the channel."
        ),
        click.argument("ids", nargs=-1, metavar="[ID]..."),
    ):
        function = option(function)
    return function


def selection(
    ids: tuple[str, ...],
    channel: str | None,
    sender: str | None,
    recipient: str | None,
    domain: str | None,
    reason: str | None,
    older: float | None,
    younger: float | None,
) -> Selection:
    """What a command is about."""
    from iems.spool import admin

    return admin.Selection(
        ids=[id_octets(normal_id(text)) for text in ids],
        channel=admin.channel_number(channel) if channel is not None else None,
        sender=sender,
        recipient=recipient,
        domain=domain,
        reason=reason,
        older_s=older,
        younger_s=younger,
    )


def _must_select(**given: Any) -> None:
    """Usage error if nothing was chosen: no command acts on the whole queue by accident."""
    if not any(_is_given(value) for value in given.values()):
        raise click.UsageError(
            "say which: IDs, or --channel, --sender, --recipient, --domain, --reason, --older, --younger"
        )


def _is_given(value: Any) -> bool:
    return value is not None and value not in ("", ())  # an age of 0 is one


def _dry_run(home: Home, command: str, chosen: Selection, as_json: bool, *, whole: bool = False) -> None:
    """Shows the items a command would change. whole: of a channel, whatever their state."""
    from iems.spool import admin

    states = admin.STATES if whole else admin.CHANGES[command]
    rows = []
    number = 0
    for entry in admin.would_change(home.path, chosen, states):
        number += 1
        if as_json:
            say_json(entry)
        else:
            rows.append(
                (
                    entry["id"],
                    entry["state"],
                    f"<{entry['reverse_path']}>",
                    ",".join(entry["recipients"]),
                    entry["channel"],
                    entry["identifier"] or "-",
                )
            )
    if rows:
        table(rows, ("ID", "STATE", "FROM", "TO", "CHANNEL", "IDENTIFIER"))
    note(f"{command} would change {number}; nothing was changed")


def wake_workers(home: Home) -> None:
    """Tells a running server to look at its queues: what we changed, no worker has seen."""
    pid = running_pid(home.path)
    if pid is not None and pid > 0:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGUSR1)


def _report(home: Home, as_json: bool, done: str, number: int, ids: tuple[str, ...]) -> None:
    wake_workers(home)
    if as_json:
        say_json({done: number})
    else:
        say(f"{done} {number}")
    if ids and not number:
        raise Failed(
            "no such message in a state this applies to; see `iemsctl queue list`, `iemsctl trace ID`"
        )


def _weights(home: Home) -> Weights | None:
    """The weights of the settings, None if mail leaves in order of time."""
    from iems.spool.weight import Weights

    try:
        return Weights.of(home.config().smtpc)
    except ConfigError:  # the queue can be looked at whatever is wrong with the settings
        return None


@click.group(cls=Group)
def queue() -> None:
    """Messages that wait: list, destinations, show, export, hold, release, retry, route, bounce, delete."""


@queue.command("list")
@selectors
@click.option("--limit", type=click.IntRange(0), default=0, help="At most so many; 0: all.")
@json_option
@pass_home
def queue_list(home: Home, limit: int, as_json: bool, **given: Any) -> None:
    """List the messages in the queue, oldest first: why each waits, and its next try."""
    from iems.spool import admin

    found = admin.list_items(home.path, selection(**given), limit=limit, weights=_weights(home))
    if as_json:
        for message in found:
            say_json(message)
        return
    rows = []
    for message in found:
        for recipient in message["recipients"] or [{}]:
            rows.append(
                (
                    message["id"],
                    recipient.get("state") or message["state"],
                    message["size"] if message["size"] is not None else "-",
                    f"<{message['reverse_path']}>" if message["reverse_path"] is not None else "-",
                    recipient.get("address") or "-",
                    recipient.get("channel") or "-",
                    recipient.get("attempts", 0),
                    recipient.get("next_attempt") or "-",
                    recipient.get("reply") or message.get("reason") or "",
                )
            )
    if rows:
        table(rows, ("ID", "STATE", "SIZE", "FROM", "TO", "CHANNEL", "TRIES", "NEXT", "WHY"))


@queue.command()
@click.option("--channel", type=click.Choice(CHANNELS, case_sensitive=False), help="Only this channel.")
@json_option
@pass_home
def destinations(home: Home, channel: str | None, as_json: bool) -> None:
    """Show for each channel and destination how much waits, since when, why, the next try, and the weight of what leaves first."""
    from iems.spool import admin
    from iems.spool.destinations import destinations as look

    found = look(home.path, admin.channel_number(channel) if channel is not None else None, _weights(home))
    if as_json:
        for entry in found:
            say_json(entry)
    elif found:
        table(
            [
                (
                    entry["channel"],
                    entry["destination"] or "-",
                    *(entry[state] for state in admin.STATES),
                    duration(entry["oldest_s"]),
                    entry["next_attempt"] or "-",
                    entry["weight"] if entry["weight"] is not None else "-",
                    entry["reason"],
                )
                for entry in found
            ],
            ("CHANNEL", "DESTINATION", *(state.upper() for state in admin.STATES), "OLDEST", "NEXT", "WEIGHT", "WHY"),
        )


@queue.command()
@click.argument("id")
@click.option("--content", is_flag=True, help="The message itself (its first 64 KiB), as it is, on stdout.")
@json_option
@pass_home
def show(home: Home, id: str, content: bool, as_json: bool) -> None:
    """Show one message: its envelope, each recipient's state, its header."""
    from iems.spool import admin

    found = admin.show(home.path, id_octets(normal_id(id)))
    if found is None:
        raise Failed(
            f"{normal_id(id)} is not in the queue; `iemsctl trace {normal_id(id)}` tells what became of it"
        )
    entry, octets = found
    if content:
        sys.stdout.buffer.write(octets)
        return
    header = octets.partition(b"\r\n\r\n")[0].decode("utf-8", "backslashreplace")
    if as_json:
        say_json({**entry, "header": header})
        return
    for key in ("id", "input_channel", "reverse_path", "size", "received", "state", "reason"):
        if entry.get(key) not in (None, ""):
            say(f"{key:14} {printable(str(entry[key]))}")
    for recipient in entry["recipients"]:
        say("")
        for key, value in recipient.items():
            if value not in (None, ""):
                say(f"  {key:14} {printable(str(value))}")
    say("")
    for line in header.split("\r\n"):
        say(printable(line.expandtabs(8)))


@queue.command()
@selectors
@dry_run_option
@json_option
@pass_home
def hold(home: Home, as_json: bool, dry_run: bool, **given: Any) -> None:
    """Hold messages; with --channel alone, the whole channel and what arrives later (accepting goes on)."""
    from iems.spool import admin

    _must_select(**given)
    if dry_run:
        return _dry_run(home, "hold", selection(**given), as_json, whole=_channel_alone(given))
    chosen = selection(**given)
    if _channel_alone(given):
        assert chosen.channel is not None
        admin.hold_channel(home.path, chosen.channel, True)
        if as_json:
            say_json({"held": given["channel"].upper()})
        else:
            say(f"held {given['channel'].upper()}")
        return
    _report(home, as_json, "held", admin.hold(home.path, chosen), given["ids"])


@queue.command()
@selectors
@dry_run_option
@json_option
@pass_home
def release(home: Home, as_json: bool, dry_run: bool, **given: Any) -> None:
    """Let held and quarantined messages go on; with --channel alone, the channel and all that is held in it."""
    from iems.spool import admin

    _must_select(**given)
    if dry_run:
        return _dry_run(home, "release", selection(**given), as_json, whole=_channel_alone(given))
    chosen = selection(**given)
    if _channel_alone(given):
        assert chosen.channel is not None
        admin.hold_channel(home.path, chosen.channel, False)
        if not as_json:
            say(f"released {given['channel'].upper()}")
    _report(home, as_json, "released", admin.release(home.path, chosen), given["ids"])


def _channel_alone(given: dict[str, Any]) -> bool:
    return [name for name, value in given.items() if _is_given(value)] == ["channel"]


@queue.command()
@selectors
@dry_run_option
@json_option
@pass_home
def retry(home: Home, as_json: bool, dry_run: bool, **given: Any) -> None:
    """Try deferred messages now."""
    from iems.spool import admin

    _must_select(**given)
    if dry_run:
        return _dry_run(home, "retry", selection(**given), as_json)
    _report(home, as_json, "retried", admin.retry(home.path, selection(**given)), given["ids"])


@queue.command()
@selectors
@dry_run_option
@json_option
@pass_home
def bounce(home: Home, as_json: bool, dry_run: bool, **given: Any) -> None:
    """Return messages to their senders."""
    from iems.spool import admin

    _must_select(**given)
    if dry_run:
        return _dry_run(home, "bounce", selection(**given), as_json)
    config = home.config()
    number = admin.bounce(
        home.path,
        selection(**given),
        hostname=config.hostname,
        postmaster=f"postmaster@{config.domain or config.hostname}",
    )
    _report(home, as_json, "bounced", number, given["ids"])


@queue.command()
@selectors
@click.option("--yes", is_flag=True, help="Needed without IDs: nobody is told of what is deleted.")
@dry_run_option
@json_option
@pass_home
def delete(home: Home, as_json: bool, dry_run: bool, yes: bool, **given: Any) -> None:
    """Discard messages without telling anybody."""
    from iems.spool import admin

    _must_select(**given)
    if dry_run:
        return _dry_run(home, "delete", selection(**given), as_json)
    if not given["ids"] and not yes:
        note(f"{len(admin.list_items(home.path, selection(**given)))} messages would be deleted")
        raise click.UsageError("add --yes to delete them")
    _report(home, as_json, "deleted", admin.delete(home.path, selection(**given)), given["ids"])


def _selectors_of_route(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `selectors`, but --channel says where to, so the queue has another name."""
    function = selectors(function)
    for option in function.__click_params__:  # type: ignore[attr-defined]
        if option.name == "channel":
            option.opts, option.help = ["--from-channel"], "Queue of the channel it waits in."
    return function


@queue.command()
@_selectors_of_route
@click.option(
    "--channel", "to_channel", required=True, type=click.Choice(CHANNELS, case_sensitive=False),
    help="Where to; INPUT asks the directory again.",
)  # fmt: skip
@click.option("--destination", default="", help="Next hop (HOST or HOST:PORT) or identifier; SMTPC without one: by MX.")
@click.option("--to", help="Another address for the recipient; needs --recipient.")
@dry_run_option
@json_option
@pass_home
def route(
    home: Home,
    to_channel: str,
    destination: str,
    to: str | None,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Send messages another way, due at once; with --recipient or --domain, those recipients alone."""
    from iems.log import Log
    from iems.spool import admin, reroute

    _must_select(**given)
    if to is not None and given["recipient"] is None:
        raise click.UsageError("--to needs --recipient: whose address is to change")
    try:
        target = reroute.way(admin.channel_number(to_channel), destination, to)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if dry_run:
        found = reroute.would_reroute(home.path, selection(**given), target)
    else:
        found = reroute.reroute(home.path, selection(**given), target)
        log = Log(home.path / "log" / "mail.log", "admin", form=home.config().log.format)
        for one in found.changed:
            for recipient in one.recipients:
                log.event(
                    "rerouted",
                    one.id,
                    recipient.address,
                    channel=admin.channel_name(one.item.channel),
                    destination=one.item.destination,
                    to_channel=to_channel,
                    to_destination=destination,
                    to_address=target.address or recipient.address,
                )
        log.close()
    if dry_run and as_json:
        for one in [*found.changed, *found.left]:
            say_json(reroute.shown(one))
    elif dry_run and (found.changed or found.left):
        table([_route_row(reroute.shown(one)) for one in [*found.changed, *found.left]], ("ID", "FROM", "TO", "RECIPIENTS", "STAYS"))
    else:
        for one in found.left:
            note(f"{id_text(one.id)} stays: {one.left}")
    if dry_run:
        note(f"route would change {len(found.changed)}; nothing was changed")
        return
    _report(home, as_json, "routed", len(found.changed), given["ids"])


def _route_row(entry: dict[str, Any]) -> tuple[str, ...]:
    places = {
        f"{r['address']} -> {r['to_address']}" if r["address"] != r["to_address"] else r["address"]
        for r in entry["recipients"]
    }
    hops = sorted({r["to_identifier"] for r in entry["recipients"]})
    return (
        entry["id"],
        f"{entry['channel']} {entry['identifier']}".strip(),
        f"{entry['to_channel']} {','.join(hops)}".strip(),
        ",".join(sorted(places)),
        entry["left"] or "-",
    )


@queue.command()
@selectors
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@json_option
@pass_home
def export(home: Home, out: Path, as_json: bool, **given: Any) -> None:
    """Write messages to files, octet for octet: ID.eml, and the envelope as ID.json. Nothing is overwritten."""
    from iems.spool.export import Exists
    from iems.spool.export import export as write

    _must_select(**given)
    number = damaged = 0
    try:
        for entry in write(home.path, selection(**given), out):
            number += 1
            damaged += bool(entry["damaged"])
            if as_json:
                say_json(entry)
            else:
                say(f"{entry['file']}  {entry['octets']}")
            if entry["damaged"]:
                note(f"{entry['id']} is not what was accepted: {entry['damaged']}")
    except Exists as error:
        raise Failed(str(error)) from None
    if damaged:
        raise Failed(f"{damaged} of {number} are damaged; they were written as they are")
    if given["ids"] and not number:
        raise Failed("no such message in the queue; see `iemsctl trace ID`")
