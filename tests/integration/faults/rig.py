"""A private server under faults: calls that fail on demand, small disks, safeguards taken off, and clients that misbehave.

`FaultHome` is a `PrivateHome` whose processes carry shim.c (`fail`, `clock`), whose folders may be small tmpfs mounts (`disk`), and
which can be started with one safeguard removed (`unsafe`, see unsafe.py), to show that a test would notice.
"""

from __future__ import annotations

import contextlib
import functools
import imaplib
import os
import re
import resource
import signal
import smtplib
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from iems.perf.home import PrivateHome
from tests.support.waiting import events, status, until

HERE = Path(__file__).parent
_QUEUED = re.compile(rb"queued as (\S+)")


@functools.cache
def shim() -> Path:
    """shim.c, compiled; skips the test without a compiler."""
    import tempfile

    library = Path(tempfile.mkdtemp(prefix="iems-faults-")) / "shim.so"
    done = subprocess.run(
        ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(HERE / "shim.c")], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"shim.c does not compile: {done.stderr[-200:]}")
    return library


class Disk:
    """A small file system of its own at `path`; `octets`, `inodes` as mount(8) takes them."""

    def __init__(self, path: Path, octets: str = "8m", inodes: int = 0) -> None:
        self.path = path
        self._filler = path / "filler"
        path.mkdir(parents=True, exist_ok=True)
        options = f"size={octets},mode=700" + (f",nr_inodes={inodes}" if inodes else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "iems-faults", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this test needs to mount a small tmpfs, which is not permitted here: {done.stderr.strip()}")

    def free(self) -> int:
        """Octets that are left."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all room but `leave` octets."""
        with open(self._filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while (room := self.free() - leave) > 0:
                file.write(b"\xff" * min(room, 1 << 16))

    def fill_inodes(self) -> None:
        """Take all inodes."""
        for number in range(1 << 20):
            try:
                (self.path / f"taken-{number}").touch(exist_ok=False)
            except OSError:
                return

    def empty(self) -> None:
        """Give back what was taken."""
        for path in [self._filler, *self.path.glob("taken-*")]:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount."""
        for _ in range(50):
            if subprocess.run(["umount", str(self.path)], capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.1)
        subprocess.run(["umount", "-l", str(self.path)], capture_output=True, check=False)


class BreakingDisk(Disk):
    """An ext4 image that can be made to go read-only as after an error of the disk, and be mended when nobody uses it."""

    def __init__(self, path: Path, image: Path, octets: int = 32 << 20) -> None:
        self.path = path
        self._filler = path / "filler"
        self._image = image
        path.mkdir(parents=True, exist_ok=True)
        with open(image, "wb") as file:
            file.truncate(octets)
        for command in (["mkfs.ext4", "-q", "-m", "0", str(image)], self._mount()):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                pytest.skip(f"this test needs {command[0]}")
            if done.returncode:
                pytest.skip(f"this test needs to mount a loop device, which is not permitted here: {done.stderr.strip()}")
        (path / "lost+found").rmdir()

    def _mount(self) -> list[str]:
        return ["mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.path)]

    def break_it(self) -> None:
        """Let the file system meet an error: it goes read-only under everybody's hands."""
        device = os.stat(self.path).st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        trigger = Path(f"/sys/fs/ext4/{name}/trigger_fs_error")
        if not trigger.exists():
            pytest.skip("this kernel has no trigger for errors of ext4")
        trigger.write_text("a test of read-only disks\n")

    def mend(self) -> None:
        """Check the file system and mount it again; nobody may use it."""
        self.close()
        done = subprocess.run(["e2fsck", "-fy", str(self._image)], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stdout
        subprocess.run(self._mount(), check=True)


class FaultHome(PrivateHome):
    """See the module. disks: folder of the home -> (octets, inodes) of a tmpfs mounted there before the start; octets "ext4": a `BreakingDisk`.

    shimmed: whether the processes carry the shim. unsafe: the safeguard that is off. limit: RLIMIT_NOFILE of all processes.
    """

    def __init__(
        self,
        accounts: int = 1,
        settings: dict[str, Any] | None = None,
        *,
        disks: dict[str, tuple[str, int]] | None = None,
        shimmed: bool = False,
        clocked: bool = False,
        unsafe: str = "",
        descriptors: int = 0,
        held: tuple[str, ...] = (),
    ) -> None:
        super().__init__(accounts, settings, held=held)
        self.unsafe = ",".join(filter(None, (unsafe, "own_limits" if descriptors else "")))
        self.disks: dict[str, Disk] = {}
        self._wanted = disks or {}
        self._descriptors = descriptors
        self._faults = self._parent / "faults"
        self._faults.mkdir()
        self._shimmed = shimmed or clocked
        if clocked:
            (self._faults / "clock").write_bytes(bytes(8))

    def _make(self) -> None:
        super()._make()
        for folder, (octets, inodes) in self._wanted.items():
            # What init made there moves onto the new disk.
            before = self.path / folder
            aside = self._parent / f"aside-{folder.replace('/', '-')}"
            if before.exists():
                before.rename(aside)
            if octets == "ext4":
                disk = self.disks[folder] = BreakingDisk(before, self._parent / f"image-{folder}")
            else:
                disk = self.disks[folder] = Disk(before, octets, inodes)
            if aside.exists():
                subprocess.run(["cp", "-a", f"{aside}/.", str(disk.path)], check=True)

    def start(self, *, ready: bool = True) -> None:
        """Start the server; standard error goes to HOME/../errors."""
        env = os.environ | {"IEMS_NATIVE": "native"}
        if self._shimmed:
            env |= {"LD_PRELOAD": str(shim()), "FAULT_DIR": str(self._faults)}
        arguments = ["--home", str(self.path), "start", "--foreground"]
        if self.unsafe:
            command = [sys.executable, "-m", "tests.integration.faults.unsafe", self.unsafe, *arguments]
        else:
            command = [sys.executable, "-m", "iems.cli.iemsctl", *arguments]
        limit = self._descriptors

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

        with open(self._parent / "errors", "ab") as errors:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, env=env, preexec_fn=limited if limit else None
            )
        assert self._process.stdout is not None
        if ready and self._process.stdout.readline().strip() != b"ready":
            self._process.kill()
            raise RuntimeError(f"the server did not start: {self.errors()[-500:]}")

    def errors(self) -> str:
        """What the processes wrote to standard error."""
        return (self._parent / "errors").read_text("utf-8", "replace")

    def kill(self) -> None:
        """kill -9 of the master; the workers end by themselves."""
        process = self._process
        assert process is not None
        pids = [process.pid, *self.pids()]
        self._process = None
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        until(lambda: not any(map(_runs, pids)))

    def stop(self) -> None:
        """Stop, and wait."""
        process = self._process
        super().stop()
        self.exit_code = process.returncode if process is not None else None

    def __exit__(self, *about: Any) -> None:
        try:
            self.stop()
        finally:
            for disk in self.disks.values():
                disk.close()
            super().__exit__(*about)

    # --- faults

    def fail(self, call: str, number: int, word: str, count: int = 1) -> None:
        """From now on `call` ("sync", "write") fails with errno `number` on files whose path holds `word`; see shim.c."""
        fresh = self._faults / "rule.new"
        fresh.write_text(f"{call} {number} {count} {word}\n")
        fresh.rename(self._faults / "rule")

    def heal(self) -> None:
        """Calls go well again."""
        (self._faults / "rule").unlink(missing_ok=True)

    def hits(self) -> list[str]:
        """The calls that failed so far."""
        path = self._faults / "hits"
        return path.read_text().splitlines() if path.exists() else []

    def clock(self, seconds: float) -> None:
        """Put the wall clock `seconds` off."""
        with open(self._faults / "clock", "r+b") as file:
            file.write(struct.pack("<q", int(seconds * 1e9)))

    # --- looking

    def status(self) -> dict[str, Any]:
        """`iemsctl status --json`."""
        return status(self)

    def restarts(self) -> int:
        """Workers that died and were replaced, of all roles."""
        return sum(role["restarts"] for role in self.status()["roles"].values())

    def deaths(self) -> list[dict[str, Any]]:
        """What the log says of them: who, of what."""
        return [event["detail"] for event in self.events("worker-killed", "worker-died")]

    def pids(self, role: str = "") -> list[int]:
        """The workers (of a role), by their titles."""
        found = []
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.Error):
                if not role or f"iems: {role} " in " ".join(child.cmdline()) + " ":
                    found.append(child.pid)
        return found

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The lines of the log with these events."""
        return events(self, *names)

    def rss(self, role: str) -> int:
        """Resident octets of the role's workers, what they share counted once each by share (PSS where the kernel tells)."""
        return sum(psutil.Process(pid).memory_info().rss for pid in self.pids(role))

    # --- clients

    def smtp(self, timeout_s: float = 60.0) -> smtplib.SMTP:
        """A connected client."""
        return smtplib.SMTP("127.0.0.1", self.port("smtp"), timeout=timeout_s)

    def send(self, name: str = "x", body: bytes = b"", recipient: str = "a1@load.test", client: smtplib.SMTP | None = None) -> bytes:
        """Send a message with X-Number NAME; the code and text of the last reply, b"421 ..." when none comes."""
        try:
            own = client or self.smtp()
            try:
                own.ehlo()
                for code, text in (own.mail("s@load.test"), own.rcpt(recipient)):
                    if code != 250:
                        return b"%d %b" % (code, text)
                code, text = own.data(b"From: s@load.test\r\nX-Number: %b\r\nSubject: number\r\n\r\n%b\r\n" % (name.encode(), body))
                return b"%d %b" % (code, text)
            finally:
                if client is None:
                    own.close()
        except smtplib.SMTPResponseException as error:
            return b"%d %b" % (error.smtp_code, error.smtp_error if isinstance(error.smtp_error, bytes) else error.smtp_error.encode())
        except (smtplib.SMTPServerDisconnected, ConnectionError) as error:
            return b"000 " + str(error).encode()

    def imap(self, user: int = 1) -> imaplib.IMAP4:
        """A client logged in as user aN, with its INBOX selected."""
        client = imaplib.IMAP4("127.0.0.1", self.port("imap"), timeout=60)
        client.login(f"a{user}@load.test", "pw")
        client.select()
        return client

    def wire(self, name: str) -> Wire:
        """A bare connection to a listener."""
        return Wire(self.port(name))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def queued_as(reply: bytes) -> str:
    """The ID in a 250 after content."""
    found = _QUEUED.search(reply)
    assert found, reply
    return found[1].decode()


class Wire:
    """A connection by hand: lines out, lines in."""

    def __init__(self, port: int, timeout_s: float = 60.0) -> None:
        self.sock: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._rest = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Octets as they are."""
        self.sock.sendall(data)

    def line(self) -> bytes:
        """The next line without its CRLF; b"" when the peer has closed."""
        while b"\n" not in self._rest:
            try:
                got = self.sock.recv(65536)
            except ConnectionResetError:
                got = b""
            if not got:
                rest, self._rest = self._rest, b""
                return rest
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        return line.removesuffix(b"\r")

    def reply(self) -> bytes:
        """An SMTP reply, its lines joined by a newline; b"" when the peer has closed."""
        lines = []
        while line := self.line():
            lines.append(line)
            if line[3:4] != b"-":
                break
        return b"\n".join(lines)

    def ask(self, command: bytes) -> bytes:
        """Send a line; the SMTP (or one-line) reply."""
        self.send(command + b"\r\n")
        return self.reply()

    def tagged(self, command: bytes, tag: bytes = b"t") -> list[bytes]:
        """Send an IMAP command; all lines up to its tagged reply or the end."""
        self.send(tag + b" " + command + b"\r\n")
        return self.until_tag(tag)

    def until_tag(self, tag: bytes = b"t") -> list[bytes]:
        """All lines up to the tagged reply, or to the end."""
        lines = []
        while line := self.line():
            lines.append(line)
            if line.startswith(tag + b" "):
                break
        return lines

    def rest(self, wait_s: float = 5.0) -> bytes:
        """All that still comes, until the peer closes or is silent for `wait_s`."""
        self.sock.settimeout(wait_s)
        got = self._rest
        self._rest = b""
        with contextlib.suppress(OSError):
            while data := self.sock.recv(65536):
                got += data
        return got

    def hello(self) -> bytes:
        """Greeting read, EHLO said; its reply."""
        self.reply()
        return self.ask(b"EHLO client.test")

    def tls(self) -> None:
        """The client's side of a handshake."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.sock = context.wrap_socket(self.sock)


@contextlib.contextmanager
def noticed(safeguard: str) -> Iterator[None]:
    """With a safeguard off, the checks inside must fail."""
    if not safeguard:
        yield
        return
    with pytest.raises((AssertionError, ValueError)):
        yield


def variants(*safeguards: str) -> Any:
    """Parametrises `unsafe` with "" and each safeguard that is taken off (those runs are long ones)."""
    return pytest.mark.parametrize("unsafe", ["", *(pytest.param(name, marks=pytest.mark.long) for name in safeguards)])


__all__ = [
    "BreakingDisk", "Disk", "FaultHome", "Wire", "noticed", "queued_as", "shim", "signal", "until", "variants",
]  # fmt: skip
