"""What a flush of one message costs: `python perf/flush.py FOLDER [MESSAGES]` from the top of the tree.

One 4,400-octet write and its flush, again and again, where the file's blocks are in another state each time; median and 90th percentile of write and flush
together. FOLDER must be on the disk in question. The ways take turns, a hundred writes each, so that other work meets all alike.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median, quantiles

OCTETS = 4_400
TURN = 100
AHEAD = 256 << 10


class File:
    """A file that grows by messages. prepare: called with (descriptor, offset, octets) before a write that would leave what is prepared."""

    def __init__(self, folder: str, prepare: Callable[[int, int, int], None] | None, ahead: int, flush: Callable[[int], None]) -> None:
        self.fd = os.open(os.path.join(folder, f"{time.monotonic_ns()}"), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self.prepare, self.ahead, self.flush = prepare, ahead, flush
        self.at = self.prepared = 0
        self.took: list[float] = []
        self.data = os.urandom(OCTETS)

    def message(self) -> None:
        """Write one, and flush."""
        begun = time.perf_counter()
        os.pwrite(self.fd, self.data, self.at)
        self.at += OCTETS
        if self.prepare is not None and self.at > self.prepared:
            self.prepare(self.fd, self.at, self.ahead)
            self.prepared = self.at + self.ahead
        self.flush(self.fd)
        self.took.append(time.perf_counter() - begun)


def zeros(fd: int, offset: int, octets: int) -> None:
    """Write zeros, to be flushed with what came before them."""
    os.pwrite(fd, bytes(octets), offset)


def main(folder: str, messages: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        ways = {
            "append, fdatasync": File(place, None, 0, os.fdatasync),
            "fallocate 4 MiB ahead": File(place, lambda fd, at, n: os.posix_fallocate(fd, at, n), 4 << 20, os.fdatasync),
            "zeros 64 KiB ahead": File(place, zeros, 64 << 10, os.fdatasync),
            "zeros 256 KiB ahead": File(place, zeros, AHEAD, os.fdatasync),
            "zeros 1 MiB ahead": File(place, zeros, 1 << 20, os.fdatasync),
            "zeros 4 MiB ahead": File(place, zeros, 4 << 20, os.fdatasync),
        }
        turn = min(TURN, messages)
        for _ in range(messages // turn):
            for file in ways.values():
                for _ in range(turn):
                    file.message()
        for name, file in ways.items():
            took = sorted(file.took)
            print(
                f"{name:24s} median {median(took) * 1e6:4.0f} us  mean {sum(took) / len(took) * 1e6:4.0f} us  "
                f"p90 {quantiles(took, n=10)[-1] * 1e6:4.0f} us  p99 {quantiles(took, n=100)[-1] * 1e6:5.0f} us"
            )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
