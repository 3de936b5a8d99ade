"""What `make run` starts: a home with two accounts on loopback, in the foreground, with lines to paste.

The home and its passwords are kept; a second run uses them again.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import click

from iems.cli import init as home_init
from iems.cli.common import Group, Home, become_owner, note, say
from iems.cli.run import _serve

DOMAIN = "example.test"
NAMES = ("anna", "ben")


def accounts(home: Path) -> list[tuple[str, str]]:
    """(address, password) of the demo's accounts; made on the first call, kept in conf/accounts (0600)."""
    kept = home / "conf" / "accounts"
    if kept.exists():
        return [(line.split()[0], line.split()[1]) for line in kept.read_text().splitlines() if line.strip()]
    from iems.directory import Directory

    made = [(f"{name}@{DOMAIN}", secrets.token_urlsafe(9)) for name in NAMES]
    directory = Directory(home / "directory")
    try:
        known = {account.address for account in directory.list_accounts()}
        for address, password in made:
            if address in known:
                directory.set_password(address, password)
            else:
                directory.create_account(address, password)
    finally:
        directory.close()
    home_init.write(kept, "".join(f"{address} {password}\n" for address, password in made).encode())
    return made


def lines_to_paste(home: Path, base: int, found: list[tuple[str, str]]) -> list[str]:
    """Send one, read it, watch the server."""
    (sender, _), (reader, password) = found[0], found[-1]
    program = Path(sys.executable).parent / "iemsctl"
    try:
        program, shown = program.relative_to(Path.cwd()), home.relative_to(Path.cwd())
    except ValueError:
        shown = home
    return [
        f"""python3 -c "import smtplib; smtplib.SMTP('127.0.0.1', {base + 25}).sendmail('{sender}', '{reader}', 'Subject: hello\\r\\n\\r\\nThe first mail.\\r\\n')\"""",
        f"""python3 -c "import imaplib; m = imaplib.IMAP4('127.0.0.1', {base + 143}); m.login('{reader}', '{password}'); m.select(); print(m.fetch('*', '(BODY[])')[1][0][1].decode())\"""",
        f"{program} --home {shown} status --watch",
    ]


@click.command()
@click.argument("home", type=click.Path(path_type=Path))
@click.option("--port-base", default=10000, type=click.IntRange(1, 55000))
@click.pass_context
def demo(ctx: click.Context, home: Path, port_base: int) -> None:
    """Serve the demo home in the foreground."""
    home = home.absolute()
    if not (home / "conf" / "iems.toml").exists():
        ctx.invoke(home_init.init, home=home, domain=DOMAIN, hostname="", port_base=port_base, user="")
    become_owner(home)
    os.umask(0o077)
    found = accounts(home)
    config = Home(home).config()
    base = config.ports.base

    def ready() -> None:
        say("ready")
        for address, password in found:
            say(f"account {address} {password}")
        note("\nTo paste into another terminal (send one, read it by IMAP, watch the server):\n")
        for line in lines_to_paste(home, base, found):
            say(line)
        note("\nCtrl-C stops the server.")
        sys.stdout.flush()

    raise SystemExit(_serve(Home(home), config, ready, echo=False))


@click.group(cls=Group)
def main() -> None:
    """For `make run`."""


if __name__ == "__main__":
    main.add_command(demo)
    main(["demo", *sys.argv[1:]])
