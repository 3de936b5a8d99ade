"""iemsuser spam, undelete: what a user wants done with tagged mail, and getting back what a filter or the user removed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import structs

from iems.cli.common import Failed, Group, json_option, say, say_json, table
from iems.directory import Account
from iems.directory.directory import Directory
from iems.directory.entries import DirectoryRefusal
from iems.directory.spamcontrol import SpamControl, action_of, allowed_of, zone_name
from iems.imap import mailboxes
from iems.model import id_text
from iems.store.reader import Reader, Trashed
from iems.store.rows import DISCARDED
from iems.store.shared import ROOTS
from iems.store.wire import Undelete

_decode = msgspec.msgpack.Decoder(tuple[int, bytes]).decode


def account_of(directory: Directory, address: str) -> Account:
    """The account of an address. Raises Failed."""
    account = directory.account(address)
    if account is None:
        raise Failed(f"there is no account {address}")
    return account


def own_mailbox(name: str) -> str:
    """A mailbox where a filter may file. Raises Failed, StoreError."""
    if name.startswith(ROOTS):
        raise Failed("a filter files in mailboxes of the user himself")
    return mailboxes.checked(name)


@click.group(cls=Group)
def spam() -> None:
    """What a user wants done with mail that a check has tagged; in force at once."""


def _change(home: Any, address: str, change: Callable[[SpamControl], SpamControl]) -> None:
    directory = home.directory()
    account_of(directory, address)
    directory.set_spam_control(address, change)


@spam.command("show")
@click.argument("address")
@json_option
@click.pass_obj
def spam_show(home: Any, address: str, as_json: bool) -> None:
    """Show what ADDRESS has chosen; without a choice the site's action (`lmda.spam_action`) counts."""
    account = account_of(home.directory(), address)
    control = account.spam or SpamControl()
    site = home.config().lmda.spam_action
    chosen = control.action.text if control.action is not None else None
    if as_json:
        say_json(
            {
                "address": account.address,
                "action": chosen,
                "site": site,
                "zones": {zone: action.text for zone, action in sorted(control.zones.items())},
                "allow": [{"kind": entry.kind, "value": entry.value} for entry in control.allow],
            }
        )
        return
    say(f"all tags: {chosen or f'{site} (the site)'}")
    for zone, action in sorted(control.zones.items()):
        say(f"zone {zone}: {action.text}")
    for entry in control.allow:
        say(f"always delivered: {entry.kind} {entry.value}")


@spam.command("action")
@click.argument("address")
@click.argument("action")
@click.option("--zone", help="For mail that this DNS-BL has tagged, instead of the action for all tags.")
@click.pass_obj
def spam_action(home: Any, address: str, action: str, zone: str | None) -> None:
    """Choose ACTION for tagged mail: ignore, discard, bounce, file or file=MAILBOX; `default` takes the choice back."""
    chosen = None if action.lower() == "default" else action_of(action)
    if chosen is not None and chosen.mailbox:
        chosen = structs.replace(chosen, mailbox=own_mailbox(chosen.mailbox))

    def change(control: SpamControl) -> SpamControl:
        if zone is None:
            return structs.replace(control, action=chosen)
        zones = {name: kept for name, kept in control.zones.items() if name != zone_name(zone)}
        return structs.replace(control, zones=zones if chosen is None else {**zones, zone_name(zone): chosen})

    _change(home, address, change)


@spam.command("allow")
@click.argument("address")
@click.argument("value")
@click.pass_obj
def spam_allow(home: Any, address: str, value: str) -> None:
    """Always deliver mail from VALUE: an address, *@DOMAIN, an IP address, a range FIRST-LAST or a network."""
    entry = allowed_of(value)

    def change(control: SpamControl) -> SpamControl:
        if entry in control.allow:
            raise DirectoryRefusal(f"{entry.value} is on the white list already")
        return structs.replace(control, allow=(*control.allow, entry))

    _change(home, address, change)


@spam.command("disallow")
@click.argument("address")
@click.argument("value")
@click.pass_obj
def spam_disallow(home: Any, address: str, value: str) -> None:
    """Take VALUE off the white list."""
    entry = allowed_of(value)

    def change(control: SpamControl) -> SpamControl:
        if entry not in control.allow:
            raise DirectoryRefusal(f"{entry.value} is not on the white list")
        return structs.replace(control, allow=tuple(kept for kept in control.allow if kept != entry))

    _change(home, address, change)


@click.command()
@click.argument("address")
@click.argument("ids", nargs=-1)
@click.option("--list", "only_list", is_flag=True, help="Show what can be brought back.")
@click.option("--all", "everything", is_flag=True, help="Bring everything back.")
@click.option("--discarded", is_flag=True, help="Only what a filter discarded.")
@click.option("--mailbox", default="INBOX", show_default=True, help="Where it goes.")
@json_option
@click.pass_obj
def undelete(
    home: Any,
    address: str,
    ids: tuple[str, ...],
    only_list: bool,
    everything: bool,
    discarded: bool,
    mailbox: str,
    as_json: bool,
) -> None:
    """Bring back mail of ADDRESS that was expunged or discarded less than `store.undelete_s` ago, by the IDs of --list."""
    account = account_of(home.directory(), address)
    config = home.config()
    place: Path = home.place()
    store = config.store_path(place)
    found: list[Trashed] = []
    if store.is_dir():
        reader = Reader(store)
        found = [
            trashed
            for trashed in reader.trash(account.number)
            if not discarded or trashed.row.flags & DISCARDED
        ]
        if only_list:
            _show(reader, found, as_json)
        reader.close()
    if only_list:
        return
    if not ids and not everything:
        raise click.UsageError("name messages by the IDs of --list, or say --all")
    if not everything:
        wanted = {text.upper() for text in ids}
        found = [trashed for trashed in found if id_text(trashed.row.origin) in wanted]
        if missing := wanted - {id_text(trashed.row.origin) for trashed in found}:
            raise Failed(f"not among what can be brought back: {', '.join(sorted(missing))}")
    if not found:
        say("brought 0 messages back")
        return
    from iems.store.offline import ask

    rows = [(trashed.due_s, trashed.mailbox_id, trashed.row.uid) for trashed in found]
    body = Undelete(account.number, rows, mailbox)
    spool = place / config.spool.path
    answer = ask(place, store, spool, account.partition, account.number, body, config.store.undelete_s)
    say(f"brought {len(_decode(answer)[1]) // 4} messages back to {mailbox}")


def _show(reader: Reader, found: list[Trashed], as_json: bool) -> None:
    from iems.message import header
    from iems.message.words import decode_words

    rows = []
    for trashed in found:
        row = trashed.row
        try:
            head = reader.blobs.read_range(row.rope, 0, 16 << 10)
        except (OSError, EOFError):
            head = b""
        subject = header.values(head, b"subject", 0, header.header_end(head))
        rows.append(
            {
                "id": id_text(row.origin),
                "why": "discarded" if row.flags & DISCARDED else "expunged",
                "until": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(trashed.due_s)),
                "size": row.size,
                "subject": decode_words(subject[0]) if subject else "",
            }
        )
    if as_json:
        for each in rows:
            say_json(each)
    elif rows:
        table([tuple(each.values()) for each in rows], [name.upper() for name in rows[0]])
