"""Checks and repairs a partition in a process of its own: `python -m iems.store.fsck STORE NUMBER [--repair] [--lost] [--content]`.

LMDB has no checksum on its pages, so a bad one may end a reader; then only that process ends. It prints a `Finding` a line (JSON), then
the numbers of the accounts it saw. A repair holds the lock of the partition's owner, writes all or nothing, and looks again afterwards.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import msgspec

from iems import reserve
from iems.errors import IemsError
from iems.store.findings import Damaged, Finding, still_there
from iems.store.partition import MAP_OCTETS, MAX_READERS
from iems.store.soundness import Check

#: The process that repairs found the partition in use.
IN_USE = 3
_decode_finding = msgspec.json.Decoder(Finding).decode
_decode_accounts = msgspec.json.Decoder(list[int]).decode


class InUse(IemsError):
    """The store runs: a repair needs a partition for itself."""


def partitions(store: Path) -> list[int]:
    """The numbers of the partitions that have rows."""
    found = (path.parents[1].name[1:] for path in store.glob("p*/index/data.mdb"))
    return sorted(int(name) for name in found if name.isdigit())


def run(store: Path, number: int, options: list[str]) -> Iterator[Finding | list[int]]:
    """What is wrong with partition `number`, at last the numbers of its accounts. Raises InUse.

    options: of `--repair`, `--lost`, `--content`. `mended` tells of a finding whether a repair can put it right, after one whether it did.
    """
    command = [sys.executable, "-m", "iems.store.fsck", str(store), str(number), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield _decode_finding(line) if line.startswith(b"{") else _decode_accounts(line)
    if process.returncode == IN_USE:
        raise InUse(f"partition {number} is in use: stop the server first, a repair needs it for itself")
    if process.returncode:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"code {process.returncode}"
        yield Finding(what=f"the rows can't be read to their end (the reader ended with {how}); restore them from a backup", where=f"p{number}")


def _open(index: Path, write: bool) -> lmdb.Environment:
    reserve.lock_file(index)
    return lmdb.open(
        str(index), readonly=not write, create=False, map_size=MAP_OCTETS, max_readers=MAX_READERS, readahead=False
    )


def look(folder: Path, number: int, *, lost: bool = False, content: bool = False, now_s: float | None = None) -> Check:
    """Check a partition, whoever writes it meanwhile. Raises Damaged, lmdb.Error."""
    env = _open(folder / "index", False)
    try:
        with env.begin() as txn:
            check = Check(txn, folder, number, int(time.time() if now_s is None else now_s), lost=lost, content=content)
            check.run()
        with env.begin() as txn:
            check.findings = [finding for finding in check.findings if still_there(txn, finding)]
    finally:
        env.close()
    return check


def repair(folder: Path, number: int, *, lost: bool = False, content: bool = False, now_s: float | None = None) -> Check:
    """Mend what can be mended; what was found, and what a second look still finds. Raises InUse, Damaged, lmdb.Error, OSError."""
    fd = os.open(folder / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{folder} is in use") from None
        now = int(time.time() if now_s is None else now_s)
        env = _open(folder / "index", True)
        try:
            with env.begin(write=True) as txn:
                check = Check(txn, folder, number, now, lost=lost, content=content)
                check.run()
                _keep(folder / "aside", check, now)
                for key, value in check.puts.items():
                    if value is None:
                        txn.delete(key)
                    else:
                        txn.put(key, value)
        finally:
            env.close()
        again = look(folder, number, content=content, now_s=now)
    finally:
        os.close(fd)
    left = {(finding.account, finding.mailbox, finding.uid, finding.what) for finding in again.findings}
    for finding in check.findings:
        finding.mended = (finding.account, finding.mailbox, finding.uid, finding.what) not in left
    known = {(finding.account, finding.mailbox, finding.uid, finding.what) for finding in check.findings}
    for finding in again.findings:
        finding.mended = False
    check.findings += [f for f in again.findings if (f.account, f.mailbox, f.uid, f.what) not in known]
    check.accounts = again.accounts
    return check


def _keep(folder: Path, check: Check, now: int) -> None:
    """Put the rows that leave their mailboxes into files, durably, before they go."""
    if not check.aside:
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    for aside in check.aside:
        path = folder / f"{aside.account}-{aside.mailbox}-{aside.uid}-{now}.row"
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(msgspec.msgpack.encode(aside))
            file.flush()
            os.fsync(file.fileno())
    for place in (folder, folder.parent):
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def main(arguments: list[str]) -> int:
    """The process; see the module."""
    folder, number = Path(arguments[0]) / f"p{arguments[1]}", int(arguments[1])
    lost, content = "--lost" in arguments, "--content" in arguments
    try:
        check = (repair if "--repair" in arguments else look)(folder, number, lost=lost, content=content)
    except InUse:
        return IN_USE
    except (Damaged, lmdb.Error) as error:
        say(Finding(what=f"the rows can't be read: {error}; restore them from a backup", where=f"p{number}"))
        return 0
    for finding in check.findings:
        finding.row = None
        say(finding)
    if check.more:
        say(Finding(what=f"{check.more} more findings", where=f"p{number}"))
    say(check.accounts)
    return 0


def say(value: object) -> None:
    """One line of JSON."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
