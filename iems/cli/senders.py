"""iemsctl sender: what users who log in have sent out lately, and whose mail is put on hold."""

from __future__ import annotations

import getpass
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from iems.cli.common import Failed, Group, Home, json_option, pass_home, say, say_json, table
from iems.cli.queue import wake_workers
from iems.log import Log

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iems.smtpd.outbound import Outbound


@contextmanager
def _senders(home: Home) -> Iterator[Outbound]:
    import lmdb

    from iems.smtpd.outbound import Outbound

    config = home.config()
    try:
        opened = Outbound.of(config.smtpd, config.spool_path(home.path))
    except FileNotFoundError as exc:
        raise Failed(f"no spool in {home.path}: the server was never started") from exc
    try:
        yield opened
    except (lmdb.Error, ValueError) as exc:
        raise Failed(f"the counts of senders can't be read: {exc}") from exc
    finally:
        opened.close()


@click.group(cls=Group)
def sender() -> None:
    """Users who log in to send: what they sent, and whose mail is put on hold."""


@sender.command("list")
@click.option("--held", is_flag=True, help="Only those whose mail is put on hold.")
@json_option
@pass_home
def sender_list(home: Home, as_json: bool, held: bool) -> None:
    """List senders: recipients elsewhere in the last hour and day, networks of clients in the last hour, why on hold."""
    with _senders(home) as senders:
        found = [one for one in senders.known() if one.held or not held]
    if as_json:
        for one in found:
            say_json(
                {
                    "sender": one.sender,
                    "hour": one.hour,
                    "day": one.day,
                    "networks": one.networks,
                    "held": bool(one.held),
                    "reason": one.held,
                    "since": _time(one.since) if one.held else None,
                }
            )
    elif found:
        table(
            [
                (
                    one.sender,
                    one.hour,
                    one.day,
                    one.networks,
                    _time(one.since) if one.held else "-",
                    one.held or "-",
                )
                for one in found
            ],
            ("SENDER", "HOUR", "DAY", "NETWORKS", "HELD SINCE", "WHY"),
        )


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@sender.command("clear")
@click.argument("address")
@click.option("--release", is_flag=True, help="Let the mail of this sender that is on hold go on, too.")
@pass_home
def sender_clear(home: Home, address: str, release: bool) -> None:
    """Take ADDRESS off the list and forget its counts: its next mail goes its way."""
    from iems.smtpd.outbound import hold_reason
    from iems.spool import admin

    with _senders(home) as senders:
        known = senders.clear(address)
    if known:
        log = Log(home.path / "log" / "mail.log", "iemsctl", form=home.config().log.format)
        log.event("sender-cleared", sender=address, who=getpass.getuser())
        log.close()
    number = 0
    if release:
        number = admin.release(home.path, admin.Selection(reason=hold_reason(address, "")))
        wake_workers(home)
        say(f"released {number}")
    if not known and not number:
        raise Failed(f"nothing is known of {address}; see `iemsctl sender list`")
