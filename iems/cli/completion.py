"""iemsctl completion: the line that gives a shell completion of commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from iems.cli.common import Failed


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--program", type=click.Choice(["iemsctl", "iemsuser"]), default="iemsctl", show_default=True)
@click.pass_context
def completion(ctx: click.Context, shell: str, program: str) -> None:
    """Print the completion script of a SHELL; bash: eval "$(iemsctl completion bash)"."""
    maker = get_completion_class(shell)
    if maker is None:
        raise Failed(f"no completion for {shell}")
    variable = f"_{program.upper()}_COMPLETE"
    # click finds the program's own completion through this variable when the shell asks.
    click.echo(maker(ctx.find_root().command, {}, program, variable).source())
