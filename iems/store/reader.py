"""Reads mailboxes and messages straight from the partitions' LMDB environments (imapd, pop3d, iemsuser).

Open it after the fork, one per process. No call keeps a read transaction when it returns, so the writer's freed pages are never
pinned by a session. Everything a call returns is a copy. What a session wrote through StoreClient is seen by the next call.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import numpy as np
from msgspec import Struct

from iems._native import kernel
from iems.blobs import Blobs
from iems.model import Extent
from iems.store import keys
from iems.store.marks import Glasses
from iems.store.rows import (
    DOT_FREE,
    FLAGS_DTYPE,
    FLAGS_ROW,
    KEYWORD_SHIFT,
    MESSAGE_HEAD,
    SEEN,
    SUMMARY_OUTSIDE,
    SUMMARY_PLACE,
    SYSTEM_FLAGS,
    Account,
    DomainUse,
    Mailbox,
    Row,
    decode_rope,
)

_native = kernel("store")
_pages = kernel("pages")
_decode_mailbox = msgspec.msgpack.Decoder(Mailbox).decode
_decode_account = msgspec.msgpack.Decoder(Account).decode
_decode_use = msgspec.msgpack.Decoder(DomainUse).decode
_decode_metadata = msgspec.msgpack.Decoder(dict[str, bytes]).decode
_decode_acl = msgspec.msgpack.Decoder(dict[str, tuple[int, str]]).decode
_decode_numbers = msgspec.msgpack.Decoder(list[int]).decode
_decode_names = msgspec.msgpack.Decoder(list[str]).decode

#: Items of `fetch_summaries`, in the order wanted.
FETCH_FLAGS = 1
FETCH_UID = 2
FETCH_ENVELOPE = 3
FETCH_BODYSTRUCTURE = 4
FETCH_INTERNALDATE = 5
FETCH_RFC822_SIZE = 6
FETCH_MODSEQ = 7

_SYSTEM_NAMES = [name.encode() for name in SYSTEM_FLAGS]
#: Whether the pages of LMDB lie as the kernel knows them.
_KNOWN_PAGES = lmdb.version()[:2] == (0, 9) and sys.byteorder == "little" and sys.maxsize > 1 << 32
#: Uids further apart than this on average are looked up one by one instead of walking the rows between them.
_WALK_GAP = 8


class Selected(Struct):
    """All messages of a mailbox: uids uint32[n] ascending, flags uint64[n], modseqs uint64[n] (20 octets a message)."""

    mailbox: Mailbox
    uids: np.ndarray
    flags: np.ndarray
    modseq: np.ndarray

    @property
    def keywords(self) -> list[str]:
        """Names of the keywords; keyword i is flag bit 16 + i."""
        return self.mailbox.keywords


class Trashed(Struct):
    """A message that can still be brought back, until `due_s` (seconds since 1970). row.flags has DISCARDED if a filter put it there."""

    due_s: int
    mailbox_id: int
    row: Row


class _Partition:
    """One environment; read transactions live as long as one call."""

    def __init__(self, path: Path, env: lmdb.Environment | None = None) -> None:
        self._own = env is None
        self.env = env or lmdb.open(
            str(path), readonly=True, create=False, max_readers=4096, map_size=256 << 30, readahead=False
        )
        self._txn: Any = None  # octets come as bytes; the binding says memoryview too
        #: Octets of a page, 0 if pages are not to be looked into.
        self.page_size: int = self.env.stat()["psize"] if _KNOWN_PAGES else 0

    @contextmanager
    def read(self) -> Iterator[Any]:
        """A snapshot for the length of one call; nested uses share it. The binding renews one reader slot for all."""
        if self._txn is not None:
            yield self._txn
            return
        txn = self._txn = self.env.begin()
        try:
            yield txn
        finally:
            self._txn = None
            txn.abort()

    @contextmanager
    def views(self) -> Iterator[Any]:
        """A snapshot of its own whose octets are views of the map: of use within the block only."""
        txn: Any = self.env.begin(buffers=True)
        try:
            yield txn
        finally:
            txn.abort()

    def close(self) -> None:
        if self._own:
            self.env.close()


class Reader:
    """Mailboxes, messages and usage of every account; see the module.

    environments: partitions this process has open already (LMDB allows one environment a process), by number.
    """

    def __init__(self, store_path: Path, environments: dict[int, lmdb.Environment] | None = None) -> None:
        self._path = Path(store_path)
        self._partitions: dict[int, _Partition] = {
            number: _Partition(self._path, env) for number, env in (environments or {}).items()
        }
        self._home: dict[int, int] = {}
        self._blobs: Blobs | None = None

    def twin(self, account: int) -> Reader:
        """A reader of one account for another thread, over the same environments; close it before this one."""
        self._find(account)
        # All of them: the account may move.
        return Reader(self._path, {number: partition.env for number, partition in self._partitions.items()})

    @property
    def blobs(self) -> Blobs:
        """The content behind the ropes of all partitions."""
        if self._blobs is None:
            self._blobs = Blobs(self.blob_folders())
        return self._blobs

    def blob_folders(self) -> list[Path]:
        """Where the bytes are: the partitions' folders, then the spool's (a link may be younger than our listing)."""
        folders = [path / "blobs" for path in sorted(self._path.glob("p*"))]
        spool = self._path.parent / "spool"
        return [*folders, spool / "segments", spool / "large"]

    def _find(self, account: int) -> _Partition | None:
        """The partition that has rows of `account`, None if none has (nothing was ever delivered)."""
        number = self._home.get(account)
        if number is not None:
            partition = self._partitions[number]
            with partition.read() as txn:
                raw = txn.get(keys.account(account))
                if raw is not None and _decode_account(raw).given < 0:
                    return partition
            # It was moved (or removed): looked for again.
            del self._home[account]
        self._open_all()
        given = None
        for number, partition in self._partitions.items():
            with partition.read() as txn:
                raw = txn.get(keys.account(account))
                if raw is None:
                    continue
                if _decode_account(raw).given < 0:
                    self._home[account] = number
                    return partition
                given = partition
        # Given away, and not yet taken: nothing is written meanwhile, so what is here is still true.
        return given

    def _open_all(self) -> None:
        """Open the partitions that came since."""
        for path in self._path.glob("p*"):
            number = int(path.name[1:]) if path.name[1:].isdigit() else -1
            if number < 0 or number in self._partitions or not (path / "index" / "data.mdb").exists():
                continue
            try:
                self._partitions[number] = _Partition(path / "index")
            except lmdb.Error:
                continue  # being made at this moment: the next call finds it

    def domain_octets(self, name: str, leave_out: int = -1) -> int:
        """Octets the accounts of a domain keep, those in partition `leave_out` not counted."""
        self._open_all()
        total = 0
        for number, partition in self._partitions.items():
            if number != leave_out:
                with partition.read() as txn:
                    raw = txn.get(keys.domain(name))
                total += _decode_use(raw).octets if raw else 0
        return total

    def mailboxes(self, account: int) -> list[Mailbox]:
        """All mailboxes of the account, sorted by name, INBOX first; empty before `StoreClient.ensure`."""
        partition = self._find(account)
        if partition is None:
            return []
        prefix = keys.head(account, keys.MAILBOX)
        found: list[Mailbox] = []
        with partition.read() as txn:
            cursor = txn.cursor()
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not key.startswith(prefix):
                        break
                    found.append(_decode_mailbox(value))
            names = set(self._subscriptions(txn, account))
        found.sort(key=lambda box: (box.name != "INBOX", box.name))
        parents = {box.name.rpartition("/")[0] for box in found}
        for box in found:
            box.subscribed = box.name in names
            box.has_children = box.name in parents
        return found

    @staticmethod
    def _subscriptions(txn: Any, account: int) -> list[str]:
        raw = txn.get(keys.subscribed(account))
        return _decode_names(raw) if raw else []

    def subscriptions(self, account: int) -> list[str]:
        """All subscribed names, those of mailboxes that are gone among them (RFC 9051 6.3.8)."""
        partition = self._find(account)
        if partition is None:
            return []
        with partition.read() as txn:
            return self._subscriptions(txn, account)

    def mailbox(self, account: int, name: str) -> Mailbox | None:
        """The mailbox of that name; INBOX in any case."""
        if name.upper() == "INBOX":
            name = "INBOX"
        return next((box for box in self.mailboxes(account) if box.name == name), None)

    def mailbox_by_id(self, account: int, mailbox_id: int) -> Mailbox | None:
        """The mailbox of that id; None after its deletion. `subscribed`, `has_children` are not filled in."""
        partition = self._find(account)
        if partition is None:
            return None
        with partition.read() as txn:
            raw = txn.get(keys.mailbox(account, mailbox_id))
        return _decode_mailbox(raw) if raw else None

    def select(self, account: int, mailbox_id: int, member: int = 0) -> Selected | None:
        """All messages of the mailbox, one snapshot; None if there is no such mailbox. member: as of `messages`."""
        partition = self._find(account)
        if partition is None:
            return None
        with partition.views() as txn:
            raw = txn.get(keys.mailbox(account, mailbox_id))
            if not raw:
                return None
            mailbox = _decode_mailbox(raw)
            uids, flags, modseqs = _pages.flags(
                txn.cursor(), keys.prefix(account, keys.FLAGS, mailbox_id), partition.page_size, mailbox.messages
            )
            found = Selected(
                mailbox,
                np.frombuffer(uids, np.uint32),
                np.frombuffer(flags, np.uint64),
                np.frombuffer(modseqs, np.uint64),
            )
            if member:
                found.flags = Glasses(txn, account, mailbox_id, member).all(found.uids, found.flags)
        return found

    def unseen(self, account: int, box: Mailbox, member: int) -> int:
        """Messages of a mailbox without \\Seen; for a member, in a shared mailbox."""
        partition = self._find(account) if member else None
        if partition is None:
            return box.unseen
        if box.unseen == box.messages:
            with partition.read() as txn:
                seen = Glasses(txn, account, box.id, member).count(box.uidnext)
            if seen <= box.messages:
                return box.messages - seen
        # Some came as seen (an import, a rule): each row is looked at.
        selected = self.select(account, box.id, member)
        return 0 if selected is None else int(np.count_nonzero((selected.flags & np.uint64(SEEN)) == 0))

    def table(self, account: int, mailbox_id: int) -> tuple[Mailbox, np.ndarray] | None:
        """The mailbox and the flags rows of all its messages (FLAGS_DTYPE, uids ascending), one snapshot; None if there is none."""
        partition = self._find(account)
        if partition is None:
            return None
        with partition.views() as txn:
            raw = txn.get(keys.mailbox(account, mailbox_id))
            if not raw:
                return None
            mailbox = _decode_mailbox(raw)
            rows = _pages.fixed(
                txn.cursor(), keys.prefix(account, keys.FLAGS, mailbox_id), FLAGS_ROW.size, partition.page_size
            )
        return mailbox, np.frombuffer(rows, FLAGS_DTYPE)

    def subjects(
        self, account: int, mailbox_id: int, uids: np.ndarray, start: int, count: int
    ) -> tuple[np.ndarray, str, list[tuple[int, bytes | None]]]:
        """The subjects of `count` messages from `uids[start]` on, in lower case: (uids found, texts, those to be decoded).

        uids: uint32, ascending. Between each two texts stands a line feed. To be decoded are (place among the found, ENVELOPE) of subjects that are more than ASCII on one
        line; where the row holds no ENVELOPE it is None, and `messages` gives it. Their texts are empty.
        """
        partition = self._find(account)
        if partition is None:
            return np.empty(0, np.uint32), "", []
        with partition.views() as txn:
            found, texts, odd = _pages.subjects(
                txn.cursor(), keys.prefix(account, keys.MESSAGE, mailbox_id), np.ascontiguousarray(uids, np.uint32), start, count,
                partition.page_size,
            )  # fmt: skip
        return np.frombuffer(found, np.uint32), texts.decode("ascii"), odd

    def places(self, account: int, mailbox_id: int, uids: np.ndarray, start: int, count: int) -> tuple[np.ndarray, np.ndarray, bytes]:
        """Where the contents of `count` messages from `uids[start]` on lie: (uids found, places uint64[n, 6], heads).

        uids: uint32, ascending. A place: 1, offset and length of the content's beginning within heads, blob, offset and length of the extent after it; all 0
        for a content in other pieces, which `messages` names.
        """
        partition = self._find(account)
        if partition is None:
            return np.empty(0, np.uint32), np.empty((0, 6), np.uint64), b""
        with partition.views() as txn:
            found, places, heads = _pages.places(
                txn.cursor(), keys.prefix(account, keys.MESSAGE, mailbox_id), np.ascontiguousarray(uids, np.uint32), start, count,
                partition.page_size,
            )  # fmt: skip
        return np.frombuffer(found, np.uint32), np.frombuffer(places, np.uint64).reshape(-1, 6), heads

    def sizes(self, account: int, mailbox_id: int) -> tuple[Mailbox, list[int], list[int], list[int]] | None:
        """The mailbox, uids ascending, sizes and flags of all its messages, one snapshot; None if there is none (POP3's maildrop)."""
        found = self.table(account, mailbox_id)
        if found is None:
            return None
        mailbox, table = found
        return mailbox, table["uid"].tolist(), table["size"].tolist(), table["flags"].tolist()

    def changes(
        self, account: int, mailbox_id: int, since_modseq: int, uidnext: int = 0, member: int = 0
    ) -> tuple[list[tuple[int, int, int]], list[int], Mailbox | None]:
        """What happened after `since_modseq`: (uid, flags, modseq) changed or new, uids gone, the mailbox now.

        uidnext: as it was then, if known: changes in a large mailbox are then found without looking at all of it. member: as of `messages`.
        Beyond the horizon of the vanished rows all absent uids are named, which RFC 7162 3.2.6 allows.
        """
        if uidnext and (noted := self.noted(account, mailbox_id, since_modseq, uidnext, member)) is not None:
            return noted
        selected = self.select(account, mailbox_id, member)
        if selected is None:
            return [], [], None
        box = selected.mailbox
        if box.highestmodseq <= since_modseq:
            return [], [], box
        newer = np.nonzero(selected.modseq > since_modseq)[0]
        changed = list(
            zip(
                selected.uids[newer].tolist(),
                selected.flags[newer].tolist(),
                selected.modseq[newer].tolist(),
                strict=True,
            )
        )
        return changed, self.vanished(account, mailbox_id, since_modseq), box

    def noted(
        self, account: int, mailbox_id: int, since: int, uidnext: int, member: int = 0
    ) -> tuple[list[tuple[int, int, int]], list[int], Mailbox] | None:
        """`changes` from the journal; None if there is no such mailbox, or the journal does not reach back so far."""
        partition = self._find(account)
        if partition is None:
            return None
        with partition.read() as txn:
            raw = txn.get(keys.mailbox(account, mailbox_id))
            if not raw:
                return None
            box = _decode_mailbox(raw)
            if box.changed_modseq <= since:
                arrived = self.arrivals(account, mailbox_id, uidnext, member) if box.highestmodseq > since else []
                return arrived, [], box
            if box.journal_floor > since or box.vanished_floor > since:
                return None
            prefix = keys.prefix(account, keys.JOURNAL, mailbox_id)
            uids: set[int] = set()
            cursor = txn.cursor()
            if cursor.set_range(keys.journal(account, mailbox_id, since + 1)):
                for key, value in cursor:
                    if not key.startswith(prefix):
                        break
                    uids.update(np.frombuffer(value, "<u4").tolist())
            changed = []
            glasses = Glasses(txn, account, mailbox_id, member) if member else None
            for uid in sorted(uids):
                row = txn.get(keys.flags(account, mailbox_id, uid)) if uid < uidnext else None
                if row is not None:
                    _, _, flags, modseq, _ = FLAGS_ROW.unpack(row)
                    changed.append((uid, flags ^ glasses.turned(uid) if glasses is not None else flags, modseq))
            changed += self.arrivals(account, mailbox_id, uidnext, member)
            return changed, self.vanished(account, mailbox_id, since), box

    def arrivals(self, account: int, mailbox_id: int, first_uid: int, member: int = 0) -> list[tuple[int, int, int]]:
        """(uid, flags, modseq) of the messages from `first_uid` on: all that is new if `Mailbox.changed_modseq` says so."""
        partition = self._find(account)
        if partition is None:
            return []
        prefix = keys.prefix(account, keys.FLAGS, mailbox_id)
        found: list[tuple[int, int, int]] = []
        with partition.read() as txn:
            glasses = Glasses(txn, account, mailbox_id, member) if member else None
            cursor = txn.cursor()
            if cursor.set_range(keys.flags(account, mailbox_id, first_uid)):
                for key, value in cursor:
                    if not key.startswith(prefix):
                        break
                    uid, _, flags, modseq, _ = FLAGS_ROW.unpack(value)
                    found.append((uid, flags ^ glasses.turned(uid) if glasses is not None else flags, modseq))
        return found

    def vanished(self, account: int, mailbox_id: int, since_modseq: int) -> list[int]:
        """Uids expunged after `since_modseq`, ascending; all absent ones if that is beyond the horizon."""
        partition = self._find(account)
        if partition is None:
            return []
        with partition.read() as txn:
            raw = txn.get(keys.mailbox(account, mailbox_id))
            if not raw:
                return []
            box = _decode_mailbox(raw)
            if since_modseq >= box.vanished_floor:
                prefix = keys.prefix(account, keys.VANISHED, mailbox_id)
                gone: list[np.ndarray] = []
                cursor = txn.cursor()
                if cursor.set_range(keys.vanished(account, mailbox_id, since_modseq + 1)):
                    for key, value in cursor:
                        if not key.startswith(prefix):
                            break
                        gone.append(np.frombuffer(value, "<u4", offset=4))
                return np.sort(np.concatenate(gone)).tolist() if gone else []
            selected = self.select(account, mailbox_id)
        if selected is None:
            return []
        present = np.zeros(selected.mailbox.uidnext, bool)
        present[selected.uids] = True
        present[0] = True
        return np.nonzero(~present)[0].tolist()

    def message(self, account: int, mailbox_id: int, uid: int, member: int = 0) -> Row | None:
        """One message, None if it is not (or no longer) there."""
        return self.messages(account, mailbox_id, (uid,), member)[0]

    def messages(self, account: int, mailbox_id: int, uids: Sequence[int], member: int = 0) -> list[Row | None]:
        """These messages in this order, one snapshot.

        member: the account that looks into a shared mailbox, where \\Seen is each member's own; 0: as the messages came.
        """
        partition = self._find(account)
        if partition is None:
            return [None] * len(uids)
        found: list[Row | None] = []
        with partition.read() as txn:
            glasses = Glasses(txn, account, mailbox_id, member) if member else None
            for uid in uids:
                small = txn.get(keys.flags(account, mailbox_id, uid))
                if small and glasses is not None:
                    small = glasses.row(small)
                value = txn.get(keys.message(account, mailbox_id, uid)) if small else None
                found.append(self._row(small, value) if small and value else None)
        return found

    def _row(self, small: bytes, value: bytes) -> Row:
        uid, size, flags, modseq, internaldate = FLAGS_ROW.unpack(small)
        _, bits, _, rope_end, envelope_end, structure_end, saved, origin = MESSAGE_HEAD.unpack_from(value)
        rope_end += MESSAGE_HEAD.size
        rope = decode_rope(value[MESSAGE_HEAD.size : rope_end])
        if bits & SUMMARY_OUTSIDE:
            blob, offset = SUMMARY_PLACE.unpack_from(value, rope_end)
            summary = self._load_summary(blob, offset, envelope_end + structure_end)
        else:
            summary = value[rope_end:]
        return Row(
            uid,
            flags,
            modseq,
            internaldate,
            size,
            rope,
            bool(bits & DOT_FREE),
            summary[:envelope_end],
            summary[envelope_end : envelope_end + structure_end],
            origin,
            saved,
        )

    def _load_summary(self, blob: int, offset: int, length: int) -> bytes:
        return self.blobs.read([Extent(blob, offset, length)])

    def fetch_summaries(
        self,
        account: int,
        mailbox_id: int,
        seqs: Sequence[int] | np.ndarray,
        uids: Sequence[int] | np.ndarray,
        items: Sequence[int],
        start: int = 0,
        max_octets: int = 256 << 10,
        recent_from: int = 1 << 32,
        member: int = 0,
    ) -> tuple[bytes, int]:
        """`* SEQ FETCH (...)` responses ready to send, from message `start` on: (octets, index to go on at).

        seqs, uids: u32, the session's numbers, ascending uids, same length. items: FETCH_* in the order wanted.
        recent_from: uids from here on are \\Recent in this session. Stops after the response that reaches max_octets, so that the caller can wait for the peer: go on until the index is len(uids).
        member: as of `messages`.
        Messages expunged meanwhile are left out. Raises KeyError if the mailbox is gone.
        """
        partition = self._find(account)
        total = len(uids)
        if partition is None:
            raise KeyError(mailbox_id)
        seqs = np.ascontiguousarray(seqs, np.uint32)
        uids = np.ascontiguousarray(uids, np.uint32)
        want_rows = FETCH_ENVELOPE in items or FETCH_BODYSTRUCTURE in items
        with partition.read() as txn:
            raw = txn.get(keys.mailbox(account, mailbox_id))
            if not raw:
                raise KeyError(mailbox_id)
            if start >= total:
                return b"", total
            names = _SYSTEM_NAMES + [name.encode() for name in _decode_mailbox(raw).keywords]
            first = int(uids[start])
            walk = int(uids[total - 1]) - first + 1 <= _WALK_GAP * (total - start)
            small = self._rows(txn, keys.FLAGS, account, mailbox_id, first, uids, start, walk)
            if member:
                small = Glasses(txn, account, mailbox_id, member).rows(small, keys.prefix(account, keys.FLAGS, mailbox_id))
            large = (
                self._rows(txn, keys.MESSAGE, account, mailbox_id, first, uids, start, walk)
                if want_rows
                else iter(())
            )
            found: tuple[bytes, int] = _native.fetch(
                bytes(items),
                names,
                seqs,
                uids,
                start,
                small,
                keys.prefix(account, keys.FLAGS, mailbox_id),
                large,
                keys.prefix(account, keys.MESSAGE, mailbox_id),
                self._load_summary,
                max_octets,
                recent_from,
            )
            return found

    @staticmethod
    def _rows(
        txn: Any,
        kind: int,
        account: int,
        mailbox_id: int,
        first: int,
        uids: np.ndarray,
        start: int,
        walk: bool,
    ) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of the rows from uid `first` on, or just of `uids[start:]` where they are few and far between."""
        prefix = keys.prefix(account, kind, mailbox_id)
        if walk:
            cursor = txn.cursor()
            if cursor.set_range(prefix + first.to_bytes(4, "big")):
                rows: Iterator[tuple[bytes, bytes]] = cursor.iternext()
                return rows
            return iter(())

        def pick() -> Iterator[tuple[bytes, bytes]]:
            for uid in uids[start:]:
                key = prefix + int(uid).to_bytes(4, "big")
                value = txn.get(key)
                if value is not None:
                    yield key, value

        return pick()

    def saved_before(self, account: int, mailbox_id: int, before_s: int, limit: int, after: int = 0) -> list[int]:
        """Uids above `after` of the messages that came into the mailbox before that time (seconds since 1970), at most `limit`.

        Messages come with rising uids, so the look ends at the first that is younger.
        """
        partition = self._find(account)
        if partition is None:
            return []
        prefix = keys.prefix(account, keys.MESSAGE, mailbox_id)
        found: list[int] = []
        with partition.read() as txn:
            cursor = txn.cursor()
            if cursor.set_range(keys.message(account, mailbox_id, min(after + 1, 0xFFFF_FFFF))):
                for key, value in cursor:
                    if not key.startswith(prefix) or len(found) == limit:
                        break
                    uid = int.from_bytes(key[-4:], "big")
                    if len(value) < MESSAGE_HEAD.size or txn.get(keys.flags(account, mailbox_id, uid)) is None:
                        continue  # damaged, or in the trash
                    if MESSAGE_HEAD.unpack_from(value)[6] >= before_s:
                        break
                    found.append(uid)
        return found

    def trash(self, account: int) -> list[Trashed]:
        """What was expunged or discarded and is not yet gone for good, the oldest first. Reads the trash of all accounts."""
        partition = self._find(account)
        if partition is None:
            return []
        prefix = keys.head(0, keys.TRASH)
        found = []
        with partition.read() as txn:
            cursor = txn.cursor()
            if cursor.set_range(prefix):
                for key, small in cursor:
                    if not key.startswith(prefix):
                        break
                    due, owner, mailbox_id, uid = keys.split_trash(key)
                    if owner != account:
                        continue
                    value = txn.get(keys.message(account, mailbox_id, uid))
                    if value:
                        found.append(Trashed(due, mailbox_id, self._row(small, value)))
        return found

    def metadata(self, account: int, mailbox_id: int) -> dict[str, bytes]:
        """The annotations of a mailbox, or with 0 of the account (RFC 5464)."""
        partition = self._find(account)
        if partition is None:
            return {}
        with partition.read() as txn:
            raw = txn.get(keys.metadata(account, mailbox_id))
        return _decode_metadata(raw) if raw else {}

    def acl(self, account: int, mailbox_id: int) -> dict[str, tuple[int, str]]:
        """The access control list of a mailbox: address -> (account, rights). The owner is not in it."""
        partition = self._find(account)
        if partition is None:
            return {}
        with partition.read() as txn:
            raw = txn.get(keys.acl(account, mailbox_id))
        return _decode_acl(raw) if raw else {}

    def shared(self, account: int) -> list[int]:
        """The accounts that share mailboxes with this one."""
        partition = self._find(account)
        if partition is None:
            return []
        with partition.read() as txn:
            raw = txn.get(keys.shared(account))
        return _decode_numbers(raw) if raw else []

    def usage(self, account: int) -> tuple[int, int]:
        """(octets, messages) of all mailboxes of the account."""
        partition = self._find(account)
        if partition is None:
            return 0, 0
        with partition.read() as txn:
            raw = txn.get(keys.account(account))
        if raw is None:
            return 0, 0
        row = _decode_account(raw)
        return row.octets, row.messages

    def close(self) -> None:
        """Close the environments and files."""
        for partition in self._partitions.values():
            partition.close()
        self._partitions.clear()
        self._home.clear()
        if self._blobs is not None:
            self._blobs.close()


__all__ = [
    "FETCH_BODYSTRUCTURE",
    "FETCH_ENVELOPE",
    "FETCH_FLAGS",
    "FETCH_INTERNALDATE",
    "FETCH_MODSEQ",
    "FETCH_RFC822_SIZE",
    "FETCH_UID",
    "KEYWORD_SHIFT",
    "Mailbox",
    "Reader",
    "Row",
    "Selected",
]
