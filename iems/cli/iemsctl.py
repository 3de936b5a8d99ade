"""iemsctl: the command. Each group of commands has a module of its own; imports that are slow happen inside them."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import click

import iems
from iems.cli.common import Group, home_option, remember_home

#: Command -> (module of iems.cli, attribute). Loaded when used: `status` must not wait for cryptography or LMDB.
COMMANDS = {
    "init": ("init", "init"),
    "start": ("run", "start"),
    "stop": ("run", "stop"),
    "reload": ("run", "reload"),
    "status": ("run", "status"),
    "config": ("configuration", "config"),
    "queue": ("queue", "queue"),
    "preview": ("preview", "preview"),
    "trace": ("trace", "trace"),
    "audit": ("trace", "audit"),
    "refusal": ("refusal", "refusal"),
    "fsck": ("fsck", "fsck"),
    "route": ("policy", "route"),
    "domain": ("policy", "domain"),
    "alias": ("policy", "alias"),
    "connector": ("policy", "connector"),
    "forward": ("policy", "forward"),
    "channel": ("policy", "channel"),
    "ban": ("screen", "ban"),
    "dnsbl": ("screen", "dnsbl"),
    "sender": ("senders", "sender"),
    "shared": ("shared", "shared"),
    "peer": ("peers", "peer"),
    "cam": ("cam", "cam"),
    "attachment": ("attachment", "attachment"),
    "headerrule": ("headerrule", "headerrule"),
    "autotext": ("autotext", "autotext"),
    "tagkey": ("cam", "tagkey"),
    "backup": ("backup", "backup"),
    "restore": ("backup", "restore"),
    "check": ("check", "check"),
    "dkim": ("dkim", "dkim"),
    "dmarc": ("dmarc", "dmarc"),
    "tlsrpt": ("tlsrpt", "tlsrpt"),
    "doctor": ("doctor", "doctor"),
    "completion": ("completion", "completion"),
    "expire": ("expire", "expire"),
    "report": ("report", "report"),
    "capacity": ("capacity", "capacity"),
    "perf": ("perf", "perf"),
    "bayes": ("bayes", "bayes"),
    "upgrade": ("upgrade", "upgrade"),
    "compact": ("compact", "compact"),
}


class Lazy(Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands this installation has."""
        return sorted(name for name, (module, _) in COMMANDS.items() if _spec(module))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        if not _spec(module):
            return None
        found: click.Command = getattr(importlib.import_module(f"iems.cli.{module}"), attribute)
        return found


def _spec(module: str) -> Any:
    return importlib.util.find_spec(f"iems.cli.{module}")


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@home_option
@click.version_option(iems.__version__, message="iems %(version)s")
@click.pass_context
def main(ctx: click.Context, home_path: Path | None) -> None:
    """Run and look after an IEMS mail server."""
    remember_home(ctx, home_path)


if __name__ == "__main__":
    main()
