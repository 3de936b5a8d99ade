"""`iemsuser`: the mailbox owners of a home. Works on the directory itself, with the server stopped or running.

Exit codes: 0 done, 1 failed (the reason on standard error), 2 usage. Standard output is data.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from iems.cli.common import Failed, Group, become_owner, json_option, say, say_json, table
from iems.config import Config, load
from iems.directory import Account, Directory
from iems.directory.stored import Forms
from iems.errors import DirectoryUnavailable
from iems.store.homes import bayes_folder

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}
_SIZE = re.compile(r"(\d{1,15})\s*(|[KMGT]I?)B?", re.IGNORECASE)
UNLIMITED = "unlimited"

_F = TypeVar("_F", bound=Callable[..., Any])


def octets_of(text: str) -> int | None:
    """A quota as octets: `500M` is 500,000,000, `500Mi` counts in 1,024s; None for `unlimited`. Raises click.BadParameter."""
    if text.lower() in (UNLIMITED, "none"):
        return None
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is no size; write 500M, 2G or {UNLIMITED}")
    octets = int(found[1]) * (_UNITS | _BINARY)[found[2].upper()]
    if not 0 < octets < 1 << 63:
        raise click.BadParameter(f"{text!r} is no quota; write 500M, 2G or {UNLIMITED}")
    return octets


def size_text(octets: int | None) -> str:
    """Octets for people: the largest decimal unit that keeps three digits."""
    if octets is None:
        return UNLIMITED
    for unit in ("T", "G", "M", "K"):
        if octets >= _UNITS[unit]:
            return f"{octets / _UNITS[unit]:.4g}{unit}"
    return str(octets)


class Home:
    """The home a command works on; opened when first needed, as its owner if root runs the command."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def directory(self) -> Directory:
        """The directory of the home. Raises Failed if there is none."""
        path = self.place()
        become_owner(path)
        try:
            found = Directory(path / "directory")
            click.get_current_context().call_on_close(found.close)
            return found
        except DirectoryUnavailable as error:
            raise Failed(f"{error}; was the home made with iemsctl init?") from error

    def place(self) -> Path:
        """The folder. Raises UsageError if none is named, Failed if it is not there."""
        if self.path is None:
            raise click.UsageError("name the home: --home HOME, or set IEMS_HOME")
        if not self.path.is_dir():
            raise Failed(f"there is no home at {self.path}")
        return self.path

    def config(self) -> Config:
        """The home's settings; the defaults if it has no file. Raises ConfigError."""
        path = self.place() / "conf" / "iems.toml"
        return load(path) if path.exists() else Config()


def _home_option(command: _F) -> _F:
    """`--home` after the command's name too."""

    def take(context: click.Context, _: click.Parameter, value: Path | None) -> None:
        if value is not None:
            context.obj.path = value

    return click.option(
        "--home",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=take,
        help="The home; IEMS_HOME stands for it.",
    )(command)


def _password(from_stdin: bool, address: str) -> str:
    """The password, from standard input or asked for on the terminal."""
    if from_stdin:
        octets = sys.stdin.buffer.read(8192)
        try:
            text = octets.decode("utf-8")
        except UnicodeDecodeError:
            raise Failed("the password on standard input is not UTF-8") from None
        # Only the line end goes: blanks may belong to the password.
        text = text.removesuffix("\n").removesuffix("\r")
        if not text:
            raise Failed("the password on standard input is empty")
        if "\n" in text or "\0" in text:
            raise Failed("the password on standard input has more than one line, or a NUL")
        return text
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for the password: use --password-stdin")
    return str(click.prompt(f"Password for {address}", hide_input=True, confirmation_prompt=True))


_password_option = click.option(
    "--password-stdin",
    is_flag=True,
    help="Read the password from standard input (one line) instead of asking.",
)


#: Commands in modules of their own, imported when used: module, name in it, whether `--home` is added.
GROUPS = {
    "mailsort": ("filters", "mailsort", False),
    "sieve": ("filters", "sieve", False),
    "vacation": ("filters", "vacation", False),
    "spam": ("spam", "spam", True),
    "undelete": ("spam", "undelete", True),
    "bayes": ("userbayes", "bayes", True),
    "export": ("transfer", "export_mail", True),
    "import": ("transfer", "import_mail", True),
    "move": ("move", "move", True),
}


class Lazy(Group):
    """The group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return sorted([*super().list_commands(ctx), *GROUPS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None if there is none of that name."""
        if cmd_name not in GROUPS:
            return super().get_command(ctx, cmd_name)
        module, name, with_home = GROUPS[cmd_name]
        found: click.Command = getattr(importlib.import_module(f"iems.cli.{module}"), name)
        if with_home and not any(parameter.name == "home" for parameter in found.params):
            _home_option(found)
        return found


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    envvar="IEMS_HOME",
    help="The home to work on; IEMS_HOME stands for it.",
)
@click.version_option(package_name="iems", prog_name="iemsuser")
@click.pass_context
def cli(context: click.Context, home: Path | None) -> None:
    """Create, delete, list and change the users of a mail home.

    Works with the server stopped or running, and takes effect at once.
    """
    context.obj = Home(home)


