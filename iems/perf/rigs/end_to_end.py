"""From SMTP to a mailbox: rate until the last message is delivered, and how long a message takes to be visible by IMAP under that load.

Beside it Postfix, which takes the mail, queues it and hands it to Dovecot by LMTP.
"""

from __future__ import annotations

import contextlib
import imaplib
import smtplib
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from iems._native import loadgen
from iems.perf import measure, messages, peers, queue
from iems.perf.home import PASSWORD, PrivateHome
from iems.perf.measure import Case, Options, Reading, Server

NAME = "end_to_end"
TITLE = "End to end, visible by IMAP"
PEERS = {"postfix+dovecot": ("postfix", "dovecot")}
CASES = ((4_096, 10, 20_000, 1_500), (250_000, 10, 2_000, 400))
#: A probe follows the one before it after this pause.
PAUSE_S = 0.05
#: Between two looks into the mailbox: as fine as the answer has to be, and no load to speak of.
LOOK_S = 0.001


class Probe(threading.Thread):
    """Sends small mail to one account and waits for it by IMAP, over and over; `seen_s` are the times from 250 to EXISTS."""

    def __init__(self, smtp: int, imap: int, user: bytes) -> None:
        super().__init__()
        self._user = user.decode()
        self._smtp = smtplib.SMTP("127.0.0.1", smtp)
        self._imap = imaplib.IMAP4("127.0.0.1", imap)
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
                    time.sleep(LOOK_S)
                self.seen_s.append(time.perf_counter() - accepted)
                self._over.wait(PAUSE_S)
        except Exception as error:
            self.failed = f"{type(error).__name__}: {error}"

    def stop(self) -> None:
        """End after the message in work."""
        self._over.set()
        self.join(60)
        self._smtp.close()
        self._imap.shutdown()


class _Both:
    """Two peers seen as one server."""

    def __init__(self, mta: Server, store: Server) -> None:
        self._mta = mta
        self._store = store

    def port(self, name: str) -> int:
        return self._mta.port(name) if name == "smtp" else self._store.port(name)

    def users(self) -> list[bytes]:
        return self._mta.users()

    def cpu_s(self) -> float:
        return self._mta.cpu_s() + self._store.cpu_s()

    def cpu_by_role(self) -> dict[str, float]:
        return self._mta.cpu_by_role() | self._store.cpu_by_role()

    def waiting(self) -> int:
        return self._mta.waiting()


def cases(options: Options) -> list[Case]:
    """Two sizes."""
    return [
        Case(
            f"{octets}",
            {"octets": octets, "sessions": sessions, "messages": options.count(count, 200), "peer_messages": options.count(few, 100)},
        )
        for octets, sessions, count, few in CASES
    ]


@contextlib.contextmanager
def server(options: Options, who: str, accounts: int) -> Iterator[Server]:
    """A server that delivers into mailboxes."""
    with contextlib.ExitStack() as stack:
        if who == "iems":
            yield stack.enter_context(PrivateHome(accounts, folder=options.folder))
            return
        from iems.perf.peers.dovecot import Dovecot
        from iems.perf.peers.postfix import Postfix

        store = stack.enter_context(Dovecot(accounts, options.folder, peers.started("dovecot", options)))
        mta = Postfix(accounts, options.folder, peers.started("postfix", options), next_hop=("lmtp", store.port("lmtp")))
        yield _Both(stack.enter_context(mta), store)


@contextlib.contextmanager
def side(options: Options, case: Case, who: str) -> Iterator[Callable[[], Reading]]:
    """Send, deliver, look."""
    count = case["messages" if who == "iems" else "peer_messages"]
    pool = messages.pool(case["octets"])
    with server(options, who, 11) as home:

        def once() -> Reading:
            probe = Probe(home.port("smtp"), home.port("imap"), home.users()[10])
            probe.start()

            def work() -> None:
                result = loadgen.smtp(
                    home.port("smtp"), pool, home.users()[:10], b"sender@load.test", sessions=case["sessions"], count=count,
                    first_id=time.time_ns(),
                )  # fmt: skip
                if result["errors"]:
                    raise RuntimeError(f"end to end: {result['complaint']}")
                queue.drained(home)

            try:
                reading = measure.counted([home], count, case["octets"], work)
            finally:
                probe.stop()
            if probe.failed or not probe.seen_s:
                raise RuntimeError(f"end to end: {probe.failed or 'no probe was seen'}")
            seen = np.asarray(probe.seen_s)
            # the probes are messages too: their share is not laid on the others
            whole = count + len(seen)
            for key in ("cpu_us", "flushes"):
                reading[key] *= count / whole
            return reading | {
                "visible_p50_ms": measure.percentile_ms(seen, 50),
                "visible_p99_ms": measure.percentile_ms(seen, 99),
                "latency_s": seen,
            }

        yield once
