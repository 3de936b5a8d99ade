"""Flow control: what is measured, above which mark mail is put off, below which it is taken again.

Each level has two marks, so that a level near one of them does not open and close the door with every message. Workers measure for
themselves, once a second while they have clients or are closed; each shows on the board which levels it finds too high, and follows the
others between the marks. One of them leaves the event in the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from iems.smtp import replies

if TYPE_CHECKING:
    from iems.config import Smtpd
    from iems.log import Log
    from iems.model import Reply

QUEUE, DISK, MEMORY = "queue", "disk", "memory"
LOOK_S = 1.0
_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")


class Level:
    """One thing that is measured. high, low: its marks, high 0 for none; a low mark that is not below the high one becomes nine tenths of it. unit: of the figures in the log."""

    __slots__ = ("closed", "high", "low", "measure", "name", "unit", "value")

    def __init__(self, name: str, high: float, low: float, unit: str, measure: Callable[[], float]) -> None:
        self.name = name
        self.high = high
        self.low = low if low < high else 0.9 * high
        self.unit = unit
        self.measure = measure
        self.value = 0.0
        self.closed = False


class Flow:
    """The levels of one worker.

    mail: the refusal MAIL gets now, None if mail is taken. connection: the same in place of the greeting. gauge, total: of the
    board. `look` raises nothing: what can't be measured is not too high.
    """

    def __init__(
        self,
        levels: list[Level],
        log: Log,
        gauge: Callable[[str, int], None],
        total: Callable[[str], int],
    ) -> None:
        self._levels = [level for level in levels if level.high]
        self._log = log
        self._gauge = gauge
        self._total = total
        self._looked = -LOOK_S
        self.mail: Reply | None = None
        self.connection: Reply | None = None

    def look(self, now: float) -> None:
        """Measure, if the last time is a second ago. now: seconds of any clock that goes on."""
        if now - self._looked < LOOK_S or not self._levels:
            return
        self._looked = now
        for level in self._levels:
            try:
                level.value = level.measure()
            except (OSError, ValueError) as fault:
                if level.closed:
                    self._set(level, False, cause=str(fault))
                continue
            if level.closed:
                if level.value <= level.low:
                    self._set(level, False)
            elif level.value >= level.high or (
                level.value > level.low and self._total(f"flow_{level.name}_now")
            ):
                self._set(level, True)
        closed = {level.name for level in self._levels if level.closed}
        self.mail = replies.SYSTEM_FULL if closed & {QUEUE, DISK} else replies.SHORT_OF_MEMORY if closed else None
        self.connection = replies.OVERLOADED if MEMORY in closed else None

    @property
    def closed(self) -> bool:
        """Whether any level is too high."""
        return self.mail is not None

    def _set(self, level: Level, closed: bool, **detail: str) -> None:
        name = f"flow_{level.name}_now"
        others = self._total(name) - level.closed
        level.closed = closed
        self._gauge(name, int(closed))
        if not others:
            mark = level.high if closed else level.low
            self._log.event(
                "flow-closed" if closed else "flow-open",
                what=level.name,
                value=round(level.value, 2),
                mark=mark,
                unit=level.unit,
                **detail,  # type: ignore[arg-type]
            )

    def leave(self) -> None:
        """This worker ends: what it shows on the board is no longer true."""
        for level in self._levels:
            if level.closed:
                level.closed = False
                self._gauge(f"flow_{level.name}_now", 0)
        self.mail = self.connection = None


def levels(smtpd: Smtpd, spool: Path, queued: Callable[[], int]) -> list[Level]:
    """The levels the settings ask for. spool: its folder. queued: length of the input queue."""
    return [
        Level(QUEUE, smtpd.flow_queue_high, smtpd.flow_queue_low, "messages", queued),
        Level(DISK, smtpd.flow_disk_high, smtpd.flow_disk_low, "percent", lambda: disk_percent(spool)),
        Level(MEMORY, smtpd.flow_memory_high, smtpd.flow_memory_low, "percent", memory_percent),
    ]


def disk_percent(folder: Path) -> float:
    """How full a file system is for its users, in octets or inodes, whichever is more. Raises OSError."""
    found = os.statvfs(folder)
    used = found.f_blocks - found.f_bfree
    room = used + found.f_bavail
    inodes = 100.0 * (1 - found.f_favail / found.f_files) if found.f_files else 0.0
    return max(100.0 * used / room if room else 0.0, inodes)


def memory_percent() -> float:
    """How much of the memory is in use and can't be given back, of the machine or of our control group, whichever is more.

    Raises OSError, ValueError.
    """
    wanted: dict[str, int] = {}
    for line in _MEMINFO.read_text("ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            wanted[name] = int(rest.split()[0])
    if not wanted.get("MemTotal") or "MemAvailable" not in wanted:
        raise ValueError("no figures of memory")
    machine = 100.0 * (1 - wanted["MemAvailable"] / wanted["MemTotal"])
    return max(machine, _group_percent())


def _group_percent() -> float:
    """The same for the control group (version 2) that limits us; 0 if none does."""
    try:
        line = next(row for row in Path("/proc/self/cgroup").read_text().splitlines() if row.startswith("0::"))
        folder = _CGROUPS / line[3:].lstrip("/")
        limit = (folder / "memory.max").read_text().strip()
        if not limit.isdigit() or not int(limit):
            return 0.0
        used = int((folder / "memory.current").read_text())
        for row in (folder / "memory.stat").read_text().splitlines():
            if row.startswith(("inactive_file ", "active_file ", "slab_reclaimable ")):
                used -= int(row.split()[1])
        return 100.0 * max(used, 0) / int(limit)
    except (OSError, ValueError, StopIteration):
        return 0.0
