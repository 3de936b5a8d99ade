"""How long an account takes to another partition, and how long its writes wait: `python perf/move.py [MESSAGES ...]`.

Both partitions are opened by this process, with every commit synced; nobody else writes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from iems.model import Extent
from iems.store import wire
from iems.store.move import Mover, Side
from iems.store.wire import Delivery

BLOB = 0x0192_0000_0000_0001
OCTETS = 4_000
BATCH = 256


def measure(messages: int) -> str:
    """A line about an account with so many messages in one mailbox."""
    with tempfile.TemporaryDirectory(prefix="iems-perf-") as folder:
        home = Path(folder)
        for name in ("spool/segments", "spool/large", "run", "store"):
            (home / name).mkdir(parents=True)
        (home / "spool/segments" / f"{BLOB:016x}.seg").write_bytes(bytes(OCTETS * 100))
        source, target = (Side(home, home / "store", home / "spool", number) for number in (0, 1))
        for first in range(0, messages, BATCH):
            numbers = range(first, min(first + BATCH, messages))
            rows = [Delivery(1, n.to_bytes(16, "big"), [Extent(BLOB, n % 100 * OCTETS, OCTETS)], OCTETS, n, b"(NIL)", b"(NIL)") for n in numbers]
            source.ask(1, wire.Deliver(rows))
            source.ask(1, wire.Forget([(row.origin, 1) for row in rows]))
        at: dict[str, float] = {}
        begun = time.perf_counter()
        Mover(1, source, target, lambda: None, lambda name: at.setdefault(name, time.perf_counter()) and None).run()
        ended = time.perf_counter()
        source.close()
        target.close()
    return f"{messages:8} messages  {ended - begun:7.2f} s in all  {at['hold'] - begun:7.2f} s before the hold  held {1000 * (at['flip'] - at['hold']):6.1f} ms"


if __name__ == "__main__":
    for text in sys.argv[1:] or ["1000", "10000", "100000"]:
        print(measure(int(text)), flush=True)
