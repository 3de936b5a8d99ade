"""iemsctl trace: the life of one message, from the log; iemsctl audit: the balance of all, from the spool."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click
import msgspec

from iems import log as logs
from iems.cli.common import Failed, Home, json_option, note, pass_home, say, say_json
from iems.cli.policy import directory_of
from iems.log import printable
from iems.model import id_octets, id_text


def normal_id(text: str) -> str:
    """An id as we print it. Usage error if it is none."""
    try:
        return id_text(id_octets(text.strip()))
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="ID") from None


#: What comes before what in a message's life; all else comes after.
_STAGE = {"accepted": 0, "routed": 1, "split": 1, "examined": 1, "queued": 1}


def in_order(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events by time, a cause before its effect.

    Each process writes its own lines: the taker of a message may note "leased" some milliseconds before the process
    that queued it comes to note "routed".
    """
    ordered: list[dict[str, Any]] = []
    for event in sorted(events, key=lambda event: str(event["time"])):
        stage = _STAGE.get(event["event"], 2)
        at = len(ordered)
        while (
            at
            and _STAGE.get(ordered[at - 1]["event"], 2) > stage
            and _milliseconds(event) - _milliseconds(ordered[at - 1]) <= 1000
        ):
            at -= 1
        ordered.insert(at, event)
    return ordered


def _milliseconds(event: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(event["time"]).replace("Z", "+00:00")).timestamp() * 1000
    except ValueError:
        return 0.0


@click.command()
@click.argument("id")
@json_option
@pass_home
def trace(home: Home, id: str, as_json: bool) -> None:
    """Tell the whole life of the message ID (as in `250 queued as ID`), and of what it caused."""
    shown = normal_id(id)
    found = in_order(list(logs.events_with(home.path / "log", shown.encode())))
    for event in found:
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
    if not found:
        raise Failed(f"{shown} is not in the log (log/mail.log and log/mail.log.N)")


#: Lost deliveries that are named.
_NAMED = 20


@click.command()
@json_option
@pass_home
def audit(home: Home, as_json: bool) -> None:
    """Balance every recipient answered with 250 against mailbox, relay, DSN, discard and queue. Exit code 1 if any is missing or lost.

    held, removed, lost: of the deliveries the spool still knows one by one, those whose message is in the store, those whose message the user
    (or expiry) has removed since, and those of which nothing is there.
    """
    from iems.spool import admin
    from iems.store.balance import balance

    delivered: set[tuple[bytes, bytes]] = set()
    found = admin.audit(home.path, delivered)
    with directory_of(home) as directory:

        def number_of(address: bytes) -> int:
            account = directory.account(address.decode("utf-8", "surrogateescape"))
            return account.number if account is not None else 0

        store = balance(
            home.config().store_path(home.path), delivered, number_of, lambda number: directory.account_by_number(number) is not None
        )
    found |= {"held": store.held, "removed": store.removed, "lost": len(store.lost)}
    if as_json:
        say_json(found)
    else:
        for key, value in found.items():
            say(f"{key:12} {value}")
    for message_id, address in store.lost[:_NAMED]:
        note(f"iemsctl: {id_text(message_id)} was delivered to {printable(address.decode('utf-8', 'replace'))}, and is not in the store")
    if found["missing"] or store.lost:
        raise SystemExit(1)
