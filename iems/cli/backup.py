"""iemsctl backup, restore: snapshots of a home while it works, and back."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

import iems
from iems.cli.common import (
    Failed,
    Group,
    Home,
    json_option,
    note,
    pass_home,
    pass_home_unchanged,
    say,
    say_json,
    table,
)

_folder = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
_snapshot = click.option("--snapshot", default="", help="Which one, as `backup list` names it; default: the youngest.")


@click.group(cls=Group)
def backup() -> None:
    """Snapshots of mailboxes, directory and settings; mail still in the queue is not part of them."""


@backup.command("make")
@_folder
@json_option
@pass_home
def backup_make(home: Home, folder: Path, as_json: bool) -> None:
    """Make a snapshot in FOLDER, while the server runs or not; content that is there from an earlier one is not copied again."""
    from iems.backup import snapshot

    begun = time.monotonic()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name, found, copied = snapshot.take(home.path, home.config().store_path(home.path), folder.resolve(), iems.__version__)
    if as_json:
        say_json({"snapshot": name, "accounts": found.accounts, "messages": found.messages, "copied_octets": copied})
    else:
        seconds = time.monotonic() - begun
        say(f"snapshot {name}: {found.accounts} accounts, {found.messages} messages, {copied / 1e6:.1f} MB copied in {seconds:.1f} s")


@backup.command("list")
@_folder
@json_option
def backup_list(folder: Path, as_json: bool) -> None:
    """List the snapshots in FOLDER, the oldest first."""
    from iems.backup import snapshot

    rows = [(name, found.accounts, found.messages) for name in snapshot.names(folder) for found in [snapshot.manifest(folder, name)]]
    if as_json:
        for name, accounts, messages in rows:
            say_json({"snapshot": name, "accounts": accounts, "messages": messages})
    elif rows:
        table(rows, ("SNAPSHOT", "ACCOUNTS", "MESSAGES"))


@backup.command("verify")
@_folder
@_snapshot
def backup_verify(folder: Path, snapshot: str) -> None:
    """Read a snapshot and compare every file with its checksum; exit code 1 if one is damaged."""
    from iems.backup.snapshot import verify

    wrong = 0
    for line in verify(folder, _chosen(folder, snapshot)):
        say(line)
        wrong += 1
    if wrong:
        sys.exit(1)
    say("sound")


@backup.command("prune")
@_folder
@click.option("--keep", type=click.IntRange(1), required=True, help="How many of the youngest stay.")
def backup_prune(folder: Path, keep: int) -> None:
    """Remove old snapshots, and the content only they need."""
    from iems.backup import snapshot

    gone, files = snapshot.prune(folder, keep)
    say(f"removed {gone} snapshots and {files} files of content")


def _chosen(folder: Path, snapshot: str) -> str:
    from iems.backup.snapshot import names

    known = names(folder)
    if not known:
        raise Failed(f"there is no snapshot in {folder}")
    if snapshot and snapshot not in known:
        raise Failed(f"there is no snapshot {snapshot}; there are {', '.join(known[-5:])}")
    return snapshot or known[-1]


@click.group(cls=Group)
def restore() -> None:
    """A snapshot brought back, whole or in parts."""


@restore.command("home")
@_folder
@click.argument("target", type=click.Path(path_type=Path, file_okay=False))
@_snapshot
def restore_home(folder: Path, target: Path, snapshot: str) -> None:
    """Make the home TARGET (missing or empty) of a snapshot. Its mailboxes get a new UIDVALIDITY: mail programs load them again."""
    from iems.backup.restore import whole

    count = whole(folder.resolve(), _chosen(folder, snapshot), target.resolve())
    say(f"restored {count} messages; check conf/iems.toml, then start it")


@restore.command("mail")
@_folder
@click.argument("address")
@_snapshot
@click.option("--mailbox", default="", help="Only this mailbox.")
@click.option("--id", "message", default="", help="Only the message that was accepted under this ID.")
@click.option("--into", default="", help="Put it below this mailbox; default: Restored and the snapshot's name.")
@click.option("--account", default="", help="Put it into another account than ADDRESS.")
@pass_home_unchanged
def restore_mail(
    home: Home, folder: Path, address: str, snapshot: str, mailbox: str, message: str, into: str, account: str
) -> None:
    """Bring mail ADDRESS had in a snapshot back into the home, while the server runs or not. Repeated, it doubles nothing."""
    from iems.backup.restore import mail
    from iems.cli.common import become_owner
    from iems.cli.policy import directory_of
    from iems.store.offline import ask
    from iems.store.quota import room_of
    from iems.transfer.bring import Bringer

    name = _chosen(folder, snapshot)
    become_owner(home.path)
    config = home.config()
    with directory_of(home) as directory:
        aim = directory.account(account or address)
    if aim is None:
        raise Failed(f"there is no account {account or address}")
    spool, store = home.path / config.spool.path, config.store_path(home.path)
    for place in (spool / "large", store / f"p{aim.partition}"):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    bringer = Bringer(
        aim,
        room_of(store, aim, config.store.partitions),
        spool,
        lambda body: ask(home.path, store, spool, aim.partition, aim.number, body, config.store.undelete_s),
    )
    for box, found in mail(folder.resolve(), name, address, mailbox, message):
        bringer.add(found, f"{into or f'Restored/{name}'}/{box}")
    bringer.flush()
    for where, why in bringer.refused[:20]:
        note(f"not restored: {where}: {why}")
    if not (bringer.brought or bringer.known or bringer.refused):
        raise Failed("nothing in the snapshot is meant by that")
    say(f"restored {bringer.brought} messages" + (f", {bringer.known} were there already" if bringer.known else ""))
    if bringer.refused:
        sys.exit(1)
