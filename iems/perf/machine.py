"""What a measurement ran on: processor, memory, kernel, disk and loopback, and how busy all else was."""

from __future__ import annotations

import os
import platform
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")


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


def cpu_s(pids: list[int]) -> float:
    """User and system seconds of the process trees below `pids`, ended children included."""
    total = 0.0
    for root in pids:
        for pid in tree(root):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                tasks = list(Path(f"/proc/{pid}/task").iterdir())
                # schedstat counts nanoseconds where stat counts ticks
                total += sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
            except OSError:
                continue
            total += (int(fields[13]) + int(fields[14])) / _TICK  # of children that were reaped
    return total


def memory_octets(pids: list[int]) -> dict[str, int]:
    """`pss` and `private` memory of the process trees below `pids`."""
    pss = private = 0
    for root in pids:
        for pid in tree(root):
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            values = {k: int(v) * 1024 for k, v in re.findall(r"^(\w+):\s+(\d+) kB", rollup, re.MULTILINE)}
            pss += values.get("Pss", 0)
            private += values.get("Private_Clean", 0) + values.get("Private_Dirty", 0)
    return {"pss": pss, "private": private}
