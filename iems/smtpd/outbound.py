"""What each user who logged in has sent out lately, limits of that, and the signs of an account in strange hands.

Counts are rows of an LMDB environment that is never synced, HOME/spool/senders/counts: all workers share it, it survives restarts of the
server, and after a restart of the machine it begins anew. Who is on hold is a fact of its own: HOME/spool/senders/held, written durably
by whoever finds a sign, in a thread, and by `iemsctl sender clear`. A sender's row says it as well, so no message slips through meanwhile.

| key | value |
| --- | --- |
| address of the user | `Row`, MessagePack |
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import msgspec
from msgspec import Struct, field

from iems.durable import write_durably

if TYPE_CHECKING:
    from iems.config import Smtpd

#: Seconds in which distinct recipients, and networks, are counted for the signs.
BURST_S = 600
NETWORKS_S = 3600
#: Networks remembered of one sender.
MAX_NETWORKS = 64
#: A row that nothing was added to for so long is forgotten.
STALE_S = 172_800
#: Octets of an LMDB key.
KEY_OCTETS = 511
MAP_OCTETS = 1 << 30
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Row(Struct, array_like=True):
    """One sender. Times are seconds of the wall clock, hours their 3,600th part.

    hours: (hour, recipients elsewhere). recent: hash of a recipient -> time. networks: of clients -> time last seen. held: why its mail
    is put on hold, "" if it is not. since: of that. warned: hour for which the alarm about a limit was given.
    """

    hours: list[tuple[int, int]] = field(default_factory=list)
    recent: dict[int, int] = field(default_factory=dict)
    networks: dict[str, int] = field(default_factory=dict)
    held: str = ""
    since: int = 0
    warned: int = 0
    seen: int = 0

    def forget(self, now: int) -> None:
        """Drop what is too old to count, or lies ahead (the clock was put back)."""
        hour = now // 3600
        self.hours = [(at, n) for at, n in self.hours if hour - 24 <= at <= hour]
        self.recent = {one: at for one, at in self.recent.items() if now - BURST_S < at <= now}
        self.networks = {one: at for one, at in self.networks.items() if now - NETWORKS_S < at <= now}

    def used(self, now: int) -> tuple[int, int]:
        """Recipients in the last hour and in the last day."""
        hour = now // 3600
        part = 1 - now % 3600 / 3600
        in_hour = in_day = 0.0
        for at, number in self.hours:
            if at == hour:
                in_hour += number
                in_day += number
            elif at <= hour:
                in_day += number * (part if at == hour - 24 else 1)
                in_hour += number * part if at == hour - 1 else 0
        return int(in_hour), int(in_day)


class Sent(Struct, frozen=True):
    """What is to become of a message. held: why it is put on hold, or "". news: that was found out just now.

    over: it is one too many and not counted: other sessions of the sender have used the room up meanwhile.
    """

    held: str = ""
    news: bool = False
    over: bool = False


class Known(Struct):
    """What `iemsctl sender list` shows of one."""

    sender: str
    hour: int
    day: int
    networks: int
    held: str
    since: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Row).decode


class Held:
    """The file that says whose mail is put on hold. path: in a folder that is there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] = (-1, -1)
        self._held: dict[str, tuple[str, int]] = {}

    def read(self) -> dict[str, tuple[str, int]]:
        """Sender -> (why, since); read again if the file was changed. Raises OSError, ValueError."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            self._held = {}
            self._seen = (-1, -1)
            return self._held
        seen = (status.st_ino, status.st_mtime_ns)
        if seen != self._seen:
            found: Any = msgspec.json.decode(self._path.read_bytes(), type=dict[str, tuple[str, int]])
            self._held = found
            self._seen = seen
        return self._held

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fd = os.open(self._path.with_name("held.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def change(self, sender: str, why: str, now: int) -> None:
        """Put a sender on the list, or (why "") take it off; on the disk when this returns. Blocks. Raises OSError, ValueError."""
        with self._alone():
            found = dict(self.__class__(self._path).read())
            if why:
                found.setdefault(sender, (why, now))
            else:
                found.pop(sender, None)
            write_durably(self._path, msgspec.json.encode(found))


class Outbound:
    """The counts, opened after the fork. folder: HOME/spool/senders, made if missing.

    hour, day: recipients elsewhere a sender may have, 0 for any number. recipients: distinct ones within `BURST_S`, networks: of clients
    within `NETWORKS_S`, that are a sign; 0 for none. clock: wall clock, seconds. Raises OSError, lmdb.Error.
    """

    def __init__(
        self,
        folder: Path,
        *,
        hour: int = 0,
        day: int = 0,
        recipients: int = 0,
        networks: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.hour = hour
        self.day = day
        self.recipients = recipients
        self.networks = networks
        self._clock = clock
        folder.mkdir(mode=0o700, exist_ok=True)
        self.held = Held(folder / "held")
        self._env = _open(folder)

    @classmethod
    def of(cls, smtpd: Smtpd, spool: Path) -> Outbound:
        """As the settings say. spool: its folder."""
        return cls(
            spool / "senders",
            hour=smtpd.sender_hour,
            day=smtpd.sender_day,
            recipients=smtpd.takeover_recipients,
            networks=smtpd.takeover_networks,
        )

    def close(self) -> None:
        """Nothing may use it any more."""
        self._env.close()

    def room(self, sender: str) -> tuple[int, bool]:
        """How many recipients elsewhere a sender may still have, -1 for any number; and whether it is the first time this hour there are none.

        Raises lmdb.Error.
        """
        if not (self.hour or self.day):
            return -1, False
        now = int(self._clock())
        with self._env.begin() as txn:
            row = _read(txn, sender)
        row.forget(now)
        in_hour, in_day = row.used(now)
        left = min(
            self.hour - in_hour if self.hour else 1 << 30, self.day - in_day if self.day else 1 << 30
        )
        if left > 0:
            return left, False
        hour = now // 3600
        if row.warned == hour:
            return 0, False
        with self._env.begin(write=True) as txn:
            row = _read(txn, sender)
            first = row.warned != hour
            row.warned = hour
            txn.put(_key(sender), _encode(row))
        return 0, first

    def sent(self, sender: str, network: str, recipients: list[bytes]) -> Sent:
        """Count a message that is about to be accepted. network: of the client. recipients: those elsewhere. Raises lmdb.Error."""
        now = int(self._clock())
        try:
            listed = self.held.read().get(sender)
        except (OSError, ValueError):
            listed = None  # the row says it as well
        with self._env.begin(write=True) as txn:
            row = _read(txn, sender)
            row.forget(now)
            row.seen = now
            hour = now // 3600
            if recipients:
                in_hour, in_day = row.used(now)
                if 0 < self.hour < in_hour + len(recipients) or 0 < self.day < in_day + len(recipients):
                    return Sent(over=True)
                if row.hours and row.hours[-1][0] == hour:
                    row.hours[-1] = (hour, row.hours[-1][1] + len(recipients))
                else:
                    row.hours.append((hour, len(recipients)))
            if self.recipients:
                for address in recipients:
                    if len(row.recent) > self.recipients:
                        break
                    row.recent[_hash(address)] = now
            if network and (network in row.networks or len(row.networks) < MAX_NETWORKS):
                row.networks[network] = now
            before = listed[0] if listed else row.held
            row.held = before or self._sign(row)
            row.since = (listed[1] if listed else row.since) or (now if row.held else 0)
            txn.put(_key(sender), _encode(row))
        return Sent(row.held, bool(row.held and not before))

    def _sign(self, row: Row) -> str:
        if self.recipients and len(row.recent) > self.recipients:
            return f"more than {self.recipients} recipients in {BURST_S // 60} minutes"
        if self.networks and len(row.networks) > self.networks:
            return f"clients in more than {self.networks} networks in an hour"
        return ""

    def known(self) -> list[Known]:
        """Every sender with anything to tell, those on hold first. Raises lmdb.Error, OSError, ValueError."""
        now = int(self._clock())
        listed = self.held.read()
        found = {sender: Known(sender, 0, 0, 0, why, since) for sender, (why, since) in listed.items()}
        with self._env.begin() as txn:
            rows = [(bytes(key).decode("utf-8", "replace"), _row(value)) for key, value in txn.cursor()]
        for sender, row in rows:
            row.forget(now)
            in_hour, in_day = row.used(now)
            if in_day or row.held or row.networks or sender in found:
                why, since = listed.get(sender, (row.held, row.since))
                found[sender] = Known(sender, in_hour, in_day, len(row.networks), why, since)
        return sorted(found.values(), key=lambda one: (not one.held, one.sender))

    def clear(self, sender: str) -> bool:
        """Forget all of a sender: it is on hold no more and starts from nothing. Whether there was anything. Blocks."""
        was = sender in self.held.read()
        if was:
            self.held.change(sender, "", 0)
        with self._env.begin(write=True) as txn:
            return bool(txn.delete(_key(sender))) or was

    def prune(self) -> None:
        """Forget senders that have been silent for two days."""
        now = int(self._clock())
        with self._env.begin(write=True) as txn, txn.cursor() as cursor:
            more = cursor.first()
            while more:
                row = _row(cursor.value())
                if not row.held and now - row.seen > STALE_S:
                    more = cursor.delete() and bool(cursor.key())
                else:
                    more = cursor.next()


def hold_reason(sender: str, why: str) -> str:
    """The reason that the queue shows for mail of a sender on hold."""
    return f"sender {sender} is on hold: {why}"


def _key(sender: str) -> bytes:
    return sender.encode("utf-8", "surrogateescape")[:KEY_OCTETS]


def _hash(address: bytes) -> int:
    return int.from_bytes(blake2b(address.lower(), digest_size=8).digest(), "big")


def _row(value: bytes | None) -> Row:
    try:
        return _decode(value) if value else Row()
    except msgspec.DecodeError:
        return Row()


def _read(txn: Any, sender: str) -> Row:
    return _row(txn.get(_key(sender)))


def _open(folder: Path) -> Any:
    """The environment; an older one of an earlier start of the machine, or one that is damaged, is thrown away."""
    path = folder / "counts"
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        boot = _BOOT.read_bytes()
        mark = path / "boot"
        try:
            fits = mark.read_bytes() == boot
        except OSError:
            fits = False
        if fits:
            try:
                return _environment(path)
            except lmdb.Error:
                pass
        # Never synced: what a power cut left in it can't be trusted.
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        env = _environment(path)
        mark.write_bytes(boot)
        return env
    finally:
        os.close(fd)


def _environment(path: Path) -> Any:
    return lmdb.open(
        str(path), map_size=MAP_OCTETS, sync=False, metasync=False, max_readers=4096, mode=0o600, create=True
    )
