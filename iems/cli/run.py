"""iemsctl start, stop, reload, status."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import iems
from iems.cli.common import (
    Failed,
    Home,
    duration,
    json_option,
    note,
    pass_home,
    pass_home_unchanged,
    say,
    say_json,
    table,
)
from iems.config import tagging_settings
from iems.errors import IemsError
from iems.master.board import ROLES, Board, Header, State
from iems.master.supervisor import Supervisor, acting_as, home_user, running_pid


@click.command()
@click.option("--foreground", is_flag=True, help="Stay the master; print `ready` when all ports listen.")
@pass_home_unchanged
def start(home: Home, foreground: bool) -> None:
    """Start the server. Detached, it returns when all ports listen and all workers are ready."""
    config = home.config()
    _known(home, config)
    _decided(home, config)
    if foreground:

        def ready() -> None:
            say("ready")
            sys.stdout.flush()

        raise SystemExit(_serve(home, config, ready, echo=False))
    _start_detached(home, config)


def _known(home: Home, config: Any) -> None:
    """Raises Failed if a database is of a format this version does not know."""
    from iems.store import formats

    try:
        with acting_as(home_user(home.path, config)):
            formats.check(home.path, config.store_path(home.path), home.path / config.spool.path)
    except formats.FormatRefusal as error:
        raise Failed(str(error)) from None


def _decided(home: Home, config: Any) -> None:
    """Raises Failed if a setting tags mail and a channel that can't act on tags has no default for it."""
    checks = tagging_settings(config)
    if not checks:
        return
    from iems.directory.tagging import refusal

    with acting_as(home_user(home.path, config)):
        problem = refusal(home.path, checks)
    if problem:
        raise Failed(problem)


def _serve(home: Home, config: Any, ready: Callable[[], None], echo: bool) -> int:
    os.umask(0o077)
    supervisor = Supervisor(home.path, home.config_path, config, ready, echo)
    supervisor.prepare()
    return supervisor.run()


def _start_detached(home: Home, config: Any) -> None:
    told_read, told_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(told_write)
        word = b""
        # Not until the end of the pipe: workers forked before the word hold it open as well.
        while word != b"ready" and (chunk := os.read(told_read, 4096)):
            word += chunk
        if word == b"ready":
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        raise Failed(word.decode("utf-8", "replace") or f"the server did not start; see {home.path}/log/")
    code = 1
    try:
        os.close(told_read)
        os.setsid()
        with contextlib.suppress(OSError):
            os.chdir("/")

        def tell(word: bytes) -> None:
            os.write(told_write, word)
            os.close(told_write)

        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        with acting_as(home_user(home.path, config)):
            (home.path / "log").mkdir(mode=0o700, exist_ok=True)
            errors = os.open(
                home.path / "log" / "master.err", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600
            )
        os.dup2(errors, 2)
        try:
            code = _serve(home, config, lambda: tell(b"ready"), echo=False)
        except IemsError as exc:
            tell(str(exc).encode())
    except BaseException as exc:
        import traceback

        traceback.print_exc()
        with contextlib.suppress(OSError):
            os.write(told_write, f"{type(exc).__name__}: {exc}".encode())
    finally:
        os._exit(code)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise Failed(
            f"not allowed to signal the master (pid {pid}); run this as its user or as root"
        ) from None


@click.command()
@pass_home_unchanged
def stop(home: Home) -> None:
    """Drain and stop the server; returns when every process is gone."""
    pid = running_pid(home.path)
    if pid is None:
        note("not running")
        return
    _signal(pid, signal.SIGTERM)
    drain_s = 10.0
    with contextlib.suppress(IemsError):
        drain_s = home.config().master.drain_s
    until = time.monotonic() + drain_s + 30
    while time.monotonic() < until:
        if running_pid(home.path) is None and _alone(home.path):
            return
        time.sleep(0.02)
    raise Failed(f"the server (pid {pid}) did not stop within {drain_s + 30:.0f} s")


