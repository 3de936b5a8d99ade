"""One partition: operations in, rows out. The only code that writes a partition's LMDB environment.

`apply` runs a batch of requests in one transaction and commits it; everything an operation can refuse it refuses before
its first write. All calls come from one thread (the writer thread of role `store`), which may block on the disk.
`docs/decisions/0002` and `keys.py` tell what is written.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import lmdb
import msgspec

from iems import reserve
from iems.durable import sync_folder
from iems.errors import IemsError, StoreError
from iems.imap import mailboxes
from iems.model import Extent, Rope
from iems.store import keys, wire
from iems.store.content import Content
from iems.store.handover import Handover
from iems.store.marks import Marks
from iems.store.reclaim import Reclaim
from iems.store.rows import (
    ACL_MAX,
    BLOB_DIED,
    BLOB_OWN,
    BLOB_ROW,
    CHANGED_UNKNOWN,
    DEDUP_ROW,
    DEFAULT_MAILBOXES,
    DELETED,
    DISCARDED,
    FLAGS_ROW,
    FORMAT,
    FORMATS_READ,
    KEYWORD_SHIFT,
    KEYWORDS_MAX,
    MESSAGE_HEAD,
    METADATA_ENTRIES_MAX,
    METADATA_OCTETS_MAX,
    SEEN,
    SHARED_MAX,
    SIZE_MAX,
    SUMMARY_INLINE_MAX,
    Account,
    DomainUse,
    Mailbox,
    Meta,
    encode,
    message_rope,
    pack_message,
    summary_place,
    system_bit,
)
from iems.store.sweep import Sweep
from iems.store.wire import Delivered, Delivery, NewMessage

MAP_OCTETS = 256 << 30
#: A copy of the rows that was being made (compact.py); it must not outlive what is deleted here.
FRESH = "data.mdb.fresh"
MAX_READERS = 4_096
UID_MAX = 0xFFFF_FFFF
MAILBOXES_MAX = 10_000
KEYWORD_OCTETS_MAX = 200
_TOO_MANY = f"an account has at most {MAILBOXES_MAX:,} mailboxes"
ACCOUNTS_CACHED = 4_096
BLOBS_CACHED = 16_384
INLINE_MAX = 64 << 10
VANISHED_S = 30 * 86_400
#: So long after a message came it is noted that it was let go of: longer than the spool knows its outcome.
GONE_S = 7 * 86_400
DEDUP_S = 30 * 86_400
ANSWER_S = 3_600
ORPHAN_S = 3_600
_VANISHED_PRUNE = 16
#: Messages of a mailbox from which on changed flags are noted in a journal; changes of one operation that are; how far back.
JOURNAL_MIN = 20_000
JOURNAL_UIDS = 1_000
JOURNAL_MODSEQS = 10_000
_JOURNAL_PRUNE = 64
_U32 = struct.Struct("<I")
_CHANGED = struct.Struct("<IQQ")
_decode_account = msgspec.msgpack.Decoder(Account).decode
_decode_mailbox = msgspec.msgpack.Decoder(Mailbox).decode
_decode_use = msgspec.msgpack.Decoder(DomainUse).decode
_decode_meta = msgspec.msgpack.Decoder(Meta).decode
_decode_metadata = msgspec.msgpack.Decoder(dict[str, bytes]).decode
_decode_acl = msgspec.msgpack.Decoder(dict[str, tuple[int, str]]).decode
_decode_numbers = msgspec.msgpack.Decoder(list[int]).decode
_decode_names = msgspec.msgpack.Decoder(list[str]).decode

_SPECIAL_USES = {"", "\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash", "\\Important"}
_NIL = encode(None)


class PartitionBroken(IemsError):
    """The disk failed under the environment: only a fresh process may go on with it."""


class Job(NamedTuple):
    """A request as the partition needs it. client 0: no answer is stored (tests, commands)."""

    client: int
    seq: int
    acked: int
    body: Any


class Outcome(NamedTuple):
    """status: wire.DONE, REFUSED or BUSY; value: the answer's value, packed."""

    status: int
    value: bytes


class _State:
    """An account as the writer knows it between transactions."""

    __slots__ = ("boxes", "by_name", "changed", "dirty", "number", "row", "use")

    def __init__(self, number: int, row: Account) -> None:
        self.number = number
        self.row = row
        self.boxes: dict[int, Mailbox] = {}
        self.by_name: dict[str, Mailbox] = {}
        self.dirty = False  # the account row
        self.changed: set[int] = set()  # mailbox rows
        self.use: _Domain | None = None  # of its domain, if that is counted


class _Domain:
    """What a domain keeps, between transactions."""

    __slots__ = ("dirty", "name", "row")

    def __init__(self, name: str, row: DomainUse) -> None:
        self.name = name
        self.row = row
        self.dirty = False


def refused(code: str, text: str) -> Outcome:
    """The outcome of a refusal."""
    return Outcome(wire.REFUSED, encode((code, text)))


BUSY = Outcome(wire.BUSY, _NIL)


