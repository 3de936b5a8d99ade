"""iemsctl shared: mailboxes with an address of their own that several users work in; every change leaves an audit line."""

from __future__ import annotations

import contextlib
import fnmatch
from typing import TYPE_CHECKING, Any

import click

from iems.cli.common import Failed, Group, Home, json_option, note, pass_home, say, say_json, table
from iems.cli.policy import directory_of

if TYPE_CHECKING:
    from pathlib import Path

    from iems.config import Config
    from iems.directory import Account, Directory

_rights = click.option(
    "--rights", default="write", show_default=True, help="read, write, manage, or letters of RFC 4314 such as lrsp."
)
_send_as = click.option("--send-as/--no-send-as", default=False, show_default=True, help="Let the member send from the mailbox's addresses.")


@click.group(cls=Group)
def shared() -> None:
    """Shared mailboxes: mail comes once, members read it beside their own, below `Shared Folders/`."""


def _found(directory: Directory, address: str) -> Account:
    account = directory.account(address)
    if account is None or not account.shared:
        raise Failed(f"there is no shared mailbox {address}")
    return account


def ask_store(place: Path, config: Config, account: Account, body: Any) -> None:
    """A request to the store of the home at `place`; nothing where there is no partition yet. Raises StoreError."""
    from iems.store.offline import ask

    store = config.store_path(place)
    if (store / f"p{account.partition}").is_dir():
        ask(place, store, place / config.spool.path, account.partition, account.number, body, config.store.undelete_s)


def _ask(home: Home, account: Account, body: Any) -> None:
    ask_store(home.path, home.config(), account, body)


def _prepared(home: Home, account: Account) -> None:
    """Make the INBOX and the rest, so that members see them before mail comes; else it is done when one lists his mailboxes."""
    from iems.errors import StoreError
    from iems.store.wire import Ensure

    try:
        _ask(home, account, Ensure(account.number))
    except StoreError as error:
        note(f"note: its folders will be made later: {error}")


@shared.command()
@click.argument("address")
@click.option("--quota", default="unlimited", show_default=True, help="Room for mail, such as 500M or 2G.")
@click.option("--member", "members", metavar="ADDRESS[=RIGHTS]", multiple=True, help="A member with its rights. Can be given again.")
@pass_home
def create(home: Home, address: str, quota: str, members: tuple[str, ...]) -> None:
    """Make a shared mailbox. ADDRESS is where its mail goes; its domain must be local. All members are known to it, or it is not made."""
    from iems.cli.iemsuser import octets_of

    octets = octets_of(quota)
    wanted = []
    for text in members:
        member, given, letters = text.rpartition("=")
        wanted.append((member, letters, False) if given else (text, "write", False))
    with directory_of(home) as directory:
        account = directory.create_shared(address, quota_octets=octets, partitions=home.config().store.partitions, members=wanted)
    _prepared(home, account)
    say(f"created {account.address}")


@shared.command()
@click.argument("address")
@click.option("--force", is_flag=True, help="Even if mail for it is still in the queue: that mail is bounced.")
@pass_home
def delete(home: Home, address: str, force: bool) -> None:
    """Remove a shared mailbox with its mail; members lose it at once."""
    from iems.errors import StoreError
    from iems.spool import admin
    from iems.store.scripts import Scripts, folder
    from iems.store.wire import Part

    with directory_of(home) as directory:
        account = _found(directory, address)
        if not force:
            waiting = len(admin.list_items(home.path, admin.Selection(recipient=account.address)))
            if waiting:
                raise Failed(f"{waiting} messages for {account.address} are still in the queue; wait for them, or say --force")
        directory.delete_account(account.address, shared=True)
    with contextlib.suppress(StoreError):
        _ask(home, account, Part(account.number, 0))  # has idle sessions look; what it has goes with the account
    Scripts(folder(home.config().store_path(home.path), account.address, account.number)).remove_all()
    say(f"deleted {account.address}")


