"""Keeps mail that is not delivered for a person to look at: a maildir, or one file in mbox format. What `keep` returns from is on the disk."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from iems.durable import sync_folder, write_durably
from iems.message.date import format_date

_FROM = re.compile(rb"^(>*From )", re.M)
#: How long to wait for who has locked an mbox; then the message is tried again later.
LOCK_S = 20.0
#: What is read of a note.
_NOTE_OCTETS = 512


def maildir(folder: Path, content: bytes) -> None:
    """One message into a maildir. Raises OSError."""
    for name in ("tmp", "new", "cur"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{time.time_ns() // 1000}.{os.getpid()}_{secrets.token_hex(4)}.iems"
    fd = os.open(folder / "tmp" / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    os.rename(folder / "tmp" / name, folder / "new" / name)
    sync_folder(folder / "new")


def mbox(path: Path, content: bytes) -> None:
    """One message at the end of a file in mbox format (RFC 4155: `From ` line, LF; mboxrd's quoting). Raises OSError.

    Programs that lock it by fcntl or flock are kept out meanwhile. Where it ended is noted beside it (`NAME.end`) as long as the message is not
    wholly on the disk: what a crash has left of one is cut off by the next, as the message itself comes again.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # One file for all time: a lock on one that a rename takes away would hold nobody back.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(fd, path)
        note = path.with_name(path.name + ".end")
        _cut(fd, note)
        end = os.fstat(fd).st_size
        # asctime in UTC: `Mon Jan  2 03:04:05 2006`. The token tells what we began from what others have written since.
        day, number, month, year, clock = format_date(time.time()).replace(",", "").split()[:5]
        line = f"From iems-{secrets.token_hex(8)}@localhost {day} {month} {int(number):2d} {clock} {year}\n".encode()
        text = _FROM.sub(rb">\1", content.replace(b"\r\n", b"\n"))
        octets = b"%b%b%b\n" % (line, text, b"" if text.endswith(b"\n") else b"\n")
        if end and os.pread(fd, 2, end - 2) != b"\n\n":
            octets = b"\n\n" + octets if os.pread(fd, 1, end - 1) != b"\n" else b"\n" + octets
        write_durably(note, b"%d %b" % (end, line))
        try:
            at = end
            view = memoryview(octets)
            while view:
                written = os.pwrite(fd, view, at)
                at += written
                view = view[written:]
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, end)
            raise
        os.unlink(note)
        # Lest the note come back after a power cut and cut off what was kept.
        sync_folder(path.parent)
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    """Keep others out. Raises TimeoutError if one of them stays too long."""
    until = time.monotonic() + LOCK_S
    for lock in (fcntl.flock, fcntl.lockf):
        while True:
            try:
                lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() > until:
                    raise TimeoutError(f"another program has locked {path}") from None
                time.sleep(0.02)


def _cut(fd: int, note: Path) -> None:
    """Take away what a crash has left at the end, if it is that."""
    try:
        with open(note, "rb") as file:
            number, _, line = file.read(_NOTE_OCTETS).partition(b" ")
    except FileNotFoundError:
        return
    begun = int(number)
    there = os.pread(fd, len(line) + 2, begun).lstrip(b"\n")
    if os.fstat(fd).st_size > begun and (line.startswith(there) or there.startswith(line)):
        os.ftruncate(fd, begun)
        os.fsync(fd)


FORMATS: dict[str, Callable[[Path, bytes], None]] = {"maildir": maildir, "mbox": mbox}

__all__ = ["FORMATS", "maildir", "mbox"]
