"""Moves an account to another partition while its mail comes in and its owner reads.

Rows are copied in passes beside the writers, each pass bringing what changed since; contents get one more name, or are copied where the
file system refuses that. Then, for a moment, the source holds the account (writes wait), the last difference is brought, and

| step                      | durable state after it                              | killed here: where the account is, what comes next          |
| ------------------------- | --------------------------------------------------- | ------------------------------------------------------------ |
| note in `store/moves/`    | note                                                | source; again, or back                                       |
| `Bring` ...               | rows under a `staged` row of the target             | source; again (only what differs is brought), or back        |
| `Hold`, last `Bring`      | the same; held in memory of the source's writer     | source, held for 10 s at most; again, or back                |
| `Give`                    | source's row names the target                       | whole in the target, not open yet: writes wait; again        |
| `Take`                    | account row in the target                           | target; writes wait until the directory says so; again       |
| directory                 | entry names the target                              | target; again removes what is left in the source             |
| `Leave`, `Bring` (delete) | a row in the source that says it was there          | target                                                       |
| note removed              |                                                     | target                                                       |

`Give` is refused unless the source held the account from before the last difference was read. Every step may be repeated. What was moved keeps
its account number, mailbox ids, uids, modseqs, dates and origins; deliveries that are noted as done go along, so that none is done twice.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import msgspec
from msgspec import Struct

from iems import reserve
from iems.durable import sync_folder, write_durably
from iems.errors import IemsError, StoreError, StoreUnavailable
from iems.store import keys, wire
from iems.store.client import StoreClient
from iems.store.handover import is_message, owner_of
from iems.store.partition import MAP_OCTETS, MAX_READERS, Job, Partition
from iems.store.rows import MESSAGE_HEAD, Account

FOLDER = "moves"
#: Rows of one request, and octets of them: a session of the partition waits for one request at most.
SLICE_ROWS = 128
SLICE_OCTETS = 1 << 20
#: Passes beside the writers; it ends earlier when a pass brought few rows.
PASSES = 6
FEW_ROWS = 256
#: While the account is held, so often is it asked for again.
RENEW_S = 2.0
HOLDS = 5
PATIENCE_S = 30.0
_OF_ACCOUNT = (keys.MAILBOX, keys.SUBSCRIBED, keys.TOMBSTONE, keys.METADATA, keys.ACL, keys.SHARED)
_OF_MAILBOX = (keys.FLAGS, keys.MESSAGE, keys.VANISHED, keys.JOURNAL, keys.MARK)
_decode_account = msgspec.msgpack.Decoder(Account).decode
_decode_bool = msgspec.msgpack.Decoder(bool).decode
_decode_bytes = msgspec.msgpack.Decoder(bytes).decode


class MoveFailure(IemsError):
    """The account can't be moved now; it is where it was, or a repetition finishes the move."""


class Note(Struct):
    """What is under way with an account."""

    source: int
    target: int


class Side:
    """A partition, through its writer while the server runs, else opened here. Raises StoreUnavailable, lmdb.Error, OSError."""

    def __init__(self, home: Path, store: Path, spool: Path, number: int, undelete_s: float = 86_400) -> None:
        self.number = number
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: StoreClient | None = None
        self._partition: Partition | None = None
        folder = store / f"p{number}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(folder / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            index = folder / "index"
            reserve.lock_file(index)
            self.env = lmdb.open(str(index), readonly=True, create=False, max_readers=MAX_READERS, map_size=MAP_OCTETS, readahead=False)
            self._loop = asyncio.new_event_loop()
            self._client = StoreClient(self._loop, home / "run", partition_of=lambda _: number, patience_s=PATIENCE_S)
        else:
            self._partition = Partition(folder, spool, number=number, undelete_s=undelete_s)
            self.env = self._partition.env

    def ask(self, account: int, body: Any) -> bytes:
        """The packed answer. Raises StoreError, StoreUnavailable."""
        if self._client is not None and self._loop is not None:
            for _ in range(100):
                try:
                    return self._loop.run_until_complete(self._client.ask(account, body))
                except StoreUnavailable as error:
                    if "busy" not in str(error):
                        raise
                self._loop.run_until_complete(asyncio.sleep(0.05))
            raise StoreUnavailable("the store is busy")
        assert self._partition is not None
        [outcome] = self._partition.apply([Job(0, 0, 0, body)])
        if outcome.status == wire.BUSY:
            raise StoreUnavailable("the store can't write now: the disk may be full")
        if outcome.status == wire.REFUSED:
            code, text = msgspec.msgpack.decode(outcome.value, type=tuple[str, str])
            raise StoreError(text, code)
        return outcome.value

    def row(self, account: int) -> Account | None:
        """The account's row as it is now."""
        with self.env.begin() as txn:
            raw = txn.get(keys.account(account))
        return _decode_account(raw) if raw is not None else None

    def close(self) -> None:
        """Let go of the partition."""
        if self._client is not None and self._loop is not None:
            self._client.close()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()
            self.env.close()
        elif self._partition is not None:
            self._partition.close()
        os.close(self._fd)


