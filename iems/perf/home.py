"""A private server for a measurement: a home of its own on loopback, watched and stopped by the suite."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from iems.perf import machine
from iems.perf.ports import free_base

DOMAIN = "load.test"
#: A server that is not ready by then will not be.
START_S = 90.0
PASSWORD = "pw"
#: Roles that append to segments.
_WRITERS = ("smtpd", "preprocessor", "smtpc", "lmda", "imapd")
_WELL_KNOWN = {"smtp": 25, "lmtp": 24, "imap": 143, "imaps": 993, "pop3": 110, "submission": 587, "sieve": 4190, "odmr": 366}


class PrivateHome:
    """A started server with `accounts` users a1@load.test ... of password `pw`. Use it in a `with` block.

    settings: `section.key` -> value, put into conf/iems.toml. folder: where the home goes (its disk is the one measured); a temporary
    one if None. held: channels put on hold before the server starts. files: text by path in the home. Raises RuntimeError if it does
    not start.
    """

    def __init__(
        self,
        accounts: int = 1,
        settings: dict[str, Any] | None = None,
        folder: Path | None = None,
        held: tuple[str, ...] = (),
        files: dict[str, str] | None = None,
    ) -> None:
        self._parent = Path(tempfile.mkdtemp(prefix="iems-perf-", dir=folder))
        self.path = self._parent / "home"
        self.base = free_base()
        self._accounts = accounts
        self._settings = settings or {}
        self._held = held
        self._files = files or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._group: machine.CpuGroup | None = None
        self._spent_s = 0.0
        #: Added to the environment of the server at its next start.
        self.environment: dict[str, str] = {}

    @classmethod
    def over(cls, path: Path, base: int) -> PrivateHome:
        """A home that is there already; it is not removed. base: its port base."""
        self = cls.__new__(cls)
        self._parent = path.parent
        self.path = path
        self.base = base
        self._accounts = 0
        self._settings = {}
        self._held = ()
        self._files = {}
        self._process = None
        self._group = None
        self._spent_s = 0.0
        self.environment = {}
        return self

    @property
    def pid(self) -> int:
        """The master."""
        assert self._process is not None
        return self._process.pid

    def port(self, name: str) -> int:
        """The port of a listener: smtp, lmtp, imap, imaps, pop3, submission, sieve, odmr."""
        return self.base + _WELL_KNOWN[name]

    def users(self) -> list[bytes]:
        """The addresses."""
        return [b"a%d@%b" % (i + 1, DOMAIN.encode()) for i in range(self._accounts)]

    def ctl(self, *arguments: str) -> str:
        """What `iemsctl --home HOME ARGUMENTS` prints. Raises RuntimeError with its errors if it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "iems.cli.iemsctl", "--home", str(self.path), *arguments],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"iemsctl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def __enter__(self) -> PrivateHome:
        try:
            self._make()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _make(self) -> None:
        # Run by root, the home belongs to root: it is private, on loopback and gone after the run.
        made = subprocess.run(
            [sys.executable, "-m", "iems.cli.iemsctl", "init", str(self.path), "--domain", DOMAIN, "--port-base", str(self.base)],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"a home can't be made: {made.stderr.strip()[-500:]}")
        self.configure(self._settings)
        for name, text in self._files.items():
            (self.path / name).write_text(text, "utf-8")
        from iems.directory.directory import Directory
        from iems.directory.passwords import hash_password
        from iems.directory.stored import Forms
        from iems.sasl.scram import MIN_ITERATIONS

        directory = Directory(self.path / "directory")
        hashed = hash_password(PASSWORD)  # one is costly by design; these accounts guard nothing
        first = None
        for user in self.users():
            account = directory.create_account(
                user.decode(), PASSWORD, hashed=hashed, forms=Forms(MIN_ITERATIONS), keys_as=first
            )
            first = first or account
        directory.close()
        for channel in self._held:
            self.ctl("queue", "hold", "--channel", channel)

    def configure(self, settings: dict[str, Any]) -> None:
        """Put settings into the configuration; a running server takes them up at its next reload."""
        file = self.path / "conf/iems.toml"
        text = file.read_text("utf-8")
        for name, value in settings.items():
            section, _, key = name.rpartition(".")
            line = f"{key} = {json.dumps(value)}\n"  # JSON scalars and arrays are TOML too
            if section:
                head = f"[{section}]\n"
                if head not in text:
                    raise ValueError(f"the sample has no section {section}")
                text = text.replace(head, head + line, 1)
            else:
                text = line + text
        file.write_text(text, "utf-8")

    def start(self) -> None:
        """Start the server and wait until all ports listen."""
        self._settle()
        # a preloaded recorder should see nothing but the server
        group = self._group = machine.CpuGroup(own=not self.environment)
        self._process = subprocess.Popen(
            group.command([sys.executable, "-m", "iems.cli.iemsctl", "--home", str(self.path), "start", "--foreground"]),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"IEMS_NATIVE": "native"} | self.environment,
        )  # fmt: skip
        group.root = self._process.pid
        assert self._process.stdout is not None and self._process.stderr is not None
        told, _, _ = select.select([self._process.stdout], [], [], START_S)
        line = self._process.stdout.readline() if told else b""
        if line.strip() != b"ready":
            where = "" if told else f" within {START_S:g} s: {machine.waits(self._process.pid)}"
            self.crash_quietly()
            raise RuntimeError(f"the server did not start{where}: {self._log_tail()}")

    def crash_quietly(self) -> None:
        """End whatever runs, however it stands."""
        with contextlib.suppress(OSError):
            self.crash()

    def _log_tail(self) -> str:
        try:
            return (self.path / "log/mail.log").read_text("utf-8")[-1000:]
        except OSError:
            return "no log"

    def stop(self) -> None:
        """Stop the server and wait for it."""
        self._end(signal.SIGTERM)

    def _settle(self) -> None:
        """Take over what an ended server spent."""
        group, self._group = self._group, None
        if group is not None:
            self._spent_s += group.cpu_s()
            group.close()

    def crash(self) -> None:
        """Kill every process of the server at once, as a power cut of the machine would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if how == signal.SIGKILL:
            for pid in machine.tree(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
        else:
            process.send_signal(how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._settle()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._parent, ignore_errors=True)

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far, ended ones included."""
        if self._group is not None:
            return self._spent_s + self._group.cpu_s()
        return self._spent_s + (machine.cpu_s([self.pid]) if self._process is not None else 0.0)

    def cpu_by_role(self) -> dict[str, float]:
        """CPU seconds of the living processes by role; the master and its helpers are `master`."""
        return machine.cpu_by_name([self.pid], _role)

    def roles(self) -> dict[str, list[int]]:
        """Process ids by role."""
        found: dict[str, list[int]] = {}
        for pid in machine.tree(self.pid):
            with contextlib.suppress(OSError):
                found.setdefault(_role(pid), []).append(pid)
        return found

    def flushes(self) -> int:
        """Flushes it has asked for since its start: of segments, and commits of the store."""
        from iems.master.board import Board

        board = Board.open(self.path / "run/board")
        try:
            return sum(board.counters(role)["spool_flushes_total"] for role in _WRITERS) + board.counters("store")["store_commits_total"]
        finally:
            board.map.close()

    def waiting(self) -> int:
        """Messages ready or leased in any channel that is not on hold."""
        from iems.perf import queue

        return queue.waiting(self.path)


def _role(pid: int) -> str:
    title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0", 1)[0].decode()
    return title.split()[1] if title.startswith("iems: ") and len(title.split()) > 2 else "master"
