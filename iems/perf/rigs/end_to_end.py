"""From SMTP to a mailbox: rate until the last message is delivered, and how long a message takes to be visible by IMAP under that load."""

from __future__ import annotations

import imaplib
import smtplib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from iems._native import loadgen
from iems.perf import machine, measure, messages, queue
from iems.perf.home import PASSWORD, PrivateHome

NAME = "end_to_end"
TITLE = "End to end, visible by IMAP"
CASES = ((4_096, 10, 20_000), (250_000, 10, 2_000))
#: A probe follows the one before it after this pause.
PAUSE_S = 0.05


class Probe(threading.Thread):
    """Sends small mail to one account and waits for it by IMAP, over and over; `seen_s` are the times from 250 to EXISTS."""

    def __init__(self, home: PrivateHome, user: bytes) -> None:
        super().__init__()
        self._user = user.decode()
        self._smtp = smtplib.SMTP("127.0.0.1", home.port("smtp"))
        self._imap = imaplib.IMAP4("127.0.0.1", home.port("imap"))
        self._imap.login(self._user, PASSWORD)
        self.seen_s: list[float] = []
        self.failed = ""
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        try:
            count = int(self._imap.select("INBOX")[1][0] or b"0")
            while not self._over.is_set():
                self._smtp.sendmail("probe@load.test", [self._user], b"Subject: probe\r\n\r\nprobe\r\n")
                accepted = time.perf_counter()
                while True:
                    self._imap.noop()
                    found = self._imap.response("EXISTS")[1]
                    if found and found[-1] and int(found[-1]) > count:
                        count = int(found[-1])
                        break
                    time.sleep(0.0005)
                self.seen_s.append(time.perf_counter() - accepted)
                self._over.wait(PAUSE_S)
        except Exception as error:
            self.failed = f"{type(error).__name__}: {error}"

    def stop(self) -> None:
        """End after the message in work."""
        self._over.set()
        self.join(30)
        self._smtp.close()
        self._imap.shutdown()


def measure_case(options: measure.Options, octets: int, sessions: int, count: int) -> dict[str, Any]:
    """Send, deliver, look."""
    count = max(200, int(count * options.scale))
    pool = messages.pool(octets)
    repetitions = []
    with PrivateHome(11, folder=options.folder) as home:
        for number in range(options.repeats):
            probe = Probe(home, home.users()[10])
            cpu, flushes = machine.cpu_s([home.pid]), machine.disk_flushes()
            probe.start()
            begun = time.monotonic()
            result = loadgen.smtp(
                home.port("smtp"), pool, home.users()[:10], b"sender@load.test", sessions=sessions, count=count,
                first_id=(number + 1) << 32,
            )  # fmt: skip
            queue.until_drained(home.path)
            seconds = time.monotonic() - begun
            spent = machine.cpu_s([home.pid]) - cpu
            probe.stop()
            if probe.failed or result["errors"]:
                raise RuntimeError(f"end to end: {probe.failed or result['complaint']}")
            seen = np.asarray(probe.seen_s)
            repetitions.append(
                {
                    "per_s": count / seconds,
                    "mb_per_min": count * octets / 1e6 * 60 / seconds,
                    "cpu_us": spent / (count + len(seen)) * 1e6,
                    "flushes": (machine.disk_flushes() - flushes) / count,
                    "visible_p50_ms": float(np.percentile(seen, 50)) * 1e3,
                    "visible_p99_ms": float(np.percentile(seen, 99)) * 1e3,
                }
            )
    record = {"rig": NAME, "case": f"{octets}", "octets": octets, "sessions": sessions, "messages": count}
    return record | measure.figures(repetitions)


def run(options: measure.Options) -> Iterator[dict[str, Any]]:
    """Every case."""
    for octets, sessions, count in CASES:
        yield measure_case(options, octets, sessions, count)
