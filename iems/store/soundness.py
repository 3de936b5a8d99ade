"""Whether the rows of a partition agree with each other and with the files they name; what would mend them.

One read transaction sees one moment, so it holds while the writer works; `fsck.py` runs it in a process of its own. `Check` only reads:
`puts` (key -> value, None to delete) and `aside` are what a repair writes, in one transaction. Octets of content have a checksum
where they stand in a record of the spool; those are looked at only if asked for, as every octet must be read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from iems.blobs import Blobs, large_name, segment_name
from iems.model import Extent, Rope
from iems.spool.verify import ContentDamaged, Verifier
from iems.store import keys
from iems.store.rows import (
    BLOB_OWN,
    BLOB_ROW,
    DEDUP_ROW,
    DELETED,
    FLAGS_ROW,
    MESSAGE_HEAD,
    MESSAGE_VERSION,
    SEEN,
    SUMMARY_OUTSIDE,
    SUMMARY_PLACE,
    Account,
    Mailbox,
    Meta,
    decode_rope,
    encode,
)

#: Findings of one partition that are named; the rest is only counted.
FINDINGS_MAX = 100_000
UNDELETE_S = 86_400
_BAD = (msgspec.DecodeError, UnicodeDecodeError)
_OWN_BLOBS = 1 << 63
_U32 = struct.Struct("<I")
_decode_account = msgspec.msgpack.Decoder(Account).decode
_decode_mailbox = msgspec.msgpack.Decoder(Mailbox).decode
_decode_meta = msgspec.msgpack.Decoder(Meta).decode
_decode_names = msgspec.msgpack.Decoder(list[str]).decode
_GLOBAL_OCTETS = {keys.META: 5, keys.BLOB: 13, keys.ANSWER: 21, keys.DEDUP: 25, keys.TRASH: 21, keys.PURGE: 17}
_KINDS = {keys.ACCOUNT: 5, keys.MAILBOX: 9, keys.SUBSCRIBED: 5, keys.TOMBSTONE: 13}
_OF_MAILBOX = {keys.FLAGS: keys.UID_KEY, keys.MESSAGE: keys.UID_KEY, keys.VANISHED: 17}


class Finding(Struct, kw_only=True):
    """Something wrong. where: the place in the store. account, mailbox, uid: 0 if it is not about one. name: of the mailbox.

    id: the 16 octets a message was accepted under. row: key and value looked at, for what may have gone meanwhile. mended: a repair can
    (after one: did) put it right.
    """

    what: str
    where: str = ""
    account: int = 0
    mailbox: int = 0
    name: str = ""
    uid: int = 0
    id: bytes = b""
    row: tuple[bytes, bytes] | None = None
    mended: bool = False


class Aside(Struct):
    """The rows of a message that can't be served, as a repair keeps them in a file."""

    account: int
    mailbox: int
    name: str
    uid: int
    why: str
    flags: bytes | None
    message: bytes | None


class Damaged(Exception):
    """The rows can't be read to their end: keys out of order."""


class _Tally:
    """What the rows of one mailbox add up to: as they are (sound or not), and as they will be."""

    __slots__ = ("again", "box", "deleted", "gone", "id", "messages", "modseq", "size", "top", "unseen", "used")

    def __init__(self, box: Mailbox | None, mailbox_id: int) -> None:
        self.box = box
        self.id = mailbox_id
        self.messages = [0, 0]
        self.unseen = [0, 0]
        self.deleted = [0, 0]
        self.size = [0, 0]
        self.modseq = 0
        self.top = 0  # the highest uid named anywhere
        self.used = False  # it has rows
        self.gone: list[int] = []
        self.again: list[tuple[int, int, int, bool]] = []  # uid, size, saved s, whether it had been expunged

    def add(self, size: int, flags: int, now: bool, after: bool) -> None:
        for index, counts in enumerate((now, after)):
            if counts:
                self.messages[index] += 1
                self.size[index] += size
                self.unseen[index] += not flags & SEEN
                self.deleted[index] += bool(flags & DELETED)


