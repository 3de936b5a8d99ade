"""SEARCH in a mailbox of 10,000 messages of 4 KB, before and after its full-text index is made, and NOOP of others meanwhile.

`python perf/search.py [MESSAGES]`; milliseconds on standard output. Starts a server of its own on loopback.
"""

from __future__ import annotations

import imaplib
import sys
import threading
import time

from iems.perf.filled import filled
from iems.perf.home import PASSWORD, PrivateHome

KEYS = ("SUBJECT zzqqxx", "HEADER Subject zzqqxx", "TEXT zzqqxx", "BODY zzqqxx", 'TEXT "meeting budget"', "TEXT schedule")


def login(home: PrivateHome, user: bytes) -> imaplib.IMAP4:
    client = imaplib.IMAP4("127.0.0.1", home.port("imap"))
    client.login(user.decode(), PASSWORD)
    client.select("INBOX")
    return client


def measured_ms(client: imaplib.IMAP4, key: str, times: int = 9) -> float:
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        client.search(None, key)
        spent.append((time.perf_counter() - started) * 1e3)
    return sorted(spent)[times // 2]


class Others(threading.Thread):
    """Sends NOOP on a connection of another user until stopped."""

    def __init__(self, client: imaplib.IMAP4) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.ended = threading.Event()
        self.spent_ms: list[float] = []

    def run(self) -> None:
        while not self.ended.wait(0.01):
            started = time.perf_counter()
            self.client.noop()
            self.spent_ms.append((time.perf_counter() - started) * 1e3)


def main(messages: int) -> None:
    with filled(2, 4096, messages, None) as home:
        first, second = home.users()
        client = login(home, first)
        others = [Others(login(home, second)) for _ in range(4)]  # some of them on the same worker
        for other in others:
            other.start()
        started = time.perf_counter()
        client.search(None, "TEXT zzqqxx")
        print(f"TEXT zzqqxx without an index: {(time.perf_counter() - started) * 1e3:.0f}")
        log = home.path / "log" / "mail.log"
        while '"search-index"' not in log.read_text():
            time.sleep(0.05)
        print(f"index made after: {(time.perf_counter() - started) * 1e3:.0f}")
        for other in others:
            other.ended.set()
            other.join()
        spent = sorted(ms for other in others for ms in other.spent_ms)
        print(f"NOOP of others meanwhile: p50 {spent[len(spent) // 2]:.2f}, p99 {spent[len(spent) * 99 // 100]:.1f}, most {spent[-1]:.1f}")
        for key in KEYS:
            print(f"{key} with it: {measured_ms(client, key):.2f}")
        print(f"octets of the index: {sum(path.stat().st_size for path in (home.path / 'store' / 'search').iterdir()):,}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
