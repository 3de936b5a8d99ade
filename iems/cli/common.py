"""What all commands share: the home, whom to act as, output, failures."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from iems import config as settings
from iems.config import Config
from iems.errors import IemsError
from iems.log import printable

F = TypeVar("F", bound=Callable[..., Any])


class Failed(click.ClickException):
    """A command that failed: one line on standard error, exit code 1."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        """Prints the message."""
        name = Path(sys.argv[0]).name or "iemsctl"
        for line in self.format_message().splitlines() or [""]:
            click.echo(f"{name}: {line}", file=file or sys.stderr)


class Group(click.Group):
    """A command group whose faults (IemsError, OSError) end as one line on standard error and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except IemsError as exc:
            raise Failed(str(exc)) from exc
        except BrokenPipeError:
            # The reader of our output has gone (| head): nothing more to say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(0) from None
        except OSError as exc:
            raise Failed(f"{exc.filename or ''}: {exc.strerror or exc}".removeprefix(": ")) from exc


class Home:
    """The home a command works on; commands get it by `@pass_home`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config_path(self) -> Path:
        """conf/iems.toml."""
        return self.path / "conf" / "iems.toml"

    def config(self) -> Config:
        """The settings in the home's file. Raises ConfigError."""
        return settings.load(self.config_path)


def home_option(function: F) -> F:
    """`--home`, or IEMS_HOME."""
    return click.option(
        "--home",
        "home_path",
        envvar="IEMS_HOME",
        type=click.Path(path_type=Path),
        help="The home of the server (also: IEMS_HOME).",
    )(function)


def remember_home(ctx: click.Context, path: Path | None) -> None:
    """Keeps `--home` for the commands below this group; nothing is checked before one needs it."""
    ctx.obj = path


def find_home(ctx: click.Context, become: bool = True) -> Home:
    """The home given by `--home`. With `become`, and as root, becomes its owner. Usage error if none is given."""
    path: Path | None = ctx.find_root().obj
    if path is None:
        raise click.UsageError("name the home: --home HOME, or set IEMS_HOME")
    if not (path / "conf" / "iems.toml").exists():
        raise Failed(f"{path} is no home of IEMS: make one with `iemsctl init {path} --domain DOMAIN`")
    path = path.resolve()
    if become:
        become_owner(path)
    return Home(path)


def pass_home(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the Home as first argument, acting as its owner."""

    @click.pass_context
    def wrapped(ctx: click.Context, /, *args: Any, **kwargs: Any) -> Any:
        return ctx.invoke(function, find_home(ctx), *args, **kwargs)

    return _named(wrapped, function)


def pass_home_unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `pass_home`, but stays the caller."""

    @click.pass_context
    def wrapped(ctx: click.Context, /, *args: Any, **kwargs: Any) -> Any:
        return ctx.invoke(function, find_home(ctx, become=False), *args, **kwargs)

    return _named(wrapped, function)


def _named(wrapped: Any, function: Any) -> Callable[..., Any]:
    wrapped.__name__ = function.__name__
    wrapped.__doc__ = function.__doc__
    wrapped.__click_params__ = getattr(function, "__click_params__", [])
    result: Callable[..., Any] = wrapped
    return result


def become_owner(path: Path) -> None:
    """As root: become the owner of `path` for good, so that no file in it ends up owned by root."""
    if os.getuid() != 0:
        return
    status = path.stat()
    if status.st_uid == 0:
        return
    become(status.st_uid, status.st_gid)


def readable_for(uid: int, gid: int) -> bool:
    """Whether a user can read Python's library and this package: without them a change of user ends in the dark."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            code = 0 if os.access(os.__file__, os.R_OK) and os.access(__file__, os.R_OK) else 1
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def become(uid: int, gid: int) -> None:
    """Becomes another user for good, with its groups. Fails if that user can't read the program."""
    if not readable_for(uid, gid):
        folders = f"{os.path.dirname(os.__file__)} and {Path(__file__).parents[1]}"
        raise Failed(f"user {uid} can't read this program: install Python and IEMS where it can ({folders})")
    try:
        name = pwd.getpwuid(uid).pw_name
        os.initgroups(name, gid)
        os.environ["HOME"] = pwd.getpwuid(uid).pw_dir
    except KeyError:
        os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


# --- output

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object (a line each in lists).")


def say(text: str) -> None:
    """A line of data."""
    click.echo(text)


def note(text: str) -> None:
    """A line for the person at the terminal, not for a program."""
    click.echo(text, err=True)


def say_json(value: Any) -> None:
    """One JSON object on a line."""
    click.echo(msgspec.json.encode(value).decode())


def table(rows: Iterable[Sequence[object]], header: Sequence[str]) -> None:
    """Columns as wide as their cells. Cells are escaped: no control character reaches the terminal."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max([len(name), *(len(row[column]) for row in cells)]) for column, name in enumerate(header)]
    for row in [list(header), *cells]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def duration(seconds: float) -> str:
    """`3d 4h`, `12m 5s`, `0.4s`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    parts: list[str] = []
    for name, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if whole >= size or (parts and len(parts) < 2):
            parts.append(f"{whole // size}{name}")
            whole %= size
        if len(parts) == 2:
            break
    return " ".join(parts)
