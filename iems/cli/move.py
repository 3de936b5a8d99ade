"""iemsuser move: an account's mail to another partition of the store, while it is used."""

from __future__ import annotations

from typing import Any

import click
import lmdb

from iems.cli.common import Failed, say
from iems.cli.spam import account_of
from iems.errors import IemsError


@click.command()
@click.argument("address")
@click.argument("partition", type=int)
@click.pass_obj
def move(home: Any, address: str, partition: int) -> None:
    """Move the mail of ADDRESS to PARTITION of the store.

    Mail goes on coming in, and sessions go on: for a moment at the end they wait. If it is interrupted the account is where it was or
    where it goes, whole; the same command finishes the move, one with the old partition takes it back if it was not yet handed over.
    """
    from iems.store.move import move as run

    directory = home.directory()
    account = account_of(directory, address)
    config, place = home.config(), home.place()
    if not 0 <= partition < config.store.partitions:
        raise Failed(f"there is no partition {partition}: store.partitions is {config.store.partitions}")
    try:
        run(
            place, config.store_path(place), place / config.spool.path, account.number, account.partition, partition,
            lambda number: directory.set_partition(account.number, number), config.store.undelete_s,
        )  # fmt: skip
    except (IemsError, OSError, lmdb.Error) as error:
        raise Failed(f"{account.address} was not moved: {error}; repeat the command to finish, or name the old partition to take it back") from None
    say(f"{account.address} is in partition {partition}")
