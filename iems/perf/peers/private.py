"""What all private peers share: a folder, ports, users, CPU accounting, a start that waits and a stop that leaves nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from iems.perf import machine
from iems.perf.home import DOMAIN
from iems.perf.ports import OFFSETS, free_base

#: Seconds a peer may take to open its ports, and to go.
PATIENCE_S = 30.0


class PrivatePeer:
    """A started peer with `accounts` users a1@load.test ... of password `pw`. Use it in a `with` block. Raises RuntimeError.

    Subclasses say how it is configured (`_configure`) and started (`_start`: the pid of its first process), and what is queued.
    """

    name = ""
    #: Names of listeners that get a free port.
    listeners: tuple[str, ...] = ()

    def __init__(self, accounts: int, folder: Path | None, program: str) -> None:
        self._program = program
        self._accounts = accounts
        if folder is not None:
            for place in (folder.resolve(), *folder.resolve().parents):
                if not place.stat().st_mode & 0o001:
                    raise RuntimeError(f"users of {self.name} may not enter {place}: take a folder that is open to all")
        self.path = Path(tempfile.mkdtemp(prefix=f"iems-perf-{self.name}-", dir=folder))
        self.path.chmod(0o755)  # its parts run as users of their own
        self._ports = dict(zip(self.listeners, _free_ports(len(self.listeners)), strict=True))
        self._group = machine.CpuGroup()
        self._started: list[subprocess.Popen[bytes]] = []

    def port(self, name: str) -> int:
        """The port of a listener."""
        return self._ports[name]

    def users(self) -> list[bytes]:
        """The addresses."""
        return [b"a%d@%b" % (i + 1, DOMAIN.encode()) for i in range(self._accounts)]

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far, ended ones included."""
        return self._group.cpu_s()

    def cpu_by_role(self) -> dict[str, float]:
        """CPU seconds of the living processes by program."""
        found: dict[str, float] = {}
        for pid in self._group.pids():
            with contextlib.suppress(OSError):
                title = machine.program(pid)
                found[title] = found.get(title, 0.0) + machine.process_cpu_s(pid)
        return found

    def pids(self) -> list[int]:
        """Its processes."""
        return self._group.pids()

    def waiting(self) -> int:
        """Messages accepted and not yet delivered; 0 for a peer without a queue."""
        return 0

    def __enter__(self) -> PrivatePeer:
        try:
            self._configure()
            self._group.root = self._start()
            for port in self._ports.values():
                _wait_for(port, self._log)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop it and remove what it left."""
        try:
            self._stop()
        finally:
            self._group.close()
            shutil.rmtree(self.path, ignore_errors=True)

    def _configure(self) -> None:
        raise NotImplementedError

    def _start(self) -> int:
        raise NotImplementedError

    def _log(self) -> str:
        """The last lines of its log."""
        lines: list[str] = []
        for file in sorted(self.path.rglob("*log")):
            with contextlib.suppress(OSError):
                lines += file.read_text("utf-8", "replace").splitlines()[-5:]
        return " | ".join(lines[-8:])

    def _run(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a program inside its group."""
        log = (self.path / "out.log").open("ab")
        with log:
            process = subprocess.Popen(
                self._group.command(list(arguments)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                umask=0o022,  # its programs share folders
            )  # fmt: skip
        self._started.append(process)
        return process

    def _stop(self) -> None:
        """End its first process, which ends the others; whatever of its group is left after a while is killed."""
        root = self._group.root
        if root:
            with contextlib.suppress(ProcessLookupError):
                os.kill(root, signal.SIGTERM)
        until = time.monotonic() + PATIENCE_S
        while (left := self._living()) and time.monotonic() < until:
            time.sleep(0.02)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait()

    def _living(self) -> list[int]:
        for process in self._started:
            process.poll()
        found = []
        for pid in self._group.pids():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    found.append(pid)
        return found


def _free_ports(count: int) -> list[int]:
    """Ports nobody takes before the peer binds them: none that the kernel gives to outgoing connections."""
    base = free_base()
    return [base + offset for offset in OFFSETS[:count]]


def _wait_for(port: int, log: Callable[[], str]) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise RuntimeError(f"a peer did not open port {port}: {log()}") from None
            time.sleep(0.05)
