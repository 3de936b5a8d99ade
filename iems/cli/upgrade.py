"""iemsctl upgrade: the databases of a home in the format of this version, or back in the one before."""

from __future__ import annotations

import click

from iems.cli.common import Failed, Home, json_option, pass_home, say, say_json
from iems.cli.policy import directory_of
from iems.errors import IemsError


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--back", is_flag=True, help="To the format the version before this one writes.")
@json_option
@pass_home
def upgrade(home: Home, dry_run: bool, back: bool, as_json: bool) -> None:
    """Show the format of each database, and convert those of an older one; the server must be stopped.

    This version also works with mailboxes of the format before, but counts no domains there (no `iemsctl domain quota`). Each
    partition is converted at once or not at all; after an interruption repeat the command. Before going back to an older version run it with --back.
    """
    from iems.store import formats

    store, spool = home.config().store_path(home.path), home.path / home.config().spool.path
    try:
        formats.check(home.path, store, spool)
        with directory_of(home) as directory:
            addresses = {account.number: account.address for account in directory.list_accounts()}
            limited = sorted(directory.domain_quotas())
        partitions = {one.name for one in formats.partitions(store)}
        for one in formats.databases(home.path, store, spool):
            change = None
            if one.name in partitions and one.version != (one.wants - 1 if back else one.wants):
                change = formats.convert(store, one.name, addresses, back, dry_run)
            if as_json:
                say_json({
                    "database": one.name, "format": one.version, "target": change.new if change else one.version,
                    "accounts": change.accounts if change else 0, "domains": change.domains if change else 0, "done": change is not None and not dry_run,
                })  # fmt: skip
            elif change is None:
                say(f"{one.name}: format {one.version}, nothing to do")
            else:
                what = f"{change.accounts} accounts" + (f", {change.domains} domains counted" if change.new > 1 else "")
                say(f"{one.name}: format {change.old} -> {change.new}: {what}" + (" (not done)" if dry_run else ""))
    except IemsError as error:
        raise Failed(str(error)) from None
    if back and limited and not as_json:
        say(f"quotas of domains are not enforced in the older format: {', '.join(limited)}")
