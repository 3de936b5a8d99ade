"""iemsctl fsck: reads every octet of the spool and names what is damaged."""

from __future__ import annotations

import click

from iems.cli.common import Home, json_option, pass_home, say, say_json


@click.command()
@json_option
@pass_home
def fsck(home: Home, as_json: bool) -> None:
    """Check every record of the spool against its checksum, and the queue against the files it names.

    One line for each thing that can't be read: where it stands, the message if it is known, what is wrong. Exit code 1 if there
    is any. The server may run. Mailboxes are not checked: their rows have no checksums of contents.
    """
    from iems.spool import admin

    found = admin.fsck(home.path)
    for finding in found:
        if as_json:
            say_json(finding)
        else:
            place = f"{finding['where']} {finding['offset']}-{finding['end']}" if finding["end"] else finding["where"]
            say(f"{place}: {finding['id'] or 'message unknown'}: {finding['what']}")
    if found:
        raise SystemExit(1)