@shared.command("list")
@click.argument("pattern", default="*")
@json_option
@pass_home
def list_shared(home: Home, pattern: str, as_json: bool) -> None:
    """Show the shared mailboxes, or those whose address matches PATTERN (`*@example.test`)."""
    from iems.cli.iemsuser import size_text

    with directory_of(home) as directory:
        found = [one for one in directory.list_accounts() if one.shared and fnmatch.fnmatchcase(one.address, pattern.lower())]
    used = _usage(home, found)
    rows = []
    for account in found:
        octets, messages = used[account.number]
        if as_json:
            say_json(
                {
                    "address": account.address, "enabled": account.enabled, "quota_bytes": account.quota_octets, "used_bytes": octets,
                    "messages": messages, "members": [one.address for one in account.members],
                }
            )  # fmt: skip
        rows.append((account.address, len(account.members), size_text(account.quota_octets), size_text(octets), messages))
    if rows and not as_json:
        table(rows, ("ADDRESS", "MEMBERS", "QUOTA", "USED", "MESSAGES"))


def _usage(home: Home, accounts: list[Account]) -> dict[int, tuple[int, int]]:
    """Account number -> (octets, messages) in the store."""
    path = home.config().store_path(home.path)
    if not accounts or not path.is_dir():
        return {account.number: (0, 0) for account in accounts}
    from iems.store.reader import Reader

    reader = Reader(path)
    try:
        return {account.number: reader.usage(account.number) for account in accounts}
    finally:
        reader.close()


@shared.command()
@click.argument("address")
@json_option
@pass_home
def show(home: Home, address: str, as_json: bool) -> None:
    """Show a shared mailbox: its addresses, what it keeps, its members and what they may do."""
    from iems.cli.iemsuser import size_text

    with directory_of(home) as directory:
        account = _found(directory, address)
        aliases = [alias for alias, targets in directory.aliases() if account.address in (target.lower() for target in targets)]
    octets, messages = _usage(home, [account])[account.number]
    if as_json:
        say_json(
            {
                "address": account.address, "aliases": aliases, "enabled": account.enabled, "quota_bytes": account.quota_octets,
                "used_bytes": octets, "messages": messages,
                "members": [
                    {"address": one.address, "rights": one.named, "letters": one.rights, "send_as": one.send_as} for one in account.members
                ],
            }
        )  # fmt: skip
        return
    say(f"address   {' '.join([account.address, *aliases])}")
    say(f"quota     {size_text(account.quota_octets)}")
    say(f"used      {size_text(octets)} in {messages} messages")
    if account.members:
        table([(one.address, one.named, "yes" if one.send_as else "no") for one in account.members], ("MEMBER", "RIGHTS", "SEND-AS"))


@shared.group(cls=Group)
def member() -> None:
    """Who works in a shared mailbox."""


@member.command("add")
@click.argument("address")
@click.argument("member")
@_rights
@_send_as
@pass_home
def member_add(home: Home, address: str, member: str, rights: str, send_as: bool) -> None:
    """Make MEMBER a member of the shared mailbox ADDRESS, or give it other rights there; in force at once.

    read: look, and keep what was seen. write: put mail there, flag and delete it, too. manage: make, name and remove folders, and give members
    other rights in some of them (SETACL), too.
    """
    from iems.store.wire import Part

    with directory_of(home) as directory:
        account = _found(directory, address)
        known = directory.account(member)
        if known is not None and account.member(known.number) is None:
            # What was left of an earlier membership must not come back with this one.
            _ask(home, account, Part(account.number, known.number))
        found = directory.set_member(address, member, rights, send_as)
    _prepared(home, account)
    say(f"{found.address} may {found.named} in {account.address}" + (", and send from it" if found.send_as else ""))


@member.command("remove")
@click.argument("address")
@click.argument("member")
@pass_home
def member_remove(home: Home, address: str, member: str) -> None:
    """Take a membership away; open sessions lose the mailbox at once."""
    from iems.errors import StoreError
    from iems.store.wire import Part

    with directory_of(home) as directory:
        account = _found(directory, address)
        gone = directory.remove_member(address, member)
    try:
        # Also the push that has idle sessions look.
        _ask(home, account, Part(account.number, gone.number))
    except StoreError as error:
        note(f"note: what {gone.address} had seen and its rights in folders are kept until it is a member again: {error}")
    say(f"{gone.address} is no member of {account.address} any more")