class Partition:
    """Rows and bytes of the accounts of one partition.

    path: HOME/store/pN. spool: HOME/spool. clock: seconds since 1970. sync=False only in tests.
    Raises IemsError if the partition is of another format, lmdb.Error if it can't be opened.
    """

    def __init__(
        self,
        path: Path,
        spool: Path,
        *,
        number: int = 0,
        undelete_s: float = 86_400,
        copy_always: bool = False,
        clock: Callable[[], float] = time.time,
        sync: bool = True,
    ) -> None:
        self.path = Path(path)
        self.number = number
        self.undelete_s = int(undelete_s)
        self._clock = clock
        index = self.path / "index"
        index.mkdir(parents=True, exist_ok=True)
        self.content = Content(
            self.path / "blobs", Path(spool), copy_always=copy_always, number=number, now_ms=lambda: int(clock() * 1000)
        )
        (index / FRESH).unlink(missing_ok=True)
        reserve.lock_file(index)
        self.env = lmdb.open(
            str(index), map_size=MAP_OCTETS, max_readers=MAX_READERS, sync=sync, metasync=sync, readahead=False
        )
        self.env.reader_check()
        if sync:
            for folder in (index, self.path, self.path.parent):
                sync_folder(folder)
        self._states: OrderedDict[int, _State] = OrderedDict()
        self._used: dict[int, _State] = {}  # those of this transaction
        self._domains: dict[str, _Domain] = {}
        self._counted: list[_Domain] = []  # changed by this transaction
        #: Of the rows: 1 counts no domains.
        self.format = FORMAT
        self._blobs: OrderedDict[int, tuple[int, int, int, int]] = OrderedDict()
        self._live: dict[int, int] = {}
        self._died: set[int] = set()  # blobs that lost octets in this transaction
        self._answers: dict[int, dict[int, None]] = {}
        self._copy: set[int] = set()
        self._missing: set[int] = set()
        self._own: set[int] = set()
        self._now = int(clock())
        self._txn: Any = None  # octets come as bytes; the binding says memoryview too
        #: (account, mailbox) -> modseq of what the last `apply` changed.
        self.touched: dict[tuple[int, int], int] = {}
        self._operations: dict[type, Callable[[Any], bytes]] = {
            wire.Deliver: self._deliver,
            wire.Forget: self._forget,
            wire.Ensure: self._ensure,
            wire.Create: self._create,
            wire.Delete: self._delete,
            wire.Rename: self._rename,
            wire.Subscribe: self._subscribe,
            wire.Append: self._append,
            wire.StoreFlags: self._store_flags,
            wire.Expunge: self._expunge,
            wire.Expire: self._expire,
            wire.Copy: self._copy_messages,
            wire.Recent: self._recent,
            wire.Drop: self._drop,
            wire.Undelete: self._undelete,
            wire.SetMetadata: self._set_metadata,
            wire.SetAcl: self._set_acl,
            wire.SetShared: self._set_shared,
            wire.Part: self._part,
        }
        self.handover = Handover(self)
        self._operations |= self.handover.operations
        self.sweep = Sweep(self)
        self._reclaim = Reclaim(self, ORPHAN_S, DEDUP_S, ANSWER_S, GONE_S)
        self._open_rows()

    def _open_rows(self) -> None:
        with self.env.begin(write=True) as txn:
            raw = txn.get(keys.META_KEY)
            if raw is None:
                txn.put(keys.META_KEY, encode(Meta(FORMAT, self.number)))
            else:
                meta = _decode_meta(raw)
                if meta.version not in FORMATS_READ:
                    raise IemsError(f"{self.path}: rows of format {meta.version}, this version reads {FORMATS_READ[0]} to {FORMAT}")
                self.format = meta.version
                if meta.number != self.number:
                    raise IemsError(f"{self.path}: this is partition {meta.number}, not {self.number}")
            prefix = keys.head(0, keys.ANSWER)
            cursor = txn.cursor()
            if cursor.set_range(prefix):
                for key in cursor.iternext(values=False):
                    if not key.startswith(prefix):
                        break
                    client, seq = keys.split_answer(key)
                    self._answers.setdefault(client, {})[seq] = None

    # Batches

    def apply(self, jobs: list[Job]) -> list[Outcome]:
        """Do `jobs` in one durable transaction; outcomes in their order. `touched` tells what changed.

        Raises PartitionBroken if the disk failed: what was asked is not done, and the process must end.
        """
        self.touched = {}
        try:
            return self._transaction(jobs)
        except PartitionBroken:
            raise
        except lmdb.PanicError as error:
            raise PartitionBroken(str(error)) from error
        except (lmdb.MapFullError, lmdb.DiskError, MemoryError):
            return [BUSY] * len(jobs)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS):
                return [BUSY] * len(jobs)
            if error.errno == errno.EIO:
                raise PartitionBroken(str(error)) from error
            return self._one_by_one(jobs, error)
        except Exception as error:
            return self._one_by_one(jobs, error)

    def _one_by_one(self, jobs: list[Job], error: Exception) -> list[Outcome]:
        """Something unforeseen happened in a batch: find the job it belongs to and do the others."""
        if len(jobs) > 1:
            outcomes = []
            touched: dict[tuple[int, int], int] = {}
            for job in jobs:
                outcomes += self.apply([job])
                touched.update(self.touched)
            self.touched = touched
            return outcomes
        job = jobs[0]
        if isinstance(job.body, wire.Deliver) and len(job.body.batch) > 1:
            outcomes = self._one_by_one(
                [Job(job.client, job.seq, job.acked, wire.Deliver([delivery])) for delivery in job.body.batch], error
            )
            answers: list[Any] = []
            for outcome in outcomes:
                if outcome.status == wire.BUSY:
                    return [BUSY]
                answers += msgspec.msgpack.decode(outcome.value)
            return [Outcome(wire.DONE, encode(answers))]
        if isinstance(job.body, wire.Deliver):
            return [Outcome(wire.DONE, encode([Delivered("error", text=f"{type(error).__name__}: {error}")]))]
        return [refused("SERVERBUG", f"{type(error).__name__}: {error}")]

    def _transaction(self, jobs: list[Job]) -> list[Outcome]:
        self._now = int(self._clock())
        self._adopt(jobs)
        txn = self._txn = self.env.begin(write=True)
        try:
            outcomes = [self._do(job) for job in jobs]
            self._write_back()
        except BaseException:
            txn.abort()
            self._drop_caches()
            raise
        try:
            self.content.sync()
        except OSError as error:
            txn.abort()
            self._drop_caches()
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            raise PartitionBroken(str(error)) from error
        self._commit(txn)
        return outcomes

    def _commit(self, txn: Any) -> None:
        try:
            txn.commit()
        except (lmdb.DiskError, lmdb.MapFullError):
            self._drop_caches()
            raise
        except lmdb.Error as error:
            self._drop_caches()
            if reserve.cut_short(error, self.path):
                raise OSError(errno.ENOSPC, str(error)) from error
            if os.strerror(errno.EROFS) in str(error):
                raise OSError(errno.EROFS, str(error)) from error
            raise PartitionBroken(str(error)) from error

    def _drop_caches(self) -> None:
        # What is in memory may be ahead of what was committed.
        self._states.clear()
        self._used.clear()
        self._domains.clear()
        self._counted.clear()
        self._blobs.clear()
        self._live.clear()
        self._died.clear()
        self._own.clear()
        self.touched = {}
        self.content.forget_copies()

    def _do(self, job: Job) -> Outcome:
        body = job.body
        operation = self._operations.get(type(body))
        if operation is None:
            return refused("CLIENTBUG", "not an operation of a partition")
        stored = job.client and isinstance(body, wire.ANSWERED)
        if job.client and (known := self._answers.get(job.client)):
            # What the client has seen answered it will never ask again.
            for seq in [seq for seq in known if seq < job.acked]:
                self._txn.delete(keys.answer(job.client, seq))
                del known[seq]
            if stored and job.seq in known:
                raw = self._txn.get(keys.answer(job.client, job.seq))
                if raw is not None:
                    return Outcome(raw[4], raw[5:])
        try:
            outcome = Outcome(wire.DONE, operation(body))
        except StoreError as error:
            outcome = refused(error.code, str(error))
        if stored:
            self._txn.put(
                keys.answer(job.client, job.seq),
                _U32.pack(self._now) + bytes((outcome.status,)) + outcome.value,
            )
            self._answers.setdefault(job.client, {})[job.seq] = None
        return outcome

    def _write_back(self) -> None:
        """Put the rows many operations share once, at the end of the transaction."""
        txn = self._txn
        for state in self._used.values():
            if state.dirty:
                txn.put(keys.account(state.number), encode(state.row))
                state.dirty = False
            for number in state.changed:
                box = state.boxes.get(number)
                if box is not None:
                    txn.put(keys.mailbox(state.number, number), encode(box))
            state.changed.clear()
        self._used.clear()
        for use in self._counted:
            if use.row.accounts > 0:
                txn.put(keys.domain(use.name), encode(use.row))
            else:
                txn.delete(keys.domain(use.name))
            use.dirty = False
        self._counted.clear()
        while len(self._states) > ACCOUNTS_CACHED:
            self._states.popitem(last=False)
        for blob, delta in self._live.items():
            self._write_blob(blob, delta)
        self._live.clear()
        self._died.clear()
        while len(self._blobs) > BLOBS_CACHED:
            self._blobs.popitem(last=False)

    # Bytes

    def _adopt(self, jobs: list[Job]) -> None:
        """Own every blob that new rows will name, before the transaction that writes them."""
        new: set[int] = set()
        blobs = self._blobs
        for job in jobs:
            body = job.body
            if isinstance(body, wire.Bring):
                self.handover.adopt(body)
                continue
            if isinstance(body, wire.Deliver):
                entries: Iterable[Delivery | NewMessage] = body.batch
            elif isinstance(body, wire.Append):
                entries = body.messages
            else:
                continue
            for entry in entries:
                for piece in entry.rope:
                    if type(piece) is Extent and piece.blob not in blobs:
                        new.add(piece.blob)
        self._copy, self._missing = set(), set()
        if not new:
            return
        with self.env.begin() as txn:
            unknown = []
            for blob in new:
                raw = txn.get(keys.blob(blob))
                if raw is None:
                    unknown.append(blob)
                else:
                    blobs[blob] = BLOB_ROW.unpack(raw)
        if unknown:
            self._copy, self._missing = self.content.link(unknown)

    def _write_blob(self, blob: int, delta: int) -> None:
        row = self._blobs.get(blob)
        if row is None:
            raw = self._txn.get(keys.blob(blob))
            row = BLOB_ROW.unpack(raw) if raw else (0, 0, self._now, BLOB_OWN if blob in self._own else 0)
        live, length, since, bits = row
        live = max(live + delta, 0)
        if blob in self._died:
            bits |= BLOB_DIED
            self.sweep.died(blob)
        self._blobs[blob] = (live, length, since, bits)
        self._txn.put(keys.blob(blob), BLOB_ROW.pack(live, length, since, bits))

    def _count(self, rope: Rope, sign: int) -> None:
        if sign > 0:
            self.sweep.note(rope)
        live = self._live
        for piece in rope:
            if type(piece) is Extent:
                live[piece.blob] = live.get(piece.blob, 0) + sign * piece.length
                if sign < 0:
                    self._died.add(piece.blob)

    def _count_row(self, value: bytes, sign: int) -> None:
        """Count what a message row names."""
        self._count(message_rope(value), sign)
        place = summary_place(value)
        if place is not None:
            if sign > 0:
                self.sweep.note([], place)
            else:
                self._died.add(place[0])
            self._live[place[0]] = self._live.get(place[0], 0) + sign * place[2]

    def _check_content(self, entry: Delivery | NewMessage) -> None:
        """Refuse content that is not there or is not what it says."""
        octets = 0
        for piece in entry.rope:
            if type(piece) is Extent:
                if piece.blob in self._missing:
                    raise StoreError(f"the content is missing (blob {piece.blob:016x})", "SERVERBUG")
                octets += piece.length
            else:
                length = len(cast(bytes, piece))
                if length > INLINE_MAX:
                    raise StoreError("an inline piece is too long", "CLIENTBUG")
                octets += length
        if octets != entry.size and not any(type(piece) is Extent and piece.codec for piece in entry.rope):
            raise StoreError("the size is not that of the rope", "CLIENTBUG")
        if entry.size > SIZE_MAX:
            raise StoreError("the message is too large", "LIMIT")

    # Accounts and mailboxes in memory

    def _state(self, number: int) -> _State:
        """The account, made with its default mailboxes if it has no row yet."""
        if self.handover.held:
            self.handover.check(number)
        state = self._used.get(number)
        if state is not None:
            return state
        state = self._states.get(number)
        if state is None:
            state = self._load(number)
            self._states[number] = state
        else:
            self._states.move_to_end(number)
        self._used[number] = state
        return state

    def _load(self, number: int) -> _State:
        if not 0 < number <= 0xFFFF_FFFF:
            raise StoreError("no such account", "CLIENTBUG")
        txn = self._txn
        raw = txn.get(keys.account(number))
        if raw is None:
            if txn.get(keys.staged(number)) is not None:
                raise StoreError("the account was moved, or is being moved", "MOVED")
            return self._new_account(number)
        state = _State(number, _decode_account(raw))
        if state.row.given >= 0:
            raise StoreError("the account was moved", "MOVED")
        if state.row.domain and self.format > 1:
            state.use = self._domain(state.row.domain)
        prefix = keys.head(number, keys.MAILBOX)
        cursor = txn.cursor()
        if cursor.set_range(prefix):
            for key, value in cursor:
                if not key.startswith(prefix):
                    break
                box = _decode_mailbox(value)
                state.boxes[box.id] = box
                state.by_name[box.name] = box
        return state

    def _domain(self, name: str) -> _Domain:
        found = self._domains.get(name)
        if found is None:
            raw = self._txn.get(keys.domain(name))
            found = self._domains[name] = _Domain(name, _decode_use(raw) if raw else DomainUse())
        return found

    def count_domain(self, name: str, octets: int, messages: int, accounts: int) -> None:
        """Add to what a domain keeps here; nothing if domains are not counted."""
        if name and self.format > 1:
            self._add_use(self._domain(name), octets, messages, accounts)

    def _add_use(self, use: _Domain, octets: int, messages: int, accounts: int = 0) -> None:
        use.row.octets += octets
        use.row.messages += messages
        use.row.accounts += accounts
        if not use.dirty:
            use.dirty = True
            self._counted.append(use)

    def _join(self, state: _State, domain: str) -> None:
        """Count an account under its domain from now on."""
        row = state.row
        if not domain or row.domain == domain or self.format < 2:
            return
        if state.use is not None:
            self._add_use(state.use, -row.octets, -row.messages, -1)
        row.domain = domain
        state.dirty = True
        state.use = self._domain(domain)
        self._add_use(state.use, row.octets, row.messages, 1)

    @staticmethod
    def _domain_full(state: _State, octets: int, limit: int | None) -> bool:
        """Whether so much more is too much for the domain; limit: what it may have in this partition."""
        return limit is not None and state.use is not None and state.use.row.octets + octets > limit

    def forget_account(self, number: int) -> None:
        """Its rows were changed past the cache."""
        self._states.pop(number, None)
        self._used.pop(number, None)

    def _new_account(self, number: int) -> _State:
        state = _State(number, Account())
        for name, use in DEFAULT_MAILBOXES:
            self._new_mailbox(state, name, use)
        self._txn.put(keys.subscribed(number), encode([name for name, _ in DEFAULT_MAILBOXES]))
        # In memory only until the end of the transaction; a dropped one forgets it all.
        self._used[number] = state
        return state

    def _new_mailbox(self, state: _State, name: str, special_use: str = "", noselect: bool = False) -> Mailbox:
        row = state.row
        if len(state.boxes) >= MAILBOXES_MAX:
            raise StoreError(_TOO_MANY, "LIMIT")
        row.uidvalidity = max(self._now, row.uidvalidity + 1)
        row.modseq += 1
        box = Mailbox(
            id=row.next_mailbox,
            name=name,
            uidvalidity=row.uidvalidity,
            highestmodseq=row.modseq,
            special_use=special_use,
            noselect=noselect,
            created_s=self._now,
            changed_modseq=row.modseq,
            changed_before=row.modseq,
        )
        row.next_mailbox += 1
        state.boxes[box.id] = box
        state.by_name[name] = box
        state.dirty = True
        state.changed.add(box.id)
        self.touched[state.number, box.id] = row.modseq
        return box

    def _box(self, state: _State, mailbox_id: int) -> Mailbox:
        box = state.boxes.get(mailbox_id)
        if box is None or box.noselect:
            raise StoreError("the mailbox is gone", "NONEXISTENT")
        return box

    def _named(self, state: _State, name: str, code: str) -> Mailbox:
        box = state.by_name.get(mailboxes.normal(name))
        if box is None or box.noselect:
            raise StoreError("no such mailbox", code)
        return box

    def _next(self, state: _State, box: Mailbox, arrival: bool = False) -> int:
        """The modseq of one change to `box`. arrival: it only adds messages."""
        row = state.row
        row.modseq += 1
        box.highestmodseq = row.modseq
        if not arrival:
            box.changed_before, box.changed_modseq = box.changed_modseq, row.modseq
        state.dirty = True
        state.changed.add(box.id)
        self.touched[state.number, box.id] = row.modseq
        return row.modseq

    # New messages

    def _deliver(self, body: wire.Deliver) -> bytes:
        return encode([self._deliver_one(delivery) for delivery in body.batch])

    def _deliver_one(self, delivery: Delivery) -> Delivered:
        txn = self._txn
        if len(delivery.origin) != 16:
            return Delivered("error", text="an origin has 16 octets")
        dedup = keys.dedup(delivery.origin, delivery.account)
        raw = txn.get(dedup)
        if raw is not None:
            mailbox_id, uid, _ = DEDUP_ROW.unpack(raw)
            return Delivered("duplicate", uid, mailbox_id)
        try:
            self._check_content(delivery)
            state = self._state(delivery.account)
        except StoreError as error:
            return Delivered("moved" if error.code == "MOVED" else "error", text=str(error))
        self._join(state, delivery.domain)
        if not delivery.discard:
            octets = delivery.size * (1 + len(delivery.also))
            if delivery.quota_octets is not None and state.row.octets + octets > delivery.quota_octets:
                return Delivered("overquota")
            if self._domain_full(state, octets, delivery.domain_octets):
                return Delivered("overquota", text="domain")
        box = state.by_name.get(delivery.mailbox) or state.by_name.get(mailboxes.normal(delivery.mailbox))
        if box is None or box.noselect:
            box = self._instead(state, delivery.mailbox, delivery.create, delivery.or_inbox)
            if box is None:
                return Delivered("nomailbox")
        if box.uidnext > UID_MAX:
            return Delivered("error", text="the mailbox has no uid left")
        modseq = self._next(state, box, arrival=True)
        uid = self._insert(state, box, delivery, delivery.origin, modseq)
        if delivery.discard:
            self._discard(state, box, uid)
        txn.put(dedup, DEDUP_ROW.pack(box.id, uid, self._now))
        if delivery.also:
            self._deliver_copies(state, box, delivery)
        return Delivered("ok", uid, box.id)

    def _discard(self, state: _State, box: Mailbox, uid: int) -> None:
        """Trash a message of this very transaction: no reader has seen its uid, so it has not vanished either."""
        raw = self._txn.pop(keys.flags(state.number, box.id, uid))
        _, size, flags, modseq, date = FLAGS_ROW.unpack(raw)
        self._add(state, box, size, flags, -1)
        row = FLAGS_ROW.pack(uid, size, flags | DISCARDED, modseq, date)
        self._txn.put(keys.trash(self._now + self.undelete_s, state.number, box.id, uid), row)

    def _instead(self, state: _State, name: str, create: bool, or_inbox: bool) -> Mailbox | None:
        """The mailbox for mail whose mailbox is not there: made now, or INBOX, or None."""
        if create:
            try:
                made = self._make(state, mailboxes.checked(name))
                self._subscribe(wire.Subscribe(state.number, made.name))
                return made
            except StoreError:
                pass  # no name for a mailbox, or too many of them
        return state.by_name.get("INBOX") if or_inbox else None

    def _deliver_copies(self, state: _State, first: Mailbox, delivery: Delivery) -> None:
        """The further mailboxes of a delivery; each mailbox gets it once."""
        done = {first.id}
        for place in delivery.also:
            box = state.by_name.get(mailboxes.normal(place.mailbox))
            if box is None or box.noselect:
                box = self._instead(state, place.mailbox, place.create, delivery.or_inbox)
            if box is None or box.id in done or box.uidnext > UID_MAX:
                continue
            done.add(box.id)
            entry = msgspec.structs.replace(delivery, flags=place.flags)
            self._insert(state, box, entry, delivery.origin, self._next(state, box, arrival=True))

    def _insert(self, state: _State, box: Mailbox, entry: Delivery | NewMessage, origin: bytes, modseq: int) -> int:
        """Write the two rows of a new message; its uid. Everything was checked."""
        rope = entry.rope
        if self._copy:
            rope = self.content.copy(rope, self._copy)
            if self.content.current:
                self._own.add(self.content.current)
        envelope, structure = entry.envelope, entry.bodystructure
        place = None
        if len(envelope) + len(structure) > SUMMARY_INLINE_MAX:
            place = self.content.put(envelope + structure)
            self._own.add(place[0])
            # The own segment being written is never swept: no need to tell.
            self._live[place[0]] = self._live.get(place[0], 0) + len(envelope) + len(structure)
        uid = box.uidnext
        box.uidnext = uid + 1
        flags = self._bits(box, entry.flags) if entry.flags else 0
        number = state.number
        txn = self._txn
        txn.put(
            keys.flags(number, box.id, uid), FLAGS_ROW.pack(uid, entry.size, flags, modseq, entry.internaldate_s)
        )
        txn.put(
            keys.message(number, box.id, uid),
            pack_message(rope, envelope, structure, entry.dot_free, self._now, origin, place),
        )
        self._count(rope, 1)
        self._add(state, box, entry.size, flags)
        return uid

    def _add(self, state: _State, box: Mailbox, size: int, flags: int, sign: int = 1) -> None:
        box.messages += sign
        box.size += sign * size
        if not flags & SEEN:
            box.unseen += sign
        if flags & DELETED:
            box.deleted += sign
        state.row.octets += sign * size
        state.row.messages += sign
        if state.use is not None:
            self._add_use(state.use, sign * size, sign)

    def _append(self, body: wire.Append) -> bytes:
        state = self._state(body.account)
        box = self._named(state, body.mailbox, "TRYCREATE")
        total = 0
        for message in body.messages:
            self._check_content(message)
            self._check_flags(box, message.flags)
            total += message.size
        if body.quota_octets is not None and state.row.octets + total > body.quota_octets:
            raise StoreError("over quota", "OVERQUOTA")
        self._join(state, body.domain)
        if self._domain_full(state, total, body.domain_octets):
            raise StoreError("the domain is over its quota", "OVERQUOTA")
        if box.uidnext + len(body.messages) > UID_MAX + 1:
            raise StoreError("the mailbox has no uid left", "LIMIT")
        old = old_raw = None
        if body.replaced_uid:
            old = self._box(state, body.replaced_box)
            old_raw = self._txn.get(keys.flags(state.number, old.id, body.replaced_uid))
            if old_raw is None:
                raise StoreError("the message to replace is gone", "NONEXISTENT")
        uids = bytearray()
        if body.messages:
            modseq = self._next(state, box, arrival=True)
            marks = Marks(self._txn, state.number, box.id) if body.member else None
            for message in body.messages:
                origin = (self._now * 1000).to_bytes(6, "big") + os.urandom(10)
                seen = marks is not None and any(system_bit(name) == SEEN for name in message.flags)
                if seen:
                    # To everybody else it is new.
                    message = msgspec.structs.replace(message, flags=[name for name in message.flags if system_bit(name) != SEEN])
                uid = self._insert(state, box, message, origin, modseq)
                if marks is not None and seen:
                    marks.mark(uid, body.member)
                uids += _U32.pack(uid)
            if marks is not None:
                marks.flush()
        if old is not None and old_raw is not None:
            self._remove(state, old, [old_raw])
        return encode((box.uidvalidity, box.id, bytes(uids)))

    # Flags

    def _check_flags(self, box: Mailbox, flags: list[str]) -> None:
        """Refuse flags that are none, or new keywords without room. Raises StoreError."""
        known = {name.lower() for name in box.keywords}
        new = set()
        for name in flags:
            if system_bit(name):
                continue
            if name.startswith("\\"):
                if name.lower() == "\\recent":
                    continue
                raise StoreError(f"there is no flag {name}", "CANNOT")
            if not name or len(name) > KEYWORD_OCTETS_MAX or not name.isascii() or not name.isprintable():
                raise StoreError("not a keyword", "CANNOT")
            if any(char in ' (){%*"\\]' for char in name):
                raise StoreError("not a keyword", "CANNOT")
            if name.lower() not in known:
                new.add(name.lower())
        if len(known) + len(new) > KEYWORDS_MAX:
            raise StoreError("too many keywords in this mailbox", "LIMIT")

    def _bits(self, box: Mailbox, flags: list[str], create: bool = True) -> int:
        """The bits of `flags`, new keywords added to the mailbox (none that is malformed or finds no room)."""
        bits = 0
        for name in flags:
            bit = system_bit(name)
            if not bit and not name.startswith("\\"):
                bit = self._keyword(box, name, create)
            bits |= bit
        return bits

    @staticmethod
    def _keyword(box: Mailbox, name: str, create: bool) -> int:
        wanted = name.lower()
        for index, known in enumerate(box.keywords):
            if known.lower() == wanted:
                return 1 << KEYWORD_SHIFT + index
        if not create or len(box.keywords) >= KEYWORDS_MAX:
            return 0
        box.keywords = [*box.keywords, name]
        return 1 << KEYWORD_SHIFT + len(box.keywords) - 1

    def _store_flags(self, body: wire.StoreFlags) -> bytes:
        state = self._state(body.account)
        box = self._box(state, body.mailbox_id)
        if body.mode not in ("+", "-", "="):
            raise StoreError("mode is +, - or =", "CLIENTBUG")
        if body.mode != "-":
            self._check_flags(box, body.flags)
        uids = self._uids(body.uids)
        txn = self._txn
        number = state.number
        bits: int | None = None
        modseq = 0
        answer = bytearray()
        journal = bytearray()
        marks = Marks(txn, number, box.id) if body.member else None
        for uid in uids:
            key = keys.flags(number, box.id, uid)
            raw = txn.get(key)
            if raw is None:
                continue
            _, size, old, at, date = FLAGS_ROW.unpack(raw)
            if body.unchangedsince is not None and at > body.unchangedsince:
                continue
            if bits is None:
                before = len(box.keywords)
                bits = self._bits(box, body.flags, body.mode != "-")
                if len(box.keywords) != before:
                    state.changed.add(box.id)
            shown = old if marks is None or not marks.marked(uid, body.member) else old ^ SEEN
            told = new = shown | bits if body.mode == "+" else shown & ~bits if body.mode == "-" else bits
            if new != shown:
                if not modseq:
                    modseq = self._next(state, box)
                at = modseq
                if marks is not None:
                    marks.mark(uid, body.member, bool((new ^ old) & SEEN))
                    new = (new & ~SEEN) | (old & SEEN)
                txn.put(key, FLAGS_ROW.pack(uid, size, new, at, date))
                journal += raw[:4]
                box.unseen += (not new & SEEN) - (not old & SEEN)
                box.deleted += bool(new & DELETED) - bool(old & DELETED)
            answer += _CHANGED.pack(uid, told, at)
        if marks is not None:
            marks.flush()
        if modseq:
            self._note(number, box, modseq, journal)
        return encode(bytes(answer))

    def _note(self, number: int, box: Mailbox, modseq: int, uids: bytearray) -> None:
        """Name changed messages in the journal, so that who was away need not look at all of a large mailbox."""
        if box.messages < JOURNAL_MIN or len(uids) > 4 * JOURNAL_UIDS:
            box.journal_floor = modseq
            return
        if box.journal_floor == CHANGED_UNKNOWN:
            box.journal_floor = modseq - 1
        self._txn.put(keys.journal(number, box.id, modseq), bytes(uids))
        if modseq % _JOURNAL_PRUNE:
            return
        prefix = keys.prefix(number, keys.JOURNAL, box.id)
        limit = modseq - JOURNAL_MODSEQS
        cursor = self._txn.cursor()
        found = cursor.set_range(prefix)
        while found and (key := cursor.key()).startswith(prefix):
            old = int.from_bytes(key[-8:], "big")
            if old > limit:
                break
            box.journal_floor = max(box.journal_floor, old)
            found = cursor.delete()

    @staticmethod
    def _uids(packed: bytes) -> list[int]:
        if len(packed) % 4:
            raise StoreError("uids are u32", "CLIENTBUG")
        return sorted({uid for (uid,) in _U32.iter_unpack(packed)})

    def _recent(self, body: wire.Recent) -> bytes:
        state = self._state(body.account)
        box = self._box(state, body.mailbox_id)
        first = box.recent_uid
        if first != box.uidnext:
            box.recent_uid = box.uidnext
            state.changed.add(box.id)
        return encode(first)

    # Going and moving

    def _flag_rows(self, number: int, mailbox_id: int) -> Iterator[bytes]:
        """All flags rows of a mailbox."""
        prefix = keys.prefix(number, keys.FLAGS, mailbox_id)
        cursor = self._txn.cursor()
        if cursor.set_range(prefix):
            for key, value in cursor:
                if not key.startswith(prefix):
                    return
                yield value

    def _expunge(self, body: wire.Expunge) -> bytes:
        state = self._state(body.account)
        box = self._box(state, body.mailbox_id)
        if not box.deleted:
            return encode(b"")
        txn = self._txn
        number = state.number
        if body.uids is None:
            rows = [raw for raw in self._flag_rows(number, box.id) if raw[8] & DELETED]
        else:
            found = (txn.get(keys.flags(number, box.id, uid)) for uid in self._uids(body.uids))
            rows = [raw for raw in found if raw is not None and raw[8] & DELETED]
        if not rows:
            return encode(b"")
        return encode(self._remove(state, box, rows))

    def _expire(self, body: wire.Expire) -> bytes:
        state = self._state(body.account)
        box = self._box(state, body.mailbox_id)
        found = (self._txn.get(keys.flags(state.number, box.id, uid)) for uid in self._uids(body.uids))
        rows = [raw for raw in found if raw is not None]
        return encode(self._remove(state, box, rows) if rows else b"")

    def _remove(self, state: _State, box: Mailbox, rows: list[bytes]) -> bytes:
        """Expunge messages given by their flags rows; their uids, packed."""
        txn = self._txn
        number = state.number
        modseq = self._next(state, box)
        due = self._now + self.undelete_s
        gone = bytearray()
        for raw in rows:
            uid, size, flags, _, _ = FLAGS_ROW.unpack(raw)
            txn.delete(keys.flags(number, box.id, uid))
            # The message row stays where it is until the trash row is due (reclaim.py).
            txn.put(keys.trash(due, number, box.id, uid), raw)
            self._add(state, box, size, flags, -1)
            gone += raw[:4]
        marks = Marks(txn, number, box.id)
        marks.clear(uid for (uid,) in _U32.iter_unpack(gone))
        marks.flush()
        self._vanish(number, box, modseq, bytes(gone))
        return bytes(gone)

    def _vanish(self, number: int, box: Mailbox, modseq: int, uids: bytes) -> None:
        """Note expunged uids for QRESYNC (RFC 7162), and let go of what is beyond the horizon."""
        txn = self._txn
        txn.put(keys.vanished(number, box.id, modseq), _U32.pack(self._now) + uids)
        prefix = keys.prefix(number, keys.VANISHED, box.id)
        old: list[bytes] = []
        cursor = txn.cursor()
        if cursor.set_range(prefix):
            for key, value in cursor:
                if not key.startswith(prefix) or len(old) == _VANISHED_PRUNE:
                    break
                if _U32.unpack_from(value)[0] + VANISHED_S >= self._now:
                    break
                old.append(key)
        for key in old:
            txn.delete(key)
            box.vanished_floor = int.from_bytes(key[-8:], "big")

    def _copy_messages(self, body: wire.Copy) -> bytes:
        state = self._state(body.account)
        source = self._box(state, body.src_id)
        target = self._named(state, body.dst_name, "TRYCREATE")
        rows = []
        octets = 0
        for uid in self._uids(body.uids):
            raw = self._txn.get(keys.flags(state.number, source.id, uid))
            if raw is not None:
                rows.append(raw)
                octets += _U32.unpack_from(raw, 4)[0]
        if not body.move and body.quota_octets is not None and state.row.octets + octets > body.quota_octets:
            raise StoreError("over quota", "OVERQUOTA")
        self._join(state, body.domain)
        if not body.move and self._domain_full(state, octets, body.domain_octets):
            raise StoreError("the domain is over its quota", "OVERQUOTA")
        if target.uidnext + len(rows) > UID_MAX + 1:
            raise StoreError("the target has no uid left", "LIMIT")
        sources, targets = self._transfer(state, source, target, rows, body.move)
        return encode((target.uidvalidity, sources, targets))

    def _transfer(
        self, state: _State, source: Mailbox, target: Mailbox, rows: list[bytes], move: bool
    ) -> tuple[bytes, bytes]:
        """Copy or move messages given by their flags rows: (uids in the source, in the target), packed."""
        if not rows:
            return b"", b""
        txn = self._txn
        number = state.number
        saved = _U32.pack(self._now)
        modseq = self._next(state, target, arrival=True)
        translate = self._translation(source)
        sources, targets = bytearray(), bytearray()
        marks = Marks(txn, number, source.id)
        there = Marks(txn, number, target.id) if source is not target else marks
        for raw in rows:
            uid, size, flags, _, date = FLAGS_ROW.unpack(raw)
            key = keys.message(number, source.id, uid)
            value = txn.get(key)
            if value is None:
                continue  # damaged: nothing to copy (fsck names it)
            kept = flags & 0xFFFF
            if flags >> KEYWORD_SHIFT:
                for bit, name in translate:
                    if flags & bit:
                        kept |= self._keyword(target, name, True)
            new = target.uidnext
            target.uidnext = new + 1
            txn.put(keys.flags(number, target.id, new), FLAGS_ROW.pack(new, size, kept, modseq, date))
            txn.put(keys.message(number, target.id, new), value[:16] + saved + value[20:])
            self._add(state, target, size, kept)
            for member in marks.members(uid):
                there.mark(new, member)
                if move:
                    marks.mark(uid, member, False)
            if move:
                txn.delete(keys.flags(number, source.id, uid))
                txn.delete(key)
                self._add(state, source, size, flags, -1)
                self.sweep.note(message_rope(value), summary_place(value))
            else:
                self._count_row(value, 1)
            sources += raw[:4]
            targets += _U32.pack(new)
        marks.flush()
        there.flush()
        if move and sources:
            self._vanish(number, source, self._next(state, source), bytes(sources))
        return bytes(sources), bytes(targets)

    def _undelete(self, body: wire.Undelete) -> bytes:
        state = self._state(body.account)
        target = self._named(state, body.mailbox, "TRYCREATE")
        if target.uidnext + len(body.rows) > UID_MAX + 1:
            raise StoreError("the mailbox has no uid left", "LIMIT")
        txn = self._txn
        number = state.number
        uids = bytearray()
        modseq = 0
        sources: dict[int, Mailbox | None] = {}
        for due, mailbox_id, uid in body.rows:
            trash = keys.trash(due, number, mailbox_id, uid)
            raw = txn.get(trash)
            value = txn.get(keys.message(number, mailbox_id, uid)) if raw is not None else None
            if raw is None or value is None:
                continue  # its time was over
            modseq = modseq or self._next(state, target, arrival=True)
            _, size, flags, _, date = FLAGS_ROW.unpack(raw)
            kept = flags & 0xFFFF & ~(DELETED | DISCARDED)
            if flags >> KEYWORD_SHIFT:
                if mailbox_id not in sources:
                    sources[mailbox_id] = self._known_box(state, mailbox_id)
                source = sources[mailbox_id]
                for bit, name in self._translation(source) if source is not None else ():
                    if flags & bit:
                        kept |= self._keyword(target, name, True)
            new = target.uidnext
            target.uidnext = new + 1
            txn.put(keys.flags(number, target.id, new), FLAGS_ROW.pack(new, size, kept, modseq, date))
            txn.put(keys.message(number, target.id, new), value[:16] + _U32.pack(self._now) + value[20:])
            txn.delete(keys.message(number, mailbox_id, uid))
            txn.delete(trash)
            self._add(state, target, size, kept)
            self.sweep.note(message_rope(value), summary_place(value))
            uids += _U32.pack(new)
        return encode((target.uidvalidity, bytes(uids)))

    def _known_box(self, state: _State, mailbox_id: int) -> Mailbox | None:
        """A mailbox that is there, or was deleted and not yet purged."""
        box = state.boxes.get(mailbox_id)
        if box is not None:
            return box
        prefix = keys.head(0, keys.PURGE)
        cursor = self._txn.cursor()
        if cursor.set_range(prefix):
            for key, value in cursor:
                if not key.startswith(prefix):
                    break
                if keys.split_purge(key)[1:] == (state.number, mailbox_id):
                    return _decode_mailbox(value)
        return None

    @staticmethod
    def _translation(source: Mailbox) -> list[tuple[int, str]]:
        """Keyword bits of `source` with their names."""
        return [(1 << KEYWORD_SHIFT + index, name) for index, name in enumerate(source.keywords)]

    # Mailboxes

    def _ensure(self, body: wire.Ensure) -> bytes:
        self._state(body.account)
        return _NIL

    def _create(self, body: wire.Create) -> bytes:
        state = self._state(body.account)
        name = mailboxes.checked(body.name)
        if body.special_use not in _SPECIAL_USES:
            raise StoreError("no such special use", "USEATTR")
        return encode(self._make(state, name, body.special_use))

    def _make(self, state: _State, name: str, special_use: str = "") -> Mailbox:
        """A new mailbox with all levels above it; name: checked. Raises StoreError."""
        box = state.by_name.get(name)
        if box is not None and not box.noselect:
            raise StoreError("the mailbox exists", "ALREADYEXISTS")
        missing = [parent for parent in mailboxes.parents(name) if parent not in state.by_name]
        if len(state.boxes) + len(missing) + 1 > MAILBOXES_MAX:
            raise StoreError(_TOO_MANY, "LIMIT")
        for parent in missing:
            self._inherit(state, self._new_mailbox(state, parent))
        if box is not None:
            self._remove_rows(state, box)
        made = self._new_mailbox(state, name, special_use)
        self._inherit(state, made)
        return made

    def _inherit(self, state: _State, made: Mailbox) -> None:
        """Who may work in a mailbox, and nobody else, may work in those made below it (RFC 4314 4)."""
        above = state.by_name.get(made.name.rpartition(mailboxes.SEPARATOR)[0])
        if above is not None and (raw := self._txn.get(keys.acl(state.number, above.id))) is not None:
            self._txn.put(keys.acl(state.number, made.id), raw)

    def _children(self, state: _State, name: str) -> list[Mailbox]:
        return [box for other, box in state.by_name.items() if other.startswith(name + mailboxes.SEPARATOR)]

    def _delete(self, body: wire.Delete) -> bytes:
        state = self._state(body.account)
        name = mailboxes.normal(body.name)
        if name == "INBOX":
            raise StoreError("INBOX can't be deleted", "CANNOT")
        box = state.by_name.get(name)
        if box is None:
            raise StoreError("no such mailbox", "NONEXISTENT")
        children = bool(self._children(state, name))
        if children and box.noselect:
            raise StoreError("the mailbox has children", "HASCHILDREN")
        if not box.noselect:
            self._set_aside(state, box)
        self._remove_rows(state, box)
        if children:
            self._new_mailbox(state, name, noselect=True)
        return _NIL

    def _set_aside(self, state: _State, box: Mailbox) -> None:
        """Leave the messages of a mailbox that goes to the purge row; they no longer count."""
        due = self._now + self.undelete_s
        self._txn.put(keys.purge(due, state.number, box.id), encode(box))
        self._bury(state, box)
        state.row.octets -= box.size
        state.row.messages -= box.messages
        if state.use is not None:
            self._add_use(state.use, -box.size, -box.messages)
        state.dirty = True

    def _remove_rows(self, state: _State, box: Mailbox) -> None:
        self._txn.delete(keys.mailbox(state.number, box.id))
        self._txn.delete(keys.metadata(state.number, box.id))
        self._txn.delete(keys.acl(state.number, box.id))
        state.boxes.pop(box.id)
        state.by_name.pop(box.name)
        state.changed.discard(box.id)
        state.row.modseq += 1
        state.dirty = True
        self.touched[state.number, box.id] = state.row.modseq

    def _bury(self, state: _State, box: Mailbox) -> None:
        """Remember what uidvalidity a name showed when its mailbox leaves it."""
        self._txn.put(keys.tombstone(state.number, box.name), _U32.pack(box.uidvalidity))

    def _rename(self, body: wire.Rename) -> bytes:
        state = self._state(body.account)
        old, new = mailboxes.normal(body.old), mailboxes.checked(body.new)
        box = state.by_name.get(old)
        if box is None:
            raise StoreError("no such mailbox", "NONEXISTENT")
        if new in state.by_name:
            raise StoreError("a mailbox of the new name exists", "ALREADYEXISTS")
        if new.startswith(old + mailboxes.SEPARATOR) and old != "INBOX":
            raise StoreError("a mailbox can't become its own child", "CANNOT")
        moved = [] if old == "INBOX" else [(box, new)]
        if old != "INBOX":
            for child in self._children(state, old):
                name = mailboxes.checked(new + child.name[len(old) :])
                if name in state.by_name:
                    raise StoreError("a mailbox of a new name exists", "ALREADYEXISTS")
                moved.append((child, name))
        missing = [parent for parent in mailboxes.parents(new) if parent not in state.by_name]
        if len(state.boxes) + len(missing) + 1 > MAILBOXES_MAX:
            raise StoreError(_TOO_MANY, "LIMIT")
        for parent in missing:
            self._inherit(state, self._new_mailbox(state, parent))
        if old == "INBOX":
            # Its messages move, INBOX itself and its children stay (RFC 9051 6.3.6).
            self._transfer(
                state, box, self._new_mailbox(state, new), list(self._flag_rows(state.number, box.id)), True
            )
            return _NIL
        for child, name in moved:
            self._rename_one(state, child, name)
        return _NIL

    def _rename_one(self, state: _State, box: Mailbox, name: str) -> None:
        if not box.noselect:
            self._bury(state, box)
        raw = self._txn.get(keys.tombstone(state.number, name))
        state.by_name.pop(box.name)
        box.name = name
        state.by_name[name] = box
        if raw is not None and _U32.unpack(raw)[0] > box.uidvalidity:
            # The name has shown a higher uidvalidity: a lower one would break clients' caches (RFC 9051 2.3.1.1).
            state.row.uidvalidity = box.uidvalidity = max(self._now, state.row.uidvalidity + 1)
        self._next(state, box)

    def _subscribe(self, body: wire.Subscribe) -> bytes:
        state = self._state(body.account)
        name = mailboxes.checked(body.name) if body.on else mailboxes.normal(body.name)
        raw = self._txn.get(keys.subscribed(state.number))
        listed = _decode_names(raw) if raw else []
        if body.on and name not in listed:
            if len(listed) >= MAILBOXES_MAX:
                raise StoreError(f"an account has at most {MAILBOXES_MAX:,} subscriptions", "LIMIT")
            listed.append(name)
        elif not body.on and name in listed:
            listed.remove(name)
        else:
            return _NIL
        self._txn.put(keys.subscribed(state.number), encode(listed))
        return _NIL

    def _set_metadata(self, body: wire.SetMetadata) -> bytes:
        state = self._state(body.account)
        if body.mailbox_id and body.mailbox_id not in state.boxes:
            raise StoreError("the mailbox is gone", "NONEXISTENT")
        key = keys.metadata(state.number, body.mailbox_id)
        raw = self._txn.get(key)
        kept = _decode_metadata(raw) if raw else {}
        for entry, value in body.changes.items():
            if value is None:
                kept.pop(entry, None)
            else:
                kept[entry] = value
        if len(kept) > METADATA_ENTRIES_MAX or sum(map(len, kept.values())) > METADATA_OCTETS_MAX:
            raise StoreError("too many annotations", "METADATA TOOMANY")
        if kept:
            self._txn.put(key, encode(kept))
        else:
            self._txn.delete(key)
        return _NIL

    def _set_acl(self, body: wire.SetAcl) -> bytes:
        state = self._state(body.account)
        if body.mailbox_id not in state.boxes:
            raise StoreError("the mailbox is gone", "NONEXISTENT")
        key = keys.acl(state.number, body.mailbox_id)
        raw = self._txn.get(key)
        # An address may have changed hands: the number says who it is.
        kept = {name: held for name, held in (_decode_acl(raw) if raw else {}).items() if held[0] != body.number}
        kept.pop(body.address, None)
        if body.rights:
            if len(kept) >= ACL_MAX:
                raise StoreError("too many entries in this access control list", "LIMIT")
            kept[body.address] = (body.number, body.rights)
        if kept:
            self._txn.put(key, encode(kept))
        else:
            self._txn.delete(key)
        self._look_again(state.number, body.mailbox_id)
        return _NIL

    def _look_again(self, number: int, mailbox_id: int) -> None:
        """Have who watches a mailbox look, though nothing in it changed."""
        self.touched.setdefault((number, mailbox_id), 0)

    def _part(self, body: wire.Part) -> bytes:
        state = self._state(body.account)
        for box in state.boxes.values():
            key = keys.acl(state.number, box.id)
            raw = self._txn.get(key)
            held = _decode_acl(raw) if raw else {}
            kept = {name: entry for name, entry in held.items() if entry[0] != body.member}
            if kept:
                self._txn.put(key, encode(kept))
            elif held:
                self._txn.delete(key)
            self._look_again(state.number, box.id)
        head, member = keys.head(state.number, keys.MARK), body.member.to_bytes(4, "big")
        cursor = self._txn.cursor()
        found = cursor.set_range(head)
        while found and (key := cursor.key()).startswith(head):
            found = cursor.delete() if key[-4:] == member else cursor.next()
        return _NIL

    def _set_shared(self, body: wire.SetShared) -> bytes:
        state = self._state(body.account)
        key = keys.shared(state.number)
        raw = self._txn.get(key)
        owners = _decode_numbers(raw) if raw else []
        if body.on == (body.owner in owners):
            return _NIL
        if body.on:
            if len(owners) >= SHARED_MAX:
                raise StoreError("too many accounts share with this one", "LIMIT")
            owners.append(body.owner)
        else:
            owners.remove(body.owner)
        self._txn.put(key, encode(owners))
        return _NIL

    def _drop(self, body: wire.Drop) -> bytes:
        if self._txn.get(keys.account(body.account)) is None:
            return _NIL
        state = self._state(body.account)
        for box in list(state.boxes.values()):
            if not box.noselect:
                self._set_aside(state, box)
            self._remove_rows(state, box)
        if state.use is not None:
            self._add_use(state.use, -state.row.octets, -state.row.messages, -1)
        self._txn.delete(keys.account(state.number))
        self._txn.delete(keys.subscribed(state.number))
        for kind in (keys.METADATA, keys.ACL, keys.SHARED):
            self._delete_prefix(keys.head(state.number, kind))
        self._delete_prefix(keys.head(state.number, keys.TOMBSTONE))
        self._states.pop(state.number, None)
        self._used.pop(state.number, None)
        return _NIL

    def _delete_prefix(self, prefix: bytes, limit: int = 1 << 30) -> int:
        """Delete rows whose key begins with `prefix`, at most `limit`; how many."""
        cursor = self._txn.cursor()
        count = 0
        found = cursor.set_range(prefix)
        while found and count < limit and cursor.key().startswith(prefix):
            found = cursor.delete()
            count += 1
        return count

    # Housekeeping (reclaim.py)

    @property
    def txn(self) -> Any:
        """The current transaction."""
        return self._txn

    @property
    def now(self) -> int:
        """The time of the current transaction, seconds since 1970."""
        return self._now

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """A transaction of housekeeping, committed at the end; same care for caches and errors as `apply`."""
        self._now = int(self._clock())
        self.touched = {}
        txn = self._txn = self.env.begin(write=True)
        try:
            yield txn
            self._write_back()
            self.content.sync()
        except BaseException:
            txn.abort()
            self._drop_caches()
            raise
        self._commit(txn)

    def housekeep(self) -> bool:
        """One bounded slice of housekeeping; True if there is more to do now. Raises PartitionBroken, lmdb.Error, OSError."""
        self.touched = {}
        return self._reclaim.step()

    def remove_message(self, key: bytes) -> None:
        """Delete a message row and count what it named; nothing if it is gone."""
        value = self._txn.pop(key)
        if value is not None:
            self._count_row(value, -1)

    def let_go(self, key: bytes) -> None:
        """Delete the row of a message nobody can bring back any more, and note that it was here (for `iemsctl audit`)."""
        value = self._txn.get(key)
        self.remove_message(key)
        if value is not None and len(value) >= MESSAGE_HEAD.size:
            origin = bytes(value[20:36])
            if int.from_bytes(origin[:6], "big") // 1_000 + GONE_S >= self._now:
                self._txn.put(keys.gone(origin, int.from_bytes(key[:4], "big")), _U32.pack(self._now))

    def count_message(self, value: bytes) -> None:
        """Count what a message row that is being put names."""
        self._count_row(value, 1)

    def own_blob(self, blob: int) -> None:
        """The blob is a segment of this partition's own."""
        self._own.add(blob)

    def replace_message(self, key: bytes, old: bytes, new: bytes) -> None:
        """Put `new` in place of a message row and count what both name."""
        self._count_row(old, -1)
        self._count_row(new, 1)
        self._own.add(self.content.current)
        self._txn.put(key, new)

    def delete_prefix(self, prefix: bytes, limit: int) -> int:
        """Delete rows whose key begins with `prefix`, at most `limit`; how many."""
        return self._delete_prefix(prefix, limit)

    def mark_blobs(self, blobs: Iterable[int], on: int, off: int = 0) -> None:
        """Set and take away bits of blob rows."""
        for blob in blobs:
            raw = self._txn.get(keys.blob(blob))
            if raw is not None:
                live, length, since, bits = BLOB_ROW.unpack(raw)
                row = (live, length, since, (bits | on) & ~off)
                self._txn.put(keys.blob(blob), BLOB_ROW.pack(*row))
                self._blobs.pop(blob, None)

    def drop_blob(self, blob: int) -> None:
        """Delete a blob's row; its file's name goes after the commit."""
        self._txn.delete(keys.blob(blob))
        self._blobs.pop(blob, None)
        self._own.discard(blob)

    def forget_answer(self, client: int, seq: int) -> None:
        """A stored answer was deleted."""
        known = self._answers.get(client)
        if known is not None:
            known.pop(seq, None)
            if not known:
                del self._answers[client]

    def _forget(self, body: wire.Forget) -> bytes:
        for origin, account in body.pairs:
            self._txn.delete(keys.dedup(origin, account))
        return _NIL

    def close(self) -> None:
        """Close files and environment; everything answered is durable already."""
        self.content.close()
        self.env.close()


__all__ = ["BUSY", "Job", "Outcome", "Partition", "PartitionBroken", "refused"]
