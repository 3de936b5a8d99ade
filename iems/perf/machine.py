"""What a measurement ran on: processor, memory, kernel, disk and loopback, and how busy all else was."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def descriptors() -> Iterator[int]:
    """As many open files as the machine allows, for this process and those it starts; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard if hard != resource.RLIM_INFINITY else 1 << 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def describe(folder: Path) -> dict[str, Any]:
    """The machine: `cpu`, `cores`, `memory_octets`, `kernel`, `python`, `filesystem` and `device` of `folder`."""
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    device, kind = _mount(folder)
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_octets": int(memory[1]) * 1024 if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": kind,
        "device": device,
    }


def _mount(folder: Path) -> tuple[str, str]:
    best = ("", "", "")
    place = str(folder.resolve())
    for line in Path("/proc/mounts").read_text().splitlines():
        device, point, kind = line.split()[:3]
        if (place == point or place.startswith(point.rstrip("/") + "/")) and len(point) >= len(best[0]):
            best = (point, device, kind)
    return best[1], best[2]


def flushes_per_s(folder: Path, seconds: float = 0.5) -> float:
    """Appends of 4 KiB, each followed by fdatasync, that the disk below `folder` takes a second."""
    place = folder / f".flush-probe-{os.getpid()}"
    fd = os.open(place, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    piece = b"x" * 4096
    count = 0
    begun = time.perf_counter()
    try:
        while time.perf_counter() - begun < seconds:
            os.write(fd, piece)
            os.fdatasync(fd)
            count += 1
        return count / (time.perf_counter() - begun)
    finally:
        os.close(fd)
        os.unlink(place)


def write_mb_per_s(folder: Path, megabytes: int = 128) -> float:
    """Octets (10^6 a second) that the disk below `folder` takes in one file, flushed at the end."""
    place = folder / f".write-probe-{os.getpid()}"
    fd = os.open(place, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    piece = os.urandom(1_000_000)
    begun = time.perf_counter()
    try:
        for _ in range(megabytes):
            os.write(fd, piece)
        os.fdatasync(fd)
        return megabytes / (time.perf_counter() - begun)
    finally:
        os.close(fd)
        os.unlink(place)


def loopback_mb_per_s(seconds: float = 0.5) -> float:
    """Octets (10^6 a second) that one connection on loopback carries from one thread to another."""
    listener = socket.create_server(("127.0.0.1", 0))
    received = 0

    def drain() -> None:
        nonlocal received
        peer, _ = listener.accept()
        scratch = bytearray(1 << 20)
        with peer:
            while count := peer.recv_into(scratch):
                received += count

    thread = threading.Thread(target=drain)
    thread.start()
    piece = bytes(256 * 1024)
    with socket.create_connection(listener.getsockname()) as sender:
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            sender.sendall(piece)
        sender.shutdown(socket.SHUT_WR)
        thread.join()
    listener.close()
    return received / 1e6 / (time.perf_counter() - begun)


def busy_cores_s() -> float:
    """CPU seconds spent by everything on the machine since it started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / _TICK


def disk_flushes() -> int:
    """Flushes that the disks have done since the machine started (0 where the kernel does not count them)."""
    total = 0
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if len(fields) > 18 and not re.search(r"(loop|ram|\D\d+$)", fields[2]):
            total += int(fields[18])
    return total


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, ahead = [], [pid]
    while ahead:
        here = ahead.pop()
        found.append(here)
        ahead += children.get(here, [])
    return found


def process_cpu_s(pid: int) -> float:
    """CPU seconds of one living process, ended threads included, to the nanosecond. Raises OSError if it is gone."""
    return time.clock_gettime((~pid << 3) | 2)  # its CPU clock (clock_getcpuclockid)


def cpu_s(pids: list[int]) -> float:
    """User and system seconds of the process trees below `pids`, ended children included."""
    total = 0.0
    for root in pids:
        for pid in tree(root):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += process_cpu_s(pid)
            except OSError:
                continue
            total += (int(fields[13]) + int(fields[14])) / _TICK  # of children that were reaped
    return total


def cpu_by_name(pids: list[int], name: Callable[[int], str]) -> dict[str, float]:
    """CPU seconds of the living processes of the trees below `pids`, summed by `name(pid)`."""
    total: dict[str, float] = {}
    for root in pids:
        for pid in tree(root):
            try:
                title = name(pid)
                total[title] = total.get(title, 0.0) + process_cpu_s(pid)
            except OSError:
                continue
    return total


def program(pid: int) -> str:
    """The name of a process's program. Raises OSError if it is gone."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


class CpuGroup:
    """The CPU time of a process and all it ever starts, processes that have ended included.

    Counted by a control group of their own where one can be made (`how` is `cgroup`), else from the process tree (`proc`), where
    children count when they are reaped. Start the process with the arguments that `command` gives; tell `root`, its pid. own: False
    never makes a control group.
    """

    def __init__(self, own: bool = True) -> None:
        self.root = 0
        self._folder: Path | None = None
        self._file = ""
        for base, file in ((Path("/sys/fs/cgroup/cpuacct"), "cpuacct.usage"), *_unified()) if own else ():
            folder = base / _own_group(base) / f"iems-perf-{os.getpid()}-{secrets.token_hex(4)}"
            try:
                folder.mkdir()
                (folder / file).read_text()
            except OSError:
                with contextlib.suppress(OSError):
                    folder.rmdir()
                continue
            self._folder, self._file = folder, file
            break

    @property
    def how(self) -> str:
        """`cgroup` or `proc`."""
        return "cgroup" if self._folder is not None else "proc"

    def command(self, arguments: list[str]) -> list[str]:
        """The arguments that start a program inside the group, under the pid that starts."""
        if self._folder is None:
            return arguments
        return ["/bin/sh", "-c", f'echo $$ > {self._folder}/cgroup.procs; exec "$@"', "sh", *arguments]

    def cpu_s(self) -> float:
        """User and system seconds so far."""
        if self._folder is None:
            return cpu_s([self.root]) if self.root else 0.0
        text = (self._folder / self._file).read_text()
        if self._file == "cpu.stat":
            return int(text.split("usage_usec", 1)[1].split()[0]) / 1e6
        return int(text) / 1e9

    def pids(self) -> list[int]:
        """The processes that are in it now."""
        if self._folder is None:
            return tree(self.root) if self.root else []
        return [int(line) for line in (self._folder / "cgroup.procs").read_text().split()]

    def close(self) -> None:
        """Remove the group; what is still in it stays alive."""
        for _ in range(20):
            if self._folder is None:
                return
            try:
                self._folder.rmdir()
                self._folder = None
            except FileNotFoundError:
                self._folder = None
            except OSError:
                time.sleep(0.05)  # the last process is still being buried


def _unified() -> Iterator[tuple[Path, str]]:
    for base in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (base / "cgroup.controllers").exists():
            yield base, "cpu.stat"


def _own_group(base: Path) -> str:
    """The group this process is in, relative to the mount of its hierarchy."""
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if (names == "" and base.name != "cpuacct") or "cpuacct" in names.split(","):
                return path.lstrip("/")
    except OSError:
        pass
    return ""


def memory_octets(pids: Iterable[int], below: bool = True) -> dict[str, int]:
    """Memory of processes, and of their trees if `below`.

    `pss`: their share of every page. `private`: pages of theirs alone. `anonymous`: pages that belong to no file; growth of it is
    what a process itself has come to hold, whether or not it was forked from others.
    """
    total = {"pss": 0, "private": 0, "anonymous": 0}
    for pid in {pid for root in pids for pid in (tree(root) if below else [root])}:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        values = {k: int(v) * 1024 for k, v in re.findall(r"^(\w+):\s+(\d+) kB", rollup, re.MULTILINE)}
        total["pss"] += values.get("Pss", 0)
        total["private"] += values.get("Private_Clean", 0) + values.get("Private_Dirty", 0)
        total["anonymous"] += values.get("Anonymous", 0)
    return total


def waits(pid: int) -> str:
    """What each process of a tree waits for in the kernel; for the report of a server that hangs."""
    found = []
    for one in tree(pid):
        try:
            title = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            found.append(f"{one} {title[:40]!r} in {Path(f'/proc/{one}/wchan').read_text() or 'user space'}")
        except OSError:
            continue
    return ", ".join(found)
