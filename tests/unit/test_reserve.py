"""Readers of an environment on a full disk: without its room the lock file ends the process by SIGBUS (shown here too)."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path

import lmdb
import pytest

from iems import reserve
from tests.integration.faults.rig import Disk

READERS = 300


def read_on_a_full_disk(disk: Disk, folder: Path, reserved: bool) -> int:
    """The wait status of a process that opens the environment, then many read transactions at once."""
    pid = os.fork()
    if pid == 0:
        code = 1
        faulthandler.disable()  # the death is expected, and its trace would alarm who reads the run
        try:
            if reserved:
                reserve.lock_file(folder)
            environment = lmdb.open(str(folder), max_readers=4096, map_size=1 << 20)
            disk.fill()
            transactions = [environment.begin() for _ in range(READERS)]
            code = 0 if len(transactions) == READERS else 1
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("reserved", [True, False], ids=["reserved", "unsafe"])
def test_many_readers_on_a_full_disk(tmp_path: Path, reserved: bool) -> None:
    disk = Disk(tmp_path / "small", "1m")
    try:
        folder = disk.path / "environment"
        folder.mkdir()
        with lmdb.open(str(folder), max_readers=4096, map_size=1 << 20) as environment, environment.begin(write=True) as txn:
            txn.put(b"key", b"value")
        status = read_on_a_full_disk(disk, folder, reserved)
        if reserved:
            assert status == 0
        else:
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS
    finally:
        disk.close()


def test_a_write_cut_short_is_a_full_disk(tmp_path: Path) -> None:
    """LMDB says EIO where the disk is full; elsewhere an EIO is one."""
    disk = Disk(tmp_path / "small", "1m")
    try:
        with lmdb.open(str(disk.path / "environment"), map_size=1 << 24, sync=False) as environment:
            disk.fill(leave=3 * 4096)
            with pytest.raises(lmdb.Error) as caught, environment.begin(write=True) as txn:
                for number in range(100):
                    txn.put(b"%d" % number, b"x" * 1000)
            assert "Input/output error" in str(caught.value)
            assert reserve.cut_short(caught.value, disk.path)
            disk.empty()
            assert not reserve.cut_short(caught.value, tmp_path)
            with environment.begin(write=True) as txn:
                txn.put(b"key", b"value")
    finally:
        disk.close()
