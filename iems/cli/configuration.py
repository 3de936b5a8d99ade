"""iemsctl config check, show, docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from iems import config as settings
from iems.cli.common import Group, find_home, json_option, say, say_json
from iems.errors import ConfigError


@click.group("config", cls=Group)
def config() -> None:
    """Check, show and document the settings."""


def _file(ctx: click.Context, file: Path | None) -> Path:
    return file if file is not None else find_home(ctx).config_path


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.pass_context
def check(ctx: click.Context, file: Path | None) -> None:
    """Name every error of FILE (by default the home's), one a line; exit code 1 if there is any."""
    try:
        settings.load(_file(ctx, file))
    except ConfigError as exc:
        for line in exc.problems:
            say(line)
        raise SystemExit(1) from None


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--changed", is_flag=True, help="Only what differs from the default.")
@json_option
@click.pass_context
def show(ctx: click.Context, file: Path | None, changed: bool, as_json: bool) -> None:
    """Show the settings in force after the next reload, defaults included."""
    found = settings.load(_file(ctx, file))
    if as_json and not changed:
        say_json(msgspec.to_builtins(found))
        return
    differing: dict[str, Any] = {}
    for key, _, setting in settings.walk():
        value: Any = found
        for name in key.split("."):
            value = getattr(value, name)
        if not changed or value != setting.default:
            differing[key] = value
    if as_json:
        say_json(differing)
        return
    for key, value in differing.items():
        say(f"{key} = {settings.toml_value(value)}")


@config.command()
@click.option(
    "--sample", is_flag=True, help="A configuration file with every setting at its default, instead."
)
def docs(sample: bool) -> None:
    """Print the reference page of all settings (Markdown)."""
    click.echo(settings.sample() if sample else settings.reference(), nl=False)
