"""A private server for a measurement: a home of its own on loopback, watched and stopped by the suite."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from iems.perf import machine

DOMAIN = "load.test"
PASSWORD = "pw"
_WELL_KNOWN = {"smtp": 25, "lmtp": 24, "imap": 143, "imaps": 993, "pop3": 110, "submission": 587}


class PrivateHome:
    """A started server with `accounts` users a1@load.test ... of password `pw`. Use it in a `with` block.

    settings: `section.key` -> value, put into conf/iems.toml. folder: where the home goes (its disk is the one measured); a temporary
    one if None. held: channels put on hold before the server starts. Raises RuntimeError if it does not start.
    """

    def __init__(
        self,
        accounts: int = 1,
        settings: dict[str, Any] | None = None,
        folder: Path | None = None,
        held: tuple[str, ...] = (),
    ) -> None:
        self._parent = Path(tempfile.mkdtemp(prefix="iems-perf-", dir=folder))
        self.path = self._parent / "home"
        self.base = _free_base()
        self._accounts = accounts
        self._settings = settings or {}
        self._held = held
        self._process: subprocess.Popen[bytes] | None = None
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
        self._process = None
        self.environment = {}
        return self

    @property
    def pid(self) -> int:
        """The master."""
        assert self._process is not None
        return self._process.pid

    def port(self, name: str) -> int:
        """The port of a listener: smtp, lmtp, imap, imaps, pop3, submission."""
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
        subprocess.run(
            [sys.executable, "-m", "iems.cli.iemsctl", "init", str(self.path), "--domain", DOMAIN, "--port-base", str(self.base)],
            capture_output=True, check=True, timeout=120,
        )  # fmt: skip
        self.configure(self._settings)
        from iems.directory.directory import Directory

        directory = Directory(self.path / "directory")
        for user in self.users():
            directory.create_account(user.decode(), PASSWORD)
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
        self._process = subprocess.Popen(
            [sys.executable, "-m", "iems.cli.iemsctl", "--home", str(self.path), "start", "--foreground"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"IEMS_NATIVE": "native"} | self.environment,
        )  # fmt: skip
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if line.strip() != b"ready":
            self._process.kill()
            raise RuntimeError(f"the server did not start: {self._process.stderr.read().decode()[-500:]}")

    def stop(self) -> None:
        """Stop the server and wait for it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
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
        """CPU seconds of the whole process tree so far."""
        return machine.cpu_s([self.pid])


def _free_base() -> int:
    """A port base on which every port of a home is free just now."""
    offsets = (24, 25, 110, 143, 389, 465, 587, 636, 80, 443, 993, 995, 4190, 9100)
    for _ in range(200):
        base = 12_000 + secrets.randbelow(400) * 100
        try:
            with contextlib.ExitStack() as stack:
                for offset in offsets:
                    sock = stack.enter_context(socket.socket())
                    sock.bind(("127.0.0.1", base + offset))
            return base
        except OSError:
            continue
    raise RuntimeError("no free ports on loopback")
