"""The board: HOME/run/board, a memory-mapped file that says what every worker is doing.

Workers write their own row, the master writes the header and clears the rows of the dead; `iemsctl status`, the metrics
and the master read it without asking anyone. The master imports neither numpy nor uvloop, hence `mmap` and `struct`.

| octets            | what                                                                                      |
|-------------------|-------------------------------------------------------------------------------------------|
| 0..4095           | header: magic, layout version, master pid, last spawn number, generation, start, reloads  |
| 4096..4351        | one octet a slot: role code of a parked worker, else 0 (so waking one is a single search) |
| 8192..            | one row of 2,048 octets a role: counters of workers that are gone, restarts               |
| then              | one row of 2,048 octets a slot                                                            |

A row of a slot: pid u32, role u8, state u8, writing u8, -, generation u64, heartbeat_ns u64, started_ns u64,
job_deadline_ns u64, message id 16 octets, index u32, master generation u32, jobs u64; from octet 128 counters i64.
Times are CLOCK_MONOTONIC, the same for all processes of a machine.

`generation` of a row is the number of that spawn: each fork takes the next one, and the file keeps the last across restarts of the
master, so (slot, generation) never names two workers. Numbers start at the time of day in seconds and fit 32 bits.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from enum import IntEnum
from pathlib import Path
from typing import Any

from msgspec import Struct

MAX_SLOTS = 256
MAX_ROLES = 32
ROW = 2048
COUNTERS_AT = 128
MAX_COUNTERS = (ROW - COUNTERS_AT) // 8

_MAGIC = b"IEMSBRD1"
_PARKED_AT = 4096
_ROLES_AT = 8192
_SLOTS_AT = _ROLES_AT + MAX_ROLES * ROW
SIZE = _SLOTS_AT + MAX_SLOTS * ROW

_HEADER = struct.Struct("<8sIIQQQQQQ")
_ROW = struct.Struct("<IBBBxQQQQ16sIIQ")

#: Role codes are places in this list (from 1); add at the END.
ROLES = ["smtpd", "preprocessor", "smtpc", "lmda", "store", "imapd", "pop3d", "janitor", "bsmtp", "sieved", "api"]
ROLE_CODE = {role: number for number, role in enumerate(ROLES, 1)}

#: Modules of the preprocessor that are counted; add at the END.
MODULES = ("authres", "tnef", "antivirus", "milter", "attachments", "content", "antispam", "autotext", "arc", "dkim", "headerrules")

#: Counters, kept per worker and summed per role. A name that ends in `_now` is a gauge. Add at the END.
COUNTERS = [
    "sessions_total",
    "sessions_now",
    "sessions_refused_total",
    "tls_total",
    "logins_total",
    "logins_failed_total",
    "errors_total",
    "messages_accepted_total",
    "messages_refused_total",
    "octets_in_total",
    "octets_out_total",
    "recipients_refused_total",
    "messages_routed_total",
    "messages_delivered_total",
    "messages_relayed_total",
    "messages_deferred_total",
    "messages_failed_total",
    "messages_discarded_total",
    "messages_quarantined_total",
    "dsn_total",
    "spool_flushes_total",
    "spool_records_total",
    "spool_octets_total",
    "segments_reclaimed_total",
    "store_commits_total",
    "store_octets_total",
    "fetched_messages_total",
    "appended_messages_total",
    "wakeups_total",
    # The queue as the janitor last counted it.
    *(
        f"queue_{channel}_{state}_now"
        for channel in ("input", "local", "smtpc")
        for state in ("ready", "leased", "deferred", "held", "quarantined")
    ),
    # The door of smtpd: levels a worker finds too high, and what its limits did.
    "flow_queue_now",
    "flow_disk_now",
    "flow_memory_now",
    "flow_refused_total",
    "sessions_limited_total",
    "messages_limited_total",
    "early_talkers_total",
    "tarpits_total",
    "takeovers_total",
    "messages_held_total",
    "etrn_total",
    "atrn_total",
    # What the preprocessor's modules cost (`iems/preprocessor/meter.py`): messages looked at, microseconds, and how often one failed.
    *(f"module_{module}_{what}_total" for module in MODULES for what in ("messages", "us", "cpu_us", "failures")),
]
COUNTER_INDEX = {name: number for number, name in enumerate(COUNTERS)}


class State(IntEnum):
    """What a worker is doing, as its row says."""

    FREE = 0
    STARTING = 1
    READY = 2
    RETIRING = 3
    DRAINING = 4


class Row(Struct, frozen=True):
    """A copy of one slot's row. heartbeat_ns, started_ns, job_deadline_ns: CLOCK_MONOTONIC, 0 for none."""

    slot: int
    pid: int
    role: str
    state: State
    writing: bool
    generation: int
    heartbeat_ns: int
    started_ns: int
    job_deadline_ns: int
    message_id: bytes
    index: int
    master_generation: int
    jobs: int
    parked: bool