class Notes:
    """The notes of moves (STORE/moves). One mover at a time, none while a backup is taken: `lock` is held as long as this is open."""

    def __init__(self, store: Path) -> None:
        self.folder = store / FOLDER
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise MoveFailure("an account is being moved or a backup taken: try again later") from None

    def read(self, account: int) -> Note | None:
        """What is under way with an account. Raises MoveFailure if the note can't be read."""
        try:
            return msgspec.json.decode((self.folder / str(account)).read_bytes(), type=Note)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MoveFailure(f"{self.folder / str(account)} can't be read: {error}") from error

    def accounts(self) -> list[int]:
        """The accounts with a note."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def write(self, account: int, note: Note) -> None:
        """Note a move, durably."""
        write_durably(self.folder / str(account), msgspec.json.encode(note))

    def remove(self, account: int) -> None:
        """The move is over."""
        (self.folder / str(account)).unlink(missing_ok=True)
        sync_folder(self.folder)

    def close(self) -> None:
        """Let others move."""
        os.close(self._fd)


def _same(key: bytes, here: bytes, there: bytes) -> bool:
    # A message row is written once; only the place of its octets differs, and changes when they are swept together.
    if is_message(key):
        return here[:4] == there[:4] and here[8 : MESSAGE_HEAD.size] == there[8 : MESSAGE_HEAD.size]
    return here == there


def _rows(txn: Any, prefix: bytes, account: int) -> Iterator[tuple[bytes, bytes]]:
    cursor = txn.cursor()
    if cursor.set_range(prefix):
        for key, value in cursor:
            if not key.startswith(prefix):
                return
            if owner_of(key) == account:
                yield key, value


def _mailbox_ids(txn: Any, account: int) -> set[int]:
    """The mailboxes an account has rows of, deleted ones among them."""
    found = set()
    for kind in (keys.MAILBOX, *_OF_MAILBOX):
        head = keys.head(account, kind)
        cursor = txn.cursor()
        at = head
        while cursor.set_range(at) and cursor.key().startswith(head):
            mailbox_id = int.from_bytes(cursor.key()[5:9], "big")
            found.add(mailbox_id)
            if mailbox_id == 0xFFFF_FFFF:
                break
            at = head + (mailbox_id + 1).to_bytes(4, "big")
    return found


class Mover:
    """One move. flip: makes the directory name the target, harmless to repeat. step: told of each step (for tests and for people)."""

    def __init__(self, account: int, source: Side, target: Side, flip: Callable[[], None], step: Callable[[str], None] = lambda name: None) -> None:
        self._account = account
        self._source = source
        self._target = target
        self._flip = flip
        self._step = step
        self._known: dict[int, bytes] = {}  # mailbox rows of the last pass: what is as it was then need not be walked again
        self._sent: tuple[list[tuple[bytes, bytes]], list[bytes], int] = ([], [], 0)
        self.brought = 0

    def run(self) -> None:
        """Move, or finish a move. Raises MoveFailure, StoreError, StoreUnavailable, lmdb.Error, OSError, IemsError (of flip)."""
        here, there = self._source.row(self._account), self._target.row(self._account)
        if here is None and there is None:
            self._source.ask(self._account, wire.Ensure(self._account))
            here = self._source.row(self._account)
        if here is not None and here.given < 0:
            if there is not None:
                raise MoveFailure("the account has rows in both partitions: iemsctl fsck tells which")
            row = self._bring_all()
        elif here is not None:
            row = self._give(0)
        else:
            row = b""
        if row:
            self._step("take")
            self._target.ask(self._account, wire.Take(self._account, row))
        self._step("flip")
        self._flip()
        self._step("leave")
        self._source.ask(self._account, wire.Leave(self._account))
        self._step("clear")
        self.clear(self._source)

    def given(self) -> bool:
        """Whether the account belongs to the target already."""
        here = self._source.row(self._account)
        return here is None or here.given >= 0

    def _give(self, token: int) -> bytes:
        self._step("give")
        return _decode_bytes(self._source.ask(self._account, wire.Give(self._account, token, self._target.number)))

    def _bring_all(self) -> bytes:
        """Bring everything and take the account from the source; its row."""
        for number in range(PASSES):
            self._step(f"pass {number + 1}")
            if self._pass(False) < FEW_ROWS:
                break
        for _ in range(HOLDS):
            token = int.from_bytes(os.urandom(7), "big") + 1
            self._step("hold")
            renew = Renewal(partial(self._source.ask, self._account, wire.Hold(self._account, token)))
            try:
                renew.begin()
                self._pass(True, renew)
                return self._give(token)
            except Lapsed:
                continue
            except StoreError as error:
                if error.code != "EXPIRED":
                    raise
        raise MoveFailure("the account could not be held long enough: the machine is too busy")

    def _pass(self, last: bool, renew: Renewal | None = None) -> int:
        """Bring what differs; how many rows."""
        before = self.brought
        with self._source.env.begin() as here, self._target.env.begin() as there:
            for prefix in self._prefixes(here, there):
                for key, old, new in _merged(_rows(here, prefix, self._account), _rows(there, prefix, self._account)):
                    if new is None:
                        self._remove(key, last)
                        if key[:5] == keys.head(0, keys.TRASH):
                            # The trash row kept a message row alive that may stand in a mailbox which is not walked again.
                            _, _, mailbox_id, uid = keys.split_trash(key)
                            message = keys.message(self._account, mailbox_id, uid)
                            if here.get(message) is None:
                                self._remove(message, last)
                    elif old is None or not _same(key, new, old):
                        self._put(key, new, last)
                    if renew is not None:
                        renew.again()
            self._send(last)
        return self.brought - before

    def _prefixes(self, here: Any, there: Any) -> Iterator[bytes]:
        """Prefixes of the rows to compare."""
        for kind in _OF_ACCOUNT:
            yield keys.head(self._account, kind)
        for mailbox_id in sorted(_mailbox_ids(here, self._account) | _mailbox_ids(there, self._account)):
            row = here.get(keys.mailbox(self._account, mailbox_id))
            if row is None or self._known.get(mailbox_id) != row:
                for kind in _OF_MAILBOX:
                    yield keys.prefix(self._account, kind, mailbox_id)
                self._known[mailbox_id] = row or b""
        for kind in (keys.DEDUP, keys.TRASH, keys.PURGE):
            yield keys.head(0, kind)

    def _put(self, key: bytes, value: bytes, last: bool) -> None:
        puts, deletes, octets = self._sent
        puts.append((key, value))
        self._sent = (puts, deletes, octets + len(key) + len(value))
        self._send_full(last)

    def _remove(self, key: bytes, last: bool) -> None:
        self._sent[1].append(key)
        self._send_full(last)

    def _send_full(self, last: bool) -> None:
        if len(self._sent[0]) + len(self._sent[1]) >= SLICE_ROWS or self._sent[2] >= SLICE_OCTETS:
            self._send(last)

    def _send(self, last: bool) -> None:
        puts, deletes, _ = self._sent
        self._sent = ([], [], 0)
        if puts or deletes:
            self.brought += len(puts) + len(deletes)
            self._step("bring")
            left = self._target.ask(self._account, wire.Bring(self._account, self._source.number, puts, deletes, last))
            if left != b"\x00":
                self._known.clear()  # something was left out: every mailbox is walked again

    def clear(self, side: Side) -> None:
        """Remove all rows of the account from a partition that does not have it (any more). Raises StoreError if it has."""
        account = self._account
        gone: list[bytes] = []
        with side.env.begin() as txn:
            kinds = [keys.head(0, kind) for kind in (keys.DEDUP, keys.TRASH, keys.PURGE)]
            for prefix in (account.to_bytes(4, "big"), *kinds):
                for key, _ in _rows(txn, prefix, account):
                    if key not in (keys.account(account), keys.staged(account)):
                        gone.append(key)
                    if len(gone) >= SLICE_ROWS:
                        side.ask(account, wire.Bring(account, side.number, [], gone))
                        self._step("clear")
                        gone = []
        # What says that these are rows of no account here changes last.
        side.ask(account, wire.Bring(account, side.number, [], [*gone, keys.staged(account)]))


class Lapsed(Exception):
    """The account was not held all the time."""


class Renewal:
    """Keeps an account held while rows are read. ask: sends the request."""

    def __init__(self, ask: Callable[[], bytes]) -> None:
        self._ask = ask
        self._next = 0.0

    def begin(self) -> None:
        """Hold it from now on."""
        self._ask()
        self._next = time.monotonic() + RENEW_S

    def again(self) -> None:
        """Hold on, if it is time. Raises Lapsed."""
        if time.monotonic() >= self._next:
            if not _decode_bool(self._ask()):
                raise Lapsed
            self._next = time.monotonic() + RENEW_S


def _merged(
    here: Iterator[tuple[bytes, bytes]], there: Iterator[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """(key, value there, value here) of all keys, ascending."""
    new, old = next(here, None), next(there, None)
    while new is not None or old is not None:
        if old is None or (new is not None and new[0] < old[0]):
            assert new is not None
            yield new[0], None, new[1]
            new = next(here, None)
        elif new is None or old[0] < new[0]:
            yield old[0], old[1], None
            old = next(there, None)
        else:
            yield new[0], old[1], new[1]
            new, old = next(here, None), next(there, None)


def move(
    home: Path, store: Path, spool: Path, account: int, now_in: int, wanted: int, flip: Callable[[int], None],
    undelete_s: float = 86_400, step: Callable[[str], None] = lambda name: None,
) -> int:
    """Move an account to partition `wanted`, finishing or taking back what an earlier try began; the partition it is in at the end.

    now_in: what the directory says. flip(partition): makes the directory say so. Raises MoveFailure, StoreError, StoreUnavailable, OSError,
    lmdb.Error; then the account is where it was, or the same call finishes the move.
    """
    notes = Notes(store)
    try:
        note = notes.read(account)
        if note is not None:
            now_in = _settle(home, store, spool, account, note, wanted, flip, undelete_s, step)
            notes.remove(account)
        if now_in != wanted:
            note = Note(now_in, wanted)
            notes.write(account, note)
            _settle(home, store, spool, account, note, wanted, flip, undelete_s, step)
            notes.remove(account)
        return wanted
    finally:
        notes.close()


def finish(
    home: Path, store: Path, spool: Path, flip: Callable[[int, int], None], undelete_s: float = 86_400
) -> list[int]:
    """Finish the moves whose mover died after the account was given away; the accounts. flip(account, partition). Raises as `move`."""
    notes = Notes(store)
    done = []
    try:
        for account in notes.accounts():
            note = notes.read(account)
            if note is None:
                continue
            sides = Side(home, store, spool, note.source, undelete_s), Side(home, store, spool, note.target, undelete_s)
            try:
                mover = Mover(account, *sides, partial(flip, account, note.target))
                if mover.given():
                    mover.run()
                    notes.remove(account)
                    done.append(account)
            finally:
                for side in sides:
                    side.close()
    finally:
        notes.close()
    return done


def _settle(
    home: Path, store: Path, spool: Path, account: int, note: Note, wanted: int, flip: Callable[[int], None],
    undelete_s: float, step: Callable[[str], None],
) -> int:
    """Carry out what a note says, or take it back if it can be and something else is wanted; where the account is then."""
    source = Side(home, store, spool, note.source, undelete_s)
    try:
        target = Side(home, store, spool, note.target, undelete_s)
        try:
            mover = Mover(account, source, target, lambda: flip(note.target), step)
            if note.target != wanted and not mover.given():
                mover.clear(target)
                return note.source
            mover.run()
            return note.target
        finally:
            target.close()
    finally:
        source.close()
