"""Whether mailboxes hold what the spool says was delivered: the other half of `iemsctl audit`.

The spool names each delivery as long as it has the segment of its outcome; a message row names the message it came from (origin), in whatever
mailbox it is now, in the trash too. What was let go of for good leaves a note for a while (`keys.GONE`). Reads only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import lmdb
from msgspec import Struct

from iems import reserve
from iems.model import child_id
from iems.store import keys
from iems.store.rows import MESSAGE_HEAD

#: How far below the oldest message looked for the time of a row may be, as clocks go.
MARGIN_S: Final = 3_600
_SAVED, _ORIGIN = slice(16, 20), slice(20, 36)
_MAP_OCTETS = 256 << 30


class Balance(Struct):
    """Deliveries by what became of them. held: in a mailbox, or still to be brought back. removed: let go of since, by the user or by a
    rule. lost: (id, address) of which nothing is known; there must be none."""

    held: int
    removed: int
    lost: list[tuple[bytes, bytes]]


def balance(store: Path, delivered: Iterable[tuple[bytes, bytes]], number_of: Callable[[bytes], int], exists: Callable[[int], bool]) -> Balance:
    """Hold deliveries against the partitions under `store` (HOME/store).

    delivered: (id of the message, address). number_of: address -> account, 0 for none. exists: whether there is an account of a number: what
    one that was deleted had is not lost. Raises lmdb.Error.
    """
    wanted = set(delivered)
    found = Balance(0, 0, [])
    if not wanted:
        return found
    left = _pass(store, wanted, number_of, exists, found, True)
    if left:
        # Once more, through everything: what was moved between two partitions, rows of a time when the clock was wrong, mail that a rule
        # has put into a mailbox of somebody else, under an id made of this one.
        left = _pass(store, left, number_of, exists, found, False)
    if left:
        boxes = set(_mailbox_ids(store))
        made = {
            child_id(origin, b"shared\0%d\0%d" % (number, box)): (origin, address)
            for origin, address in left
            if (number := number_of(address))
            for box in boxes
        }
        present, gone = _look(store, made.keys(), False)
        for origin in present.keys() | gone.keys():
            if made[origin] in left:
                left.discard(made[origin])
                found.held += origin in present
                found.removed += origin not in present
    found.lost = sorted(left)
    return found


def _pass(
    store: Path, wanted: set[tuple[bytes, bytes]], number_of: Callable[[bytes], int], exists: Callable[[int], bool], found: Balance, recent: bool
) -> set[tuple[bytes, bytes]]:
    """Count what is found; what is not."""
    present, gone = _look(store, {origin for origin, _ in wanted}, recent)
    left = set()
    for origin, address in wanted:
        number, here, was = number_of(address), present.get(origin, set()), gone.get(origin, set())
        if number in here:
            found.held += 1
        elif number in was or any(not exists(other) for other in here | was):
            found.removed += 1
        else:
            left.add((origin, address))
    return left


def _environments(store: Path) -> Iterator[Any]:
    for path in sorted(store.glob("p*")):
        if not path.name[1:].isdigit() or not (path / "index" / "data.mdb").exists():
            continue
        reserve.lock_file(path / "index")
        env = lmdb.open(str(path / "index"), readonly=True, create=False, max_readers=4096, map_size=_MAP_OCTETS, readahead=False)
        try:
            yield env
        finally:
            env.close()


def _look(store: Path, wanted: Collection[bytes], recent: bool) -> tuple[dict[bytes, set[int]], dict[bytes, set[int]]]:
    """Of these origins: accounts that have a row of them, accounts that had one. recent: of each mailbox only rows as young as they are."""
    present: dict[bytes, set[int]] = {}
    gone: dict[bytes, set[int]] = {}
    since_s = min(int.from_bytes(origin[:6], "big") for origin in wanted) // 1_000 - MARGIN_S if recent and wanted else 0
    for env in _environments(store):
        with env.begin(buffers=True) as txn:
            for origin in wanted:
                prefix = keys.gone(origin, 0)[:-4]
                cursor = txn.cursor()
                if cursor.set_range(prefix):
                    for key in cursor.iternext(values=False):
                        if bytes(key[: len(prefix)]) != prefix:
                            break
                        gone.setdefault(origin, set()).add(int.from_bytes(key[-4:], "big"))
            for account, box in _mailboxes(txn):
                _of_mailbox(txn, account, box, wanted, since_s, present)
    return present, gone


def _of_mailbox(txn: Any, account: int, box: int, wanted: Collection[bytes], since_s: int, present: dict[bytes, set[int]]) -> None:
    """The newest rows first: uids and the times they were given out grow together."""
    prefix = keys.prefix(account, keys.MESSAGE, box)
    cursor = txn.cursor()
    more = cursor.prev() if cursor.set_range(keys.prefix(account, keys.MESSAGE, box + 1)) else cursor.last()
    while more and bytes(cursor.key()[: len(prefix)]) == prefix:
        value = cursor.value()
        if len(value) >= MESSAGE_HEAD.size:
            if int.from_bytes(value[_SAVED], "little") < since_s:
                return
            origin = bytes(value[_ORIGIN])
            if origin in wanted:
                present.setdefault(origin, set()).add(account)
        more = cursor.prev()


def _mailboxes(txn: Any) -> Iterator[tuple[int, int]]:
    """(account, mailbox) of which there are message rows, deleted mailboxes among them."""
    cursor = txn.cursor()
    at = keys.head(1, 0)
    while cursor.set_range(at):
        key = bytes(cursor.key())
        account, kind = int.from_bytes(key[:4], "big"), key[4]
        if kind < keys.MESSAGE:
            at = keys.head(account, keys.MESSAGE)
        elif kind > keys.MESSAGE or len(key) != keys.UID_KEY:
            if account == 0xFFFF_FFFF:
                return
            at = keys.head(account + 1, 0)
        else:
            box = int.from_bytes(key[5:9], "big")
            yield account, box
            at = keys.prefix(account, keys.MESSAGE, box + 1) if box < 0xFFFF_FFFF else keys.head(account, keys.MESSAGE + 1)


def _mailbox_ids(store: Path) -> Iterator[int]:
    for env in _environments(store):
        with env.begin() as txn:
            for _, box in _mailboxes(txn):
                yield box


__all__ = ["Balance", "balance"]
