"""iemsctl trace: the life of one message, from the log; iemsctl audit: the balance of all, from the spool."""

from __future__ import annotations

import click
import msgspec

from iems import log as logs
from iems.cli.common import Failed, Home, json_option, pass_home, say, say_json
from iems.log import printable
from iems.model import id_octets, id_text


def normal_id(text: str) -> str:
    """An id as we print it. Usage error if it is none."""
    try:
        return id_text(id_octets(text.strip()))
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="ID") from None


@click.command()
@click.argument("id")
@json_option
@pass_home
def trace(home: Home, id: str, as_json: bool) -> None:
    """Tell the whole life of the message ID (as in `250 queued as ID`), and of what it caused."""
    shown = normal_id(id)
    count = 0
    for event in logs.events_with(home.path / "log", shown.encode()):
        count += 1
        detail = event.get("detail", {})
        if event.get("id") not in (None, shown):
            # A line of another message that names this one: a DSN, a forward.
            detail = {"id": event["id"], **detail}
        if as_json:
            say_json(
                {
                    "time": event["time"],
                    "event": event["event"],
                    "role": event.get("role"),
                    "recipient": event.get("recipient"),
                    "detail": detail,
                }
            )
            continue
        words = [event["time"], f"{event.get('role') or '-':12}", f"{event['event']:11}"]
        if event.get("recipient"):
            words.append(printable(str(event["recipient"])))
        for key, value in detail.items():
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            words.append(f"{key}={printable(text)}")
        say(" ".join(words).rstrip())
    if not count:
        raise Failed(f"{shown} is not in the log (log/mail.log and log/mail.log.N)")


KEYS = ("accepted", "delivered", "relayed", "dsn", "discarded", "queued", "quarantined", "missing")


@click.command()
@json_option
@pass_home
def audit(home: Home, as_json: bool) -> None:
    """Balance every recipient answered with 250 against mailbox, relay, DSN, discard and queue. Exit code 1 if any is missing."""
    from iems.spool import admin

    found = admin.audit(home.path)
    if as_json:
        say_json(found)
    else:
        for key, value in found.items():
            say(f"{key:12} {value}")
    if found.get("missing"):
        raise SystemExit(1)
