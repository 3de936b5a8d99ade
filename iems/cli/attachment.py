"""iemsctl attachment: which attachments are refused or removed, in force at once; every change leaves an audit line."""

from __future__ import annotations

import click

from iems.attachment.rules import ACTIONS
from iems.cli.common import Group, Home, json_option, pass_home, say_json, table
from iems.cli.policy import directory_of

_type = click.option("--type", "kind", default="-", show_default=True, help="Media type, as image/*; -: by the name only; */*: every attachment.")
_name = click.option("--name", default="*", show_default=True, help="File name, as *.exe; * is any, or none.")


@click.group(cls=Group)
def attachment() -> None:
    """Rules about attachments; the first that fits counts."""


@attachment.command("add")
@_type
@_name
@click.option("--action", type=click.Choice(ACTIONS), required=True, help="Leave it, tag the message for users and lists to act on, remove it with a notice, or refuse the message.")
@pass_home
def attachment_add(home: Home, kind: str, name: str, action: str) -> None:
    """Add a rule, last, or give one another action. A rule for */* takes the place of all others."""
    if kind == "-" and name == "*":
        raise click.UsageError("name a --type, a --name, or both; --type '*/*' is every attachment")
    with directory_of(home) as directory:
        directory.add_attachment_rule(kind, name, action)


@attachment.command("remove")
@_type
@_name
@pass_home
def attachment_remove(home: Home, kind: str, name: str) -> None:
    """Remove a rule."""
    with directory_of(home) as directory:
        directory.remove_attachment_rule(kind, name)


@attachment.command("list")
@json_option
@pass_home
def attachment_list(home: Home, as_json: bool) -> None:
    """List the rules in the order they count."""
    with directory_of(home) as directory:
        found = directory.attachment_rules()
    if as_json:
        for rule in found:
            say_json({"type": rule.type, "name": rule.name, "action": rule.action})
    elif found:
        table([(rule.type, rule.name, rule.action) for rule in found], ("TYPE", "NAME", "ACTION"))