class Header(Struct, frozen=True):
    """A copy of the header. started_ns: CLOCK_MONOTONIC; generation: reloads so far, from 1; refused: reloads refused."""

    master_pid: int
    last_spawn: int
    generation: int
    started_ns: int
    refused: int
    started_wall_ns: int
    ready: int


class Board:
    """The mapped file. Only the owner of a row writes it; a reader may see a row between two writes."""

    def __init__(self, mapped: mmap.mmap, writable: bool) -> None:
        self.map = mapped
        self.writable = writable

    @classmethod
    def create(cls, path: Path) -> Board:
        """A fresh board at `path`, in place of an older one whose last spawn number it goes on from."""
        last = int(time.time())
        try:
            last = max(last, cls.open(path).header().last_spawn + 1)
        except (OSError, ValueError):
            pass
        fresh = path.with_name(path.name + ".new")
        # A new file: workers of a killed master may still write into the old one.
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, SIZE)  # with its room: on a full disk a mapped page without any is SIGBUS
            board = cls(mmap.mmap(fd, SIZE), True)
        finally:
            os.close(fd)
        board.set_header(os.getpid(), last, 0, time.monotonic_ns(), 0, time.time_ns(), 0)
        os.replace(fresh, path)
        return board

    @classmethod
    def open(cls, path: Path) -> Board:
        """The board at `path`, for reading. Raises OSError, or ValueError if the file is no board of this version."""
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != SIZE:
                raise ValueError(f"{path} is not a board of this version")
            mapped = mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ)
        if mapped[:8] != _MAGIC:
            raise ValueError(f"{path} is not a board of this version")
        return cls(mapped, False)

    # --- header

    def set_header(
        self,
        pid: int,
        last_spawn: int,
        generation: int,
        started_ns: int,
        refused: int,
        wall_ns: int,
        ready: int,
    ) -> None:
        """Writes the header. The master alone."""
        _HEADER.pack_into(
            self.map, 0, _MAGIC, 1, pid, last_spawn, generation, started_ns, refused, wall_ns, ready
        )

    def header(self) -> Header:
        """A copy of the header."""
        _, _, pid, last, generation, started, refused, wall, ready = _HEADER.unpack_from(self.map, 0)
        return Header(pid, last, generation, started, refused, wall, ready)

    # --- rows

    @staticmethod
    def row_at(slot: int) -> int:
        """Offset of the slot's row."""
        return _SLOTS_AT + slot * ROW

    def row(self, slot: int) -> Row | None:
        """A copy of the slot's row, or None if the slot is free."""
        (
            pid,
            role,
            state,
            writing,
            generation,
            beat,
            started,
            deadline,
            message,
            index,
            master_generation,
            jobs,
        ) = _ROW.unpack_from(self.map, self.row_at(slot))
        if not pid or not 0 < role <= len(ROLES):
            return None
        return Row(
            slot,
            pid,
            ROLES[role - 1],
            State(state) if state in State._value2member_map_ else State.STARTING,
            bool(writing),
            generation,
            beat,
            started,
            deadline,
            message,
            index,
            master_generation,
            jobs,
            self.map[_PARKED_AT + slot] != 0,
        )

    def rows(self) -> list[Row]:
        """Copies of all rows in use."""
        return [row for slot in range(MAX_SLOTS) if (row := self.row(slot)) is not None]

    def begin(
        self, slot: int, pid: int, role: str, index: int, generation: int, master_generation: int
    ) -> None:
        """Takes the slot for a new worker; its counters start at 0."""
        now = time.monotonic_ns()
        at = self.row_at(slot)
        self.map[at : at + ROW] = bytes(ROW)
        _ROW.pack_into(
            self.map,
            at,
            pid,
            ROLE_CODE[role],
            State.STARTING,
            0,
            generation,
            now,
            now,
            0,
            bytes(16),
            index,
            master_generation,
            0,
        )

    def clear(self, slot: int) -> None:
        """Frees the slot of a dead worker; its counters go to its role's sum. The master alone."""
        row = self.row(slot)
        at = self.row_at(slot)
        if row is not None:
            totals = _ROLES_AT + (ROLE_CODE[row.role] - 1) * ROW + COUNTERS_AT
            own = struct.unpack_from(f"<{len(COUNTERS)}q", self.map, at + COUNTERS_AT)
            sums = struct.unpack_from(f"<{len(COUNTERS)}q", self.map, totals)
            struct.pack_into(
                f"<{len(COUNTERS)}q",
                self.map,
                totals,
                *(
                    old if name.endswith("_now") else old + new
                    for name, old, new in zip(COUNTERS, sums, own, strict=True)
                ),
            )
        self.map[at : at + ROW] = bytes(ROW)
        self.map[_PARKED_AT + slot] = 0

    def worked(self, slot: int) -> int:
        """How much the worker in the slot has done: the sum of its counters, wake-ups left out."""
        own = struct.unpack_from(f"<{len(COUNTERS)}q", self.map, self.row_at(slot) + COUNTERS_AT)
        return int(sum(own)) - int(own[COUNTER_INDEX["wakeups_total"]])

    # --- roles

    def restarts(self, role: str) -> int:
        """Workers of the role replaced after a death."""
        return int(struct.unpack_from("<Q", self.map, _ROLES_AT + (ROLE_CODE[role] - 1) * ROW)[0])

    def add_restart(self, role: str) -> None:
        """Counts a death. The master alone."""
        struct.pack_into("<Q", self.map, _ROLES_AT + (ROLE_CODE[role] - 1) * ROW, self.restarts(role) + 1)

    def set_workers(self, role: str, workers: int) -> None:
        """Notes how many workers the role should have; 0 for a role that is off. The master alone."""
        struct.pack_into("<Q", self.map, _ROLES_AT + (ROLE_CODE[role] - 1) * ROW + 8, workers)

    def workers(self, role: str) -> int:
        """How many workers the role should have."""
        return int(struct.unpack_from("<Q", self.map, _ROLES_AT + (ROLE_CODE[role] - 1) * ROW + 8)[0])

    def counters(self, role: str) -> dict[str, int]:
        """Sums of the role's counters over workers living and gone."""
        code = ROLE_CODE[role]
        form = f"<{len(COUNTERS)}q"
        sums = list(struct.unpack_from(form, self.map, _ROLES_AT + (code - 1) * ROW + COUNTERS_AT))
        for slot in range(MAX_SLOTS):
            at = self.row_at(slot)
            if self.map[at + 4] == code:
                for number, value in enumerate(struct.unpack_from(form, self.map, at + COUNTERS_AT)):
                    sums[number] += value
        return dict(zip(COUNTERS, sums, strict=True))

    def total(self, role: str, name: str) -> int:
        """The sum of one counter over the role's living workers: for limits that span workers."""
        code, at_counter = ROLE_CODE[role], COUNTERS_AT + 8 * COUNTER_INDEX[name]
        return sum(
            struct.unpack_from("<q", self.map, at + at_counter)[0]
            for at in range(_SLOTS_AT, SIZE, ROW)
            if self.map[at + 4] == code
        )

    # --- parking

    def set_parked(self, slot: int, code: int) -> None:
        """Marks the slot parked (its role's code) or not (0)."""
        self.map[_PARKED_AT + slot] = code

    def take_parked(self, code: int) -> int:
        """The slot of one parked worker of the role, no longer parked, or -1."""
        at = self.map.find(bytes((code,)), _PARKED_AT, _PARKED_AT + MAX_SLOTS)
        if at < 0:
            return -1
        self.map[at] = 0
        return at - _PARKED_AT


def blame_path(home: Path) -> Path:
    """Where the master notes each message that was in work when its worker died."""
    return home / "run" / "blame"


def blamed(home: Path) -> dict[bytes, int]:
    """Message id -> workers that died with it in work, as far as the master noted them."""
    deaths: dict[bytes, int] = {}
    try:
        data = blame_path(home).read_bytes()
    except FileNotFoundError:
        return deaths
    for line in data.splitlines():
        try:
            message = bytes.fromhex(line[:32].decode("ascii"))
        except ValueError:
            continue
        if len(message) == 16:
            deaths[message] = deaths.get(message, 0) + 1
    return deaths


def counters_view(board: Board, slot: int) -> Any:
    """The slot's counters as a writable view of i64."""
    at = Board.row_at(slot) + COUNTERS_AT
    return memoryview(board.map)[at : at + 8 * MAX_COUNTERS].cast("q")
