"""Teaches the Bayesian filters from what their owners do with mail, whichever mail program they use.

Mail that its owner moves to Spam is spam, mail moved to Good is good, and mail that the filter had taken for spam and that is found
in INBOX again was good. What delivery itself put into Spam teaches nothing: nobody has looked at it. A file `seen` in the folder of the filter says
up to which uid of each mailbox that was done; a crash repeats a few messages, which the filter knows by then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from iems.bayes.delivered import as_it_came, filed_by_delivery, filed_by_tag, judged
from iems.bayes.prior import Prior
from iems.bayes.trainer import Outcome, Trainer
from iems.directory import Account
from iems.directory.directory import Directory
from iems.durable import write_durably
from iems.errors import DirectoryUnavailable, IemsError
from iems.store.homes import bayes_folder
from iems.store.reader import Reader
from iems.store.rows import Mailbox

#: Messages of one account in one round, and seconds between rounds.
MOST = 200
LOOK_S = 10.0
#: A longer message is not learnt.
MAX_OCTETS = 8 << 20
#: Mail without a record that came into INBOX this much later than it was received was moved there by somebody.
MOVED_S = 5
_KINDS = {"Spam": True, "Good": False}


class Training:
    """One home's. directory: gives the directory, None while there is none. store: HOME/store. prior: the site's, or None."""

    def __init__(self, ctx: Any, store: Path, prior: Path | None) -> None:
        self._ctx = ctx
        self._store = store
        self._prior_path = prior
        self._prior: Prior | None = None
        self._reader: Reader | None = None
        self._version = -1
        self._accounts: list[Account] = []
        self._look_at = 0.0
        self._modseqs: dict[int, tuple[int, ...]] = {}

    async def round(self, directory: Directory | None) -> None:
        """Look for what was moved since the last time; the work is done in a thread."""
        now = time.monotonic()
        if directory is None or now < self._look_at:
            return
        self._look_at = now + LOOK_S
        try:
            version = directory.version
            if version != self._version:
                self._accounts = [account for account in directory.list_accounts() if account.bayes is not None]
                self._version = version
        except DirectoryUnavailable:
            return
        for account in self._accounts:
            try:
                learnt = await asyncio.to_thread(self._train, account)
            except (IemsError, OSError) as fault:
                self._ctx.log.error("a Bayesian filter can't be taught", fault, None, user=account.address)
                continue
            if learnt:
                self._ctx.log.event("bayes-learnt", None, user=account.address, **learnt)

    # --- in a thread, one at a time

    def _train(self, account: Account) -> dict[str, int]:
        reader = self._reader
        if reader is None:
            reader = self._reader = Reader(self._store)
        if self._prior_path is not None and self._prior is None:
            self._prior = Prior(self._prior_path)
        boxes = {box.name: box for box in reader.mailboxes(account.number) if box.name in (*_KINDS, "INBOX")}
        state = tuple(box.uidnext for box in boxes.values())
        if self._modseqs.get(account.number) == state:
            return {}
        folder = bayes_folder(self._store, account.address)
        seen = _seen(folder)
        learnt = {"spam": 0, "good": 0}
        left = MOST
        with Trainer(folder, self._prior) as trainer:
            for name, box in boxes.items():
                key = f"{account.number}/{box.id}/{box.uidvalidity}"
                # What is in INBOX when the filter is switched on has not been moved there by anybody.
                start = seen.get(key, 0 if name in _KINDS else box.uidnext - 1)
                for uid, content in self._new(reader, account.number, box, start, left):
                    left -= 1
                    start = uid
                    spam = _lesson(name, content)
                    if spam is not None:
                        outcome = trainer.learn(as_it_came(content), spam)
                        if outcome in (Outcome.LEARNT, Outcome.MOVED, Outcome.WAITS):
                            learnt["spam" if spam else "good"] += 1
                if left > 0:
                    start = box.uidnext - 1
                seen[key] = start
        write_durably(folder / "seen", msgspec.json.encode(seen))
        if left > 0:
            self._modseqs[account.number] = state
        return {kind: count for kind, count in learnt.items() if count}

    def _new(self, reader: Reader, number: int, box: Mailbox, start: int, most: int) -> Iterator[tuple[int, bytes]]:
        """(uid, content) of what came into a mailbox after a uid, and may teach something."""
        if box.uidnext <= start + 1 or most <= 0:
            return
        selected = reader.select(number, box.id)
        for uid in selected.uids.tolist() if selected is not None else ():
            if uid <= start:
                continue
            row = reader.message(number, box.id, uid)
            if row is None or row.size > MAX_OCTETS:
                continue
            head = row.rope[0] if row.rope and isinstance(row.rope[0], bytes) else b""
            filed = filed_by_delivery(head, box.name)
            if filed or (filed is None and box.name == "INBOX" and row.saved_s < row.internaldate_s + MOVED_S):
                continue  # found without a look at the content
            try:
                yield uid, reader.blobs.read(row.rope)
            except (OSError, EOFError):
                continue  # damaged: fsck names it
            most -= 1
            if most <= 0:
                return

    def close(self) -> None:
        """Give up the store."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _lesson(mailbox: str, content: bytes) -> bool | None:
    """Whether a message found in a mailbox is to be learnt as spam; None: it teaches nothing."""
    verdict = judged(content)
    filed = filed_by_delivery(content, mailbox)
    if filed:
        return None
    if mailbox == "Spam":
        # Mail delivered by a version that wrote no record says it otherwise.
        return None if verdict == "spam" or (filed is None and filed_by_tag(content)) else True
    if mailbox == "Good":
        return False
    return False if verdict == "spam" else None


def _seen(folder: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode((folder / "seen").read_bytes(), type=dict[str, int])
    except (OSError, msgspec.DecodeError):
        return {}
