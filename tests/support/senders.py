"""Clients that send numbered mail and remember which of it was acknowledged."""

from __future__ import annotations

import contextlib
import re
import smtplib
import threading
import time
from pathlib import Path

from iems.directory.directory import Directory
from iems.store.reader import Reader

_NUMBER = re.compile(rb"^X-Number: (\S+)\r\n", re.MULTILINE)


class Senders:
    """`count` threads that send small mail to `recipients` in turn until `stop`, reconnecting whenever a connection breaks.

    acknowledged: numbers whose 250 was read. attempted: all numbers ever offered; each is offered once.
    """

    def __init__(self, port: int, recipients: list[str], count: int = 6, body: bytes = b"", pause_s: float = 0.0) -> None:
        self.acknowledged: set[str] = set()
        self.attempted: set[str] = set()
        self._port = port
        self._recipients = recipients
        self._body = body
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(i,)) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def _send(self, which: int) -> None:
        client: smtplib.SMTP | None = None
        number = 0
        while not self._over.is_set():
            name = f"{which}-{number}"
            recipient = self._recipients[(which + number) % len(self._recipients)]
            text = b"From: s@load.test\r\nX-Number: %b\r\nSubject: number\r\n\r\n%b\r\n" % (name.encode(), self._body)
            try:
                if client is None:
                    client = smtplib.SMTP("127.0.0.1", self._port, timeout=60)
                number += 1
                with self._lock:
                    self.attempted.add(name)
                client.sendmail("s@load.test", [recipient], text)
                with self._lock:
                    self.acknowledged.add(name)
            except (OSError, smtplib.SMTPException):
                if client is not None:
                    with contextlib.suppress(OSError):
                        client.close()
                client = None
                time.sleep(0.02)
            if self._pause_s:
                time.sleep(self._pause_s)
        if client is not None:
            with contextlib.suppress(OSError, smtplib.SMTPException):
                client.quit()

    def stop(self) -> None:
        """End all threads after the message each has in work."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)


def delivered(home: Path, every_mailbox: bool = False) -> dict[str, int]:
    """How often each number lies in the INBOXes (or all mailboxes) of a home, read from the store without the server."""
    found: dict[str, int] = {}
    directory = Directory(home / "directory")
    reader = Reader(home / "store")
    try:
        for account in directory.list_accounts():
            for mailbox in reader.mailboxes(account.number):
                if mailbox.name != "INBOX" and not every_mailbox:
                    continue
                selected = reader.select(account.number, mailbox.id)
                for uid in selected.uids:
                    row = reader.message(account.number, mailbox.id, int(uid))
                    assert row is not None
                    match = _NUMBER.search(reader.blobs.read(row.rope))
                    if match:
                        number = match[1].decode()
                        found[number] = found.get(number, 0) + 1
    finally:
        reader.close()
        directory.close()
    return found
