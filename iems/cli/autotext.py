"""iemsctl autotext: texts added to mail by the channel it comes from; in force at once, with an audit line."""

from __future__ import annotations

from pathlib import Path

import click

from iems.cli.common import Failed, Group, Home, json_option, pass_home, say_json, table
from iems.cli.policy import directory_of
from iems.model import Channel

_file = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.group(cls=Group)
def autotext() -> None:
    """A disclaimer, or another text, for mail from an input channel."""


@autotext.command("set")
@click.argument("channel")
@click.option("--text", "text_file", type=_file, help="File with the plain text, UTF-8.")
@click.option("--html", "html_file", type=_file, help="File with the HTML fragment, UTF-8.")
@pass_home
def autotext_set(home: Home, channel: str, text_file: Path | None, html_file: Path | None) -> None:
    """Set what is added to mail from CHANNEL (SMTPD, WEBCLIENT, ...); a form without a file is not added."""
    if text_file is None and html_file is None:
        raise click.UsageError("name a file with --text, --html, or both")
    with directory_of(home) as directory:
        directory.set_autotext(channel, _read(text_file), _read(html_file))


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise Failed(f"{path} is not UTF-8") from None


@autotext.command("remove")
@click.argument("channel")
@pass_home
def autotext_remove(home: Home, channel: str) -> None:
    """Add nothing more to mail from CHANNEL."""
    with directory_of(home) as directory:
        directory.set_autotext(channel, "", "")


@autotext.command("list")
@json_option
@pass_home
def autotext_list(home: Home, as_json: bool) -> None:
    """List the channels that have a text, with its beginning."""
    with directory_of(home) as directory:
        found = directory.autotexts()
    rows = [(Channel(channel).name, text, html) for channel, (text, html) in sorted(found.items())]
    if as_json:
        for name, text, html in rows:
            say_json({"channel": name, "text": text, "html": html})
    elif rows:
        table([(name, " ".join(text.split())[:40], " ".join(html.split())[:40]) for name, text, html in rows], ("CHANNEL", "TEXT", "HTML"))
