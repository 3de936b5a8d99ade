"""From a 250 to the EXISTS that an idle IMAP client gets, on an otherwise quiet server."""

from __future__ import annotations

import smtplib
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from iems.perf import measure
from iems.perf.home import PASSWORD, PrivateHome

NAME = "idle"
TITLE = "Delivery to IDLE notice"
COUNT = 200


def run(options: measure.Options) -> Iterator[dict[str, Any]]:
    """Latencies of mail sent one after the other."""
    count = max(20, int(COUNT * options.scale))
    with PrivateHome(1, folder=options.folder) as home:
        user = home.users()[0].decode()
        with socket.create_connection(("127.0.0.1", home.port("imap"))) as client, client.makefile("rb") as lines:
            lines.readline()
            for command in (f"a LOGIN {user} {PASSWORD}", "a SELECT INBOX"):
                client.sendall(command.encode() + b"\r\n")
                while not lines.readline().startswith(b"a "):
                    pass
            client.sendall(b"a IDLE\r\n")
            lines.readline()
            smtp = smtplib.SMTP("127.0.0.1", home.port("smtp"))
            seen = []
            for number in range(1, count + 1):
                smtp.sendmail("probe@load.test", [user], b"Subject: probe\r\n\r\nprobe\r\n")
                accepted = time.perf_counter()
                while (line := lines.readline()) and not line.startswith(b"* %d EXISTS" % number):
                    pass
                seen.append((time.perf_counter() - accepted) * 1e3)
                time.sleep(0.01)
            smtp.close()
    latency = np.asarray(seen)
    yield {
        "rig": NAME,
        "case": "quiet",
        "notices": count,
        "p50_ms": (float(np.median(latency)), float(latency.min()), float(latency.max())),
        "p99_ms": (float(np.percentile(latency, 99)),) * 3,
    }
