"""Processes of ours are forked from one that has imported everything, instead of each importing it again.

Half of what a small server or command costs is the start of Python. `install` makes `subprocess.Popen` send what would run `iemsctl` or
`iemsuser` by this interpreter to a process that forks for it: same arguments, environment, folder, descriptors and exit code, a pid of its
own. Whatever asks for more (a library that is preloaded, a limit, a descriptor handed over) is executed as ever, and so is everything with
IEMS_TEST_EXEC=1, as in `make test-long`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from typing import Any

import setproctitle

COMMANDS = {"iems.cli.iemsctl": "iemsctl", "iems.cli.iemsuser": "iemsuser"}
#: What the commands and the roles import when they are used.
_MODULES = (
    "iems.cli.iemsctl", "iems.cli.iemsuser", "iems.cli.run", "iems.cli.init", "iems.cli.queue", "iems.cli.trace", "iems.cli.policy", "iems.cli.configuration",
    "iems.cli.spam", "iems.cli.filters", "iems.cli.fsck", "iems.cli.backup", "iems.cli.cam", "iems.cli.screen", "iems.cli.transfer", "iems.spool.admin",
    "iems.directory.directory", "iems.directory.stored", "iems.store.reader", "cryptography.x509", "argon2",
)  # fmt: skip
#: What decides at the start of an interpreter or of a module.
_TELLING = ("LD_PRELOAD", "FAULT_DIR", "PYTHONDEVMODE", "PYTHONOPTIMIZE", "PYTHONTRACEMALLOC")
_MOST = 1 << 20
_RealPopen = subprocess.Popen


# --- the nursery


def main(fd: int) -> None:
    """Forks for each request on the socket `fd`, until it is closed."""
    os.environ["IEMS_NATIVE"] = "native"
    from iems.master import supervisor

    supervisor._preload()
    for name in _MODULES:
        importlib.import_module(name)
    setproctitle.setproctitle("iems-tests nursery")  # finds its room now, as children have other environments
    line = socket.socket(fileno=fd)
    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    living: dict[int, int] = {}
    gc.collect()
    gc.freeze()
    while True:
        ready, _, _ = select.select([line, woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
        while living:
            pid, how = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            with contextlib.suppress(BrokenPipeError):
                os.write(living[pid], b"%d" % how)
            os.close(living.pop(pid))
        if line in ready:
            data, fds, _, _ = socket.recv_fds(line, _MOST, 4)
            if not data:
                return
            pid = os.fork()
            if not pid:
                _become(json.loads(data), fds)
            living[pid] = fds[3]
            for each in fds[:3]:
                os.close(each)
            line.send(b"%d" % pid)


def _become(wanted: dict[str, Any], fds: list[int]) -> None:
    """The child: what `python -m MODULE ARGUMENTS` would be. Never returns."""
    code: Any = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for to, fd in enumerate(fds[:3]):
            os.dup2(fd, to)
        os.closerange(3, max(fds) + 1024)
        # Anew, as the old ones know their descriptors for files.
        sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.chdir(wanted["cwd"])
        os.environ.clear()
        os.environ.update(wanted["env"])
        if wanted["group"]:
            with open(wanted["group"], "w") as file:
                file.write(str(os.getpid()))
        module = sys.modules[wanted["module"]]
        sys.argv = [str(module.__file__), *wanted["arguments"]]
        sys.modules["__main__"].__package__ = wanted["module"].rpartition(".")[0]  # click tells from it what was called
        module.main()
        code = 0
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit((code or 0) & 0xFF)


# --- its users


class _Nursery:
    """The process above, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: socket.socket | None = None

    def fork(self, wanted: dict[str, Any], fds: list[int]) -> tuple[int, int]:
        """(pid, descriptor that tells how it ended)."""
        with self._lock:
            if self._line is None:
                self._line, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
                with far:
                    self._process = _RealPopen(
                        [sys.executable, "-c", f"from tests.support import nursery; nursery.main({far.fileno()})"], pass_fds=[far.fileno()]
                    )
            told, tell = os.pipe2(os.O_CLOEXEC)
            try:
                socket.send_fds(self._line, [json.dumps(wanted).encode()], [*fds, tell])
                pid = int(self._line.recv(64))
            except BaseException:
                os.close(told)
                raise
            finally:
                os.close(tell)
            return pid, told


    def close(self) -> None:
        """End it."""
        with self._lock:
            if self._line is not None:
                self._line.close()
                self._line = None
                self._process.wait()


_nursery = _Nursery()
close = _nursery.close


class Popen(_RealPopen):  # type: ignore[type-arg]
    """`subprocess.Popen` that has commands of ours forked."""

    _told = -1

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any, *rest: Any) -> None:
        (_, _, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, _, gid, gids, uid, umask, session, process_group) = rest
        plain = not (shell or preexec_fn or pass_fds or executable or session) and (gid, gids, uid, umask, process_group) == (None, None, None, -1, -1)
        wanted = _wanted(args, os.environ if env is None else env) if plain else None
        if wanted is None:
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)  # type: ignore[misc]
            return
        wanted["cwd"] = os.fspath(cwd) if cwd is not None else os.getcwd()
        if not os.path.isdir(wanted["cwd"]):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), wanted["cwd"])
        fds = [own if fd == -1 else fd for own, fd in enumerate((p2cread, c2pwrite, errwrite))]
        self.pid, self._told = _nursery.fork(wanted, fds)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _ended(self, block: bool) -> int | None:
        if not block:
            told = select.poll()
            told.register(self._told, select.POLLIN)
            if not told.poll(0):
                return None
        how = os.read(self._told, 32)
        os.close(self._told)
        self._told = -1
        return int(how or 9)

    def _internal_poll(self, *arguments: Any, **more: Any) -> Any:
        if self._told < 0:
            return super()._internal_poll(*arguments, **more) if self.returncode is None else self.returncode  # type: ignore[misc]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None and (how := self._ended(False)) is not None:
                    self._handle_exitstatus(how)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._told < 0:
            found: tuple[int, int] = super()._try_wait(wait_flags)  # type: ignore[misc]
            return found
        how = self._ended(not wait_flags & os.WNOHANG)
        return (0, 0) if how is None else (self.pid, how)


def _wanted(args: Any, env: Any) -> dict[str, Any] | None:
    """What to fork for these arguments; None if they are not for the nursery."""
    if isinstance(args, str | bytes | os.PathLike):
        return None
    words, group = [os.fspath(word) for word in args], ""
    if words[:2] == ["/bin/sh", "-c"] and len(words) > 6 and words[3] == "sh" and words[2].startswith("echo $$ > "):
        group, words = words[2].removeprefix("echo $$ > ").partition(";")[0], words[4:]  # iems.perf.machine.CpuGroup
    if words[:2] != [sys.executable, "-m"] or len(words) < 3 or words[2] not in COMMANDS:
        return None
    if env.get("IEMS_NATIVE", "native") != "native" or any(env.get(name) for name in _TELLING):
        return None
    return {"module": words[2], "arguments": words[3:], "env": dict(env), "group": group}


def install() -> None:
    """From now on `subprocess` has commands of ours forked."""
    if not os.environ.get("IEMS_TEST_EXEC"):
        subprocess.Popen = Popen  # type: ignore[misc]