def _alone(home: Path) -> bool:
    """Whether no process of the server holds run/lock any more."""
    try:
        fd = os.open(home / "run" / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _header(home: Home) -> Header:
    return Board.open(home.path / "run" / "board").header()


@click.command()
@pass_home_unchanged
def reload(home: Home) -> None:
    """Take up a changed configuration and certificate; wrong ones change nothing. Open sessions stay."""
    home.config()  # every error, before the master is bothered
    pid = running_pid(home.path)
    if pid is None:
        raise Failed("not running")
    before = _header(home)
    _signal(pid, signal.SIGHUP)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        now = _header(home)
        if now.refused != before.refused:
            raise Failed(
                "refused: the old settings stay in force; the reason is in log/mail.log (reload-refused)"
            )
        if now.generation != before.generation and _replaced(home, now.generation):
            return
        if running_pid(home.path) is None:
            raise Failed("the server stopped")
        time.sleep(0.02)
    raise Failed("the new workers are not ready after 30 s; see log/mail.log")


def _replaced(home: Home, generation: int) -> bool:
    """Whether every role has its workers of this generation ready."""
    board = Board.open(home.path / "run" / "board")
    ready: dict[str, int] = {}
    for row in board.rows():
        if row.master_generation == generation and row.state is State.READY:
            ready[row.role] = ready.get(row.role, 0) + 1
    return all(ready.get(role, 0) >= board.workers(role) for role in ROLES)


def status_of(home: Path) -> dict[str, Any] | None:
    """The state of the running server as `status --json` prints it, or None if it does not run."""
    pid = running_pid(home)
    if pid is None:
        return None
    try:
        board = Board.open(home / "run" / "board")
    except (OSError, ValueError):
        return None
    header = board.header()
    # A row whose worker is being forked this moment still holds the master's own pid.
    rows = [row for row in board.rows() if row.pid != header.master_pid]
    roles: dict[str, Any] = {}
    counters: dict[str, int] = {}
    for role in ROLES:
        workers = board.workers(role)
        own = [row for row in rows if row.role == role]
        if not workers and not own:
            continue
        ready = [row for row in own if row.state is State.READY]
        leaving = [row for row in own if row.state in (State.RETIRING, State.DRAINING)]
        if len(ready) >= workers > 0:
            state = "running"
        elif leaving and not ready:
            state = "draining"
        elif ready:
            state = "degraded"
        else:
            state = "starting" if own else "down"
        sums = board.counters(role)
        roles[role] = {
            "state": state,
            "workers": workers,
            "alive": len(own),
            "pids": [row.pid for row in own],
            "restarts": board.restarts(role),
        }
        for name, value in sums.items():
            if value:
                counters[f"{role}_{name}"] = value
    return {
        "version": iems.__version__,
        "home": str(home),
        "pid": pid,
        "uptime_s": round((time.monotonic_ns() - header.started_ns) / 1e9, 3),
        "generation": header.generation,
        "ready": bool(header.ready),
        "roles": roles,
        "channels": channel_counts(home),
        "counters": counters,
        "flow": {
            name: "closed" if board.total("smtpd", f"flow_{name}_now") else "open"
            for name in ("queue", "disk", "memory")
        },
    }


def channel_counts(home: Path) -> dict[str, Any]:
    """Per channel: ready, leased, deferred, held, quarantined, oldest_s; {} if there is no spool yet."""
    try:
        from iems.spool import admin
    except ImportError:
        return {}
    try:
        return dict(admin.counts(home))
    except (OSError, IemsError):
        return {}


def _print_status(found: dict[str, Any]) -> None:
    say(
        f"iems {found['version']}  pid {found['pid']}  up {duration(found['uptime_s'])}"
        f"  generation {found['generation']}  {found['home']}"
    )
    say("")
    table(
        (
            (
                name,
                role["state"],
                f"{role['alive']}/{role['workers']}",
                role["restarts"],
                " ".join(map(str, role["pids"])),
            )
            for name, role in found["roles"].items()
        ),
        ("ROLE", "STATE", "ALIVE", "RESTARTS", "PIDS"),
    )
    if found["channels"]:
        say("")
        table(
            (
                (
                    name,
                    *(counts.get(key, 0) for key in ("ready", "leased", "deferred", "held", "quarantined")),
                    duration(counts["oldest_s"]) if counts.get("oldest_s") else "-",
                )
                for name, counts in found["channels"].items()
            ),
            ("CHANNEL", "READY", "LEASED", "DEFERRED", "HELD", "QUARANTINED", "OLDEST"),
        )
    closed = [name for name, state in found["flow"].items() if state == "closed"]
    if closed:
        say("")
        say(f"mail is put off: {', '.join(closed)} above the mark")
    if found["counters"]:
        say("")
        table(found["counters"].items(), ("COUNTER", "VALUE"))


@click.command()
@json_option
@click.option("--watch", is_flag=True, help="Show it anew every second until Ctrl-C.")
@pass_home
def status(home: Home, as_json: bool, watch: bool) -> None:
    """Show master, roles, queues and counters. Exit code 3 if the server does not run."""
    while True:
        found = status_of(home.path)
        if watch and not as_json and sys.stdout.isatty():
            click.clear()
        if found is None:
            if as_json:
                say_json({"version": iems.__version__, "home": str(home.path), "running": False})
            else:
                note("not running")
            if not watch:
                raise SystemExit(3)
        elif as_json:
            say_json(found)
        else:
            _print_status(found)
        if not watch:
            return
        sys.stdout.flush()
        try:
            select.select([], [], [], 1.0)
        except KeyboardInterrupt:
            return
