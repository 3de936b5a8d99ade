"""Compares the counters of an account and its mailboxes with their rows, and makes them anew where they are wrong (soundness.py)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from iems.store import keys
from iems.store.findings import BAD, Tally
from iems.store.rows import CHANGED_UNKNOWN, FLAGS_ROW, SEEN, Account, DomainUse, Mailbox, encode

if TYPE_CHECKING:
    from iems.store.soundness import Check

UNDELETE_S = 86_400
_U32 = struct.Struct("<I")
_decode_account = msgspec.msgpack.Decoder(Account).decode


def is_same(row: Account, raw: bytes | None) -> bool:
    """Whether a stored row says the same; one of an older format has fewer fields."""
    try:
        return raw is not None and _decode_account(raw) == row
    except BAD:
        return False


class Counters:
    """The counters of one check."""

    def __init__(self, check: Check) -> None:
        self._check = check

    def settle(self, number: int, row: Account, tallies: list[Tally], bad: set[int], top_id: int) -> None:
        """Compare the counters of mailboxes and account with their rows; note what they should be."""
        before = encode(row)
        known = [tally.box for tally in tallies if tally.box is not None]
        for name, now, least in (
            ("modseq", row.modseq, max([1, *(box.highestmodseq for box in known), *(tally.modseq for tally in tallies)])),
            ("next mailbox", row.next_mailbox, top_id + 1),
            ("uidvalidity", row.uidvalidity, max([0, *(box.uidvalidity for box in known)])),
        ):
            if now < least:
                if row.modseq:
                    self._check.found(f"the account's {name} is {now}, but {least} was given already")
                setattr(row, name.replace(" ", "_"), least)
        taken: dict[str, int] = {}
        for tally in tallies:
            self._settle_mailbox(number, row, tally, tally.id in bad, taken)
        boxes = [tally.box for tally in tallies if tally.box is not None]
        for name in ("octets", "messages"):
            field = "size" if name == "octets" else name
            now, after = (sum(getattr(tally, field)[index] for tally in tallies) for index in (0, 1))
            stored = getattr(row, name)
            if stored != now and _decode_account(before).modseq:
                self._check.found(f"the account counts {stored} {name}, its mailboxes have {now}")
            setattr(row, name, after)
        if not any(box.name == "INBOX" for box in boxes):
            self._check.found("there is no INBOX")
            row.modseq += 1
            row.uidvalidity = max(self._check.now_s, row.uidvalidity + 1)
            inbox = Mailbox(id=row.next_mailbox, name="INBOX", uidvalidity=row.uidvalidity, highestmodseq=row.modseq, created_s=self._check.now_s)
            row.next_mailbox += 1
            self._check.puts[keys.mailbox(number, inbox.id)] = encode(inbox)
        if row.domain and row.given < 0:
            use = self._check.uses.setdefault(row.domain, DomainUse())
            use.octets += row.octets
            use.messages += row.messages
            use.accounts += 1
        if not is_same(row, self._check.txn.get(keys.account(number))):
            self._check.puts[keys.account(number)] = encode(row)

    def _settle_mailbox(self, number: int, row: Account, tally: Tally, bad: bool, taken: dict[str, int]) -> None:
        box = tally.box
        if box is None:
            if not (tally.used or bad):
                # Rows of expunged uids nobody can ask for; what is in the trash may outlive its mailbox.
                for key, _ in self._check.rows_of(keys.prefix(number, keys.VANISHED, tally.id)):
                    self._check.found(f"a row of expunged uids of mailbox {tally.id}, which is not there")
                    self._check.puts[key] = None
                return
            self._check.found(f"the row of mailbox {tally.id} is {'damaged' if bad else 'missing'}")
            row.uidvalidity = max(self._check.now_s, row.uidvalidity + 1)
            box = tally.box = Mailbox(id=tally.id, name=f"Recovered-{tally.id}", uidvalidity=row.uidvalidity, created_s=self._check.now_s)
            box.messages, box.unseen, box.deleted, box.size = tally.messages[0], tally.unseen[0], tally.deleted[0], tally.size[0]
            box.uidnext, box.highestmodseq = tally.top + 1, max(tally.modseq, 1)
            stored = b""
        else:
            stored = encode(box)
        if (other := taken.setdefault(box.name, tally.id)) != tally.id:
            self._check.found(f"mailboxes {other} and {tally.id} have one name", tally)
            box.name = f"{box.name}-{tally.id}"
        wrong = []
        for name in ("messages", "unseen", "deleted", "size"):
            now, after = getattr(tally, name)
            if getattr(box, name) != now:
                wrong.append(f"{name} {getattr(box, name)} (rows say {now})")
            setattr(box, name, after)
        if box.uidnext <= tally.top:
            wrong.append(f"uidnext {box.uidnext} (uid {tally.top} was given)")
            box.uidnext = tally.top + 1
        if box.highestmodseq < tally.modseq:
            wrong.append(f"highestmodseq {box.highestmodseq} (rows have {tally.modseq})")
            box.highestmodseq = tally.modseq
        if wrong:
            self._check.found("counters: " + ", ".join(wrong), tally)
        self._changes(number, row, tally, box)
        if not tally.journal or tally.gone or tally.again:
            box.journal_floor = CHANGED_UNKNOWN
        self._check.uidnext[number, box.id] = box.uidnext
        if encode(box) != stored:
            self._check.puts[keys.mailbox(number, box.id)] = encode(box)

    def _changes(self, number: int, row: Account, tally: Tally, box: Mailbox) -> None:
        """Tell clients what a repair takes out and brings back (RFC 7162)."""
        if tally.gone or any(not expunged for *_, expunged in tally.again):
            row.modseq += 1
            box.highestmodseq = row.modseq
            box.changed_before, box.changed_modseq = box.changed_modseq, row.modseq
        for uid, size, saved_s, expunged in tally.again:
            if expunged:
                trash = FLAGS_ROW.pack(uid, size, SEEN, 1, saved_s)
                self._check.puts[keys.trash(self._check.now_s + UNDELETE_S, number, box.id, uid)] = trash
                self._check.puts[keys.flags(number, box.id, uid)] = None
            else:
                self._check.puts[keys.flags(number, box.id, uid)] = FLAGS_ROW.pack(uid, size, 0, row.modseq, saved_s)
                tally.add(size, 0, False, True)
                box.messages, box.unseen, box.size = box.messages + 1, box.unseen + 1, box.size + size
        if tally.gone:
            uids = b"".join(map(_U32.pack, tally.gone))
            self._check.puts[keys.vanished(number, box.id, row.modseq)] = _U32.pack(self._check.now_s) + uids
