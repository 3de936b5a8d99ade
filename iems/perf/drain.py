"""One repetition of local delivery: fill the queue while LOCAL is held, release it, wait until it is empty."""

from __future__ import annotations

import os
import signal
import time

from iems._native import loadgen
from iems.model import Channel
from iems.perf import measure, messages, queue
from iems.perf.home import PrivateHome
from iems.perf.measure import Reading
from iems.spool import admin


def drain(home: PrivateHome, octets: int, count: int) -> Reading:
    """Rate and CPU of delivering `count` messages of `octets`, from the release on. Raises RuntimeError if the load can't be made."""
    home.ctl("queue", "hold", "--channel", "LOCAL")
    loadgen.smtp(
        home.port("smtp"), messages.pool(octets), home.users(), b"sender@load.test", sessions=20, count=count, first_id=time.time_ns()
    )
    queue.until_drained(home.path, look=queue.unrouted)
    meter = measure.Meter([home])
    meter.mark("start")
    begun = time.monotonic()
    # As `iemsctl queue release` does it, but without its start: by its end much of the queue would be gone.
    admin.hold_channel(home.path, Channel.LOCAL, False)
    os.kill(home.pid, signal.SIGUSR1)
    queue.drained(home)
    seconds = time.monotonic() - begun
    meter.mark("end")
    return measure.rates(count, count * octets, seconds) | meter.spent(count)
