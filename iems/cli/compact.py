"""iemsctl compact: the rows of mailboxes written anew, so that nothing is left of deleted ones."""

from __future__ import annotations

import click
import lmdb

from iems.cli.common import Failed, Home, json_option, pass_home, say, say_json
from iems.master.supervisor import running_pid


@click.command()
@json_option
@pass_home
def compact(home: Home, as_json: bool) -> None:
    """Erase what is left of deleted mail in the mailboxes' rows, and give their room back; the server must be stopped.

    What can still be undeleted stays. Needs room for one partition's rows on the disk; after an interruption repeat the command.
    """
    from iems.cli.iemsuser import size_text
    from iems.store import compact as compacting
    from iems.store import formats

    if running_pid(home.path):
        raise Failed("stop the server first: iemsctl stop")
    config = home.config()
    store = config.store_path(home.path)
    for one in formats.partitions(store):
        try:
            found = compacting.compact(store / one.name, home.path / config.spool.path, config.store.undelete_s)
        except lmdb.Error as error:
            raise Failed(f"{one.name}: {error}") from error
        if as_json:
            say_json({"partition": found.name, "before_bytes": found.before, "after_bytes": found.after})
        else:
            say(f"{found.name}: {size_text(found.before)} -> {size_text(found.after)}")
