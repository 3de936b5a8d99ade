"""Whether the rows of a partition agree with each other and with the files they name; what would mend them.

One read transaction sees one moment, so it holds while the writer works; `fsck.py` runs it in a process of its own. `Check` only reads:
`puts` (key -> value, None to delete) and `aside` are what a repair writes, in one transaction. Octets of content have a checksum
where they stand in a record of the spool; those are looked at only if asked for, as every octet must be read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec

from iems.blobs import Blobs, large_name, segment_name
from iems.model import Extent
from iems.spool.verify import ContentDamaged, Verifier
from iems.store import keys
from iems.store.counters import Counters
from iems.store.findings import BAD, Aside, Damaged, Finding, Parts, Tally, octets_of, parts_of
from iems.store.rows import (
    BLOB_ERASED,
    BLOB_OWN,
    BLOB_ROW,
    DEDUP_ROW,
    FLAGS_ROW,
    FORMAT,
    MARK_OCTETS,
    MARK_UIDS,
    SEEN,
    Account,
    DomainUse,
    Mailbox,
    Meta,
    encode,
)

#: Findings of one partition that are named; the rest is only counted.
FINDINGS_MAX = 100_000
_U32 = struct.Struct("<I")
#: Rows without which an account works: removed by a repair if they can't be read. Without a list of rights nobody else has any.
_PACKED = {keys.METADATA: "annotations", keys.ACL: "access rights", keys.SHARED: "list of those who share"}
_decode = msgspec.msgpack.Decoder().decode
_decode_account = msgspec.msgpack.Decoder(Account).decode
_decode_mailbox = msgspec.msgpack.Decoder(Mailbox).decode
_decode_meta = msgspec.msgpack.Decoder(Meta).decode
_decode_names = msgspec.msgpack.Decoder(list[str]).decode
_GLOBAL_OCTETS = {keys.META: 5, keys.BLOB: 13, keys.ANSWER: 21, keys.DEDUP: 25, keys.TRASH: 21, keys.PURGE: 17, keys.GONE: 25}
_KINDS = {
    keys.ACCOUNT: 5, keys.MAILBOX: 9, keys.SUBSCRIBED: 5, keys.TOMBSTONE: 13, keys.METADATA: 9, keys.ACL: 9, keys.SHARED: 5,
    keys.STAGED: 5,
}  # fmt: skip
_OF_MAILBOX = {keys.FLAGS: keys.UID_KEY, keys.MESSAGE: keys.UID_KEY, keys.VANISHED: 17, keys.JOURNAL: 17}


class Check:
    """One look at a partition. txn: of its environment; folder: HOME/store/pN.

    lost: a repair takes messages without content out of their mailboxes. content: read contents that have a checksum. Call `run` once;
    then `findings`, `more` (how many are not named), `puts`, `aside` and `accounts` (those not deleted) are there.
    """

    def __init__(self, txn: Any, folder: Path, number: int, now_s: int, *, lost: bool = False, content: bool = False) -> None:
        self.txn = txn
        self._folder = folder / "blobs"
        self._number = number
        self.now_s = now_s
        self._lost = lost
        self._verifier = Verifier(Blobs([self._folder], max_open=64)) if content else None
        self._trash: dict[bytes, dict[bytes, bytes]] = {}  # account and mailbox -> uid -> key
        self._purged: set[tuple[int, int]] = set()
        self._rows: dict[int, tuple[int, int, int, int]] = {}
        self._named: dict[int, list[int]] = {}  # blob -> octets rows name now, after a repair
        self._sizes: dict[int, int] = {}  # -1: there is no file
        self._whole: dict[int, bool] = {}
        self.uidnext: dict[tuple[int, int], int] = {}
        self._unread = False  # a message row could not be decoded: what it named is not known
        self._account = 0
        self._format = 1
        self.uses: dict[str, DomainUse] = {}
        self._counters = Counters(self)
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
        self._domains()
        self._blobs()

    # Reading

    def rows_of(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The rows whose key begins with `prefix`. Raises Damaged."""
        cursor = self.txn.cursor()
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
        cursor = self.txn.cursor()
        return int.from_bytes(cursor.key()[:4], "big") if cursor.set_range(key) else -1

    def found(self, what: str, tally: Tally | None = None, uid: int = 0, origin: bytes = b"", *,
               row: tuple[bytes, bytes] | None = None, mended: bool = True) -> None:  # fmt: skip
        """Note a finding about the account at hand, or one of its mailboxes."""
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
        raw = self.txn.get(keys.META_KEY)
        try:
            meta = None if raw is None else _decode_meta(raw)
            if meta is None or meta.number != self._number:
                self.found("the row that tells the partition's number is missing or of another partition")
                self.puts[keys.META_KEY] = encode(Meta(self._format_of_rows(), self._number))
            self._format = self._format_of_rows() if meta is None else meta.version
        except BAD:
            self.found("the row that tells the partition's format is damaged")
            self._format = self._format_of_rows()
            self.puts[keys.META_KEY] = encode(Meta(self._format, self._number))
        for key, value in self.rows_of(b"\0\0\0\0"):
            kind = key[4] if len(key) > 4 else 0
            if kind == keys.DOMAIN:
                continue
            if _GLOBAL_OCTETS.get(kind) != len(key):
                self._stray(key)
            elif kind == keys.BLOB:
                if len(value) == BLOB_ROW.size:
                    self._rows[int.from_bytes(key[-8:], "big")] = BLOB_ROW.unpack(value)
            elif kind == keys.TRASH:
                if len(value) != FLAGS_ROW.size or value[:4] != int.from_bytes(key[-4:], "big").to_bytes(4, "little"):
                    self._bad_trash(key)
                elif self.txn.get(keys.message(*keys.split_trash(key)[1:])) is None:
                    self.found(f"trash names a message of account {keys.split_trash(key)[1]} that is not there")
                    self.puts[key] = None
                else:
                    self._trash.setdefault(key[9:17], {})[key[17:]] = key
            elif kind == keys.PURGE:
                self._purged.add(keys.split_purge(key)[1:])
            elif kind == keys.ANSWER and len(value) < 5:
                self.found("a stored answer is damaged")
                self.puts[key] = None

    def _format_of_rows(self) -> int:
        """What the rows look like: only the newer format counts domains."""
        return FORMAT if next(self.rows_of(keys.head(0, keys.DOMAIN)), None) is not None else 1

    def _domains(self) -> None:
        """Compare what is counted for each domain with its accounts."""
        stored = dict(self.rows_of(keys.head(0, keys.DOMAIN)))
        sums = {keys.domain(name): encode(use) for name, use in self.uses.items()} if self._format > 1 else {}
        for key in sorted(stored.keys() | sums.keys()):
            if stored.get(key) != sums.get(key):
                self.found(f"what the domain {key[5:].decode(errors='replace')} keeps is counted wrongly")
                self.puts[key] = sums.get(key)

    def _stray(self, key: bytes) -> None:
        # A newer version may know it: nobody deletes it unseen.
        self.found(f"a row of no known kind: {key[:32].hex()}", mended=False)

    def _bad_trash(self, key: bytes) -> None:
        """A trash row that lost what it says of flags and dates: the message can still be brought back."""
        _, account, mailbox_id, uid = keys.split_trash(key)
        row = parts_of(self.txn.get(keys.message(account, mailbox_id, uid)))
        self.found(f"a trash row of account {account} is damaged")
        if row is None:
            self.puts[key] = None
        else:
            self._trash.setdefault(key[9:17], {})[key[17:]] = key
            self.puts[key] = FLAGS_ROW.pack(uid, octets_of(row.rope), SEEN, 1, row.saved_s)

    def _dedup(self) -> None:
        """A dedup row that names a uid never given would swallow mail: `duplicate`, though nothing is there."""
        for key, value in self.rows_of(keys.head(0, keys.DEDUP)):
            if len(key) != 25:
                continue
            if len(value) == DEDUP_ROW.size:
                mailbox_id, uid, _ = DEDUP_ROW.unpack(value)
                if uid < self.uidnext.get((int.from_bytes(key[-4:], "big"), mailbox_id), 1 << 32):
                    continue
            self.found(f"a delivery to account {int.from_bytes(key[-4:], 'big')} is noted that did not happen", origin=key[5:21])
            self.puts[key] = None

    def _blobs(self) -> None:
        for blob in self._rows.keys() | self._named.keys():
            row = self._rows.get(blob)
            now, after = self._named.get(blob, (0, 0))
            live = row[0] if row else -1
            # Of a message row that can't be read nobody knows what it named: more may have been counted.
            if live != now and not (self._unread and live > now):
                count = "has no row" if row is None else f"is counted with {live} octets"
                self.found(f"the file {blob:016x} {count}, messages name {now}")
            if live != after:
                own = BLOB_OWN if blob & keys.OWN_BLOBS else 0
                _, length, since, bits = row or (0, 0, self.now_s, own)
                self.puts[keys.blob(blob)] = BLOB_ROW.pack(after, length, since, bits)

    # Rows of an account

    def _of_account(self, number: int) -> None:
        boxes: dict[int, Mailbox] = {}
        bad: set[int] = set()
        for kind, octets in _KINDS.items():
            for key, value in self.rows_of(keys.head(number, kind)):
                if len(key) != octets:
                    self._stray(key)
                elif kind == keys.MAILBOX:
                    mailbox_id = int.from_bytes(key[5:], "big")
                    try:
                        box = _decode_mailbox(value)
                        if box.id != mailbox_id:
                            raise msgspec.DecodeError
                        boxes[mailbox_id] = box
                    except BAD:
                        bad.add(mailbox_id)
                elif kind == keys.SUBSCRIBED:
                    self._subscribed(key, value)
                elif kind in _PACKED:
                    self._packed(key, value, kind)
        self._kinds(number)
        if self.txn.get(keys.staged(number)) is not None and self.txn.get(keys.account(number)) is None:
            self._count_staged(number)
            return
        ids = {mailbox_id for kind in _OF_MAILBOX for mailbox_id in self._mailbox_ids(number, kind)}
        purged = {mailbox_id for account, mailbox_id in self._purged if account == number} if self._purged else set()
        for mailbox_id in ids & purged - boxes.keys():
            self._count_purged(number, mailbox_id)
        self._marks(number, boxes.keys(), purged)
        tallies = [
            self._mailbox(number, mailbox_id, boxes.get(mailbox_id))
            for mailbox_id in sorted((ids | boxes.keys() | bad) - (purged - boxes.keys()))
        ]
        row = self._row_of(number, any(tally.box or tally.used for tally in tallies) or bool(bad))
        if row is not None:
            self.accounts.append(number)
            self._counters.settle(number, row, tallies, bad, max([0, *ids, *purged, *boxes, *bad]))

    def _marks(self, number: int, boxes: Collection[int], purged: Collection[int]) -> None:
        """What members of a shared mailbox have seen: bits of messages that are there."""
        for key, value in self.rows_of(keys.head(number, keys.MARK)):
            mailbox_id = int.from_bytes(key[5:9], "big")
            if mailbox_id in purged and mailbox_id not in boxes:
                continue
            if len(key) != 17 or len(value) != MARK_OCTETS or mailbox_id not in boxes:
                self.found(f"marks of a member in mailbox {mailbox_id} that name nothing")
                self.puts[key] = None
                continue
            first = int.from_bytes(key[9:13], "big") * MARK_UIDS
            bits = bytearray(value)
            for at, octet in enumerate(value):
                for bit in range(8) if octet else ():
                    if octet >> bit & 1 and self.txn.get(keys.flags(number, mailbox_id, first + 8 * at + bit)) is None:
                        bits[at] &= ~(1 << bit)
            if bits != value:
                self.found(f"marks of a member in mailbox {mailbox_id} for messages that are not there")
                self.puts[key] = bytes(bits) if any(bits) else None

    def _packed(self, key: bytes, value: bytes, kind: int) -> None:
        try:
            if not isinstance(_decode(value), list if kind == keys.SHARED else dict):
                raise msgspec.DecodeError
        except BAD:
            self.found(f"the {_PACKED[kind]} can't be read")
            self.puts[key] = None

    def _subscribed(self, key: bytes, value: bytes) -> None:
        try:
            _decode_names(value)
        except BAD:
            self.found("the list of subscriptions is damaged")
            self.puts[key] = encode(["INBOX"])

    def _kinds(self, number: int) -> None:
        """Name rows of kinds nobody knows."""
        cursor = self.txn.cursor()
        kind = -1
        known = {*_KINDS, *_OF_MAILBOX, keys.MARK}
        while kind < 255 and cursor.set_range(keys.head(number, kind + 1)):
            key = cursor.key()
            if int.from_bytes(key[:4], "big") != number:
                return
            if len(key) < 5 or key[4] not in known:
                self._stray(key)
            kind = max(key[4] if len(key) > 4 else kind + 1, kind + 1)

    def _mailbox_ids(self, number: int, kind: int) -> Iterator[int]:
        cursor = self.txn.cursor()
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

    def _count_staged(self, number: int) -> None:
        """Count what the rows of an account on its way from or to another partition name (handover.py)."""
        for mailbox_id in self._mailbox_ids(number, keys.MESSAGE):
            self._count_purged(number, mailbox_id)
        for mailbox_id in (*self._mailbox_ids(number, keys.MESSAGE), *self._mailbox_ids(number, keys.MAILBOX)):
            self.uidnext[number, mailbox_id] = 1 << 32

    def _count_purged(self, number: int, mailbox_id: int) -> None:
        """Count what the messages of a deleted mailbox name until its rows go."""
        for _, value in self.rows_of(keys.prefix(number, keys.MESSAGE, mailbox_id)):
            row = parts_of(value)
            if row is None:
                self._unread = True
            else:
                self._name(row, True)

    def _row_of(self, number: int, needed: bool) -> Account | None:
        raw = self.txn.get(keys.account(number))
        if raw is not None:
            try:
                return _decode_account(raw)
            except BAD:
                pass
        if raw is None and not needed:
            return None  # deleted; what is left of it is in the trash
        self.found("the row of the account is missing" if raw is None else "the row of the account is damaged")
        return Account(modseq=0)

    def _mailbox(self, number: int, mailbox_id: int, box: Mailbox | None) -> Tally:
        tally = Tally(box, mailbox_id)
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
        for key, value in self.rows_of(keys.prefix(number, kind, mailbox_id)):
            if len(key) == keys.UID_KEY and key[-4:] != b"\0\0\0\0":
                yield int.from_bytes(key[-4:], "big"), value
            else:
                self._stray(key)

    def _vanished(self, number: int, tally: Tally) -> set[int]:
        found: set[int] = set()
        for key, value in self.rows_of(keys.prefix(number, keys.VANISHED, tally.id)):
            if len(key) != 17 or len(value) < 4 or len(value) % 4:
                self.found("a row of expunged uids is damaged", tally)
                self.puts[key] = None
                continue
            tally.modseq = max(tally.modseq, int.from_bytes(key[-8:], "big"))
            uids = [uid for (uid,) in _U32.iter_unpack(value[4:])]
            tally.top = max([tally.top, *uids])
            found.update(uids)
        for key, value in self.rows_of(keys.prefix(number, keys.JOURNAL, tally.id)):
            if len(key) != 17 or len(value) % 4:
                self.found("a row of changed flags is damaged", tally)
                self.puts[key] = None
                tally.journal = False
        return found

    # One message

    def _message(
        self, number: int, tally: Tally, uid: int, flags: bytes | None, value: bytes | None, trashed: bytes, vanished: set[int]
    ) -> None:
        tally.used |= not trashed
        tally.top = max(tally.top, uid)
        row = parts_of(value)
        fixed = FLAGS_ROW.unpack(flags) if flags is not None and len(flags) == FLAGS_ROW.size else None
        if fixed is not None and fixed[0] != uid:
            fixed = None
        if value is not None and row is None:
            self._unread = True
            self.found("the message row is damaged", tally, uid)
            self._set_aside(number, tally, uid, "the message row is damaged", flags, value, fixed, trashed)
            return
        if row is None:
            self.found("the message row is missing", tally, uid)
            self._set_aside(number, tally, uid, "the message row is missing", flags, None, fixed)
            return
        assert value is not None
        wrong = self._content(row)
        takes = bool(wrong) and self._lost and not trashed
        self._name(row, not takes)
        if wrong:
            self.found(wrong, tally, uid, row.origin, row=(keys.message(number, tally.id, uid), value), mended=takes)
            if takes:
                self._set_aside(number, tally, uid, wrong, flags, value, fixed)
                return
        if flags is not None and fixed is None:
            self.found("the flags row is damaged", tally, uid, row.origin)
        elif flags is None and not trashed:
            self.found("the flags row is missing", tally, uid, row.origin)
        if fixed is None:
            if trashed:
                if flags is not None:
                    self.puts[keys.flags(number, tally.id, uid)] = None
            else:
                tally.again.append((uid, octets_of(row.rope), row.saved_s, uid in vanished))
            return
        self._flags(number, tally, fixed, row)

    def _flags(self, number: int, tally: Tally, fixed: tuple[int, int, int, int, int], row: Parts) -> None:
        uid, size, flags, modseq, date = fixed
        octets = octets_of(row.rope)
        tally.modseq = max(tally.modseq, modseq)
        if octets != size and not any(isinstance(piece, Extent) and piece.codec for piece in row.rope):
            self.found(f"the size is {size}, the content has {octets} octets", tally, uid, row.origin)
            self.puts[keys.flags(number, tally.id, uid)] = FLAGS_ROW.pack(uid, octets, flags, modseq, date)
            tally.add(size, flags, True, False)
            tally.add(octets, flags, False, True)
        else:
            tally.add(size, flags, True, True)

    def _set_aside(
        self, number: int, tally: Tally, uid: int, why: str, flags: bytes | None, value: bytes | None,
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

    def _name(self, row: Parts, after: bool) -> None:
        for blob, octets in [*((p.blob, p.length) for p in row.rope if isinstance(p, Extent)), *row.summary]:
            named = self._named.setdefault(blob, [0, 0])
            named[0] += octets
            named[1] += octets if after else 0

    def _content(self, row: Parts) -> str:
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
        erased = self._rows.get(blob, (0, 0, 0, 0))[3] & BLOB_ERASED
        return not blob & keys.OWN_BLOBS and not erased and self._whole.get(blob, False)


__all__ = ["Check"]