@cli.command()
@click.argument("address")
@_password_option
@click.option("--quota", default=UNLIMITED, show_default=True, help="Room for mail, such as 500M or 2G.")
@_home_option
@click.pass_obj
def create(home: Home, address: str, password_stdin: bool, quota: str) -> None:
    """Make a user. ADDRESS is the login name; its domain must be local."""
    quota_octets = octets_of(quota)
    directory = home.directory()
    if directory.account(address) is not None:
        raise Failed(f"{address.lower()} exists already")
    domain = address.rpartition("@")[2]
    if "@" in address and not directory.is_local(domain):
        known = ", ".join(directory.domains()) or "none yet"
        raise Failed(
            f"{domain} is not a local domain (local: {known}); add it with: iemsctl domain add {domain}"
        )
    password = _password(password_stdin, address)
    config = home.config()
    account = directory.create_account(
        address,
        password,
        quota_octets=quota_octets,
        partitions=config.store.partitions,
        forms=Forms.of(config.auth),
    )
    # What the filter of an earlier user of the address has learnt is not the new one's.
    shutil.rmtree(bayes_folder(config.store_path(home.place()), account.address), ignore_errors=True)
    say(f"created {account.address}")


@cli.command()
@click.argument("address")
@_home_option
@click.pass_obj
def delete(home: Home, address: str) -> None:
    """Remove a user; the mail goes with the number, which is never used again."""
    from iems.store.scripts import Scripts, folder

    directory = home.directory()
    account = directory.delete_account(address)
    for number in account.member_of:
        shared = directory.account_by_number(number)
        if shared is not None:
            _part(home, shared, account.number)
    Scripts(folder(home.config().store_path(home.place()), account.address, account.number)).remove_all()
    say(f"deleted {account.address}")


def _part(home: Home, shared: Account, number: int) -> None:
    """Forget what a member that is gone had seen in a shared mailbox; what stays for now is of no use to anybody."""
    from iems.cli.shared import ask_store
    from iems.errors import StoreError
    from iems.store.wire import Part

    with contextlib.suppress(StoreError):
        ask_store(home.place(), home.config(), shared, Part(shared.number, number))


@cli.command("list")
@click.argument("pattern", default="*")
@json_option
@_home_option
@click.pass_obj
def list_users(home: Home, pattern: str, as_json: bool) -> None:
    """Show the users, or those whose address matches PATTERN (`*@example.test`)."""
    directory = home.directory()
    accounts = [a for a in directory.list_accounts() if not a.shared and fnmatch.fnmatchcase(a.address, pattern.lower())]
    usage = _usage(home, accounts)
    if as_json:
        for account in accounts:
            used, messages = usage[account.number]
            say_json(
                {
                    "address": account.address,
                    "enabled": account.enabled,
                    "quota_bytes": account.quota_octets,
                    "used_bytes": used,
                    "messages": messages,
                }
            )
    elif accounts:
        rows = []
        for account in accounts:
            used, messages = usage[account.number]
            state = "enabled" if account.enabled else "disabled"
            rows.append((account.address, state, size_text(account.quota_octets), size_text(used), messages))
        table(rows, ("ADDRESS", "STATE", "QUOTA", "USED", "MESSAGES"))


def _usage(home: Home, accounts: list[Account]) -> dict[int, tuple[int, int]]:
    """Account number -> (octets, messages) in the store; zeros where there is no store yet."""
    path = home.config().store_path(home.place())
    if not accounts or not path.is_dir():
        return {account.number: (0, 0) for account in accounts}
    from iems.store.reader import Reader

    reader = Reader(path)
    return {account.number: reader.usage(account.number) for account in accounts}


@cli.command()
@click.argument("address")
@_password_option
@_home_option
@click.pass_obj
def passwd(home: Home, address: str, password_stdin: bool) -> None:
    """Change a user's password."""
    directory = home.directory()
    account = directory.account(address)
    if account is None:
        raise Failed(f"there is no account {address}")
    if account.shared:
        raise Failed(f"{account.address} is a shared mailbox: nobody logs in to it")
    forms = Forms.of(home.config().auth)
    directory.set_password(address, _password(password_stdin, address), forms)
    say(f"changed the password of {address.lower()}")


@cli.command()
@click.argument("address")
@click.argument("size", required=False)
@_home_option
@click.pass_obj
def quota(home: Home, address: str, size: str | None) -> None:
    """Show a user's quota, or set it to SIZE (`500M`, `2G`, `unlimited`)."""
    octets = octets_of(size) if size is not None else None
    directory = home.directory()
    if size is not None:
        directory.set_quota(address, octets)
    account = directory.account(address)
    if account is None:
        raise Failed(f"there is no account {address}")
    say(f"{account.address} {size_text(account.quota_octets)}")


@cli.command()
@click.argument("address")
@click.option("--grant", metavar="SENDER", help="Let the user send from this address, domain or *.DOMAIN.")
@click.option("--revoke", metavar="SENDER", help="Take it back.")
@_home_option
@click.pass_obj
def senders(home: Home, address: str, grant: str | None, revoke: str | None) -> None:
    """Show or change what a user may send from beside its own addresses; see smtpd.sender_login."""
    directory = home.directory()
    if revoke is not None:
        directory.revoke_sender(address, revoke)
    if grant is not None:
        directory.grant_sender(address, grant)
    account = directory.account(address)
    if account is None:
        raise Failed(f"there is no account {address}")
    for name in account.send_as:
        say(name)


@cli.command()
@click.argument("address")
@_home_option
@click.pass_obj
def disable(home: Home, address: str) -> None:
    """Refuse a user's logins and mail; nothing is deleted."""
    home.directory().set_enabled(address, False)
    say(f"disabled {address.lower()}")


@cli.command()
@click.argument("address")
@_home_option
@click.pass_obj
def enable(home: Home, address: str) -> None:
    """Let a disabled user log in and get mail again."""
    home.directory().set_enabled(address, True)
    say(f"enabled {address.lower()}")




def main() -> None:
    """Entry point of the command."""
    cli()


if __name__ == "__main__":
    main()
