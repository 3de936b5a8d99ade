"""Puts messages into an account's mailboxes, in batches, from outside of the server.

The octets go to one file in spool/large, like a large message's; the store puts its own name on that file with the first row that names it. Each
message has an origin made of what it is and where it goes, and the store takes an origin once: a run that was cut short is simply repeated.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from iems.blobs import large_name
from iems.directory.entries import Account
from iems.durable import sync_folder
from iems.message import summarize
from iems.model import Extent
from iems.spool.segments import create_large
from iems.store.wire import Deliver, Delivered, Delivery
from iems.transfer.sources import Mail

#: A batch: messages and octets of one request.
BATCH = 100
BATCH_OCTETS = 16 << 20
_decode = msgspec.msgpack.Decoder(list[Delivered]).decode


class Bringer:
    """account: of the directory. domain_octets: what its domain may have in its partition (`quota.room_of`). spool: HOME/spool. ask: sends a
    store request, gives its packed answer."""

    def __init__(self, account: Account, domain_octets: int | None, spool: Path, ask: Callable[[Any], bytes]) -> None:
        self._account = account.number
        self._partition = account.partition
        self._quota = account.quota_octets
        self._domain = account.domain
        self._domain_octets = domain_octets
        self._folder = spool / "large"
        self._ask = ask
        self._batch: list[tuple[Mail, str]] = []
        self._octets = 0
        self._seen: dict[bytes, int] = {}
        self.brought = self.known = 0
        self.refused: list[tuple[str, str]] = []

    def add(self, mail: Mail, mailbox: str) -> None:
        """Put a message into a mailbox, with the next batch. Raises StoreError, OSError."""
        self._batch.append((mail, mailbox))
        self._octets += len(mail.content)
        if len(self._batch) == BATCH or self._octets > BATCH_OCTETS:
            self.flush()

    def _origin(self, mail: Mail, mailbox: str) -> bytes:
        digest = hashlib.blake2b(mailbox.encode() + b"\0" + hashlib.blake2b(mail.content).digest(), digest_size=10).digest()
        # The same message twice in one mailbox is there twice.
        turn = self._seen[digest] = self._seen.get(digest, -1) + 1
        if turn:
            digest = hashlib.blake2b(digest + turn.to_bytes(4, "big"), digest_size=10).digest()
        # Of no moment: what the store forgets by age begins with a time, and this must not look old.
        return b"\xff" * 6 + digest

    def flush(self) -> None:
        """Bring what waits."""
        batch, self._batch, self._octets = self._batch, [], 0
        if not batch:
            return
        blob, fd = create_large(self._folder)
        path = self._folder / large_name(blob)
        try:
            deliveries = []
            at = 0
            for mail, mailbox in batch:
                view = memoryview(mail.content)
                while view:
                    view = view[os.write(fd, view) :]
                envelope, structure = summarize(mail.content)
                deliveries.append(
                    Delivery(
                        self._account,
                        self._origin(mail, mailbox),
                        [Extent(blob, at, len(mail.content))],
                        len(mail.content),
                        int(mail.date_s or 0) or int(os.fstat(fd).st_mtime),
                        envelope,
                        structure,
                        mailbox,
                        self._partition,
                        mail.flags,
                        quota_octets=self._quota,
                        domain=self._domain,
                        domain_octets=self._domain_octets,
                        create=True,
                    )
                )
                at += len(mail.content)
            os.fsync(fd)
            sync_folder(self._folder)
            answers = _decode(self._ask(Deliver(deliveries)))
        finally:
            # The store has a name of its own on what it took.
            path.unlink(missing_ok=True)
            os.close(fd)
        for (mail, mailbox), answer in zip(batch, answers, strict=True):
            if answer.status == "ok":
                self.brought += 1
            elif answer.status == "duplicate":
                self.known += 1
            else:
                self.refused.append((f"{mail.place} ({mailbox})", answer.text or answer.status))
