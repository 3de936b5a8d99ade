"""iemsctl fsck: reads every octet of the spool and every row of the mailboxes, names what is damaged, repairs mailboxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from iems.cli.common import Home, json_option, pass_home, say, say_json
from iems.model import id_text


@click.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended of the mailboxes; the server must be stopped.")
@click.option("--lost", is_flag=True, help="With --repair: also take messages out of mailboxes whose content is gone.")
@click.option("--content", is_flag=True, help="Also read delivered mail that has a checksum (slow).")
@json_option
@pass_home
def fsck(home: Home, repair: bool, lost: bool, content: bool, as_json: bool) -> None:
    """Check every record of the spool against its checksum, the queue and the mailboxes against the files they name.

    One line for each thing that is wrong: where it stands, the message if it is known, what is wrong. Exit code 1 if there
    is any that is not mended. The server may run, but for --repair. A message that can't be served is set aside by a repair: its rows go to
    a file in the folder `aside` of its partition, the messages around it are served.
    """
    from iems.spool import admin

    if lost and not repair:
        raise click.UsageError("--lost goes with --repair")
    wrong = False
    # The mailboxes first: a repair that can't be made is told before anything else is read.
    for found in (_mailboxes(home, repair, lost, content), iter(admin.fsck(home.path))):
        for finding in found:
            wrong |= not finding.get("mended", False)
            if as_json:
                say_json(finding)
            else:
                say(_line(finding))
    if wrong:
        raise SystemExit(1)


def _line(finding: dict[str, Any]) -> str:
    place = f"{finding['where']} {finding['offset']}-{finding['end']}" if finding["end"] else str(finding["where"])
    if "account" in finding:
        place = " ".join(filter(None, (place, finding["account"], finding["mailbox"], f"uid {finding['uid']}" if finding["uid"] else "")))
        return f"{place}: {finding['id'] + ': ' if finding['id'] else ''}{finding['what']}{' (mended)' if finding['mended'] else ''}"
    return f"{place}: {finding['id'] or 'message unknown'}: {finding['what']}"


def _mailboxes(home: Home, repair: bool, lost: bool, content: bool) -> Iterator[dict[str, Any]]:
    from iems.store import fsck as store

    options = [name for name, on in (("--repair", repair), ("--lost", lost), ("--content", content)) if on]
    path = home.config().store_path(home.path)
    owners = _owners(home)
    for number in store.partitions(path):
        for found in store.run(path, number, options):
            if isinstance(found, list):
                yield from _unowned(number, found, _owners(home))
                continue
            yield {
                "where": f"store/{found.where}", "offset": 0, "end": 0, "id": id_text(found.id) if found.id else None, "what": found.what,
                "account": owners.get(found.account, ("",))[0] or (f"account {found.account}" if found.account else ""),
                "mailbox": found.name or (f"mailbox {found.mailbox}" if found.mailbox else ""), "uid": found.uid,
                "mended": repair and found.mended,
            }  # fmt: skip


def _owners(home: Home) -> dict[int, tuple[str, int]]:
    """Number -> (address, partition) of all accounts, deleted ones whose mail is still there included."""
    from iems.cli.policy import directory_of

    with directory_of(home) as directory:
        found = {gone.number: ("", gone.partition) for gone in directory.retired()}
        found |= {account.number: (account.address, account.partition) for account in directory.list_accounts()}
    return found


def _unowned(number: int, accounts: list[int], owners: dict[int, tuple[str, int]]) -> Iterator[dict[str, Any]]:
    for account in accounts:
        address, partition = owners.get(account, ("", -1))
        if partition != number:
            what = "the directory knows no such account" if partition < 0 else f"the directory says its mail is in partition {partition}"
            yield {
                "where": f"store/p{number}", "offset": 0, "end": 0, "id": None, "what": what, "account": address or f"account {account}",
                "mailbox": "", "uid": 0, "mended": False,
            }  # fmt: skip


__all__ = ["fsck"]