class Check:
    """One look at a partition. txn: of its environment; folder: HOME/store/pN.

    lost: a repair takes messages without content out of their mailboxes. content: read contents that have a checksum. Call `run` once;
    then `findings`, `more` (how many are not named), `puts`, `aside` and `accounts` (those not deleted) are there.
    """

    def __init__(self, txn: Any, folder: Path, number: int, now_s: int, *, lost: bool = False, content: bool = False) -> None:
        self._txn = txn
        self._folder = folder / "blobs"
        self._number = number
        self._now = now_s
        self._lost = lost
        self._verifier = Verifier(Blobs([self._folder], max_open=64)) if content else None
        self._trash: dict[bytes, dict[bytes, bytes]] = {}  # account and mailbox -> uid -> key
        self._purged: set[tuple[int, int]] = set()
        self._rows: dict[int, tuple[int, int, int, int]] = {}
        self._named: dict[int, list[int]] = {}  # blob -> octets rows name now, after a repair
        self._sizes: dict[int, int] = {}  # -1: there is no file
        self._whole: dict[int, bool] = {}
        self._uidnext: dict[tuple[int, int], int] = {}
        self._unread = False  # a message row could not be decoded: what it named is not known
        self._account = 0
        self.findings: list[Finding] = []
        self.more = 0
        self.puts: dict[bytes, bytes | None] = {}
        self.aside: list[Aside] = []
        self.accounts: list[int] = []

    def run(self) -> None:
        """Look at everything. Raises Damaged, lmdb.Error."""
        self._globals()
        number = 0
        while (number := self._next(keys.head(number + 1, 0))) >= 0:
            self._account = number
            self._of_account(number)
            if number == 0xFFFF_FFFF:
                break
        self._account = 0
        self._dedup()
        self._blobs()

    # Reading

    def _rows_of(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._txn.cursor()
        last = b""
        if cursor.set_range(prefix):
            for key, value in cursor:
                if key <= last:
                    raise Damaged(f"the keys after {last.hex()} are out of order")
                if not key.startswith(prefix):
                    return
                last = key
                yield key, value

    def _next(self, key: bytes) -> int:
        """The account of the first row from `key` on, -1 if there is none."""
        cursor = self._txn.cursor()
        return int.from_bytes(cursor.key()[:4], "big") if cursor.set_range(key) else -1

    def _found(self, what: str, tally: _Tally | None = None, uid: int = 0, origin: bytes = b"", *,
               row: tuple[bytes, bytes] | None = None, mended: bool = True) -> None:  # fmt: skip
        if len(self.findings) >= FINDINGS_MAX:
            self.more += 1
            return
        self.findings.append(
            Finding(
                what=what, where=f"p{self._number}", account=self._account, mailbox=tally.id if tally else 0,
                name=tally.box.name if tally and tally.box else "", uid=uid, id=origin, row=row, mended=mended,
            )
        )  # fmt: skip

    # Rows of no account

    def _globals(self) -> None:
        raw = self._txn.get(keys.META_KEY)
        try:
            if raw is None or _decode_meta(raw).number != self._number:
                self._found("the row that tells the partition's number is missing or of another partition")
                self.puts[keys.META_KEY] = encode(Meta(1, self._number))
        except _BAD:
            self._found("the row that tells the partition's format is damaged")
            self.puts[keys.META_KEY] = encode(Meta(1, self._number))
        for key, value in self._rows_of(b"\0\0\0\0"):
            kind = key[4] if len(key) > 4 else 0
            if _GLOBAL_OCTETS.get(kind) != len(key):
                self._stray(key)
            elif kind == keys.BLOB:
                if len(value) == BLOB_ROW.size:
                    self._rows[int.from_bytes(key[-8:], "big")] = BLOB_ROW.unpack(value)
            elif kind == keys.TRASH:
                if len(value) != FLAGS_ROW.size or value[:4] != int.from_bytes(key[-4:], "big").to_bytes(4, "little"):
                    self._bad_trash(key)
                elif self._txn.get(keys.message(*keys.split_trash(key)[1:])) is None:
                    self._found(f"trash names a message of account {keys.split_trash(key)[1]} that is not there")
                    self.puts[key] = None
                else:
                    self._trash.setdefault(key[9:17], {})[key[17:]] = key
            elif kind == keys.PURGE:
                self._purged.add(keys.split_purge(key)[1:])
            elif kind == keys.ANSWER and len(value) < 5:
                self._found("a stored answer is damaged")
                self.puts[key] = None

    def _stray(self, key: bytes) -> None:
        self._found(f"a row of no known kind: {key[:32].hex()}")
        self.puts[key] = None

    def _bad_trash(self, key: bytes) -> None:
        """A trash row that lost what it says of flags and dates: the message can still be brought back."""
        _, account, mailbox_id, uid = keys.split_trash(key)
        row = _message(self._txn.get(keys.message(account, mailbox_id, uid)))
        self._found(f"a trash row of account {account} is damaged")
        if row is None:
            self.puts[key] = None
        else:
            self._trash.setdefault(key[9:17], {})[key[17:]] = key
            self.puts[key] = FLAGS_ROW.pack(uid, _octets(row.rope), SEEN, 1, row.saved_s)

    def _dedup(self) -> None:
        """A dedup row that names a uid never given would swallow mail: `duplicate`, though nothing is there."""
        for key, value in self._rows_of(keys.head(0, keys.DEDUP)):
            if len(key) != 25:
                continue
            if len(value) == DEDUP_ROW.size:
                mailbox_id, uid, _ = DEDUP_ROW.unpack(value)
                if uid < self._uidnext.get((int.from_bytes(key[-4:], "big"), mailbox_id), 1 << 32):
                    continue
            self._found(f"a delivery to account {int.from_bytes(key[-4:], 'big')} is noted that did not happen", origin=key[5:21])
            self.puts[key] = None

    def _blobs(self) -> None:
        for blob in self._rows.keys() | self._named.keys():
            row = self._rows.get(blob)
            now, after = self._named.get(blob, (0, 0))
            live = row[0] if row else -1
            # Of a message row that can't be read nobody knows what it named: more may have been counted.
            if live != now and not (self._unread and live > now):
                count = "has no row" if row is None else f"is counted with {live} octets"
                self._found(f"the file {blob:016x} {count}, messages name {now}")
            if live != after:
                own = BLOB_OWN if blob & _OWN_BLOBS else 0
                _, length, since, bits = row or (0, 0, self._now, own)
                self.puts[keys.blob(blob)] = BLOB_ROW.pack(after, length, since, bits)

    # Rows of an account

    def _of_account(self, number: int) -> None:
        boxes: dict[int, Mailbox] = {}
        bad: set[int] = set()
        for kind, octets in _KINDS.items():
            for key, value in self._rows_of(keys.head(number, kind)):
                if len(key) != octets:
                    self._stray(key)
                elif kind == keys.MAILBOX:
                    mailbox_id = int.from_bytes(key[5:], "big")
                    try:
                        box = _decode_mailbox(value)
                        if box.id != mailbox_id:
                            raise msgspec.DecodeError
                        boxes[mailbox_id] = box
                    except _BAD:
                        bad.add(mailbox_id)
                elif kind == keys.SUBSCRIBED:
                    self._subscribed(key, value, number)
        self._kinds(number)
        ids = {mailbox_id for kind in _OF_MAILBOX for mailbox_id in self._mailbox_ids(number, kind)}
        purged = {mailbox_id for account, mailbox_id in self._purged if account == number} if self._purged else set()
        for mailbox_id in ids & purged - boxes.keys():
            self._count_purged(number, mailbox_id)
        tallies = [
            self._mailbox(number, mailbox_id, boxes.get(mailbox_id))
            for mailbox_id in sorted((ids | boxes.keys() | bad) - (purged - boxes.keys()))
        ]
        row = self._row_of(number, any(tally.box or tally.used for tally in tallies) or bool(bad))
        if row is not None:
            self.accounts.append(number)
            self._settle(number, row, tallies, bad, max([0, *ids, *purged, *boxes, *bad]))

    def _subscribed(self, key: bytes, value: bytes, number: int) -> None:
        try:
            _decode_names(value)
        except _BAD:
            self._found("the list of subscriptions is damaged")
            self.puts[key] = encode(["INBOX"])

    def _kinds(self, number: int) -> None:
        """Name rows of kinds nobody knows."""
        cursor = self._txn.cursor()
        kind = -1
        known = _KINDS.keys() | _OF_MAILBOX.keys()
        while kind < 255 and cursor.set_range(keys.head(number, kind + 1)):
            key = cursor.key()
            if int.from_bytes(key[:4], "big") != number:
                return
            if len(key) < 5 or key[4] not in known:
                self._stray(key)
            kind = max(key[4] if len(key) > 4 else kind + 1, kind + 1)

    def _mailbox_ids(self, number: int, kind: int) -> Iterator[int]:
        cursor = self._txn.cursor()
        head = keys.head(number, kind)
        at = head
        while cursor.set_range(at):
            key = cursor.key()
            if not key.startswith(head):
                return
            mailbox_id = int.from_bytes(key[5:9].ljust(4, b"\0"), "big")
            yield mailbox_id
            if mailbox_id == 0xFFFF_FFFF:
                return
            at = head + (mailbox_id + 1).to_bytes(4, "big")

    def _count_purged(self, number: int, mailbox_id: int) -> None:
        """Count what the messages of a deleted mailbox name until its rows go."""
        for _, value in self._rows_of(keys.prefix(number, keys.MESSAGE, mailbox_id)):
            row = _message(value)
            if row is None:
                self._unread = True
            else:
                self._name(row, True)

    def _row_of(self, number: int, needed: bool) -> Account | None:
        raw = self._txn.get(keys.account(number))
        if raw is not None:
            try:
                return _decode_account(raw)
            except _BAD:
                pass
        if raw is None and not needed:
            return None  # deleted; what is left of it is in the trash
        self._found("the row of the account is missing" if raw is None else "the row of the account is damaged")
        return Account(modseq=0)

    def _mailbox(self, number: int, mailbox_id: int, box: Mailbox | None) -> _Tally:
        tally = _Tally(box, mailbox_id)
        trashed = self._trash.get(number.to_bytes(4, "big") + mailbox_id.to_bytes(4, "big"), {})
        vanished = self._vanished(number, tally)
        small, large = self._uid_rows(number, keys.FLAGS, mailbox_id), self._uid_rows(number, keys.MESSAGE, mailbox_id)
        end = (1 << 32, b"")
        low, high = next(small, end), next(large, end)
        while (uid := min(low[0], high[0])) < 1 << 32:
            flags = low[1] if low[0] == uid else None
            message = high[1] if high[0] == uid else None
            self._message(number, tally, uid, flags, message, trashed.get(uid.to_bytes(4, "big"), b""), vanished)
            if flags is not None:
                low = next(small, end)
            if message is not None:
                high = next(large, end)
        return tally

    def _uid_rows(self, number: int, kind: int, mailbox_id: int) -> Iterator[tuple[int, bytes]]:
        for key, value in self._rows_of(keys.prefix(number, kind, mailbox_id)):
            if len(key) == keys.UID_KEY and key[-4:] != b"\0\0\0\0":
                yield int.from_bytes(key[-4:], "big"), value
            else:
                self._stray(key)

    def _vanished(self, number: int, tally: _Tally) -> set[int]:
        found: set[int] = set()
        for key, value in self._rows_of(keys.prefix(number, keys.VANISHED, tally.id)):
            if len(key) != 17 or len(value) < 4 or len(value) % 4:
                self._found("a row of expunged uids is damaged", tally)
                self.puts[key] = None
                continue
            tally.modseq = max(tally.modseq, int.from_bytes(key[-8:], "big"))
            uids = [uid for (uid,) in _U32.iter_unpack(value[4:])]
            tally.top = max([tally.top, *uids])
            found.update(uids)
        return found

    # One message

    def _message(
        self, number: int, tally: _Tally, uid: int, flags: bytes | None, value: bytes | None, trashed: bytes, vanished: set[int]
    ) -> None:
        tally.used |= not trashed
        tally.top = max(tally.top, uid)
        row = _message(value)
        fixed = FLAGS_ROW.unpack(flags) if flags is not None and len(flags) == FLAGS_ROW.size else None
        if fixed is not None and fixed[0] != uid:
            fixed = None
        if value is not None and row is None:
            self._unread = True
            self._found("the message row is damaged", tally, uid)
            self._set_aside(number, tally, uid, "the message row is damaged", flags, value, fixed, trashed)
            return
        if row is None:
            self._found("the message row is missing", tally, uid)
            self._set_aside(number, tally, uid, "the message row is missing", flags, None, fixed)
            return
        assert value is not None
        wrong = self._content(row)
        takes = bool(wrong) and self._lost and not trashed
        self._name(row, not takes)
        if wrong:
            self._found(wrong, tally, uid, row.origin, row=(keys.message(number, tally.id, uid), value), mended=takes)
            if takes:
                self._set_aside(number, tally, uid, wrong, flags, value, fixed)
                return
        if flags is not None and fixed is None:
            self._found("the flags row is damaged", tally, uid, row.origin)
        elif flags is None and not trashed:
            self._found("the flags row is missing", tally, uid, row.origin)
        if fixed is None:
            if trashed:
                if flags is not None:
                    self.puts[keys.flags(number, tally.id, uid)] = None
            else:
                tally.again.append((uid, _octets(row.rope), row.saved_s, uid in vanished))
            return
        self._flags(number, tally, fixed, row)

    def _flags(self, number: int, tally: _Tally, fixed: tuple[int, int, int, int, int], row: _Row) -> None:
        uid, size, flags, modseq, date = fixed
        octets = _octets(row.rope)
        tally.modseq = max(tally.modseq, modseq)
        if octets != size and not any(isinstance(piece, Extent) and piece.codec for piece in row.rope):
            self._found(f"the size is {size}, the content has {octets} octets", tally, uid, row.origin)
            self.puts[keys.flags(number, tally.id, uid)] = FLAGS_ROW.pack(uid, octets, flags, modseq, date)
            tally.add(size, flags, True, False)
            tally.add(octets, flags, False, True)
        else:
            tally.add(size, flags, True, True)

    def _set_aside(
        self, number: int, tally: _Tally, uid: int, why: str, flags: bytes | None, value: bytes | None,
        fixed: tuple[int, int, int, int, int] | None, trashed: bytes = b"",
    ) -> None:  # fmt: skip
        """Take a message out of its mailbox in a repair: its rows go to a file."""
        name = tally.box.name if tally.box else ""
        self.aside.append(Aside(number, tally.id, name, uid, why, flags, value))
        if value is not None:
            self.puts[keys.message(number, tally.id, uid)] = None
        if trashed:
            self.puts[trashed] = None
        if flags is not None:
            self.puts[keys.flags(number, tally.id, uid)] = None
            tally.gone.append(uid)
            if fixed is not None:
                tally.add(fixed[1], fixed[2], True, False)
                tally.modseq = max(tally.modseq, fixed[3])

    def _name(self, row: _Row, after: bool) -> None:
        for blob, octets in [*((p.blob, p.length) for p in row.rope if isinstance(p, Extent)), *row.summary]:
            named = self._named.setdefault(blob, [0, 0])
            named[0] += octets
            named[1] += octets if after else 0

    def _content(self, row: _Row) -> str:
        """What is wrong with the octets a message names, '' if nothing is known to be."""
        pieces = [(p.blob, p.offset + p.length) for p in row.rope if isinstance(p, Extent)]
        for blob, end in [*pieces, *((blob, row.place_end) for blob, _ in row.summary)]:
            size = self._size(blob)
            if size < 0:
                return f"its content is not there (file {blob:016x})"
            if size < end:
                return f"its content is cut short (file {blob:016x} has {size} octets of {end})"
        if self._verifier is not None:
            for piece in row.rope:
                if isinstance(piece, Extent) and self._has_sums(piece.blob):
                    try:
                        self._verifier.extent(piece)
                    except (ContentDamaged, EOFError) as error:
                        return f"its content is damaged: {error}"
        return ""

    def _size(self, blob: int) -> int:
        size = self._sizes.get(blob)
        if size is None:
            size = -1
            for name in (segment_name(blob), large_name(blob)):
                try:
                    found = os.stat(self._folder / name)
                except FileNotFoundError:
                    continue
                size = found.st_size
                # Where dead octets were given back the record is not whole, so it can't be held against its checksum.
                self._whole[blob] = name.endswith(".seg") and found.st_blocks * 512 >= size
                break
            self._sizes[blob] = size
        return size

    def _has_sums(self, blob: int) -> bool:
        return not blob & _OWN_BLOBS and self._whole.get(blob, False)

    # Counters

    def _settle(self, number: int, row: Account, tallies: list[_Tally], bad: set[int], top_id: int) -> None:
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
                    self._found(f"the account's {name} is {now}, but {least} was given already")
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
                self._found(f"the account counts {stored} {name}, its mailboxes have {now}")
            setattr(row, name, after)
        if not any(box.name == "INBOX" for box in boxes):
            self._found("there is no INBOX")
            row.modseq += 1
            row.uidvalidity = max(self._now, row.uidvalidity + 1)
            inbox = Mailbox(id=row.next_mailbox, name="INBOX", uidvalidity=row.uidvalidity, highestmodseq=row.modseq, created_s=self._now)
            row.next_mailbox += 1
            self.puts[keys.mailbox(number, inbox.id)] = encode(inbox)
        if encode(row) != self._txn.get(keys.account(number)):
            self.puts[keys.account(number)] = encode(row)

    def _settle_mailbox(self, number: int, row: Account, tally: _Tally, bad: bool, taken: dict[str, int]) -> None:
        box = tally.box
        if box is None:
            if not (tally.used or bad):
                # Rows of expunged uids nobody can ask for; what is in the trash may outlive its mailbox.
                for key, _ in self._rows_of(keys.prefix(number, keys.VANISHED, tally.id)):
                    self._found(f"a row of expunged uids of mailbox {tally.id}, which is not there")
                    self.puts[key] = None
                return
            self._found(f"the row of mailbox {tally.id} is {'damaged' if bad else 'missing'}")
            row.uidvalidity = max(self._now, row.uidvalidity + 1)
            box = tally.box = Mailbox(id=tally.id, name=f"Recovered-{tally.id}", uidvalidity=row.uidvalidity, created_s=self._now)
            box.messages, box.unseen, box.deleted, box.size = tally.messages[0], tally.unseen[0], tally.deleted[0], tally.size[0]
            box.uidnext, box.highestmodseq = tally.top + 1, max(tally.modseq, 1)
            stored = b""
        else:
            stored = encode(box)
        if (other := taken.setdefault(box.name, tally.id)) != tally.id:
            self._found(f"mailboxes {other} and {tally.id} have one name", tally)
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
            self._found("counters: " + ", ".join(wrong), tally)
        self._changes(number, row, tally, box)
        self._uidnext[number, box.id] = box.uidnext
        if encode(box) != stored:
            self.puts[keys.mailbox(number, box.id)] = encode(box)

    def _changes(self, number: int, row: Account, tally: _Tally, box: Mailbox) -> None:
        """Tell clients what a repair takes out and brings back (RFC 7162)."""
        if tally.gone or any(not expunged for *_, expunged in tally.again):
            row.modseq += 1
            box.highestmodseq = row.modseq
            box.changed_before, box.changed_modseq = box.changed_modseq, row.modseq
        for uid, size, saved_s, expunged in tally.again:
            if expunged:
                trash = FLAGS_ROW.pack(uid, size, SEEN, 1, saved_s)
                self.puts[keys.trash(self._now + UNDELETE_S, number, box.id, uid)] = trash
                self.puts[keys.flags(number, box.id, uid)] = None
            else:
                self.puts[keys.flags(number, box.id, uid)] = FLAGS_ROW.pack(uid, size, 0, row.modseq, saved_s)
                tally.add(size, 0, False, True)
                box.messages, box.unseen, box.size = box.messages + 1, box.unseen + 1, box.size + size
        if tally.gone:
            uids = b"".join(map(_U32.pack, tally.gone))
            self.puts[keys.vanished(number, box.id, row.modseq)] = _U32.pack(self._now) + uids


class _Row(Struct):
    rope: Rope
    summary: list[tuple[int, int]]  # (blob, octets) of a summary kept outside
    place_end: int
    saved_s: int
    origin: bytes


def _message(value: bytes | None) -> _Row | None:
    """A message row taken apart; None if it is none."""
    if value is None or len(value) < MESSAGE_HEAD.size:
        return None
    version, bits, _, rope_octets, envelope, structure, saved, origin = MESSAGE_HEAD.unpack_from(value)
    end = MESSAGE_HEAD.size + rope_octets
    outside = bool(bits & SUMMARY_OUTSIDE)
    if version != MESSAGE_VERSION or len(value) != end + (SUMMARY_PLACE.size if outside else envelope + structure):
        return None
    try:
        rope = decode_rope(value[MESSAGE_HEAD.size : end])
    except _BAD:
        return None
    if not outside:
        return _Row(rope, [], 0, saved, origin)
    blob, offset = SUMMARY_PLACE.unpack_from(value, end)
    return _Row(rope, [(blob, envelope + structure)], offset + envelope + structure, saved, origin)


def _octets(rope: Rope) -> int:
    return sum(piece.length if isinstance(piece, Extent) else len(piece) for piece in rope)


def still_there(txn: Any, finding: Finding) -> bool:
    """Whether what a finding is about is still so in a younger transaction: its file may have gone after its row."""
    return finding.row is None or txn.get(finding.row[0]) == finding.row[1]


__all__ = ["Aside", "Check", "Damaged", "Finding", "still_there"]
