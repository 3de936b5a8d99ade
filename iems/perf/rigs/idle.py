"""From a 250 to the EXISTS that an idle IMAP client gets, on an otherwise quiet server."""

from __future__ import annotations

import contextlib
import smtplib
import socket
import time
from collections.abc import Callable, Iterator

from iems.perf import measure
from iems.perf.home import PASSWORD
from iems.perf.measure import Case, Options, Reading
from iems.perf.rigs.end_to_end import server

NAME = "idle"
TITLE = "Delivery to IDLE notice"
PEERS = {"postfix+dovecot": ("postfix", "dovecot")}
COUNT = 200


def cases(options: Options) -> list[Case]:
    """One client."""
    return [Case("quiet", {"notices": options.count(COUNT, 20), "peer_notices": options.count(30, 5)})]


@contextlib.contextmanager
def side(options: Options, case: Case, who: str) -> Iterator[Callable[[], Reading]]:
    """Latencies of mail sent one after the other."""
    count = case["notices" if who == "iems" else "peer_notices"]
    with server(options, who, 1) as home:
        user = home.users()[0].decode()

        def once() -> Reading:
            with socket.create_connection(("127.0.0.1", home.port("imap"))) as client, client.makefile("rb") as lines:
                client.settimeout(60)
                lines.readline()
                present = 0
                for command in (f"a LOGIN {user} {PASSWORD}", "a SELECT INBOX"):
                    client.sendall(command.encode() + b"\r\n")
                    while not (line := lines.readline()).startswith(b"a "):
                        if line.endswith(b" EXISTS\r\n"):
                            present = int(line.split()[1])
                client.sendall(b"a IDLE\r\n")
                lines.readline()
                smtp = smtplib.SMTP("127.0.0.1", home.port("smtp"))
                seen = []
                for number in range(present + 1, present + 1 + count):
                    smtp.sendmail("probe@load.test", [user], b"Subject: probe\r\n\r\nprobe\r\n")
                    accepted = time.perf_counter()
                    while (line := lines.readline()) and not line.startswith(b"* %d EXISTS" % number):
                        pass
                    if not line:
                        raise RuntimeError("the server ended an idle session")
                    seen.append(time.perf_counter() - accepted)
                    time.sleep(0.01)
                smtp.close()
            return measure.latencies(seen)

        yield once
